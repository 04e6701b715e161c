//! The disks of a virtual machine: each served at a socket, on the volume of the snapshot that the guest came from.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use rekindle_disk::{Access, Disk, DiskSource, DiskWatch, Overlay, OverlayFiles};
use rekindle_engine::identity::VolumeName;
use rekindle_engine::pause::PausedVolume;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::view::LiveView;
use rekindle_keeper::{Held, KeeperClient};
use uuid::Uuid;

use crate::daemon::host::Host;
use crate::daemon::keeping::take_fd;
use crate::daemon::keys::guest_key;

/// A disk as it is known by name.
#[derive(Debug)]
pub(super) struct NamedDisk {
    name: VolumeName,
    disk: Disk,
    socket: PathBuf,
}

/// Serves the disks of a new guest, each a name and its bytes, as they are in `base`. The keeper has what is written from
/// the first write on.
pub(super) fn begin(
    host: &Host,
    guest: Uuid,
    wanted: &[(VolumeName, u64)],
    base: Option<&Arc<Snapshot>>,
) -> anyhow::Result<Vec<NamedDisk>> {
    let begin_one = |(at, (name, bytes)): (usize, &(VolumeName, u64))| {
        let overlay = Overlay::create(*bytes).with_context(|| format!("disk {name}"))?;
        keep(&host.keeping.client(), &guest_key(guest), name, &overlay)?;
        serve(host, guest, at, name, *bytes, overlay, base)
    };
    wanted.iter().enumerate().map(begin_one).collect()
}

/// Serves disks on that another daemon served.
pub(super) fn recover(
    host: &Host,
    guest: Uuid,
    wanted: &[(VolumeName, u64)],
    base: Option<&Arc<Snapshot>>,
    held: &mut Held,
) -> anyhow::Result<Vec<NamedDisk>> {
    let recover_one = |(at, (name, bytes)): (usize, &(VolumeName, u64))| {
        let [written, marks] = names(name).map(|name| take_fd(held, &name));
        let overlay = Overlay::recover(OverlayFiles { written: written?, marks: marks? });
        let overlay = overlay.with_context(|| format!("disk {name}"))?;
        serve(host, guest, at, name, *bytes, overlay, base)
    };
    wanted.iter().enumerate().map(recover_one).collect()
}

fn serve(
    host: &Host,
    guest: Uuid,
    at: usize,
    name: &VolumeName,
    bytes: u64,
    overlay: Overlay,
    base: Option<&Arc<Snapshot>>,
) -> anyhow::Result<NamedDisk> {
    let socket = socket(&host.run_directory, guest, at);
    let base = base.map(|snapshot| view(snapshot, name)).transpose()?;
    let fetcher = host.engine.fetcher().clone();
    let source = DiskSource { base, fetcher, overlay, bytes, access: Access::ReadWrite };
    let disk = Disk::serve(&socket, source).with_context(|| format!("serving disk {name}"))?;
    host.metrics.disk_served(disk.watch());
    Ok(NamedDisk { name: name.clone(), disk, socket })
}

fn view(snapshot: &Snapshot, name: &VolumeName) -> anyhow::Result<Arc<LiveView>> {
    let volume = snapshot.volumes().iter().find(|volume| volume.name == *name);
    let volume = volume.with_context(|| format!("snapshot {} has no volume {name}", snapshot.id()))?;
    Ok(Arc::clone(&volume.view))
}

/// Path of a disk's socket: short, as a socket's path has 107 bytes at most.
fn socket(run_directory: &Path, guest: Uuid, at: usize) -> PathBuf {
    run_directory.join(format!("disk-{guest}-{at}.sock"))
}

/// The names of a disk's files at the keeper.
fn names(name: &VolumeName) -> [String; 2] {
    [format!("disk.{name}.written"), format!("disk.{name}.marks")]
}

fn keep(keeper: &KeeperClient, key: &str, name: &VolumeName, overlay: &Overlay) -> anyhow::Result<()> {
    let files = overlay.files()?;
    let [written, marks] = names(name);
    Ok(keeper.add(key, &[(&written, files.written.as_fd()), (&marks, files.marks.as_fd())])?)
}

impl NamedDisk {
    /// Path of its socket.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Stops it, and gives what was written as a volume.
    pub(super) fn freeze(&self) -> anyhow::Result<PausedVolume> {
        let frozen = self.disk.freeze();
        frozen.volume(self.name.clone()).with_context(|| format!("disk {}", self.name))
    }

    /// Lets it go on.
    pub(super) fn thaw(&self) {
        self.disk.thaw();
    }

    /// Stands still, and will go on from a snapshot that has all that was written so far.
    pub(super) fn rebase(&self, base: &Snapshot) -> anyhow::Result<()> {
        Ok(self.disk.freeze().rebase(view(base, &self.name)?)?)
    }

    /// Bytes of RAM that hold what was written.
    pub(super) fn bytes_held(&self) -> u64 {
        self.disk.overlay().bytes_held().unwrap_or(0)
    }

    /// True if anything was written to it since the snapshot that it is changes of.
    pub(super) fn is_changed(&self) -> bool {
        self.disk.overlay().is_changed()
    }

    /// Shows if its requests get their pages.
    pub(super) fn watch(&self) -> (VolumeName, DiskWatch) {
        (self.name.clone(), self.disk.watch())
    }

    /// Hands what was written to a keeper that does not hold it.
    pub(super) fn keep_under(&self, keeper: &KeeperClient, key: &str) -> anyhow::Result<()> {
        keep(keeper, key, &self.name, self.disk.overlay())
    }
}
