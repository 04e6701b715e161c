//! An engine on the store alone: without sandboxes, and without a catalog that outlives it.

use std::path::Path;

use rekindle_engine::catalog::Catalog;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::store_gate::OtherStore;
use rekindle_settings::Settings;

use super::store_place::store_of;
use crate::key_ring;

/// An engine on the store of these settings. Its layer files are in `directory`, which must be empty, and go with it.
pub(crate) fn engine_on_store(settings: &Settings, directory: &Path) -> anyhow::Result<Engine> {
    let keys = key_ring::of_node(settings)?;
    let catalog = Catalog::open(&directory.join("catalog.redb"))?;
    let store = store_of(settings, &catalog, OtherStore::Refused, &keys)?;
    Ok(Engine::start(EngineOptions::new(directory.join("layers"), store, keys))?)
}
