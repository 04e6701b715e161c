//! Any bytes against the decoders of what another node asks.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rekindle_peer::Taking;
use rekindle_peer::layers::{decode_layers, decode_wanted_frames, encode_layers, encode_wanted_frames};
use rekindle_peer::message::{decode_wanted, encode_wanted, snapshot_of};

fuzz_target!(|bytes: &[u8]| {
    if let Ok((wanted, class)) = decode_wanted(bytes) {
        assert_eq!(decode_wanted(&encode_wanted(&wanted, class)), Ok((wanted, class)));
    }
    if let Ok(taking) = Taking::decode(bytes) {
        assert_eq!(taking.encode(), bytes, "a question to take a sandbox has one encoding");
    }
    if let Ok(layers) = decode_layers(bytes) {
        assert_eq!(decode_layers(&encode_layers(&layers)), Ok(layers));
    }
    if let Ok((wanted, class)) = decode_wanted_frames(bytes) {
        assert_eq!(decode_wanted_frames(&encode_wanted_frames(&wanted, class)), Ok((wanted, class)));
    }
    snapshot_of(bytes).ok();
});
