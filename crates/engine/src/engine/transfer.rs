//! Snapshots as files: a published one is written into a file, and one in a file is published into this engine's store.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::Engine;
use crate::attempt::{FetchError, accept, checked_table, decode, keep_index, size_of};
use crate::export_file::{
    ExportFile, ExportFileError, ExportWriter, MANIFEST_ENTRY, WORKING_SET_ENTRY, layer_entry,
};
use crate::frame::{FrameNumber, frames_of};
use crate::identity::SnapshotId;
use crate::layer::Layer;
use crate::life::{Life, Work};
use crate::limits;
use crate::local_file::LayerError;
use crate::manifest::{Publication, StoredLayer};
use crate::named::Named;
use crate::object_tables::read_table;
use crate::open::{OpenError, handles_of, parts_of};
use crate::snapshot::Snapshot;
use crate::snapshot_record::SealFacts;
use crate::sources::{Class, SourceError};
use crate::store::StoreError;
use crate::tag::TaggedError;
use crate::working_set::WorkingSet;
use crate::working_sets::find;

/// A snapshot that was written to a file, or read from one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transferred {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Number of its layers.
    pub layers: usize,
    /// Bytes of their objects.
    pub bytes: u64,
    /// True if there was nothing to do: the store has it already.
    pub was_there: bool,
}

/// Reason that a snapshot is not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It is not in the store, or cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// An object of it cannot be read, or has wrong bytes.
    #[error(transparent)]
    Layer(#[from] FetchError),
    /// The file cannot be written.
    #[error("writing the file: {0}")]
    Io(#[from] io::Error),
}

/// Reason that an export is not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file is none, or is damaged.
    #[error("the file: {0}")]
    File(#[from] ExportFileError),
    /// Its manifest is damaged, or its tag is wrong or cannot be checked.
    #[error("the manifest in the file cannot be read: {0}")]
    Manifest(#[from] TaggedError),
    /// The snapshot cannot be used here.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A layer in the file has wrong bytes, or this disk failed.
    #[error("the file: {0}")]
    Layer(#[from] FetchError),
    /// The store did not take it.
    #[error(
        "snapshot {snapshot} is not in the store: {reason}; the file is as it was, so the same can be tried again"
    )]
    Publish {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The reason.
        reason: String,
    },
}

impl Engine {
    /// Writes a published snapshot into `into`; each frame is verified before it is written.
    pub fn export(&self, snapshot: SnapshotId, into: impl Write) -> Result<Transferred, ExportError> {
        let opened = self.open(snapshot)?;
        // Nothing that is read is collected meanwhile, also if any node deletes the snapshot.
        let _runs_from = self.runs_from(&opened);
        if let Err(error) = self.look_after_roots() {
            tracing::warn!(%snapshot, %error, "other nodes may delete meanwhile what is exported");
        }
        let sources = self.fetcher.sources();
        let unread = |source| OpenError::Store { snapshot, source };
        let stored = self.runtime.block_on(sources.manifest(snapshot, Class::Background)).map_err(unread)?;
        let unusable = |source| OpenError::Manifest { snapshot, source };
        let (publication, domain) =
            stored.publication(snapshot, None, self.cache.keys()).map_err(unusable)?;
        let layers = handles_of(&publication, &domain, &self.cache)?;
        let mut out = ExportWriter::begin(into)?;
        out.entry(MANIFEST_ENTRY, stored.bytes())?;
        for (layer, place) in layers.iter().zip(publication.stored()) {
            out.long_entry(&layer_entry(layer.id()), place.object_bytes, |into| {
                self.copy_object(layer, place, into)
            })?;
        }
        if let Some(bytes) = self.stored_working_set(&opened) {
            out.entry(WORKING_SET_ENTRY, &bytes)?;
        }
        out.end()?.flush()?;
        Ok(transferred(&publication, false))
    }

    /// Copies the object of a layer; fails at the first frame that is not what the layer's name commits to.
    fn copy_object(
        &self,
        layer: &Layer,
        place: &StoredLayer,
        into: &mut dyn Write,
    ) -> Result<(), ExportError> {
        let failed = |error: StoreError| FetchError::from(SourceError::from(error));
        let store = self.background.store();
        let table_bytes = self.runtime.block_on(read_table(layer, place, store)).map_err(failed)?;
        let table = checked_table(layer.facts(), place, &table_bytes)?;
        let (index, places) = (table.index(), table.places());
        let frames = store.get_layer(layer.id(), &place.object, 0..table.frames_bytes());
        let mut arriving = self.runtime.block_on(frames).map_err(failed)?;
        let mut arrived = BytesMut::new();
        for frame in (0..index.frames()).map(FrameNumber::new) {
            let range = places.frame_range(frame);
            let length = size_of(range.end - range.start);
            while arrived.len() < length
                && let Some(bytes) = self.runtime.block_on(arriving.next()).map_err(failed)?
            {
                arrived.extend_from_slice(&bytes);
            }
            let encoded = arrived.split_to(length);
            let raw = decode(layer.facts(), frame, places.codec(frame), &encoded)?;
            if !index.is_frame(frame, &raw, layer.facts().key()) {
                return Err(FetchError::from(LayerError::Digest { layer: layer.id(), frame }).into());
            }
            into.write_all(&encoded)?;
        }
        Ok(into.write_all(&table_bytes)?)
    }

    /// The working set of a snapshot, without its pages, which the importing engine packs again; it is advice, so one that
    /// cannot be had is left out.
    fn stored_working_set(&self, snapshot: &Snapshot) -> Option<Bytes> {
        let found = self.runtime.block_on(find(snapshot, self.fetcher.sources(), false))?;
        let key = self.cache.keys().of_domain(snapshot.domain()).ok()?;
        Some(found.set.encode(key).into())
    }

    /// Publishes the snapshot in an export into this engine's store, unless it is there already. Every frame is verified
    /// before any is uploaded. The engine has no catalog: its layer files go when it ends.
    pub fn import(&self, file: File) -> Result<Transferred, ImportError> {
        assert!(self.background.records.is_none(), "an import is made by an engine without a catalog");
        let export = ExportFile::open(file)?;
        let bytes = export.whole(MANIFEST_ENTRY, limits::MANIFEST_BYTES_MAX)?;
        let (publication, domain) = Publication::decode_of_domain(&bytes, self.cache.keys())?;
        let snapshot = publication.manifest().snapshot();
        match self.open(snapshot) {
            Ok(_) => return Ok(transferred(&publication, true)),
            Err(OpenError::Store { source: SourceError::Gone(_), .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let layers = handles_of(&publication, &domain, &self.cache)?;
        for (layer, place) in layers.iter().zip(publication.stored()) {
            take_in(layer, place, &export)?;
        }
        let named = Named::new(publication.manifest().clone(), layers);
        let imported = Snapshot::named(parts_of(&named, domain, None), named, false, SealFacts::default());
        if export.has(WORKING_SET_ENTRY) {
            let bytes = export.whole(WORKING_SET_ENTRY, limits::WORKING_SET_BYTES_MAX)?;
            let set = WorkingSet::decode(&bytes, self.cache.keys()).inspect_err(
                |error| tracing::warn!(%snapshot, %error, "the working set in the file is none"),
            );
            imported.working_set().found(set.ok().map(|set| (set, false)));
        }
        self.publish_once(Arc::new(imported))?;
        Ok(transferred(&publication, false))
    }

    /// One try to publish a snapshot, whose layers are whole on this disk.
    fn publish_once(&self, snapshot: Arc<Snapshot>) -> Result<(), ImportError> {
        let id = snapshot.id();
        let work = Work::left(&snapshot, Vec::new());
        let life = Life { snapshot, background: Arc::clone(&self.background) };
        let not_done = |reason: String| ImportError::Publish { snapshot: id, reason };
        match self.runtime.block_on(life.attempt(&work)) {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(failure)) => Err(not_done(failure.into_reason())),
            Err(stopped) => Err(not_done(stopped.to_string())),
        }
    }
}

/// Takes every frame of a layer into its local file.
fn take_in(layer: &Arc<Layer>, place: &StoredLayer, export: &ExportFile) -> Result<(), ImportError> {
    let entry = layer_entry(layer.id());
    export.expect_bytes(&entry, place.object_bytes)?;
    let table_start = place.object_bytes - place.table_bytes;
    let table = export.part(&entry, table_start, size_of(place.table_bytes))?;
    let (index, places) = checked_table(layer.facts(), place, &table)?.into_parts();
    let local = layer.local();
    if layer.index().is_none() {
        keep_index(&local, index);
    }
    for frame in (0..frames_of(layer.pages())).map(FrameNumber::new) {
        let range = places.frame_range(frame);
        let encoded = export.part(&entry, range.start, size_of(range.end - range.start))?;
        accept(&local, frame, places.codec(frame), &encoded)?;
    }
    Ok(())
}

fn transferred(publication: &Publication, was_there: bool) -> Transferred {
    let stored = publication.stored();
    Transferred {
        snapshot: publication.manifest().snapshot(),
        layers: stored.len(),
        bytes: stored.iter().map(|place| place.object_bytes).sum(),
        was_there,
    }
}
