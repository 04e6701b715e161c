//! A row on disks: our NBD server against QEMU's.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rekindle_disk::{Access, Disk, DiskSource, Overlay};
use rekindle_kernel::{Memfd, PageKind};
use rekindle_testkit::random::Random;

use super::nbd_client::{Direction, NbdClient};
use super::node::Node;
use super::row::{Effort, Part, Row, Target, Unit, interleave, per_operation};

/// Bytes of each disk.
const DISK_BYTES: usize = 256 << 20;
/// Bytes of a request that walks through the disk.
const SEQUENTIAL_BYTES: usize = 256 << 10;
/// Bytes of a request anywhere in the disk.
const RANDOM_BYTES: usize = 4 << 10;
/// Requests under way at once, as QEMU has them.
const DEPTH: usize = 16;
/// Requests of one sample of random ones.
const RANDOM_REQUESTS: usize = 4000;
/// Longest time for QEMU's server to listen.
const START_LIMIT: Duration = Duration::from_secs(30);

pub(crate) const NBD: Row = Row {
    name: "nbd-vs-qemu-nbd",
    what: "Reads and writes of a disk of 256 MiB in memory over a unix socket by one client, one connection, all bytes \
           written before.",
    ours: "`Disk`, what was written in its overlay",
    reference: "`qemu-nbd` on a raw file in memory",
    fast: false,
    measure,
};

/// Both servers, and the client's connection to each.
struct Servers {
    ours: NbdClient,
    reference: NbdClient,
    _disk: Disk,
    _node: Node,
    _qemu: QemuNbd,
    _file: Memfd,
    _directory: tempfile::TempDir,
}

/// QEMU's server; killed when dropped.
struct QemuNbd(Child);

/// Work of one sample.
struct Load {
    label: &'static str,
    direction: Direction,
    bytes: usize,
    depth: usize,
    requests: usize,
    is_random: bool,
}

fn loads(effort: Effort) -> Vec<Load> {
    let sequential = |label, direction| Load {
        label,
        direction,
        bytes: SEQUENTIAL_BYTES,
        depth: DEPTH,
        requests: DISK_BYTES / SEQUENTIAL_BYTES,
        is_random: false,
    };
    let random = |label, direction, depth| Load {
        label,
        direction,
        bytes: RANDOM_BYTES,
        depth,
        requests: effort.choose(RANDOM_REQUESTS, 2000),
        is_random: true,
    };
    vec![
        sequential("sequential reads of 256 KiB, 16 at once", Direction::Read),
        sequential("sequential writes of 256 KiB, 16 at once", Direction::Write),
        random("random reads of 4 KiB, 16 at once", Direction::Read, DEPTH),
        random("random writes of 4 KiB, 16 at once", Direction::Write, DEPTH),
        random("random reads of 4 KiB, one after the other", Direction::Read, 1),
        random("random writes of 4 KiB, one after the other", Direction::Write, 1),
    ]
}

fn measure(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let mut servers = Servers::start()?;
    let every_page: Vec<u64> =
        (0..DISK_BYTES / RANDOM_BYTES).map(|page| page * RANDOM_BYTES).map(word).collect();
    for client in [&mut servers.ours, &mut servers.reference] {
        client.run(Direction::Write, RANDOM_BYTES, DEPTH, &every_page)?;
    }
    let mut parts = Vec::new();
    for load in loads(effort) {
        // Both sides of a pair ask for the same.
        let (mut ours_seed, mut reference_seed) = (0, 0);
        let Servers { ours, reference, .. } = &mut servers;
        let pairs = interleave(
            effort.pairs(),
            || load.run(ours, &mut ours_seed),
            || load.run(reference, &mut reference_seed),
        )?;
        let label = load.label.to_owned();
        parts.push(Part { label, unit: Unit::Seconds, pairs, target: Target::RatioAtMost(1.0) });
    }
    Ok(parts)
}

impl Load {
    fn offsets(&self, seed: u64) -> Vec<u64> {
        let mut random = Random::new(seed);
        let places = DISK_BYTES / self.bytes;
        let place = |number| if self.is_random { random.position(places) } else { number % places };
        (0..self.requests).map(place).map(|place| word(place * self.bytes)).collect()
    }

    /// Seconds a request, of those that follow from `seed`; the next time it is another.
    fn run(&self, client: &mut NbdClient, seed: &mut u64) -> anyhow::Result<f64> {
        let offsets = self.offsets(*seed);
        *seed += 1;
        let start = Instant::now();
        client.run(self.direction, self.bytes, self.depth, &offsets)?;
        Ok(per_operation(start.elapsed(), u32::try_from(offsets.len())?))
    }
}

impl Servers {
    fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("a directory for sockets")?;
        let node = Node::new()?;
        let ours = directory.path().join("ours.sock");
        let source = DiskSource {
            base: None,
            fetcher: node.engine.fetcher().clone(),
            overlay: Overlay::create(word(DISK_BYTES))?,
            bytes: word(DISK_BYTES),
            access: Access::ReadWrite,
        };
        let disk = Disk::serve(&ours, source)?;
        let file = Memfd::create("raw-image", word(DISK_BYTES), PageKind::Small)?;
        let image = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_fd().as_raw_fd()));
        let reference = directory.path().join("qemu.sock");
        let qemu = QemuNbd::start(&image, &reference)?;
        Ok(Self {
            ours: NbdClient::connect(&ours)?,
            reference: NbdClient::connect(&reference)?,
            _disk: disk,
            _node: node,
            _qemu: qemu,
            _file: file,
            _directory: directory,
        })
    }
}

impl QemuNbd {
    fn start(image: &Path, socket: &Path) -> anyhow::Result<Self> {
        let child = Command::new("qemu-nbd")
            .args(["--format=raw", "--persistent", "--shared=4", "--cache=writeback", "--socket"])
            .args([socket, image])
            .stdin(Stdio::null())
            .spawn()
            .context("qemu-nbd, which is in Debian's package qemu-utils")?;
        let server = Self(child);
        let deadline = Instant::now() + START_LIMIT;
        while NbdClient::connect(socket).is_err() {
            ensure!(Instant::now() < deadline, "qemu-nbd does not listen");
            std::thread::yield_now();
        }
        Ok(server)
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        // Fails only where it has ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn word(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("64 bits")
}
