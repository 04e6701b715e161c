//! A server that misbehaves: what is read is right or an error, and what is written is there or told as failed.

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::{Error, ObjectStore as _, ObjectStoreExt as _, PutPayload};
use rekindle_engine::store_opener::Failures;
use rekindle_testkit::s3::{Misbehaviour, Rule, S3Server};
use rekindle_testkit::stores::Operation;

use crate::bucket::Bucket;
use crate::runtime;

fn rule(on: Operation, misbehaviour: Misbehaviour, times: u32) -> Rule {
    Rule::next(times, on, "", misbehaviour)
}

#[test]
fn a_store_that_asks_for_fewer_requests_slows_publishing_and_is_counted() {
    let server = S3Server::start().expect("a server");
    let (objects, watch) = Bucket::of(&server, "").opened();
    let (path, content) = (Path::from("layers/a"), PutPayload::from_static(b"content"));
    runtime().block_on(async {
        let _busy = server.misbehave(rule(Operation::Put, Misbehaviour::SlowDown, 2));
        objects.put(&path, content).await.expect("it is sent again");
        assert_eq!(watch.failed().publishing, Failures { slow_downs: 2, ..Failures::default() });
        let _busy = server.misbehave(rule(Operation::Get, Misbehaviour::SlowDown, 1));
        let read =
            objects.get(&path).await.expect("it is asked for again").bytes().await.expect("it is read");
        assert_eq!(read, "content");
        assert_eq!(watch.failed().reading, Failures { slow_downs: 1, ..Failures::default() });
    });
}

#[test]
fn a_request_that_fails_or_fails_after_it_was_done_or_is_done_twice_leaves_what_was_written() {
    for misbehaviour in [Misbehaviour::Fail, Misbehaviour::FailAfter, Misbehaviour::Repeat] {
        let server = S3Server::start().expect("a server");
        let (objects, _) = Bucket::of(&server, "p").opened();
        runtime().block_on(async {
            for on in [Operation::Put, Operation::Get, Operation::Delete, Operation::List] {
                let path = Path::from("manifests/one");
                let _faulty = server.misbehave(rule(on, misbehaviour, 1));
                objects.put(&path, PutPayload::from_static(b"one")).await.expect("it is written");
                let listed: Vec<_> = objects.list(None).try_collect().await.expect("it is listed");
                assert_eq!(listed.len(), 1, "{misbehaviour:?} of {on:?}");
                let read = objects.get(&path).await.expect("it is there").bytes().await;
                assert_eq!(read.expect("it is read"), "one", "{misbehaviour:?} of {on:?}");
                let deleted = objects.delete(&path).await;
                assert!(matches!(deleted, Ok(()) | Err(Error::NotFound { .. })), "{deleted:?}");
                assert!(objects.head(&path).await.is_err(), "{misbehaviour:?} of {on:?}");
            }
        });
    }
}

#[test]
fn a_write_that_was_told_as_failed_may_land_later_and_is_there_then() {
    let server = S3Server::start().expect("a server");
    let (objects, watch) = Bucket::of(&server, "").opened();
    let path = Path::from("layers/late");
    runtime().block_on(async {
        let late = server.misbehave(rule(Operation::Put, Misbehaviour::LandLater, u32::MAX));
        let failed = async {
            while watch.failed().publishing.others == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            put = objects.put(&path, PutPayload::from_static(b"late")) => unreachable!("it is told as {put:?}"),
            () = failed => {}
        }
        assert!(objects.head(&path).await.is_err(), "it is not there");
        drop(late);
        while objects.head(&path).await.is_err() {
            tokio::task::yield_now().await;
        }
        let read = objects.get(&path).await.expect("it has landed").bytes().await.expect("it is read");
        assert_eq!(read, "late");
    });
}

#[test]
fn an_answer_that_is_cut_is_read_on_and_comes_whole() {
    let server = S3Server::start().expect("a server");
    let (objects, watch) = Bucket::of(&server, "").opened();
    let (path, content) = (Path::from("layers/a"), Bytes::from(vec![7; 1 << 20]));
    runtime().block_on(async {
        objects.put(&path, content.clone().into()).await.expect("it is written");
        let _cut = server.misbehave(rule(Operation::Get, Misbehaviour::Cut, 1));
        let read = objects.get(&path).await.expect("it begins").bytes().await.expect("it is read on");
        assert!(read == content);
        assert_eq!(watch.failed().reading.others, 1);
    });
}

#[test]
fn a_read_without_an_answer_is_given_up_counted_and_sent_again() {
    let server = S3Server::start().expect("a server");
    let (objects, watch) = Bucket::of(&server, "").opened();
    let path = Path::from("layers/a");
    runtime().block_on(async {
        objects.put(&path, PutPayload::from_static(b"content")).await.expect("it is written");
        let _stalled = server.misbehave(rule(Operation::Get, Misbehaviour::Stall, 1));
        let read = objects.get(&path).await.expect("the second try is answered").bytes().await;
        assert_eq!(read.expect("it is read"), "content");
        assert_eq!(watch.failed().reading, Failures { timeouts: 1, ..Failures::default() });
    });
}

#[test]
fn a_list_of_which_one_page_fails_is_a_list_that_failed() {
    let server = S3Server::start().expect("a server");
    let (objects, _) = Bucket::of(&server, "").opened();
    let manifests = server.objects().join("manifests");
    std::fs::create_dir(&manifests).expect("a directory");
    for number in 0..PAGE + 1 {
        std::fs::write(manifests.join(number.to_string()), "x").expect("there is room");
    }
    let list = || runtime().block_on(objects.list(None).try_collect::<Vec<_>>());
    assert_eq!(list().expect("it is listed").len(), PAGE + 1);
    let second = Rule { after: 1, ..rule(Operation::List, Misbehaviour::Fail, u32::MAX) };
    let failing = server.misbehave(second);
    assert!(list().is_err(), "the first page is no list");
    drop(failing);
    assert_eq!(list().expect("it is listed").len(), PAGE + 1);
}

/// Names on a page of a list of S3.
const PAGE: usize = 1000;
