//! Debian's kernel in a machine with a disk: memory and files go on together.

use std::collections::BTreeMap;
use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rekindle_disk::ImageFile;
use rekindle_engine::geometry::pages_covering;
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::pause::{PausedGuest, PausedVolume};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::tracking::file_pages;
use rekindle_guest::machine::linux_command_line;
use rekindle_input::asker::Asker;
use rekindle_kernel::{Memfd, PageKind};
use rekindle_testkit::hooks::Point;
use rekindle_testkit::linux::kernel_or_skip;
use rekindle_testkit::skip::skipped;
use rekindle_vmm::kernel_format::KernelFormats;
use rekindle_vmm::qemu::{BootFile, BootRole, DiskSpec, Machine, QemuOptions};

use super::support::{Host, LIMIT, MIB, Running};

const TIER: &str = "QEMU with Linux";
const DISK_BYTES: u64 = 64 * MIB;

/// A snapshot with a new file system and empty memory, for a machine with a disk to be booted on.
fn with_file_system(host: &Host, memory_bytes: u64) -> Option<Arc<Snapshot>> {
    let image = host.directory.path().join("image");
    File::create(&image).and_then(|file| file.set_len(DISK_BYTES)).expect("a sparse file");
    let made = Command::new("mkfs.ext4").arg("-q").arg(&image).stdin(Stdio::null()).status();
    if !made.is_ok_and(|status| status.success()) {
        skipped(TIER, "there is no mkfs.ext4");
        return None;
    }
    let disk = ImageFile::open(&image).expect("an image");
    let disk = disk.import(DISK_BYTES, &Asker::default()).expect("a raw image");
    let memfd = Memfd::create("empty", memory_bytes, PageKind::Small).expect("memory");
    let pages = file_pages(&memfd, pages_covering(memory_bytes).expect("a small machine")).expect("a memfd");
    let memory = PausedVolume { name: VolumeName::memory(), page_kind: PageKind::Small, memfd, pages };
    let volumes = vec![memory, disk.into_volume("root".parse().expect("a name"))];
    let guest = PausedGuest { id: SnapshotId::new(), volumes, blobs: BTreeMap::new(), alongside: Vec::new() };
    let permit = host.engine.permit_pause(None, memory_bytes + DISK_BYTES).expect("there is room");
    Some(host.engine.commit_pause(permit, guest).expect("it can be a snapshot"))
}

#[test]
fn linux_with_a_disk_goes_on_while_its_pause_is_saved_and_elsewhere_from_the_store() {
    let Some(host) = Host::start() else { return };
    let Some(kernel) = kernel_or_skip(TIER) else { return };
    let keep = |bytes: &[u8]| BootFile::keep_bytes(bytes, &host.boot_directory()).expect("there is room");
    let image = BootFile::keep(
        &kernel.image,
        &host.boot_directory(),
        BootRole::Kernel(KernelFormats::QEMU),
        &Asker::default(),
    )
    .expect("there is room");
    let options = QemuOptions {
        machine: Machine::Q35,
        initrd: Some(keep(&kernel.initrd())),
        command_line: linux_command_line(),
        disks: vec![DiskSpec { name: "root".to_owned(), bytes: DISK_BYTES }],
        ..QemuOptions::new(128 * MIB, image)
    };
    let Some(origin) = with_file_system(&host, options.memory_bytes) else { return };
    let mut first = host.boot_on(options, &origin);
    let up = first.console.wait_for("rekindle linux guest, ");
    assert!(up.ends_with("/dev/vda at /disk"), "{up}");
    first.console.ask("fill 1 16");
    first.console.ask("write before the-first-pause");
    assert_eq!(first.tick(), 1);
    let held = host.site.hooks.hold(Point::Compare);
    let snapshot = first.pause(&host);

    let mut second = host.resume(&snapshot);
    assert_eq!(second.tick(), 2);
    second.verify();
    assert_eq!(second.console.ask("read before"), "read the-first-pause");
    second.console.ask("write after the-first-resume");
    second.console.ask("dirty 2 20");
    assert_eq!(snapshot.state(), SnapshotState::Captured, "nothing was compared yet");
    drop(held);
    let snapshot = second.pause(&host);
    assert!(snapshot.wait_state(SnapshotState::Published, LIMIT));

    let elsewhere = host.elsewhere();
    let snapshot = elsewhere.engine.open(snapshot.id()).expect("it is in the store");
    let mut third = elsewhere.resume(&snapshot);
    assert_eq!(third.tick(), 3);
    third.verify();
    third.console.ask("forget");
    assert_eq!(third.console.ask("read before"), "read the-first-pause");
    assert_eq!(third.console.ask("read after"), "read the-first-resume");
    assert_sets_its_clock(&mut third);
}

/// The kernel's own clock stood still with the guest; the one of the machine went on.
fn assert_sets_its_clock(guest: &mut Running) {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970").as_secs_f64();
    let shown = |guest: &mut Running| {
        let time = guest.console.ask("time");
        time.split(' ').nth(1).and_then(|seconds| seconds.parse::<f64>().ok()).expect("seconds")
    };
    let asked = now();
    assert!(shown(guest) < asked, "it was not told that time had passed");
    assert_eq!(guest.console.ask("clock"), "clock ok");
    // QEMU starts it in whole seconds, and it is read in whole seconds.
    let (set, late) = (shown(guest), now());
    assert!((asked - 2.0..=late).contains(&set), "{set} lies between {asked} and {late}");
}
