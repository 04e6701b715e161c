//! Any bytes against the decoders of what another node answers.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::peer::Described;
use rekindle_peer::Taken;
use rekindle_peer::layers::{decode_frames, decode_held, decode_wanted_frames, encode_held};
use rekindle_peer::message::decode_pages;

/// Pages that were asked for.
const PAGES: u32 = 73;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(described) = Described::decode(bytes) {
        assert_eq!(described.encode(), bytes, "a description has one encoding");
    }
    if let Some(snapshot) = bytes.first_chunk().copied().map(SnapshotId::from_bytes)
        && let Ok(taken) = Taken::decode(snapshot, bytes)
    {
        assert_eq!(taken.encode(snapshot), bytes, "an answer about a sandbox has one encoding");
    }
    if let Ok(held) = decode_held(bytes) {
        assert_eq!(decode_held(&encode_held(&held)), Ok(held));
    }
    // The request, which an answer begins with, after its length.
    let request = bytes.split_first().and_then(|(length, rest)| rest.get(..usize::from(*length)));
    if let Some(request) = request
        && let Ok(pages) = decode_pages(bytes, request, PAGES)
    {
        assert_eq!(pages.len(), 4096 * 73, "all pages that were asked for");
    }
    if let Some(request) = request
        && let Ok((wanted, _)) = decode_wanted_frames(request)
        && let Ok(frames) = decode_frames(&Bytes::copy_from_slice(bytes), request, &wanted)
    {
        assert_eq!(frames.len(), wanted.frames.len(), "all frames that were asked for, there or not");
    }
});
