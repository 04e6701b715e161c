//! The place of the store.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use rekindle_bucket::{BucketAccess, BucketUrl, RequestWatch};
use rekindle_engine::store_opener::OpenedStore;

/// Place of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreLocation {
    /// A directory, local or mounted.
    Directory(PathBuf),
    /// A bucket of a service.
    Bucket(BucketUrl),
}

impl StoreLocation {
    /// Its directory, if it is one.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Directory(path) => Some(path),
            Self::Bucket(_) => None,
        }
    }

    /// A store that exists, opened bare; the error is for people.
    pub fn open(&self, access: &BucketAccess, watch: &Arc<RequestWatch>) -> Result<OpenedStore, String> {
        match self {
            Self::Directory(path) => {
                let files = LocalFileSystem::new_with_prefix(path).map_err(|error| error.to_string())?;
                let files = files.with_fsync(true).with_automatic_cleanup(true);
                let objects: Arc<dyn ObjectStore> = Arc::new(files);
                Ok(objects.into())
            }
            Self::Bucket(url) => rekindle_bucket::open(url, access, &rekindle_bucket::environment(), watch),
        }
    }
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Bucket(url) => url.fmt(f),
        }
    }
}
