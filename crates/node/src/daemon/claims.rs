//! Things of the host that one guest has at a time: its taps, and its huge pages.

use rekindle_api::control::Answer;
use uuid::Uuid;

use super::exclusive::Exclusive;
use super::host::Host;
use super::huge_pages::HugePromise;
use super::room_promises::{Needed, RoomPromise};
use super::spec::GuestSpec;

/// One guest's claim to them, from before its start.
#[derive(Debug)]
pub(super) struct Claim {
    exclusive: Exclusive,
    /// The huge pages that it may still take without having reserved them.
    huge_pages: Option<HugePromise>,
}

/// A guest that is about to be started.
pub(super) struct Birth<'a> {
    /// Its id.
    pub(super) id: Uuid,
    /// Its parts.
    pub(super) spec: &'a GuestSpec,
    /// Its claim, which was made.
    pub(super) claim: Claim,
}

impl Claim {
    /// Waits for guests that are ending at the taps of a new guest, and takes its huge pages out of `room`.
    pub(super) fn make(host: &Host, spec: &GuestSpec, room: &RoomPromise) -> Answer<Self> {
        let exclusive = spec.exclusive();
        host.endings.make_way(&Exclusive { huge_pages: false, ..exclusive.clone() });
        let huge_pages = match room.take_huge_pages() {
            Some(promise) => Some(promise),
            // Its own are given back by the guest whose place it takes, or were lost by one that did not come to be.
            None => host.promise_huge_pages(&Needed::by(spec).huge_pages)?.pop(),
        };
        Ok(Self { exclusive, huge_pages })
    }

    /// The claim of a guest that runs already.
    pub(super) fn renew(host: &Host, spec: &GuestSpec, pid: u32) -> Self {
        Self { exclusive: spec.exclusive(), huge_pages: host.huge_pages.renew(spec, pid) }
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
