//! The checks that every kind of store passes: all that the engine asks of a store, and all that it relies on.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, PutPayload};

use crate::random::Random;

/// Objects of a list that is longer than one page of any service.
const LISTED: usize = 1030;

/// Bytes of a part of an upload.
const PART_BYTES: usize = 5 << 20;

/// Makes all checks in an empty store.
pub async fn check(objects: &Arc<dyn ObjectStore>) {
    small_objects(objects).await;
    ranges(objects).await;
    lists(objects).await;
    large_objects(objects).await;
    abandoned_uploads(objects).await;
}

async fn small_objects(objects: &Arc<dyn ObjectStore>) {
    let path = Path::from("manifests/one");
    assert!(matches!(objects.get(&path).await, Err(Error::NotFound { .. })), "nothing is there yet");
    assert!(matches!(objects.head(&path).await, Err(Error::NotFound { .. })));
    for content in ["", "first", "second, and longer"] {
        objects.put(&path, PutPayload::from_static(content.as_bytes())).await.expect("it is written");
        let read = objects.get(&path).await.expect("it is there");
        assert_eq!(read.meta.size, u64::try_from(content.len()).expect("it is short"));
        assert_eq!(read.bytes().await.expect("it is read"), content, "a read sees the last write");
    }
    objects.delete(&path).await.expect("it is deleted");
    assert!(matches!(objects.get(&path).await, Err(Error::NotFound { .. })), "it is gone");
    let again = objects.delete(&path).await;
    assert!(matches!(again, Ok(()) | Err(Error::NotFound { .. })), "{again:?}");
}

async fn ranges(objects: &Arc<dyn ObjectStore>) {
    let (path, content) = (Path::from("layers/a/b"), bytes(1, 100_000));
    objects.put(&path, content.clone().into()).await.expect("it is written");
    for range in [0..1, 0..100_000, 4096..8192, 99_999..100_000] {
        let read = objects.get_range(&path, range.clone()).await.expect("it is read");
        let place = usize::try_from(range.start).expect("short")..usize::try_from(range.end).expect("short");
        assert!(read == content.slice(place), "{range:?}");
    }
    // Stores may give less, or refuse; none gives other bytes.
    if let Ok(read) = objects.get_range(&path, 99_990..100_010).await {
        assert!(read == content.slice(99_990..), "past the end");
    }
    objects.delete(&path).await.expect("it is deleted");
}

async fn lists(objects: &Arc<dyn ObjectStore>) {
    let of = |number: usize| Path::from(format!("working-sets/s/{number}"));
    for number in 0..LISTED {
        objects.put(&of(number), PutPayload::from_static(b"x")).await.expect("it is written");
    }
    let other = Path::from("working-sets/other/1");
    objects.put(&other, PutPayload::from_static(b"x")).await.expect("it is written");
    let under = Path::from("working-sets/s");
    let listed = || async {
        let all: Vec<_> = objects.list(Some(&under)).try_collect().await.expect("it is listed");
        all.into_iter().map(|object| object.location).collect::<BTreeSet<_>>()
    };
    let wanted: BTreeSet<_> = (0..LISTED).map(of).collect();
    assert!(listed().await == wanted, "all pages, nothing else, and each at once");
    for number in 0..LISTED {
        objects.delete(&of(number)).await.expect("it is deleted");
    }
    assert!(listed().await.is_empty(), "what is deleted is not listed");
    objects.delete(&other).await.expect("it is deleted");
}

async fn large_objects(objects: &Arc<dyn ObjectStore>) {
    let (path, content) = (Path::from("layers/large/one"), bytes(2, 2 * PART_BYTES + 1));
    let mut upload = objects.put_multipart(&path).await.expect("it begins");
    let parts = [0..PART_BYTES, PART_BYTES..2 * PART_BYTES, 2 * PART_BYTES..content.len()];
    for part in parts.clone() {
        upload.put_part(content.slice(part).into()).await.expect("a part is written");
    }
    assert!(matches!(objects.head(&path).await, Err(Error::NotFound { .. })), "half an object is none");
    upload.complete().await.expect("it is completed");
    let read = objects.get(&path).await.expect("it is there").bytes().await.expect("it is read");
    assert!(read == content, "the parts are in their order");
    objects.delete(&path).await.expect("it is deleted");
}

async fn abandoned_uploads(objects: &Arc<dyn ObjectStore>) {
    let path = Path::from("layers/large/two");
    let mut upload = objects.put_multipart(&path).await.expect("it begins");
    upload.put_part(bytes(3, PART_BYTES).into()).await.expect("a part is written");
    upload.abort().await.expect("it is given up");
    assert!(matches!(objects.head(&path).await, Err(Error::NotFound { .. })), "nothing is left");
}

fn bytes(seed: u64, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    Random::new(seed).fill(&mut bytes);
    Bytes::from(bytes)
}
