use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;

use super::*;
use crate::attempt::checked_table;
use crate::cache::Cache;
use crate::frame::{FRAME_PAGES, frame_bytes};
use crate::geometry::u64_of;
use crate::identity::LayerId;
use crate::identity::SnapshotId;
use crate::key_ring::KeyRing;
use crate::layer::Layer;
use crate::layer_index::LayerIndex;
use crate::manifest::{ObjectName, StoredLayer};
use crate::object::{FrameCodec, ObjectTable, StoredFrame};
use crate::page_set::PageSet;
use crate::ranked_set::RankedSet;
use crate::store::Store;
use crate::sync::{Mutex, lock};

const PAGES: u32 = 3 * FRAME_PAGES;
const LIMIT: Duration = Duration::from_secs(60);

fn keys() -> KeyRing {
    KeyRing::of_name("shared")
}

/// A layer of three frames, packed in `directory`, whose pages are filled with `fill`.
fn packed(directory: &tempfile::TempDir, fill: u8) -> Arc<Layer> {
    let cache = Cache::open(directory.path(), keys()).expect("a directory of ours");
    let file = cache.pack_file(keys().own().clone()).expect("a disk");
    let raw = vec![fill; 3 * frame_bytes(FrameNumber::new(0), PAGES)];
    file.file().write_all_at(&raw, 0).expect("a disk");
    let digests = raw.chunks(raw.len() / 3).map(|frame| keys().own().frame_digest(frame)).collect();
    let index = LayerIndex::new(RankedSet::new(&PageSet::full(PAGES)), digests);
    cache.finish(file, index).expect("a disk")
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

fn shared_by_fetches(runtime: &Handle, store: Store) -> Arc<Shared> {
    Fetcher::new(runtime.clone(), Sources::new(store, keys()), Stop::default()).shared
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
    let shared = shared_by_fetches(runtime.handle(), Store::new(objects));
    runtime.shutdown_background();
    let first = FrameNumber::new(0);
    let failed = shared.runtime.block_on(shared.attempts.frame(&layer.local(), first, &urgent()));
    assert!(matches!(failed, Err(FetchError::CutShort { .. })), "{failed:?}");
    let table = checked_table(layer.facts(), &place, &table).unwrap();
    layer.facts().add_stored(&place);
    layer.facts().stored().unwrap().set_frames(table.into_parts().1);
    let (file, came) = (layer.local(), Arc::new(|_| unreachable!("none of them comes")));
    shared.runtime.block_on(shared.attempts.run(&file, 0..3, &urgent(), &came));
}

fn urgent() -> Arc<Urgency> {
    Arc::new(Urgency::of(Class::Fault))
}

/// Lets the answer come once the silence was told.
struct Patient(Mutex<Option<tokio::sync::oneshot::Sender<()>>>);

impl Waiter<FrameKey, FetchError> for Patient {
    fn ready(&self, _: FrameKey) {}

    fn failing(&self, _: FrameKey, _: &Arc<FetchError>) {}

    fn silent(&self, _: FrameKey, waited: Duration) {
        assert!(waited >= limits::SOURCE_SILENT);
        if let Some(answer) = lock(&self.0).take() {
            answer.send(()).expect("it is waited for");
        }
    }
}

/// Joins others once it is told of a silence.
struct Host {
    shared: Arc<Shared>,
    guest: Weak<Patient>,
}

impl Waiter<FrameKey, FetchError> for Host {
    fn ready(&self, _: FrameKey) {}

    fn failing(&self, _: FrameKey, _: &Arc<FetchError>) {}

    fn silent(&self, key: FrameKey, _: Duration) {
        let guest: Weak<FrameWaiter> = self.guest.clone();
        assert!(!self.shared.frames.join(key, guest), "it is being fetched");
    }
}

#[test]
fn a_source_that_does_not_answer_is_told_of_to_everybody_who_waits_whenever_they_came() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let shared = shared_by_fetches(runtime.handle(), Store::new(Arc::new(InMemory::new())));
    let [first, ahead] = [0, 1].map(|number| (LayerId::from_bytes([1; 32]).into(), FrameNumber::new(number)));
    let (answer, answered) = tokio::sync::oneshot::channel();
    let late = Arc::new(Patient(Mutex::new(Some(answer))));
    let early = Arc::new(Host { shared: Arc::clone(&shared), guest: Arc::downgrade(&late) });
    // The one that is told waits for a frame that is fetched beside another.
    assert!(shared.frames.claim(first) && shared.frames.claim(ahead));
    let joined: Weak<Host> = Arc::downgrade(&early);
    assert!(!shared.frames.join(ahead, joined));
    let keys = [first, ahead];
    let told = async { tokio::time::timeout(LIMIT, telling_of_silence(&shared, &keys, answered)).await };
    assert_eq!(runtime.block_on(told), Ok(Ok(())), "the answer comes after the silence was told");
}

/// Says which frames came.
struct Told(Sender<FrameNumber>);

impl Waiter<FrameKey, FetchError> for Told {
    fn ready(&self, (_, frame): FrameKey) {
        self.0.send(frame).ok();
    }

    fn failing(&self, _: FrameKey, _: &Arc<FetchError>) {}
}

#[test]
fn frames_that_were_to_be_read_ahead_and_did_not_come_are_fetched_for_those_who_joined_them() {
    let directory = tempfile::tempdir().unwrap();
    let layer = packed(&directory, 1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.unwrap();
    let store = Store::directory(&directory.path().join("store")).unwrap();
    let shared = shared_by_fetches(runtime.handle(), store);
    let (tell, told) = channel();
    let waiter = Arc::new(Told(tell));
    let joined: Weak<Told> = Arc::downgrade(&waiter);
    let [first, claimed, unwanted] = [0, 1, 2].map(FrameNumber::new);
    let joined: Weak<FrameWaiter> = joined;
    assert!(shared.frames.join((layer.id().into(), first), joined.clone()));
    for ahead in [claimed, unwanted] {
        assert!(shared.frames.claim((layer.id().into(), ahead)));
    }
    assert!(!shared.frames.join((layer.id().into(), claimed), joined), "it is on its way");
    // The layer is in no store, so no request brings them together.
    let shared_by_work = Arc::clone(&shared);
    runtime.block_on(fetch_run(shared_by_work, layer.local(), 0..3, Class::Fault));
    let mut came: Vec<_> = (0..2).map(|_| told.recv_timeout(LIMIT).expect("both come")).collect();
    came.sort();
    assert_eq!(came, [first, claimed]);
    assert_eq!(shared.frames.under_way(), 0, "what nobody asked for is forgotten");
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory can be made")
}

/// A layer that is only in a store, as one object of raw frames, on a node that has nothing of it.
struct StoredOnly {
    _disk: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    store: Store,
    shared: Arc<Shared>,
    layer: Arc<Layer>,
    place: StoredLayer,
}

/// One whose objects in the manifest are `gone`, which the store does not have, and then the one it has.
fn stored_only(gone: Option<&StoredLayer>) -> StoredOnly {
    let (disk, there) = (directory(), directory());
    let packed = packed(&there, 1);
    let raw = frame_bytes(FrameNumber::new(0), PAGES);
    let (table, place) = stored(&packed, [u64_of(raw); 3]);
    let path = Path::from(format!("layers/{}/{}", packed.id(), place.object));
    let objects = Arc::new(InMemory::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(objects.put(&path, [vec![1; 3 * raw], table].concat().into())).expect("memory");
    let store = Store::new(objects);
    let shared = shared_by_fetches(runtime.handle(), store.clone());
    let cache = Cache::open(disk.path(), keys()).expect("a directory of ours");
    let layer = cache.open_stored(packed.name(), gone.unwrap_or(&place)).expect("a disk");
    layer.facts().add_stored(&place);
    StoredOnly { _disk: disk, runtime, store, shared, layer, place }
}

#[test]
fn a_table_that_many_frames_need_at_once_is_fetched_once() {
    let node = stored_only(None);
    assert!(node.place.object_bytes < node.shared.attempts.sources.request_cost().bytes);
    let file = node.layer.local();
    let urgency = urgent();
    let one = |number| node.shared.attempts.frame(&file, FrameNumber::new(number), &urgency);
    let tries = futures_util::future::join_all((0..3).map(one));
    let brought = node.runtime.block_on(tries);
    assert!(brought.iter().all(Result::is_ok), "{brought:?}");
    assert_eq!(node.store.traffic().fetches, 1, "the table came with all frames");
}

/// An object of a layer that is not in the store.
fn object_that_is_gone() -> StoredLayer {
    StoredLayer {
        object: ObjectName::new(SnapshotId::new()),
        table_digest: [0; 32],
        table_bytes: 1,
        object_bytes: 2,
    }
}

#[test]
fn a_frame_whose_object_is_gone_is_read_from_the_next_one_in_the_same_try() {
    let gone = object_that_is_gone();
    let node = stored_only(Some(&gone));
    assert_eq!(node.layer.stored_at(), Some(gone));
    let file = node.layer.local();
    let brought = node.runtime.block_on(node.shared.attempts.frame(&file, FrameNumber::new(2), &urgent()));
    brought.expect("another object of the layer is there");
    assert_eq!(node.layer.stored_at(), Some(node.place));
}

#[test]
fn frames_that_are_wanted_together_come_in_one_request_and_once_for_those_who_asked_for_them_meanwhile() {
    let node = stored_only(None);
    let file = node.layer.local();
    let fetcher = Fetcher { shared: Arc::clone(&node.shared), class: Class::Ahead };
    let frames = [0, 2].map(FrameNumber::new).to_vec();
    let bringing = fetcher.bring_all(vec![WantedFrames { file: Arc::clone(&file), frames }]);
    let (tell, told) = channel();
    let waiter = Arc::new(Told(tell));
    let joined: Weak<Told> = Arc::downgrade(&waiter);
    fetcher.request(&file, FrameNumber::new(2), joined);
    node.runtime.block_on(bringing);
    assert_eq!(told.try_recv(), Ok(FrameNumber::new(2)));
    assert!([0, 2].map(FrameNumber::new).iter().all(|frame| file.is_verified(*frame)));
    assert_eq!(node.store.traffic().fetches, 1, "the table came with the frames");
    assert_eq!(node.shared.frames.under_way(), 0);
}

#[test]
fn wanted_frames_that_do_not_come_are_fetched_one_by_one_for_those_who_wait_and_the_others_forgotten() {
    let gone = object_that_is_gone();
    // The first object of the layer is not in the store, which the bulk read finds out.
    let node = stored_only(Some(&gone));
    let file = node.layer.local();
    let fetcher = Fetcher { shared: Arc::clone(&node.shared), class: Class::Ahead };
    let frames = [0, 1].map(FrameNumber::new).to_vec();
    let bringing = fetcher.bring_all(vec![WantedFrames { file: Arc::clone(&file), frames }]);
    node.runtime.block_on(async {
        let (brought, ()) = futures_util::join!(fetcher.bring(&file, FrameNumber::new(1)), bringing);
        brought.expect("another object of the layer is there");
    });
    assert_eq!(node.shared.frames.under_way(), 0);
}

#[test]
fn a_fault_that_joins_a_read_ahead_does_not_wait_for_the_reads_before_it() {
    let node = stored_only(None);
    let sources = &node.shared.attempts.sources;
    let ahead = Urgency::of(Class::Ahead);
    let streams = (0..limits::AHEAD_STREAMS).map(|_| node.runtime.block_on(sources.stream(&ahead)));
    let streams: Vec<_> = streams.collect();
    let frames = (0..3).map(FrameNumber::new).collect();
    let fetcher = |class| Fetcher { shared: Arc::clone(&node.shared), class };
    let wanted = vec![WantedFrames { file: node.layer.local(), frames }];
    let bringing = node.runtime.spawn(fetcher(Class::Ahead).bring_all(wanted));
    assert_eq!(node.shared.frames.under_way(), 3, "they wait for a stream");
    let (fault, file) = (fetcher(Class::Fault), node.layer.local());
    node.runtime.block_on(fault.bring(&file, FrameNumber::new(1))).expect("it is urgent now");
    drop(streams);
    node.runtime.block_on(bringing).expect("it goes on");
    assert!(node.layer.local().is_all_verified());
}
