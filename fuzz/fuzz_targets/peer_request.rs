//! Any bytes against the decoders of what another node asks.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rekindle_peer::Taking;
use rekindle_peer::message::{decode_wanted, encode_wanted, snapshot_of};

fuzz_target!(|bytes: &[u8]| {
    if let Ok((wanted, class)) = decode_wanted(bytes) {
        assert_eq!(decode_wanted(&encode_wanted(&wanted, class)), Ok((wanted, class)));
    }
    if let Ok(taking) = Taking::decode(bytes) {
        assert_eq!(taking.encode(), bytes, "a question to take a sandbox has one encoding");
    }
    snapshot_of(bytes).ok();
});
