//! The kinds of guests: memory, regions and tracking, with huge pages if the system has some.

use std::path::PathBuf;

use rekindle_engine::tracking::Tracking;
use rekindle_guest::process::arguments::{GuestArguments, MemoryKind, TrackingKind};
use rekindle_guest::process::protocol::DiscardHow;
use rekindle_kernel::{HugepageReservation, PageKind};
use rekindle_testkit::skip::skipped;
use rekindle_vmm::process::GuestShape;

use super::{MIB, program};

/// Bytes of a guest of small pages.
const SMALL_BYTES: u64 = 16 * MIB;
/// Bytes of a guest of huge pages.
const HUGE_BYTES: u64 = 24 * MIB;
/// Huge pages for every guest and capture that one test has at once.
const HUGE_PAGES: u64 = 200;

const KINDS: [MemoryKind; 4] =
    [MemoryKind::Shared, MemoryKind::Private, MemoryKind::Huge, MemoryKind::PrivateHuge];

/// One kind of guest.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) shape: GuestShape,
    /// Way in which it gives pages back so that they read zero.
    pub(crate) discard: DiscardHow,
}

impl Case {
    pub(crate) fn new(kind: MemoryKind, regions: usize, tracking: Tracking) -> Self {
        let bytes = match kind.page_kind() {
            PageKind::Small => SMALL_BYTES,
            PageKind::Huge => HUGE_BYTES,
        };
        let mut shape = GuestShape::new(program(), bytes);
        (shape.kind, shape.regions, shape.tracking) = (kind, regions, tracking);
        let discard = if kind.is_shared() { DiscardHow::Remove } else { DiscardHow::DontNeed };
        Self { shape, discard }
    }

    /// The words for a guest of this case that hands its memory over at `socket`.
    pub(crate) fn guest_arguments(&self, socket: PathBuf) -> GuestArguments {
        let mut arguments = GuestArguments::fresh(self.shape.memory_bytes);
        (arguments.kind, arguments.regions) = (self.shape.kind, self.shape.regions);
        arguments.tracking = match self.shape.tracking {
            Tracking::Scan => TrackingKind::Scan,
            Tracking::Events => TrackingKind::Events,
            Tracking::Resident | Tracking::Diverged => TrackingKind::Resident,
        };
        (arguments.handover, arguments.send_memfd) = (Some(socket), self.shape.kind.is_shared());
        arguments
    }

    /// One region of small shared pages, scanned.
    pub(crate) fn usual() -> Self {
        Self::new(MemoryKind::Shared, 1, Tracking::Scan)
    }
}

/// Runs `test` with guests of every kind, 1 and 3 regions, and every tracking.
pub(crate) fn each_case(test: impl Fn(&Case)) {
    let regions_and_tracking = [
        (1, Tracking::Scan),
        (3, Tracking::Scan),
        (3, Tracking::Events),
        (1, Tracking::Events),
        (1, Tracking::Resident),
        (3, Tracking::Resident),
    ];
    run(&regions_and_tracking, test);
}

/// Runs `test` with guests of every kind in 3 regions, with the trackings in turn.
pub(crate) fn each_kind(test: impl Fn(&Case)) {
    run(&[(3, Tracking::Scan), (3, Tracking::Events)], test);
}

fn run(regions_and_tracking: &[(usize, Tracking)], test: impl Fn(&Case)) {
    for kind in KINDS {
        let reserved = match kind.page_kind() {
            PageKind::Small => None,
            PageKind::Huge => match HugepageReservation::reserve(HUGE_PAGES) {
                Ok(reserved) => Some(reserved),
                Err(error) => {
                    skipped("huge pages", &error.to_string());
                    continue;
                }
            },
        };
        for &(regions, tracking) in regions_and_tracking {
            let case = Case::new(kind, regions, tracking);
            eprintln!("{kind:?}, {regions} regions, {tracking:?}");
            test(&case);
        }
        drop(reserved);
    }
}
