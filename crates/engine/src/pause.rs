//! A pause: the permit before the guest is frozen, and the snapshot afterwards.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rekindle_kernel::{Memfd, PageKind};

use crate::budget::{Budget, BudgetError, Lease};
use crate::capture::{Capture, CaptureError, CapturedPages};
use crate::captured_facts::CapturedFacts;
use crate::catalog::{CatalogError, Change, WriteError};
use crate::deadline::Deadline;
use crate::geometry::u64_of;
use crate::identity::{DomainName, SnapshotId, VolumeName};
use crate::image::Images;
use crate::key_ring::{KeyRing, NoKeyOfDomain};
use crate::manifest::{ManifestError, VolumeShape, check_blobs, check_shapes};
use crate::only_here::OnlyHere;
use crate::reaper::ReaperHandle;
use crate::records::Records;
use crate::snapshot::{Snapshot, SnapshotParts, Volume};
use crate::view::{LiveView, View};

pub use crate::records::UnsettledPause;

/// The right to pause a guest now: there is room for its memory, and not too many of its ancestors are unsealed. Taken
/// while the guest still runs; dropped unused, it gives everything back.
#[derive(Debug)]
#[must_use = "a permit holds RAM until it is used or dropped"]
pub struct PausePermit {
    parent: Option<Arc<Snapshot>>,
    domain: DomainName,
    lease: Lease,
    reaper: ReaperHandle,
}

/// The origin of a guest's volumes, which says the domain of its next snapshot.
#[derive(Debug, Clone, Copy)]
pub enum Base<'a> {
    /// It runs from a snapshot, and stays in that one's domain.
    Snapshot(&'a Arc<Snapshot>),
    /// It runs from none, in this domain.
    Domain(&'a DomainName),
}

/// A permit, or the reason that there is none.
pub type Permitted = Result<PausePermit, PauseError>;

/// A frozen guest, to be taken over as a snapshot.
#[derive(Debug)]
pub struct PausedGuest {
    /// The id of its snapshot, chosen by the caller before it froze the guest, and never used before.
    pub id: SnapshotId,
    /// The volumes, memory first; each in a memfd of ours.
    pub volumes: Vec<PausedVolume>,
    /// Device state and metadata by name.
    pub blobs: BTreeMap<String, Bytes>,
    /// Further changes of the catalog, made in the same transaction.
    pub alongside: Vec<Change>,
}

/// One volume of a frozen guest.
#[derive(Debug)]
pub struct PausedVolume {
    /// Its name.
    pub name: VolumeName,
    /// The kind of pages that its guest maps it with.
    pub page_kind: PageKind,
    /// Its bytes, page `p` at byte `p * 4096`.
    pub memfd: Memfd,
    /// The captured pages; every other page is the parent's.
    pub pages: CapturedPages,
}

/// Reason that a guest cannot be paused now; it was not frozen.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// There is no room for its memory.
    #[error("no RAM for the capture: {0}")]
    Budget(#[from] BudgetError),
    /// The snapshot that the guest runs from was lost.
    #[error("snapshot {parent} is lost, nothing can be made of it")]
    Lost {
        /// The snapshot it runs from.
        parent: SnapshotId,
    },
    /// Earlier pauses of its line are still being sealed.
    #[error(
        "{unsealed} snapshots under this one are still being sealed, at most {unsealed_max} may be; the oldest is {oldest}"
    )]
    Unsealed {
        /// Number of unsealed ancestors.
        unsealed: usize,
        /// Largest number allowed.
        unsealed_max: usize,
        /// The one that all others wait for.
        oldest: SnapshotId,
    },
    /// Too many bytes of snapshots are on this node and not in the store.
    #[error("{bytes} bytes of snapshots are only on this node, and a pause is refused from {bytes_max} on")]
    Unpublished {
        /// Bytes of captures, and of layers that are not in the store.
        bytes: u64,
        /// Number from which on a pause is refused.
        bytes_max: u64,
    },
    /// The node has no key of the guest's domain any more.
    #[error(transparent)]
    Domain(#[from] NoKeyOfDomain),
    /// The caller no longer wants it.
    #[error("the pause was not wanted any more before there was room for it")]
    Unwanted,
}

/// Reason that a frozen guest could not be taken over; it is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A volume cannot be a capture.
    #[error("volume {volume}: {source}")]
    Capture {
        /// The volume.
        volume: String,
        /// The fault in it.
        source: CaptureError,
    },
    /// A volume's size could not be read.
    #[error("volume {volume}: {source}")]
    Memfd {
        /// The volume.
        volume: String,
        /// The system's error.
        source: io::Error,
    },
    /// The snapshot's id was used before: an id is used once, even if its snapshot is gone.
    #[error("the id {snapshot} belongs to another snapshot, which is here or was deleted; choose a new id")]
    IdUsed {
        /// The id.
        snapshot: SnapshotId,
    },
    /// The keeper did not take the captured memory.
    #[error("handing the captured memory to the keeper: {0}")]
    Keeper(#[source] io::Error),
    /// The snapshot was not recorded.
    #[error("recording the snapshot: {0}")]
    Catalog(#[from] CatalogError),
    /// It is unknown if the snapshot was recorded, together with the further changes. The guest must not run until this
    /// is dropped.
    #[error("recording the snapshot: {0}")]
    Unsettled(UnsettledPause),
    /// The guest cannot be named in a manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The volumes are not the parent's.
    #[error("the parent's volumes are {expected:?}, the guest's are {found:?} (names and pages)")]
    Volumes {
        /// Names and pages of the parent.
        expected: Vec<(String, u32)>,
        /// Names and pages of the guest.
        found: Vec<(String, u32)>,
    },
}

/// Rules and sources of pause permits.
#[derive(Debug, Clone)]
pub(crate) struct PauseRules {
    pub(crate) keys: KeyRing,
    pub(crate) budget: Budget,
    pub(crate) unsealed_max: usize,
    pub(crate) wait: Duration,
    pub(crate) reaper: ReaperHandle,
    pub(crate) only_here: Arc<OnlyHere>,
    /// Give their RAM back where a pause would wait for it.
    pub(crate) images: Images,
    /// Bytes of captures and of layers that are only here from which on a pause is refused; no bound without.
    pub(crate) unpublished_bytes_max: Option<u64>,
}

impl PauseRules {
    pub(crate) fn permit(
        &self,
        base: Base<'_>,
        memory_bytes: u64,
        is_wanted: &dyn Fn() -> bool,
    ) -> Permitted {
        self.check_unpublished()?;
        let deadline = Deadline::after(self.wait);
        let (parent, domain) = match base {
            Base::Snapshot(parent) => (Some(parent), parent.domain()),
            Base::Domain(domain) => (None, domain),
        };
        if let Some(parent) = parent {
            if parent.is_lost() {
                return Err(PauseError::Lost { parent: parent.id() });
            }
            self.wait_for_line(parent, deadline, is_wanted)?;
        }
        self.keys.of_domain(domain)?;
        let lease = self.wait_for_room(memory_bytes, deadline, is_wanted)?;
        let (parent, domain) = (parent.cloned(), domain.clone());
        Ok(PausePermit { parent, domain, lease, reaper: self.reaper.clone() })
    }

    /// Bytes of RAM that captures hold.
    pub(crate) fn capture_bytes_held(&self) -> u64 {
        self.budget.bytes_held().saturating_sub(self.images.bytes_held())
    }

    /// Refused at once: only the store can help, and nobody knows when it does.
    fn check_unpublished(&self) -> Result<(), PauseError> {
        let bytes = self.capture_bytes_held() + self.only_here.bytes();
        match self.unpublished_bytes_max {
            Some(bytes_max) if bytes >= bytes_max => Err(PauseError::Unpublished { bytes, bytes_max }),
            Some(_) | None => Ok(()),
        }
    }

    fn wait_for_room(
        &self,
        bytes: u64,
        deadline: Deadline,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Lease, PauseError> {
        let _made_way = match self.budget.lease(bytes, Duration::ZERO) {
            Err(BudgetError::Exhausted { .. }) => self.images.make_way(),
            lease => return Ok(lease?),
        };
        loop {
            check_wanted(is_wanted)?;
            match self.budget.lease(bytes, deadline.turn()) {
                Err(BudgetError::Exhausted { .. }) if !deadline.is_over() => {}
                lease => return Ok(lease?),
            }
        }
    }

    fn wait_for_line(
        &self,
        parent: &Arc<Snapshot>,
        deadline: Deadline,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(), PauseError> {
        loop {
            let line = parent.unsealed_line();
            // If no unsealed ancestor is allowed at all, a pause waits until there is none.
            let Some(oldest) = line.last().filter(|_| line.len() >= self.unsealed_max) else {
                return Ok(());
            };
            check_wanted(is_wanted)?;
            if oldest.wait_manifest(deadline.turn()).is_err() && deadline.is_over() {
                return Err(PauseError::Unsealed {
                    unsealed: line.len(),
                    unsealed_max: self.unsealed_max,
                    oldest: oldest.id(),
                });
            }
        }
    }
}

fn check_wanted(is_wanted: &dyn Fn() -> bool) -> Result<(), PauseError> {
    is_wanted().then_some(()).ok_or(PauseError::Unwanted)
}

impl PausePermit {
    /// Makes the snapshot: from here on it can be read, resumed, forked and paused over. With `records`, the keeper
    /// then has its memory and the catalog its record; after an error neither has anything of it. The cost depends
    /// neither on the number of dirty pages nor on the length of the history.
    pub(crate) fn commit(
        mut self,
        guest: PausedGuest,
        records: Option<&Records>,
    ) -> Result<(Arc<Snapshot>, Vec<Arc<Capture>>), CommitError> {
        self.check_volumes(&guest.volumes)?;
        check_blobs(&guest.blobs)?;
        let mut captures = Vec::with_capacity(guest.volumes.len());
        let mut volumes = Vec::with_capacity(guest.volumes.len());
        for (position, PausedVolume { name, page_kind, memfd, pages }) in
            guest.volumes.into_iter().enumerate()
        {
            let capture = Arc::new(self.capture(&name, memfd, pages)?);
            let base = self.parent.as_ref().map(|parent| Arc::clone(&parent.volumes()[position].view));
            let view = Arc::new(LiveView::new(View::captured(Arc::clone(&capture), base)));
            captures.push(capture);
            volumes.push(Volume { name, page_kind, view });
        }
        let parts = SnapshotParts {
            id: guest.id,
            parent_id: self.parent.as_ref().map(|parent| parent.id()),
            domain: self.domain,
            generation: self.parent.as_ref().map_or(0, |parent| parent.generation() + 1),
            created_unix_ms: unix_ms(),
            volumes,
            blobs: guest.blobs,
            records: records.cloned(),
        };
        if let Some(records) = records {
            keep_and_record(records, &parts, &captures, guest.alongside)?;
        }
        Ok((Arc::new(Snapshot::captured(parts, self.parent, &captures)), captures))
    }

    fn capture(
        &mut self,
        name: &VolumeName,
        memfd: Memfd,
        pages: CapturedPages,
    ) -> Result<Capture, CommitError> {
        let volume = || name.as_str().to_owned();
        let held =
            memfd.allocated_bytes().map_err(|source| CommitError::Memfd { volume: volume(), source })?;
        let beyond = held.saturating_sub(self.lease.bytes());
        if beyond > 0 {
            tracing::warn!(volume = %name, held, beyond, "a capture has grown beyond the RAM its pause was permitted; it is counted, and later pauses wait longer");
        }
        let lease = self.lease.split_off(held);
        Capture::adopt(memfd, pages, lease, self.reaper.clone())
            .map_err(|source| CommitError::Capture { volume: volume(), source })
    }

    fn check_volumes(&self, volumes: &[PausedVolume]) -> Result<(), CommitError> {
        let Some(parent) = &self.parent else {
            let shape = |volume: &PausedVolume| VolumeShape {
                name: volume.name.clone(),
                page_kind: volume.page_kind,
                pages: volume.pages.kept.pages(),
            };
            return Ok(check_shapes(&volumes.iter().map(shape).collect::<Vec<_>>())?);
        };
        let expected: Vec<(String, u32)> = parent
            .volumes()
            .iter()
            .map(|volume| (volume.name.as_str().to_owned(), volume.view.pages()))
            .collect();
        let found: Vec<(String, u32)> = volumes
            .iter()
            .map(|volume| (volume.name.as_str().to_owned(), volume.pages.kept.pages()))
            .collect();
        if expected == found { Ok(()) } else { Err(CommitError::Volumes { expected, found }) }
    }
}

fn keep_and_record(
    records: &Records,
    parts: &SnapshotParts,
    captures: &[Arc<Capture>],
    alongside: Vec<Change>,
) -> Result<(), CommitError> {
    let shape = |volume: &Volume| VolumeShape {
        name: volume.name.clone(),
        page_kind: volume.page_kind,
        pages: volume.view.pages(),
    };
    let facts = CapturedFacts {
        parent: parts.parent_id,
        generation: parts.generation,
        created_unix_ms: parts.created_unix_ms,
        volumes: parts.volumes.iter().map(shape).collect(),
        blobs: parts.blobs.clone(),
    };
    let names = parts.volumes.iter().map(|volume| &volume.name);
    if let Err(error) = records.keep(parts.id, names, captures) {
        records.forget(parts.id);
        return Err(CommitError::Keeper(error));
    }
    match records.captured(parts.id, &parts.domain, facts, alongside) {
        Ok(()) => Ok(()),
        Err(WriteError::NotMade(error)) => {
            records.forget(parts.id);
            Err(error.into())
        }
        Err(WriteError::Unknown(unsettled)) => {
            Err(CommitError::Unsettled(UnsettledPause::new(records.clone(), parts.id, unsettled)))
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64_of(usize::try_from(since.as_millis()).expect("64 bits of milliseconds are 500 million years"))
}
