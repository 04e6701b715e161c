//! The questions about layers: which of them a node has, and their frames.

use bytes::Bytes;
use rekindle_engine::frame::frames_of;
use rekindle_engine::geometry::PAGE_BYTES;
use rekindle_engine::identity::LayerId;
use rekindle_engine::limits::{LAYERS_ASKED_AT_ONCE, PEER_FRAMES_MAX};
use rekindle_engine::peer::{EngineId, HeldLayers, WantedLayer};
use rekindle_engine::sources::Class;
use rekindle_engine::wire::{Reader, WireError, Writer};

use crate::limits::REQUEST_BYTES_MAX;
use crate::message::{read_class, write_class};

/// Bytes of the longest answer to a request for frames.
pub const FRAMES_ANSWER_BYTES_MAX: usize = PEER_FRAMES_MAX * 64 * PAGE_BYTES + REQUEST_BYTES_MAX;

/// Bytes of the longest answer to the question which layers a node has.
pub const HELD_BYTES_MAX: usize = LAYERS_ASKED_AT_ONCE * 10 + 32;

/// Encodes the question which of these layers a node has.
#[must_use]
pub fn encode_layers(layers: &[LayerId]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.varint_usize(layers.len());
    layers.iter().for_each(|layer| writer.bytes(layer.as_bytes()));
    writer.into_bytes()
}

/// Reads what [`encode_layers`] wrote, and refuses all else.
pub fn decode_layers(bytes: &[u8]) -> Result<Vec<LayerId>, WireError> {
    let mut reader = Reader::new(bytes);
    let count = reader.varint_usize("layers", LAYERS_ASKED_AT_ONCE)?;
    let layers = (0..count).map(|_| Ok(LayerId::from_bytes(reader.array("layer")?)));
    let layers = layers.collect::<Result<_, WireError>>()?;
    reader.finish()?;
    Ok(layers)
}

/// Encodes the answer to that.
#[must_use]
pub fn encode_held(held: &HeldLayers) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.bytes(&held.engine.0);
    writer.varint_usize(held.bytes.len());
    held.bytes.iter().for_each(|bytes| writer.varint(*bytes));
    writer.into_bytes()
}

/// Reads what [`encode_held`] wrote, and refuses all else.
pub fn decode_held(bytes: &[u8]) -> Result<HeldLayers, WireError> {
    let mut reader = Reader::new(bytes);
    let engine = EngineId(reader.array("engine")?);
    let count = reader.varint_usize("layers", LAYERS_ASKED_AT_ONCE)?;
    let held = (0..count).map(|_| reader.varint("bytes of a layer")).collect::<Result<_, _>>()?;
    reader.finish()?;
    Ok(HeldLayers { engine, bytes: held })
}

/// Encodes a request for frames, which are within the limits of one.
#[must_use]
pub fn encode_wanted_frames(wanted: &WantedLayer, class: Class) -> Vec<u8> {
    let mut writer = Writer::new();
    write_class(&mut writer, class);
    writer.bytes(wanted.layer.as_bytes());
    writer.varint(wanted.pages.into());
    writer.varint_usize(wanted.frames.start);
    writer.varint_usize(wanted.frames.len());
    writer.into_bytes()
}

/// Reads what [`encode_wanted_frames`] wrote; at least one frame is wanted, and each is one of a layer of so many pages.
pub fn decode_wanted_frames(bytes: &[u8]) -> Result<(WantedLayer, Class), WireError> {
    let mut reader = Reader::new(bytes);
    let class = read_class(&mut reader)?;
    let layer = LayerId::from_bytes(reader.array("layer")?);
    let pages = reader.varint_u32("pages of the layer", u32::MAX)?;
    let start = reader.varint_usize("first frame", frames_of(pages))?;
    let count = reader.varint_usize("frames", (frames_of(pages) - start).min(PEER_FRAMES_MAX))?;
    if count == 0 {
        return Err(reader.invalid("frames", "there is none"));
    }
    reader.finish()?;
    Ok((WantedLayer { layer, pages, frames: start..start + count }, class))
}

/// The beginning of the answer to a request for frames: which of them are there. Their bytes follow, one after the other, each
/// as long as it must be.
#[must_use]
pub fn begin_frames(request: &[u8], there: &[bool]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.length_prefixed(request);
    there.iter().for_each(|is_there| writer.u8((*is_there).into()));
    writer.into_bytes()
}

/// The frames in an answer, if it is one to this request.
pub fn decode_frames(
    answer: &Bytes,
    request: &[u8],
    wanted: &WantedLayer,
) -> Result<Vec<Option<Bytes>>, WireError> {
    let mut reader = Reader::new(answer);
    if reader.length_prefixed("request", REQUEST_BYTES_MAX)? != request {
        return Err(reader.invalid("request", "it is the answer to another one"));
    }
    let said = |_| match reader.u8("frame that is there")? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(reader.invalid("frame that is there", "it is neither there nor not")),
    };
    let there = wanted.frames.clone().map(said).collect::<Result<Vec<bool>, WireError>>()?;
    let mut frames = Vec::with_capacity(there.len());
    for (is_there, length) in there.into_iter().zip(wanted.lengths()) {
        let body = if is_there { Some(answer.slice_ref(reader.bytes("frame", length)?)) } else { None };
        frames.push(body);
    }
    reader.finish()?;
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message, and whether its decoder refuses bytes.
    type Refusal = (Vec<u8>, fn(&[u8]) -> bool);

    fn wanted() -> WantedLayer {
        WantedLayer { layer: LayerId::from_bytes([7; 32]), pages: 130, frames: 1..3 }
    }

    #[test]
    fn questions_about_layers_are_read_back_equal_and_refused_cut_short_or_longer() {
        let layers = vec![LayerId::from_bytes([1; 32]), LayerId::from_bytes([2; 32])];
        let held = HeldLayers { engine: EngineId([3; 16]), bytes: vec![0, 1 << 40] };
        let (asked, told) = (encode_layers(&layers), encode_held(&held));
        let request = encode_wanted_frames(&wanted(), Class::Ahead);
        assert_eq!(decode_layers(&asked), Ok(layers));
        assert_eq!(decode_held(&told), Ok(held));
        assert_eq!(decode_wanted_frames(&request), Ok((wanted(), Class::Ahead)));
        let is_refused: [Refusal; 3] = [
            (asked, |bytes| decode_layers(bytes).is_err()),
            (told, |bytes| decode_held(bytes).is_err()),
            (request, |bytes| decode_wanted_frames(bytes).is_err()),
        ];
        for (bytes, is_refused) in is_refused {
            assert!((0..bytes.len()).all(|end| is_refused(&bytes[..end])));
            assert!(is_refused(&[bytes, vec![0]].concat()));
        }
    }

    #[test]
    fn a_request_for_no_frame_for_too_many_or_for_one_that_no_such_layer_has_is_refused() {
        for frames in [1..1, 2..4, 3..4, 0..PEER_FRAMES_MAX + 1] {
            let pages = if frames.len() > PEER_FRAMES_MAX { u32::MAX } else { 130 };
            let request = encode_wanted_frames(&WantedLayer { pages, frames, ..wanted() }, Class::Fault);
            assert!(decode_wanted_frames(&request).is_err());
        }
    }

    #[test]
    fn an_answer_has_the_frames_that_are_there_and_one_to_another_request_or_of_another_length_is_refused() {
        let request = encode_wanted_frames(&wanted(), Class::Fault);
        let frames = vec![None, Some(vec![9; 2 * PAGE_BYTES])];
        let mut answer = begin_frames(&request, &[false, true]);
        answer.extend(frames.iter().flatten().flatten());
        let answer = Bytes::from(answer);
        let read = decode_frames(&answer, &request, &wanted()).expect("it is the answer");
        let bodies: Vec<_> = read.into_iter().map(|frame| frame.map(|body| body.to_vec())).collect();
        assert_eq!(bodies, frames);
        let other = encode_wanted_frames(&WantedLayer { frames: 0..2, ..wanted() }, Class::Fault);
        assert!(decode_frames(&answer, &other, &wanted()).is_err());
        for end in 0..answer.len() {
            assert!(decode_frames(&answer.slice(..end), &request, &wanted()).is_err(), "{end}");
        }
        let longer = Bytes::from([&answer[..], &[0]].concat());
        assert!(decode_frames(&longer, &request, &wanted()).is_err());
    }
}
