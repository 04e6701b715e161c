//! Any bytes against the decoder of heads of packed working sets.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rekindle_testkit::decoders;

fuzz_target!(|bytes: &[u8]| {
    decoders::packed_set(bytes);
});
