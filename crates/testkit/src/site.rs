//! What an engine stands on in a test: a store in memory that can fail, a cache directory, hooks.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use rekindle_engine::engine::{Engine, EngineOptions, StartError};
use rekindle_engine::hooks::Hooks;
use rekindle_engine::store::Store;
use tempfile::TempDir;

use crate::hooks::TestHooks;
use crate::stores::{Faults, UnreliableStore};

/// How long a test waits for background work before it fails; long, since machines are slow at times.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One node's surroundings. Its store outlives the engines started on it.
#[derive(Debug)]
pub struct Site {
    /// Where the store's faults are told.
    pub faults: Faults,
    /// The hooks of every engine started here.
    pub hooks: Arc<TestHooks>,
    /// The objects behind the faults.
    pub objects: Arc<InMemory>,
    store: Store,
    cache: TempDir,
}

impl Site {
    /// An empty store and an empty cache directory.
    pub fn new() -> io::Result<Self> {
        let objects = Arc::new(InMemory::new());
        let inner: Arc<dyn ObjectStore> = objects.clone();
        let unreliable = UnreliableStore::new(inner);
        let faults = unreliable.faults();
        let store = Store::new(Arc::new(unreliable));
        Ok(Self { faults, hooks: Arc::default(), objects, store, cache: TempDir::new()? })
    }

    /// Where layer files lie.
    pub fn cache_directory(&self) -> &Path {
        self.cache.path()
    }

    /// Options that a test may change before it starts an engine.
    pub fn options(&self) -> EngineOptions {
        let hooks: Arc<dyn Hooks> = self.hooks.clone();
        EngineOptions {
            compare_workers: 2,
            hooks,
            ..EngineOptions::new(self.cache.path().to_owned(), self.store.clone())
        }
    }

    /// An engine with those options.
    pub fn engine(&self) -> Result<Engine, StartError> {
        Engine::start(self.options())
    }

    /// Another node's surroundings: the same store, nothing local.
    pub fn elsewhere(&self) -> io::Result<Self> {
        Ok(Self {
            faults: self.faults.clone(),
            hooks: Arc::default(),
            objects: Arc::clone(&self.objects),
            store: self.store.clone(),
            cache: TempDir::new()?,
        })
    }
}
