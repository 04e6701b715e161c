//! Any bytes against the decoder of manifests in a catalog.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rekindle_testkit::decoders;

fuzz_target!(|bytes: &[u8]| {
    decoders::local_manifest(bytes);
    decoders::local_manifest(&decoders::manifest_resealed(bytes));
});
