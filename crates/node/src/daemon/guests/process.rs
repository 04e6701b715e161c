//! The process guest as the daemon drives it.

use anyhow::Context as _;
use rekindle_api::types::MemoryBacking;
use rekindle_engine::pause::PausedVolume;
use rekindle_engine::serve::{Epoch, ServeOptions};
use rekindle_engine::tracking::Tracking;
use rekindle_guest::process::arguments::MemoryKind;
use rekindle_guest::process::protocol::Hello;
use rekindle_keeper::{Held, KeeperClient, KeeperError};
use rekindle_vmm::DEVICE_STATE;
use rekindle_vmm::copied_memory::copy_volume;
use rekindle_vmm::process::{GuestControl, GuestShape, KeptParts, ProcessGuest};
use rekindle_vmm::vmm_process::VmmProcess;
use uuid::Uuid;

use super::{Blobs, Guest, Handover};
use crate::daemon::host::Host;
use crate::daemon::keys::guest_key;
use crate::daemon::spec::RecordedVmm;

#[derive(Debug)]
struct DrivenProcess {
    guest: ProcessGuest,
    shape: GuestShape,
}

pub(super) fn start(
    host: &Host,
    id: Uuid,
    memory_bytes: u64,
    backing: MemoryBacking,
    handover: Option<Handover<'_>>,
) -> anyhow::Result<Box<dyn Guest>> {
    let mut shape = shape(host, memory_bytes, backing);
    let image = handover.and_then(|handover| handover.image);
    if image.is_some() {
        (shape.kind, shape.tracking) = (MemoryKind::Image, Tracking::Diverged);
    }
    let options = shape.guest(handover.map(|handover| handover.socket.to_owned()));
    let guest = ProcessGuest::spawn_under(&host.keeping.client(), &guest_key(id), &options, image)?;
    Ok(Box::new(DrivenProcess { guest, shape }))
}

pub(super) fn attach(
    host: &Host,
    memory_bytes: u64,
    backing: MemoryBacking,
    hello: Hello,
    held: &mut Held,
) -> anyhow::Result<Box<dyn Guest>> {
    let parts = KeptParts::take(held, hello).context("the keeper holds only a part of the guest")?;
    let guest = ProcessGuest::attach(parts)?;
    Ok(Box::new(DrivenProcess { guest, shape: shape(host, memory_bytes, backing) }))
}

fn shape(host: &Host, memory_bytes: u64, backing: MemoryBacking) -> GuestShape {
    let kind = match backing {
        MemoryBacking::Shared => MemoryKind::Shared,
        MemoryBacking::Private => MemoryKind::Private,
        MemoryBacking::Huge => MemoryKind::Huge,
        MemoryBacking::PrivateHuge => MemoryKind::PrivateHuge,
    };
    GuestShape { kind, ..GuestShape::new(host.keeping.program().to_owned(), memory_bytes) }
}

impl Guest for DrivenProcess {
    fn process(&self) -> &VmmProcess {
        &self.guest.process
    }

    fn suspend(&mut self) -> anyhow::Result<Blobs> {
        let state = self.guest.control.state()?;
        let state = serde_json::to_vec(&state).expect("device state is plain data");
        Ok(Blobs::from([(DEVICE_STATE.to_owned(), state.into())]))
    }

    fn go_on(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    fn load(&mut self, blobs: &Blobs) -> anyhow::Result<()> {
        let state = blobs.get(DEVICE_STATE).context("the snapshot has no device state")?;
        let state = serde_json::from_slice(state).context("the snapshot's device state")?;
        Ok(self.guest.control.restore(state)?)
    }

    fn volumes(&self, epoch: Option<&Epoch>) -> anyhow::Result<Vec<PausedVolume>> {
        Ok(vec![self.shape.stopped_memory(&self.guest, epoch)?])
    }

    fn copied_volumes(&self, epoch: Option<&Epoch>) -> anyhow::Result<Vec<PausedVolume>> {
        let memory = self.shape.stopped_memory(&self.guest, epoch)?;
        let has_file = epoch.map_or(self.guest.memfd().is_some(), |epoch| epoch.memfd().is_some());
        // Private memory was copied to be captured.
        Ok(vec![if has_file { copy_volume(memory)? } else { memory }])
    }

    fn disks_may_have_changed(&self) -> bool {
        false
    }

    fn serve_options(&self) -> ServeOptions {
        self.shape.serve_options()
    }

    fn recorded(&self) -> RecordedVmm {
        RecordedVmm::Process(self.guest.hello().clone())
    }

    fn close_memory(&mut self) {
        self.guest.close_memory();
    }

    fn keep_under(&self, keeper: &KeeperClient, key: &str) -> Result<(), KeeperError> {
        self.guest.keep_under(keeper, key)
    }

    fn control(&mut self) -> Option<&mut GuestControl> {
        Some(&mut self.guest.control)
    }
}
