//! `rekindle doctor` with a store in a bucket.

use std::path::PathBuf;

use futures_util::TryStreamExt as _;
use object_store::ObjectMeta;
use rekindle_testkit::black_box::BlackBox;
use rekindle_testkit::s3::S3Server;
use serde_json::Value;

use crate::bucket::Bucket;
use crate::runtime;

/// The outcome and the finding of each check of a bucket.
pub(crate) struct Report(Value);

impl Report {
    fn of(bucket: &Bucket) -> Self {
        Self::with(bucket, &[])
    }

    /// The same with more variables.
    pub(crate) fn with(bucket: &Bucket, variables: &[(&str, &str)]) -> Self {
        let place = BlackBox::new(&PathBuf::from(env!("CARGO_BIN_EXE_rekindle"))).expect("directories");
        let words = bucket.words(&place.home_directory().join("keys"));
        let mut command = place.command(["doctor", "--json"]);
        let said = command.args(words).envs(variables.iter().copied()).output().expect("the program runs");
        Self(serde_json::from_slice(&said.stdout).unwrap_or_else(|error| unreachable!("{error}: {said:?}")))
    }

    fn check(&self, name: &str) -> (&str, &str) {
        let checks = self.0["checks"].as_array().expect("a list");
        let check = checks.iter().find(|check| check["name"] == name).expect("it is there");
        (check["outcome"].as_str().expect("a word"), check["found"].as_str().expect("words"))
    }

    /// The bucket does all that a store must, and this with conditional puts.
    pub(crate) fn assert_all_well(&self, conditional_puts: &str) {
        let (outcome, found) = self.check("store");
        assert!(
            outcome == "ok" && found.ends_with("parts, reading, ranges, listing and deleting work"),
            "{outcome}: {found}"
        );
        let (outcome, found) = self.check("store's speed");
        assert!(outcome != "fail" && found.starts_with("first byte after "), "{outcome}: {found}");
        let (outcome, found) = self.check("store's habits");
        let habits = format!(
            "what is written is listed at once; conditional puts are {conditional_puts}; its clock is this node's"
        );
        assert!(outcome == "ok" && found.starts_with(&habits), "{outcome}: {found}");
    }
}

/// Asks doctor about an empty bucket that does all that a store must, and this with conditional puts.
pub(crate) fn finds_all_well(bucket: &Bucket, conditional_puts: &str) {
    Report::of(bucket).assert_all_well(conditional_puts);
    let (objects, _) = bucket.opened();
    let left: Vec<ObjectMeta> = runtime().block_on(objects.list(None).try_collect()).expect("it is listed");
    assert_eq!(left, [], "it is left as it was");
}

#[test]
fn doctor_tries_a_bucket_and_leaves_it_as_it_was() {
    let server = S3Server::start().expect("a server");
    finds_all_well(&Bucket::of(&server, "fleet"), "obeyed");
}

#[test]
fn doctor_tells_a_key_that_the_service_refuses() {
    let server = S3Server::start().expect("a server");
    let mut bucket = Bucket::of(&server, "");
    bucket.environment.insert("AWS_SECRET_ACCESS_KEY".to_owned(), "another-secret".to_owned());
    let report = Report::of(&bucket);
    let (outcome, found) = report.check("store");
    assert!(outcome == "fail" && found.contains("SignatureDoesNotMatch"), "{outcome}: {found}");
    assert!(!report.0.to_string().contains("another-secret"), "{}", report.0);
}
