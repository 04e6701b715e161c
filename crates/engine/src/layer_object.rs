//! Makes the object of a layer: its frames, compressed on several threads, then the table.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};

use crate::frame::FrameNumber;
use crate::geometry::u64_of;
use crate::identity::SnapshotId;
use crate::layer::Layer;
use crate::limits;
use crate::object::{EncodedFrame, FramePlaces, ObjectTable, StoredFrame};
use crate::pool::PoolHandle;
use crate::publish_error::PublishError;

/// The table at the end of an object.
pub(crate) struct ObjectEnd {
    pub(crate) table_digest: [u8; 32],
    pub(crate) table_bytes: u64,
    /// Bytes of the whole object.
    pub(crate) object_bytes: u64,
    pub(crate) frames: FramePlaces,
}

/// The frames of a layer from `first` on, compressed, a few together and in their order.
pub(crate) fn encoded_frames(
    layer: &Arc<Layer>,
    pool: &PoolHandle,
    publisher: SnapshotId,
    first: usize,
) -> impl Stream<Item = Result<Vec<EncodedFrame>, PublishError>> + use<> {
    let (layer, pool, frames) = (Arc::clone(layer), pool.clone(), frames_in(layer));
    let encode = move |begin: usize| {
        let (layer, pool) = (Arc::clone(&layer), pool.clone());
        let together = begin..frames.min(begin + limits::UPLOAD_FRAMES_TOGETHER);
        async move { pool.run(publisher, move || encode(&layer, together)).await }
    };
    let begins = (first..frames).step_by(limits::UPLOAD_FRAMES_TOGETHER);
    stream::iter(begins).map(encode).buffered(limits::UPLOAD_ENCODES_AT_ONCE)
}

/// Number of frames of a layer that is not stored.
pub(crate) fn frames_in(layer: &Layer) -> usize {
    layer.index().expect("a layer that is not stored was packed here, with its index").frames()
}

impl ObjectEnd {
    /// The end of an object that has these frames, and its bytes.
    pub(crate) fn of(layer: &Layer, frames: &[StoredFrame]) -> (Self, Bytes) {
        let index = layer.index().expect("its frames were compressed by it").clone();
        let table = ObjectTable::new(index, frames);
        let bytes = table.encode();
        let table_bytes = u64_of(bytes.len());
        let end = Self {
            table_digest: *blake3::hash(&bytes).as_bytes(),
            table_bytes,
            object_bytes: table.frames_bytes() + table_bytes,
            frames: table.into_parts().1,
        };
        (end, Bytes::from(bytes))
    }
}

fn encode(layer: &Layer, frames: Range<usize>) -> Result<Vec<EncodedFrame>, PublishError> {
    let local = layer.local();
    let encode = |number| Ok(EncodedFrame::of(&local.read_frame(FrameNumber::new(number))?)?);
    frames.map(encode).collect()
}
