//! Things of the host that one guest has at a time: its taps, and its huge pages.

use uuid::Uuid;

use super::Daemon;
use super::endings::Exclusive;
use super::guests::GuestSpec;
use super::huge_pages::HugePromise;
use crate::api::problem::{Code, Problem};

/// One guest's claim to them, from before its start.
#[derive(Debug)]
pub(super) struct Claim {
    exclusive: Exclusive,
    /// The huge pages that it may still take without having reserved them.
    huge_pages: Option<HugePromise>,
}

impl Claim {
    /// Waits for guests that are ending with what `guest` is to have, and promises it its huge pages.
    pub(super) fn make(daemon: &Daemon, guest: Uuid, spec: &GuestSpec) -> anyhow::Result<Self> {
        let exclusive = spec.exclusive();
        daemon.endings.make_way(&Exclusive { huge_pages: false, ..exclusive.clone() });
        let promise = daemon.huge_pages.promise(guest, spec).or_else(|_too_few| {
            daemon.endings.make_way(&exclusive);
            daemon.huge_pages.promise(guest, spec)
        });
        let huge_pages = promise.map_err(|error| Problem::new(Code::Misfit, error.to_string()))?;
        Ok(Self { exclusive, huge_pages })
    }

    /// The claim of a guest that runs already.
    pub(super) fn renew(daemon: &Daemon, guest: Uuid, spec: &GuestSpec, pid: u32) -> Self {
        Self { exclusive: spec.exclusive(), huge_pages: daemon.huge_pages.renew(guest, spec, pid) }
    }

    /// The claim of a guest whose process runs by now.
    pub(super) fn held_by(self, spec: &GuestSpec, pid: u32) -> Self {
        let huge_pages = self.huge_pages.and_then(|promise| promise.taken_by(spec, pid));
        Self { huge_pages, ..self }
    }

    /// Things that others wait for when the guest ends.
    pub(super) fn exclusive(&self) -> Exclusive {
        self.exclusive.clone()
    }
}
