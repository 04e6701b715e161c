//! What a history remembers beside the engine.

use std::sync::Arc;
use std::time::Duration;

use rekindle_engine::catalog::CatalogError;
use rekindle_engine::engine::EngineOptions;
use rekindle_engine::geometry::GuestPages;
use rekindle_engine::read_plan::ReadPlan;
use rekindle_engine::snapshot::Snapshot;

use crate::model::ModelMemory;
use crate::site::Site;

/// A snapshot with what every page of it must hold.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) memory: ModelMemory,
}

/// A read that was planned and not done yet, with what it must give.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) plan: ReadPlan,
    pub(super) memory: ModelMemory,
    pub(super) pages: GuestPages,
}

/// A pause waits for nothing: a history goes on with something else instead.
pub(super) fn options(site: &Site, recording: bool) -> Result<EngineOptions, CatalogError> {
    let options = if recording { site.recording()? } else { site.options() };
    Ok(EngineOptions { pause_wait: Duration::ZERO, unsealed_max: 5, ..options })
}
