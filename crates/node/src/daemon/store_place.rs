//! The store as the daemon opens it: a missing directory is made only if no snapshot was ever kept there, and a bucket
//! never.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rekindle_bucket::{BucketAccess, RequestWatch};
use rekindle_engine::catalog::Catalog;
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::private::make_directory;
use rekindle_engine::recorded::newest_published;
use rekindle_engine::store::Store;
use rekindle_engine::store_gate::{Holds, OtherStore, StoreGate, StoreOpener};
use rekindle_engine::store_opener::{FailedRequests, OpenedStore};
use rekindle_settings::{Settings, StoreLocation};

use crate::privacy::close_store;

/// Place of a store.
#[derive(Debug)]
struct Place {
    location: StoreLocation,
    access: BucketAccess,
    /// Counts the requests to a bucket, over all its openings.
    watch: Arc<RequestWatch>,
    /// The one below it is the daemon's own, and made with all above it.
    state_directory: PathBuf,
}

/// The store of these settings, which is opened when it is first used.
pub(super) fn store_of(
    settings: &Settings,
    catalog: &Catalog,
    other: OtherStore,
    keys: &KeyRing,
) -> anyhow::Result<Store> {
    let place = Place {
        location: settings.store.clone(),
        access: settings.bucket.clone(),
        watch: Arc::default(),
        state_directory: settings.state_directory.clone(),
    };
    let published = newest_published(catalog)?;
    let gate = StoreGate::new(Box::new(place), catalog.clone(), published, other, keys.clone());
    Ok(Store::gated(gate).paced(settings.publish_bytes_a_second_max))
}

impl StoreOpener for Place {
    fn open(&self, holds: Holds) -> Result<OpenedStore, String> {
        if let Some(directory) = self.location.directory() {
            self.find(directory, holds)?;
            // A store that cannot be written is told as such, once that is tried.
            if let Err(error) = close_store(directory)
                && error.kind() != io::ErrorKind::ReadOnlyFilesystem
            {
                tracing::warn!(%error, "other users may be able to read the store");
            }
        }
        self.location.open(&self.access, &self.watch)
    }

    fn failed_requests(&self) -> FailedRequests {
        self.watch.failed()
    }
}

impl Place {
    fn find(&self, directory: &Path, holds: Holds) -> Result<(), String> {
        let shown = directory.display();
        match directory.metadata() {
            Ok(found) if found.is_dir() => return Ok(()),
            Ok(_) => return Err(format!("{shown} is no directory; set `store` to one")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{shown}: {error}")),
        }
        if holds == Holds::Snapshots {
            return Err(format!("{shown} is not there, and this node's snapshots are in it: is it mounted?"));
        }
        if directory.starts_with(&self.state_directory) {
            return make_directory(directory).map_err(|error| error.to_string());
        }
        let made = DirBuilder::new().mode(0o700).create(directory);
        made.map_err(|error| {
            format!(
                "{shown} cannot be made ({error}); make the directory, mount it, or set `store` to another"
            )
        })
    }
}
