//! Stores in buckets, against a real S3 server in this process: the checks of every kind of store, a server that misbehaves,
//! and daemons that share a bucket.

mod daemons;
mod misbehaviour;
mod opening;

use std::sync::Arc;

use object_store::ObjectStore;
use rekindle::bucket::{self, BucketAccess, Environment, RequestWatch};
use rekindle::settings::StoreLocation;
use rekindle_testkit::s3::S3Server;
use rekindle_testkit::store_checks;
use tokio::runtime::Runtime;

/// A runtime for one test.
pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// An opened bucket, and the counts of its requests.
pub(crate) fn opened(server: &S3Server, prefix: &str) -> (Arc<dyn ObjectStore>, Arc<RequestWatch>) {
    let watch = Arc::default();
    let objects = bucket::open(&server.url(prefix), &server.access(), &server.environment(), &watch);
    (objects.expect("it is opened"), watch)
}

/// The refusal of a bucket that cannot be opened.
pub(crate) fn refusal(server: &S3Server, access: &BucketAccess, environment: &Environment) -> String {
    match bucket::open(&server.url(""), access, environment, &Arc::default()) {
        Ok(objects) => unreachable!("{objects} was opened"),
        Err(refusal) => refusal,
    }
}

#[test]
fn a_directory_passes_the_checks_of_every_store() {
    let place = tempfile::tempdir().expect("a directory");
    let directory = StoreLocation::Directory(place.path().to_owned());
    let objects = directory.objects(&BucketAccess::default(), &Arc::default()).expect("it is opened");
    runtime().block_on(store_checks::check(&objects));
}

#[test]
fn a_bucket_of_s3_passes_the_checks_of_every_store_with_a_prefix_and_without() {
    for prefix in ["", "nodes/one"] {
        let server = S3Server::start().expect("a server");
        let (objects, watch) = opened(&server, prefix);
        runtime().block_on(store_checks::check(&objects));
        assert_eq!(watch.failed(), Default::default(), "no request failed");
    }
}
