//! A bucket that tests use, with all that it takes to reach it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use object_store::ObjectStore;
use rekindle_bucket::{BucketAccess, BucketUrl, Environment, RequestWatch};
use rekindle_settings::{SettingFlags, Settings, StoreLocation, Surroundings};
use rekindle_testkit::black_box::bucket_words;
use rekindle_testkit::s3::S3Server;
use uuid::Uuid;

/// A store at a prefix of a bucket.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    pub(crate) url: BucketUrl,
    pub(crate) access: BucketAccess,
    /// Variables with the credentials.
    pub(crate) environment: Environment,
}

impl Bucket {
    /// A store of a server in this process.
    pub(crate) fn of(server: &S3Server, prefix: &str) -> Self {
        Self { url: server.url(prefix), access: server.access(), environment: server.environment() }
    }

    /// An empty store of the server that this process's variables name, as `servers/check.sh` sets them.
    pub(crate) fn given() -> Self {
        let environment = rekindle_bucket::environment();
        let is_setting = |name: &str| name == "REKINDLE_STORE" || name.starts_with("REKINDLE_BUCKET_");
        let said = environment.iter().filter(|(name, _)| is_setting(name));
        let mut variables: BTreeMap<_, _> = said.map(|(name, value)| (name.clone(), value.into())).collect();
        variables.insert("HOME".to_owned(), "/nonexistent".into());
        let around = Surroundings { variables, system_file: "/nonexistent".into(), is_root: false };
        let settings =
            Settings::load_in(&SettingFlags::default(), &around).expect("the script's settings are legal");
        let StoreLocation::Bucket(url) = settings.store else {
            unreachable!("no server is given: run crates/node/tests/buckets/servers/check.sh")
        };
        let of_its_own = format!("{}/{}", url.bucket(), Uuid::now_v7());
        let url = BucketUrl::parse(url.service().scheme(), &of_its_own).expect("it is legal");
        Self { url, access: settings.bucket, environment }
    }

    /// Opens it; with the counts of its requests.
    pub(crate) fn opened(&self) -> (Arc<dyn ObjectStore>, Arc<RequestWatch>) {
        let watch = Arc::default();
        let objects = rekindle_bucket::open(&self.url, &self.access, &self.environment, &watch);
        (objects.expect("it is opened").objects, watch)
    }

    /// Words of a command line that name it; its credentials are written to a file.
    pub(crate) fn words(&self, credentials_file: &Path) -> Vec<String> {
        bucket_words(&self.url, &self.access, &self.environment, credentials_file).expect("there is room")
    }
}
