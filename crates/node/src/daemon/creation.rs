//! Makes a sandbox on empty memory.

use std::sync::Arc;

use rekindle_api::control::{Answer, Asked};
use rekindle_api::types::{CreateSandbox, Sandbox, TapName, Which};
use rekindle_engine::identity::DomainName;
use rekindle_engine::snapshot::Snapshot as EngineSnapshot;

use super::boot_files::MachineInMaking;
use super::entry::Entry;
use super::events::About as EventAbout;
use super::idempotency::{Chosen, Made};
use super::live::Live;
use super::network::{Network, WantedNetwork};
use super::record::{NewSandbox, SandboxRecord};
use super::room_promises::{Needed, RoomPromise};
use super::sandboxes::Sandboxes;
use super::spec::GuestSpec;

impl Sandboxes {
    pub(super) fn create(&self, asked: &Asked, wanted: CreateSandbox) -> Answer<Sandbox> {
        let mut chosen = self.requests.choose(asked, &("create", &wanted), 1)?;
        let id = chosen.ids[0];
        if let Some(entry) = self.registry.get(id) {
            return Ok(entry.show());
        }
        chosen.refuse_if_gone(Made::Sandbox, &[id])?;
        let disks_of = wanted.machine.as_ref().and_then(|machine| machine.disks_of.as_ref());
        let disks_of = disks_of.map(|reference| self.snapshots.with_disks(reference, &wanted)).transpose()?;
        let domain = match &disks_of {
            Some(known) => known.snapshot.domain().clone(),
            None => self.host.engine.domain(wanted.domain.as_ref())?,
        };
        let name = self.registry.reserve(wanted.name.as_ref())?;
        let network = network_of(&wanted)?;
        self.check_networks(std::slice::from_ref(&network))?;
        self.room.check_pausable(wanted.memory_bytes)?;
        let disks = match &disks_of {
            Some(known) => known.snapshot.volumes().len() - 1,
            None => wanted.machine.as_ref().map_or(0, |machine| machine.disks.len()),
        };
        let room = self.room.promise(&Needed::of(wanted.memory_bytes, wanted.backing, disks))?;
        let machine = wanted.machine.as_ref().map(|_| self.boot_files.begin_machine());
        let (spec, images) =
            self.made_of(id, (&wanted, network, disks_of.as_ref()), &domain, &asked.asker)?;
        let made = self.create_of(&mut chosen, wanted, (spec, domain, &room), asked, images.as_ref());
        let entry = made.inspect_err(|_| self.forget_images(images.as_ref()))?;
        machine.into_iter().for_each(MachineInMaking::made);
        drop((name, room));
        self.events.say("sandbox.created", EventAbout::sandbox(id), None);
        Ok(entry.show())
    }

    /// A new sandbox of what was settled; an error has left nothing of it.
    fn create_of(
        &self,
        chosen: &mut Chosen<'_>,
        wanted: CreateSandbox,
        (spec, domain, room): (GuestSpec, DomainName, &RoomPromise),
        asked: &Asked,
        images: Option<&Arc<EngineSnapshot>>,
    ) -> Answer<Arc<Entry>> {
        asked.check()?;
        let live = self.born(&spec, room, |birth| Live::start(&self.host, birth, images.cloned()))?;
        let CreateSandbox { name, labels, checkpoints, .. } = wanted;
        let sandbox = NewSandbox { id: chosen.ids[0], name, labels, domain, spec, checkpoints };
        let record = SandboxRecord::new(sandbox, live.recorded());
        if let Err(problem) = asked.check() {
            self.host.endings.end(live.end());
            return Err(problem);
        }
        let making = chosen.making(&[record.id]);
        self.take_in(record, live, making)
    }
}

/// The network of a new sandbox.
fn network_of(wanted: &CreateSandbox) -> Answer<Network> {
    let Some(machine) = &wanted.machine else { return Ok(Network::default()) };
    let taps: Vec<TapName> = machine.taps.iter().map(|tap| tap.device.clone()).collect();
    let network = WantedNetwork { taps: Some(&taps), netns: machine.netns.as_ref() };
    network.of(&Network::default(), Which { index: 1, name: wanted.name.as_ref() })
}
