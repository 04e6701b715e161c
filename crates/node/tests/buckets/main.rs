//! Stores in buckets, against a real S3 server in this process, and against servers in processes of their own: the checks of
//! every kind of store, a server that misbehaves, and daemons that share a bucket.

mod bucket;
mod daemons;
mod doctor;
mod given;
mod metadata;
mod misbehaviour;
mod opening;
mod reaching;
mod secrets;

use std::sync::Arc;

use rekindle_bucket::BucketAccess;
use rekindle_settings::StoreLocation;
use rekindle_testkit::s3::S3Server;
use rekindle_testkit::store_checks;
use tokio::runtime::Runtime;

use bucket::Bucket;

/// A runtime for one test.
pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[test]
fn a_directory_passes_the_checks_of_every_store() {
    let place = tempfile::tempdir().expect("a directory");
    let directory = StoreLocation::Directory(place.path().to_owned());
    let objects = directory.open(&BucketAccess::default(), &Arc::default()).expect("it is opened").objects;
    runtime().block_on(store_checks::check(&objects));
}

#[test]
fn a_bucket_of_s3_passes_the_checks_of_every_store_with_a_prefix_and_without() {
    for prefix in ["", "nodes/one"] {
        let server = S3Server::start().expect("a server");
        let (objects, watch) = Bucket::of(&server, prefix).opened();
        runtime().block_on(store_checks::check(&objects));
        assert_eq!(watch.failed(), Default::default(), "no request failed");
    }
}
