//! Well-formed wrong bytes: pages are swapped in a stored object, and in local files while no engine runs.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use rekindle_engine::frame::{FrameNumber, frame_bytes};
use rekindle_engine::layer::Layer;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::manifest::StoredLayer;
use rekindle_engine::object::{FrameCodec, ObjectTable};
use rekindle_kernel::PAGE_BYTES;

use super::History;
use super::known::Known;
use crate::random::Random;

/// A stored object with wrong bytes, and the right ones.
pub(super) struct WrongObject {
    path: Path,
    right: Vec<u8>,
}

impl History {
    /// Swaps two pages of a stored layer, or repairs the stored objects.
    pub(super) fn store_is_wrong_or_right(&mut self) -> Result<(), String> {
        if !self.wrong_objects.is_empty() {
            self.say("the store is right again");
            self.mend_store();
            return Ok(());
        }
        let stored = self.stored_layers();
        if stored.is_empty() {
            return Ok(());
        }
        let layer = &stored[self.random.position(stored.len())];
        let stored = layer.stored_at().expect("only such are listed");
        let path = Path::from(format!("layers/{}/{}", layer.id(), stored.object));
        let Some(right) = self.object(&path) else { return Ok(()) };
        let Some((start, pages)) = raw_pages(layer, &stored, &right) else { return Ok(()) };
        let mut wrong = right.clone();
        change_places(&mut self.random, &mut wrong[start..start + pages * PAGE_BYTES]);
        self.say(format_args!("pages change places in {path}"));
        self.put(&path, wrong);
        self.wrong_objects.push(WrongObject { path, right });
        Ok(())
    }

    pub(super) fn mend_store(&mut self) {
        for WrongObject { path, right } in std::mem::take(&mut self.wrong_objects) {
            self.put(&path, right);
        }
    }

    /// The local files of stored layers with their numbers of pages; for use while no engine runs.
    pub(super) fn stored_files(&self) -> Vec<(PathBuf, usize)> {
        let file = |layer: &Arc<Layer>| {
            let path = self.site.cache_directory().join(format!("{}.raw", layer.id()));
            (path, usize::try_from(layer.pages()).expect("64 bits"))
        };
        // One whose frames nobody needed here, or that was evicted, has none.
        self.stored_layers().iter().map(file).filter(|(path, _)| path.exists()).collect()
    }

    /// Swaps pages in a local file.
    pub(super) fn rot(&mut self, (path, pages): &(PathBuf, usize)) -> Result<(), String> {
        self.say(format_args!("pages change places in {}", path.display()));
        let said = |error: std::io::Error| format!("{}: {error}", path.display());
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            // Evicted meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(said)?,
        };
        let mut bytes = vec![0; pages * PAGE_BYTES];
        // It may have been truncated before.
        if file.read_exact_at(&mut bytes, 0).is_ok() {
            change_places(&mut self.random, &mut bytes);
            file.write_all_at(&bytes, 0).map_err(said)?;
        }
        Ok(())
    }

    /// Layers whose local files are not the only copies.
    pub(super) fn stored_layers(&self) -> Vec<Arc<Layer>> {
        if self.catalog_lied {
            // The engine may not know that they are stored.
            return Vec::new();
        }
        let layers_of = |known: &Known| {
            let views = known.snapshot.volumes().iter().map(|volume| volume.view.load());
            let layers = views.flat_map(|view| view.layers().to_vec());
            layers.filter(|layer| layer.stored_at().is_some()).collect::<Vec<_>>()
        };
        let published = |known: &&Known| known.snapshot.state() == SnapshotState::Published;
        let mut layers: Vec<_> = self.snapshots.iter().filter(published).flat_map(layers_of).collect();
        // A record may name a layer without its place in the store, also that of a deleted snapshot that a guest runs from.
        layers.retain(|layer| !self.rules.recording || layer.evictable().is_some());
        layers
    }

    fn object(&self, path: &Path) -> Option<Vec<u8>> {
        let got = self.site.objects.get(path).now_or_never().expect("memory answers at once").ok()?;
        let bytes = got.bytes().now_or_never().expect("memory answers at once");
        Some(bytes.expect("it is in memory").to_vec())
    }

    fn put(&self, path: &Path, bytes: Vec<u8>) {
        let put = self.site.objects.put(path, PutPayload::from(bytes)).now_or_never();
        put.expect("memory answers at once").expect("it is in memory");
    }
}

/// The offset and the pages of a frame that is stored raw in a layer's object and has at least two pages.
fn raw_pages(layer: &Layer, stored: &StoredLayer, object: &[u8]) -> Option<(usize, usize)> {
    let frames_bytes = stored.object_bytes - stored.table_bytes;
    let table = object.get(usize::try_from(frames_bytes).ok()?..)?;
    let table = ObjectTable::decode(table, frames_bytes).ok()?;
    let mut frames = (0..table.index().frames()).map(FrameNumber::new);
    frames.find_map(|frame| {
        let (range, bytes) = (table.places().frame_range(frame), frame_bytes(frame, layer.pages()));
        let is_raw = table.places().codec(frame) == FrameCodec::Raw;
        let start = usize::try_from(range.start).ok()?;
        (is_raw && bytes >= 2 * PAGE_BYTES).then_some((start, bytes / PAGE_BYTES))
    })
}

/// Swaps two random pages of these bytes, perhaps a page with itself.
fn change_places(random: &mut Random, bytes: &mut [u8]) {
    let pages = bytes.len() / PAGE_BYTES;
    let (one, other) = (random.position(pages) * PAGE_BYTES, random.position(pages) * PAGE_BYTES);
    let kept = bytes[one..one + PAGE_BYTES].to_vec();
    bytes.copy_within(other..other + PAGE_BYTES, one);
    bytes[other..other + PAGE_BYTES].copy_from_slice(&kept);
}
