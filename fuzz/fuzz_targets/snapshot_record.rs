//! Any bytes against the decoder of snapshots' records.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rekindle_testkit::decoders;

fuzz_target!(|bytes: &[u8]| {
    decoders::snapshot_record(bytes);
});
