//! Knowledge of a history, apart from the engine's.

use std::sync::Arc;
use std::time::Duration;

use rekindle_engine::cache_limits::CacheLimits;
use rekindle_engine::catalog::CatalogError;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::geometry::{GuestPage, GuestPages};
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

impl Known {
    /// Compares every page; their number.
    pub(super) fn compare(&self, engine: &Engine) -> Result<u64, String> {
        let mut pages = 0;
        for (volume, content) in self.snapshot.volumes().iter().zip(&self.contents) {
            let all = GuestPages::new(GuestPage::FIRST, content.pages());
            let mut found = vec![0; usize::try_from(all.bytes()).expect("64 bits")];
            engine.read(&volume.view, all, &mut found).map_err(|error| error.to_string())?;
            content.check(all, &found).map_err(|error| error.to_string())?;
            pages += u64::from(content.pages());
        }
        Ok(pages)
    }
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
    /// Bytes that layer files may take of the disk, where that is bounded: less than most histories have, so that published
    /// ones go all the time.
    pub(super) cache_bytes_max: Option<u64>,
}

impl Rules {
    /// A pause never waits: the history goes on with another operation instead.
    pub(super) fn options(self, site: &Site) -> Result<EngineOptions, CatalogError> {
        let options = if self.recording { site.recording()? } else { site.options() };
        let merge_at_layers = self.merge_at_layers;
        let bytes_max = self.cache_bytes_max;
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
