//! Reads ranges of objects, whose bytes are used as they come.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{BoxStream, Fuse, StreamExt as _, try_unfold};
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetResult, GetResultPayload};
use tokio::task::spawn_blocking;

use crate::geometry::u64_of;
use crate::identity::LayerId;
use crate::limits;
use crate::manifest::ObjectName;
use crate::store::{Store, StoreError, layer_path};

/// A range of an object, whose bytes come one after the other.
pub(crate) struct Arriving {
    store: Store,
    path: ObjectPath,
    /// Fused, as the end may be asked for more than once.
    chunks: Fuse<BoxStream<'static, object_store::Result<Bytes>>>,
    expected: u64,
    found: u64,
}

impl Store {
    /// Begins to read a range of a layer object; this returns when its first bytes are there.
    pub(crate) async fn get_layer(
        &self,
        layer: LayerId,
        at: &ObjectName,
        range: Range<u64>,
    ) -> Result<Arriving, StoreError> {
        self.get_range(layer_path(layer, at), range).await
    }

    /// Begins to read a range of an object.
    pub(crate) async fn get_range(
        &self,
        path: ObjectPath,
        range: Range<u64>,
    ) -> Result<Arriving, StoreError> {
        let expected = range.end - range.start;
        let options = GetOptions { range: Some(range.into()), ..GetOptions::default() };
        let answer = match self.objects().await?.get_opts(&path, options).await {
            Ok(answer) => answer,
            Err(source) => return Err(self.failure(&path, source).await),
        };
        self.count_fetch();
        Ok(Arriving { store: self.clone(), path, chunks: chunks_of(answer).fuse(), expected, found: 0 })
    }
}

impl Arriving {
    /// The next bytes; none after exactly as many as were asked for.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        let Some(chunk) = self.chunks.next().await else {
            let Self { path, expected, found, .. } = self;
            let length = StoreError::Length { path: path.clone(), expected: *expected, found: *found };
            return if found == expected { Ok(None) } else { Err(length) };
        };
        let chunk = chunk.map_err(|source| StoreError::from_store(&self.path, source))?;
        self.found += u64_of(chunk.len());
        self.store.count_fetched(&chunk);
        Ok(Some(chunk))
    }
}

impl fmt::Debug for Arriving {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} of {} bytes of {}", self.found, self.expected, self.path)
    }
}

/// The bytes of an answer. Those of a file are read in long pieces, as each costs a turn of another thread.
fn chunks_of(answer: GetResult) -> BoxStream<'static, object_store::Result<Bytes>> {
    match answer.payload {
        GetResultPayload::Stream(chunks) => chunks,
        GetResultPayload::File(file, _) => try_unfold((Arc::new(file), answer.range), next_piece).boxed(),
    }
}

/// A file, and the bytes of it that are still to be read.
type Rest = (Arc<File>, Range<u64>);

async fn next_piece((file, rest): Rest) -> object_store::Result<Option<(Bytes, Rest)>> {
    if rest.is_empty() {
        return Ok(None);
    }
    let end = rest.end.min(rest.start + limits::FILE_READ_BYTES);
    let from = Arc::clone(&file);
    let read = spawn_blocking(move || {
        let mut piece = vec![0; usize::try_from(end - rest.start).expect("a piece is short")];
        from.read_exact_at(&mut piece, rest.start).map(|()| Bytes::from(piece))
    });
    let failed = |source| object_store::Error::Generic { store: "directory", source };
    let piece = read.await.map_err(|error| failed(error.into()))?;
    Ok(Some((piece.map_err(|error| failed(error.into()))?, (file, end..rest.end))))
}
