//! Any bytes against the decoder of the tables of layer objects.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rekindle_testkit::decoders;

fuzz_target!(|bytes: &[u8]| {
    decoders::object_table(bytes);
});
