//! Any bytes against the decoder of hand-over messages.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rekindle_testkit::decoders;

fuzz_target!(|bytes: &[u8]| {
    decoders::handover(bytes);
});
