//! Brings a guest up: on empty memory, on a snapshot, or as an earlier daemon left it.

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use anyhow::Context as _;
use rekindle_api::types::MemoryMode;
use rekindle_engine::handover::Handover;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::learning::Prefault;
use rekindle_engine::serve::{Epoch, EpochFacts};
use rekindle_engine::snapshot::Snapshot;
use rekindle_keeper::Held;
use uuid::Uuid;

use super::serving::serve;
use super::{Live, Memory};
use crate::daemon::claims::{Birth, Claim};
use crate::daemon::epochs::{keep_epoch, kept_epoch};
use crate::daemon::guests::{self, Guest, HANDOVER_LIMIT};
use crate::daemon::host::Host;
use crate::daemon::record::RecordedGuest;
use crate::daemon::spec::GuestSpec;

impl Live {
    /// Starts a guest on empty memory, with its disks as they are in `base`.
    pub(in crate::daemon) fn start(
        host: &Host,
        Birth { id, spec, claim }: Birth<'_>,
        base: Option<Arc<Snapshot>>,
    ) -> anyhow::Result<Self> {
        let kept_by = host.keeping.client().identity();
        let guest = spec.start(host, id, base.as_ref())?;
        let claim = claim.held_by(spec, guest.process().id());
        let base = base.map(|base| host.engine.runs_from(&base));
        Ok(Self { id, guest, base, memory: Memory::Own, kept_by, unsettled: None, stuck: None, claim })
    }

    /// Starts a guest on a snapshot's memory and device state; pages come as it touches them.
    pub(in crate::daemon) fn resume(
        host: &Host,
        Birth { id, spec, claim }: Birth<'_>,
        (snapshot, prefault): (&Arc<Snapshot>, Prefault),
        mode: MemoryMode,
    ) -> anyhow::Result<Self> {
        let kept_by = host.keeping.client().identity();
        let base = host.engine.runs_from(snapshot);
        let socket = spec.handover(host, id)?;
        let listener =
            UnixListener::bind(&socket).with_context(|| format!("listening on {}", socket.display()))?;
        let image = match mode {
            MemoryMode::Own => None,
            MemoryMode::Shared => Some(host.engine.image(snapshot).context("memory for guests to share")?),
        };
        let place = guests::Handover { socket: &socket, image: image.as_deref() };
        let started = spec.start_served(host, id, snapshot, place).map(|guest| Unborn(Some(guest)));
        let accepted = started.and_then(|mut unborn| {
            let accepted = unborn.guest().handed_over(&listener)?;
            Ok((unborn, accepted))
        });
        match std::fs::remove_file(&socket) {
            // One in a jail goes with the jail, where a start has failed.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", socket.display()));
            }
            Ok(()) | Err(_) => {}
        }
        let (mut unborn, accepted) = accepted?;
        let guest = unborn.guest();
        let Some(stream) = accepted else {
            guest.load(snapshot.blobs())?;
            anyhow::bail!("the guest's VMM loaded its state without its memory");
        };
        let pages = snapshot.memory().pages();
        let handover = Handover { image, ..Handover::receive(stream, pages, HANDOVER_LIMIT)? };
        let options = guest.serve_options();
        let epoch = Epoch::begin(handover, options.tracking).context("beginning to serve the guest")?;
        let facts = keep_epoch(&host.keeping, id, &epoch)?;
        let server = serve(host, snapshot, epoch, options)?;
        host.engine.prefaulter().begin(snapshot, &server, prefault);
        let memory = Memory::Served { server, facts };
        guest.load(snapshot.blobs())?;
        let guest = unborn.born();
        let (base, claim) = (Some(base), claim.held_by(spec, guest.process().id()));
        Ok(Self { id, guest, base, memory, kept_by, unsettled: None, stuck: None, claim })
    }

    /// Finds a guest again that an earlier daemon left with the keeper, and serves it on.
    pub(in crate::daemon) fn recover(
        host: &Host,
        recorded: &RecordedGuest,
        mut held: Held,
        spec: &GuestSpec,
    ) -> anyhow::Result<Self> {
        let find = |base: Uuid| {
            let snapshot = host.engine.origin(SnapshotId::from(base));
            snapshot.with_context(|| format!("there is no snapshot {base} any more"))
        };
        let kept_by = host.keeping.client().identity();
        let base = recorded.base.map(find).transpose()?;
        let epoch = match &recorded.served {
            Some(facts) => Some(recover_epoch(host, &mut held, facts, base.as_ref())?),
            None => None,
        };
        let guest = spec.attach(host, recorded, &mut held, base.as_ref())?;
        let memory = match (epoch, &base) {
            (Some(epoch), Some(_)) => Memory::Unserved { epoch: Box::new(epoch) },
            (Some(_), None) => anyhow::bail!("nothing says which snapshot it is served from"),
            (None, _) => Memory::Own,
        };
        let base = base.map(|base| host.engine.runs_from(&base));
        let (id, claim) = (recorded.id, Claim::renew(host, spec, guest.process().id()));
        let mut found = Self { id, guest, base, memory, kept_by, unsettled: None, stuck: None, claim };
        found.stuck = found.serve_again(host).err().map(|error| format!("{error:#}"));
        Ok(found)
    }
}

/// The epoch of a guest that an earlier daemon served. If it runs from the snapshot whose image it maps, it goes on sharing
/// that one.
fn recover_epoch(
    host: &Host,
    held: &mut Held,
    facts: &EpochFacts,
    base: Option<&Arc<Snapshot>>,
) -> anyhow::Result<Epoch> {
    let mut kept = kept_epoch(held, facts.clone())?;
    let image = kept.image.take();
    let mut epoch = Epoch::recover(kept)?;
    let base = base.filter(|base| facts.image == Some(base.id().uuid()));
    if let (Some(base), Some(file)) = (base, image) {
        match host.engine.adopt_image(base, file) {
            Ok(image) => epoch.share(image),
            Err(error) => {
                tracing::warn!(pid = epoch.pid(), %error, "a guest shares no pages from now on: each gets its own");
            }
        }
    }
    Ok(epoch)
}

/// A guest that is being brought up; killed on drop, as its keeper may be gone and can then be asked for it no more.
struct Unborn(Option<Box<dyn Guest>>);

impl Unborn {
    fn guest(&mut self) -> &mut dyn Guest {
        &mut **self.0.as_mut().expect("it is there until it is born")
    }

    fn born(mut self) -> Box<dyn Guest> {
        self.0.take().expect("it is there until it is born")
    }
}

impl Drop for Unborn {
    fn drop(&mut self) {
        if let Some(guest) = &self.0 {
            // An error says that it has ended.
            guest.process().begin_kill().ok();
        }
    }
}
