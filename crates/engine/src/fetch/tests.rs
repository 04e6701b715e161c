use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;

use super::*;
use crate::cache::Cache;
use crate::frame::FRAME_PAGES;
use crate::geometry::u64_of;
use crate::identity::{Domain, FrameDigest, SnapshotId};
use crate::layer::Layer;
use crate::layer_index::LayerIndex;
use crate::manifest::ObjectName;
use crate::object::StoredFrame;
use crate::page_set::PageSet;
use crate::ranked_set::RankedSet;

const PAGES: u32 = 3 * FRAME_PAGES;
const LIMIT: Duration = Duration::from_secs(60);

/// A layer of three frames, packed in `directory`, whose pages are filled with `fill`.
fn packed(directory: &tempfile::TempDir, fill: u8) -> Arc<Layer> {
    let cache = Cache::open(directory.path()).expect("a directory of ours");
    let file = cache.pack_file().expect("a disk");
    let raw = vec![fill; 3 * frame_bytes(FrameNumber::new(0), PAGES)];
    file.file().write_all_at(&raw, 0).expect("a disk");
    let digests = raw.chunks(raw.len() / 3).map(FrameDigest::of).collect();
    let index = LayerIndex::new(RankedSet::new(&PageSet::full(PAGES)), digests);
    cache.finish(file, &Domain::shared(), index).expect("a disk")
}

/// The table of a layer stored in frames of these lengths, and where that is.
fn stored(layer: &Layer, lengths: [u64; 3]) -> (Vec<u8>, StoredLayer) {
    let raw = u64_of(frame_bytes(FrameNumber::new(0), PAGES));
    let frames = lengths.map(|bytes| StoredFrame { codec: FrameCodec::told_by_length(bytes, raw), bytes });
    let table = ObjectTable::new(layer.index().expect("it was packed here").clone(), &frames);
    let bytes = table.encode();
    let table_bytes = u64::try_from(bytes.len()).expect("64 bits");
    let stored = StoredLayer {
        object: ObjectName::new(SnapshotId::new()),
        table_digest: *blake3::hash(&bytes).as_bytes(),
        table_bytes,
        object_bytes: table.frames_bytes() + table_bytes,
    };
    (bytes, stored)
}

fn refusal(layer: &Layer, stored: &StoredLayer, table: &[u8]) -> String {
    checked_table(layer.facts(), stored, table).expect_err("it is not this layer's").to_string()
}

#[test]
fn a_table_with_the_layers_index_is_refused_where_its_digest_is_not_the_manifests() {
    let directory = tempfile::tempdir().unwrap();
    let layer = packed(&directory, 1);
    let (right, place) = stored(&layer, [10, 20, 30]);
    checked_table(layer.facts(), &place, &right).unwrap();
    let (other, _) = stored(&layer, [20, 10, 30]);
    let refused = refusal(&layer, &place, &other);
    assert!(refused.contains("its digest differs"), "{refused}");
}

#[test]
fn a_table_with_the_manifests_digest_is_refused_where_it_is_another_layers() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (layer, other) = (packed(&here, 1), packed(&there, 2));
    let (table, place) = stored(&other, [10, 20, 30]);
    checked_table(other.facts(), &place, &table).unwrap();
    let refused = refusal(&layer, &place, &table);
    assert!(refused.contains("another layer's"), "{refused}");
}

#[test]
fn a_fetch_that_the_end_of_the_engine_cuts_short_fails_and_does_not_panic() {
    let directory = tempfile::tempdir().unwrap();
    let layer = packed(&directory, 1);
    let raw = frame_bytes(FrameNumber::new(0), PAGES);
    let (table, place) = stored(&layer, [u64::try_from(raw).unwrap(); 3]);
    let objects = Arc::new(InMemory::new());
    let path = Path::from(format!("layers/{}/{}", layer.id(), place.object));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let (runtime, bytes) = (runtime.unwrap(), [vec![1; 3 * raw], table.clone()].concat());
    runtime.block_on(objects.put(&path, bytes.into())).unwrap();
    let Fetcher(shared) = Fetcher::new(runtime.handle().clone(), Store::new(objects), Stop::default());
    runtime.shutdown_background();
    let [first, second, third] = [0, 1, 2].map(FrameNumber::new);
    let failed = shared.runtime.block_on(fetch(&shared.store, &layer.local(), first));
    assert!(matches!(failed, Err(FetchError::Failed { .. })), "{failed:?}");
    let table = checked_table(layer.facts(), &place, &table).unwrap();
    layer.facts().add_stored(&place);
    layer.facts().stored().unwrap().set_table(table);
    let claimed = Claimed::new(Arc::clone(&shared), layer.id(), Vec::new());
    let left = shared.runtime.block_on(fetch_together(&claimed, &layer.local(), first, &[second, third]));
    assert_eq!(left, [first, second, third], "none of them came");
}

/// Lets the answer come once the silence was told.
struct Patient(Mutex<Option<tokio::sync::oneshot::Sender<()>>>);

impl FrameWaiter for Patient {
    fn frame_ready(&self, _: LayerId, _: FrameNumber) {}

    fn frame_failing(&self, _: LayerId, _: FrameNumber, _: &str) {}

    fn frame_silent(&self, _: LayerId, _: FrameNumber, reason: &str) {
        assert!(reason.contains("has answered"), "{reason}");
        if let Some(answer) = lock(&self.0).take() {
            answer.send(()).expect("it is waited for");
        }
    }
}

#[test]
fn a_source_that_does_not_answer_is_told_of_while_it_is_waited_for() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = Store::new(Arc::new(InMemory::new()));
    let Fetcher(shared) = Fetcher::new(runtime.handle().clone(), store, Stop::default());
    let key = (LayerId::from_bytes([1; 32]), FrameNumber::new(0));
    let (answer, answered) = tokio::sync::oneshot::channel();
    let waiter = Arc::new(Patient(Mutex::new(Some(answer))));
    let joined: Weak<Patient> = Arc::downgrade(&waiter);
    assert!(shared.awaited.join(key, joined));
    let told = async { tokio::time::timeout(LIMIT, telling_of_silence(&shared, key, answered)).await };
    assert_eq!(runtime.block_on(told), Ok(Ok(())), "the answer comes after the silence was told");
}

/// Says which frames came.
struct Told(Sender<FrameNumber>);

impl FrameWaiter for Told {
    fn frame_ready(&self, _: LayerId, frame: FrameNumber) {
        self.0.send(frame).ok();
    }

    fn frame_failing(&self, _: LayerId, _: FrameNumber, _: &str) {}
}

#[test]
fn frames_that_were_to_be_read_ahead_and_did_not_come_are_fetched_for_those_who_joined_them() {
    let directory = tempfile::tempdir().unwrap();
    let layer = packed(&directory, 1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.unwrap();
    let store = Store::directory(&directory.path().join("store")).unwrap();
    let Fetcher(shared) = Fetcher::new(runtime.handle().clone(), store, Stop::default());
    let (tell, told) = channel();
    let waiter = Arc::new(Told(tell));
    let joined: Weak<Told> = Arc::downgrade(&waiter);
    let [first, claimed, unwanted] = [0, 1, 2].map(FrameNumber::new);
    assert!(shared.awaited.join((layer.id(), first), joined.clone()));
    for ahead in [claimed, unwanted] {
        assert!(shared.awaited.claim((layer.id(), ahead)));
    }
    assert!(!shared.awaited.join((layer.id(), claimed), joined), "it is on its way");
    // The layer is in no store, so no request brings them together.
    let shared_by_work = Arc::clone(&shared);
    runtime.block_on(fetch_run(shared_by_work, layer.local(), first, vec![claimed, unwanted]));
    let mut came: Vec<_> = (0..2).map(|_| told.recv_timeout(LIMIT).expect("both come")).collect();
    came.sort();
    assert_eq!(came, [first, claimed]);
    assert_eq!(shared.awaited.under_way(), 0, "what nobody asked for is forgotten");
}
