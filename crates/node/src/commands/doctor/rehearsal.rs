//! A real guest, paused, resumed and verified: everything that serving needs, at once and small.

use std::time::Instant;

use anyhow::{Context as _, bail};
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::store::Store;

use super::Check;
use crate::commands::shown::duration;
use crate::sandbox::{Sandbox, SandboxShape};

/// Guest memory of the rehearsal.
const MEMORY_BYTES: u64 = 4 << 20;

/// Has it done.
pub(super) fn look() -> Check {
    let name = "rehearsal";
    let begun = Instant::now();
    match rehearse() {
        Ok(pages) => Check::ok(
            name,
            format!("a guest was paused and resumed, {pages} pages right, in {}", duration(begun.elapsed())),
        ),
        Err(error) => Check::fail(
            name,
            format!("a guest could not be paused and resumed: {error:#}"),
            "see to the failing lines above first; if there are none, this is a bug worth reporting",
        ),
    }
}

fn rehearse() -> anyhow::Result<u32> {
    let place = tempfile::tempdir().context("a directory for it")?;
    let store = Store::directory(&place.path().join("store")).context("a store for it")?;
    let engine = Engine::start(EngineOptions::new(place.path().join("layers"), store))?;
    let shape = SandboxShape::new(std::env::current_exe().context("finding this program")?, MEMORY_BYTES);
    let mut sandbox = Sandbox::start(shape.clone())?;
    sandbox.guest.control.fill(1)?;
    let paused = sandbox.pause(&engine)?;
    let mut resumed = Sandbox::resume(&engine, &paused.snapshot, shape)?;
    let verified = resumed.guest.control.verify()?;
    if verified.mismatches > 0 {
        bail!("{} of {} pages were wrong", verified.mismatches, verified.pages);
    }
    Ok(verified.pages)
}
