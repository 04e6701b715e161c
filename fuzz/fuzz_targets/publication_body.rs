//! Any bytes under a right length and checksum against the decoder of publications.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rekindle_testkit::decoders;

fuzz_target!(|bytes: &[u8]| {
    decoders::publication(&decoders::manifest_resealed(bytes));
});
