//! The environment of an engine in a test: a store in memory that can fail, a cache directory, hooks.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use rekindle_engine::catalog::{Catalog, CatalogError};
use rekindle_engine::engine::{Engine, EngineOptions, StartError};
use rekindle_engine::hooks::Hooks;
use rekindle_engine::keep::Keeper;
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::store::Store;
use tempfile::TempDir;

use crate::catalogs::CatalogFaults;
use crate::hooks::TestHooks;
use crate::keeper::TestKeeper;
use crate::stores::{Faults, UnreliableStore};

/// Longest time that a test waits for background work; long, since seals run at idle priority, and other work may have all
/// cores for minutes.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// The environment of one node. Its store outlives the engines that run on it.
#[derive(Debug)]
pub struct Site {
    /// Sets the store's faults.
    pub faults: Faults,
    /// Sets the catalog's faults.
    pub catalog_faults: CatalogFaults,
    /// The hooks of every engine started here.
    pub hooks: Arc<TestHooks>,
    /// The objects behind the faults.
    pub objects: Arc<InMemory>,
    /// Keeper of captured memory, also while no engine runs.
    pub keeper: Arc<TestKeeper>,
    store: Store,
    cache: TempDir,
    state: TempDir,
}

impl Site {
    /// An empty store and an empty cache directory.
    pub fn new() -> io::Result<Self> {
        let objects = Arc::new(InMemory::new());
        let inner: Arc<dyn ObjectStore> = objects.clone();
        let unreliable = UnreliableStore::new(inner);
        let faults = unreliable.faults();
        let store = Store::new(Arc::new(unreliable));
        Ok(Self {
            faults,
            catalog_faults: CatalogFaults::default(),
            hooks: Arc::default(),
            objects,
            keeper: Arc::default(),
            store,
            cache: TempDir::new()?,
            state: TempDir::new()?,
        })
    }

    /// Directory of layer files.
    pub fn cache_directory(&self) -> &Path {
        self.cache.path()
    }

    /// Options that a test may change before it starts an engine.
    pub fn options(&self) -> EngineOptions {
        let hooks: Arc<dyn Hooks> = self.hooks.clone();
        EngineOptions {
            compare_workers: 2,
            hooks,
            second_look_after: Duration::ZERO,
            ..EngineOptions::new(
                self.cache.path().to_owned(),
                self.store.clone(),
                KeyRing::of_name("default"),
            )
        }
    }

    /// The same options, with this site's catalog and keeper. The previous engine and all of its snapshots must be
    /// dropped: a catalog has one user at a time.
    pub fn recording(&self) -> Result<EngineOptions, CatalogError> {
        let faults = Arc::new(self.catalog_faults.clone());
        let catalog = Some(Catalog::open_with(&self.catalog_path(), faults)?);
        let keeper: Arc<dyn Keeper> = self.keeper.clone();
        let manifest_memory = Some(self.manifest_memory());
        Ok(EngineOptions { catalog, manifest_memory, keeper, ..self.options() })
    }

    /// The file of the catalog.
    pub fn catalog_path(&self) -> PathBuf {
        self.state.path().join("catalog.redb")
    }

    /// The file of what manifests name.
    pub fn manifest_memory(&self) -> PathBuf {
        self.state.path().join("manifests.memory")
    }

    /// An engine with these options.
    pub fn engine(&self) -> Result<Engine, StartError> {
        Engine::start(self.options())
    }

    /// The environment of another node that runs at the same time: the same objects, under a name and with faults of its own.
    pub fn beside(&self) -> io::Result<Self> {
        let inner: Arc<dyn ObjectStore> = self.objects.clone();
        let unreliable = UnreliableStore::new(inner);
        Ok(Self { faults: unreliable.faults(), store: Store::new(Arc::new(unreliable)), ..self.elsewhere()? })
    }

    /// The environment of the node that takes this one's place: the same store, nothing local.
    pub fn elsewhere(&self) -> io::Result<Self> {
        Ok(Self {
            faults: self.faults.clone(),
            catalog_faults: CatalogFaults::default(),
            hooks: Arc::default(),
            objects: Arc::clone(&self.objects),
            keeper: Arc::default(),
            store: self.store.clone(),
            cache: TempDir::new()?,
            state: TempDir::new()?,
        })
    }
}
