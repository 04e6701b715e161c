//! Knowledge of a history, apart from the engine's.

use std::sync::Arc;
use std::time::Duration;

use rekindle_engine::cache_limits::CacheLimits;
use rekindle_engine::catalog::CatalogError;
use rekindle_engine::engine::EngineOptions;
use rekindle_engine::geometry::GuestPages;
use rekindle_engine::read_plan::ReadPlan;
use rekindle_engine::snapshot::Snapshot;

use crate::model::ModelMemory;
use crate::site::Site;

/// A snapshot with the expected content of each of its volumes.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) contents: Vec<ModelMemory>,
}

/// A read that is planned but not done, with its expected bytes.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) plan: ReadPlan,
    pub(super) content: ModelMemory,
    pub(super) pages: GuestPages,
}

/// Options of all engines of a history.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// True if they have a catalog and a keeper, so that they may crash.
    pub(super) recording: bool,
    /// Number of a manifest's layers from which on some are merged.
    pub(super) merge_at_layers: usize,
    /// True if layer files may take next to nothing of the disk, so that published ones go all the time.
    pub(super) evicts: bool,
}

impl Rules {
    /// A pause never waits: the history goes on with another operation instead.
    pub(super) fn options(self, site: &Site) -> Result<EngineOptions, CatalogError> {
        let options = if self.recording { site.recording()? } else { site.options() };
        let merge_at_layers = self.merge_at_layers;
        let bytes_max = self.evicts.then_some(1 << 20);
        let cache_limits = CacheLimits { bytes_max, files_open_max: 4, ..CacheLimits::default() };
        let unsealed_max = 5;
        Ok(EngineOptions {
            pause_wait: Duration::ZERO,
            unsealed_max,
            merge_at_layers,
            cache_limits,
            ..options
        })
    }
}
