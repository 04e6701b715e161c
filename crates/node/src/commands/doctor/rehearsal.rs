//! A real guest, paused, resumed and verified by a node of its own: everything that serving needs, at once and small.

use std::time::Instant;

use anyhow::bail;
use rekindle_api::types::{CreateSandbox, Labels, MemoryBacking, VmmKind};
use rekindle_guest::process::protocol::{Command, Verified, Written};

use super::Check;
use crate::commands::demo::Place;
use crate::commands::private_node::PrivateNode;
use crate::commands::shown::duration;

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
    let place = Place::make()?;
    let node = PrivateNode::start(&place.path().join("1"), &place.path().join("store"))?;
    let guest = node.create(CreateSandbox {
        domain: None,
        name: None,
        labels: Labels::new(),
        vmm: VmmKind::Process,
        memory_bytes: MEMORY_BYTES,
        backing: MemoryBacking::Shared,
        machine: None,
        checkpoints: None,
    })?;
    let _: Written = node.tell(guest.id, &Command::Fill { seed: 1 })?;
    let resumed = node.resume(&node.pause(guest.id)?, true)?;
    let verified: Verified = node.tell(resumed.id, &Command::Verify)?;
    if verified.mismatches > 0 {
        bail!("{} of {} pages were wrong", verified.mismatches, verified.pages);
    }
    Ok(verified.pages)
}
