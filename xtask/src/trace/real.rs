//! Six pauses of a real Linux guest that runs Python in QEMU, made by a real daemon, and a cold resume of the last one over
//! a store with virtual time.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::TryStreamExt as _;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};
use rekindle_api::client::Client;
use rekindle_api::types::{PauseSandbox, ResumeSnapshot, SnapshotState};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::key_ring_file::KeyRingFile;
use rekindle_guest::machine::{LinuxKernel, linux_command_line};
use rekindle_testkit::black_box::{BlackBox, Console, PATIENCE};
use serde::Serialize;
use serde_json::json;

use super::NETWORK;
use super::found::{Judged, Numbers, mib};
use super::resume::{Knowledge, resume_recorded};

/// Memory of the guest.
const MEMORY_BYTES: u64 = 256 << 20;
/// Pauses of it.
const PAUSES: usize = 6;
/// Time after a resume in which its touches are recorded, and a little more.
const RECORDED_AFTER: Duration = Duration::from_secs(7);

/// The numbers of these pauses, and of the resume.
#[derive(Debug, Serialize)]
struct Found {
    /// Objects of layers after the first pause.
    first_mib: f64,
    /// Objects of layers after the last one.
    stored_mib: f64,
    /// The working set of the last snapshot, with its pages.
    packed_mib: f64,
    /// A resume that reads the pages of the working set from its layers.
    without_packed_pages: Numbers,
    /// One that reads them from beside the manifest.
    with_packed_pages: Numbers,
}

impl Found {
    fn judged(&self) -> [Judged; 3] {
        let judged = |name, found, goal| Judged { name, found, goal };
        let requests = |numbers: &Numbers| super::found::count(numbers.requests);
        [
            judged("stored_mib", self.stored_mib, 22.0),
            judged("requests", requests(&self.without_packed_pages), 15.0),
            judged("requests, packed", requests(&self.with_packed_pages), 15.0),
        ]
    }
}

/// Makes the pauses, prints the numbers with their goals, and writes them to `json`.
pub(crate) fn run(root: &Path, json: Option<&Path>) -> anyhow::Result<ExitCode> {
    let place = BlackBox::new(&crate::load::program(root)?)?;
    let daemon = place.start()?;
    let (snapshot, first_bytes) = pauses(&place)?;
    drop(daemon);
    place.end_all()?;
    let ring = KeyRingFile::decode(&std::fs::read(place.key_ring())?)?;
    let keys = ring.ring(&"default".parse().expect("a legal name")).context("the daemon has made a key")?;
    let objects = in_memory(&place.store_directory())?;
    let found = found(&objects, &keys, snapshot, first_bytes)?;
    for number in found.judged() {
        let verdict = if number.is_met() { "met" } else { "missed" };
        println!("  {:<18} {:>8.1}  at most {:<6} {verdict}", number.name, number.found, number.goal);
    }
    println!("{}", serde_json::to_string_pretty(&found)?);
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_vec_pretty(&found)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn found(
    objects: &Arc<dyn ObjectStore>,
    keys: &KeyRing,
    snapshot: SnapshotId,
    first_bytes: u64,
) -> anyhow::Result<Found> {
    let resumed = |knowledge| {
        let resumed = resume_recorded((Arc::clone(objects), keys.clone()), snapshot, NETWORK, knowledge)?;
        anyhow::Ok(Numbers::new(NETWORK, &resumed))
    };
    Ok(Found {
        first_mib: mib(first_bytes),
        stored_mib: mib(super::pauses::bytes_under(objects, "layers")?),
        packed_mib: mib(super::pauses::bytes_under(objects, &format!("working-sets/{snapshot}"))?),
        without_packed_pages: resumed(Knowledge::Given)?,
        with_packed_pages: resumed(Knowledge::WorkingSet)?,
    })
}

/// Runs the guest and pauses it, and resumes the last snapshot once more, so that its working set is recorded. Returns that
/// snapshot, and the bytes of layers after the first pause.
fn pauses(place: &BlackBox) -> anyhow::Result<(SnapshotId, u64)> {
    let client = place.client();
    let kernel = LinuxKernel::of_debian(&rekindle_testkit::linux::directory())?;
    let initrd = place.home_directory().join("initrd");
    std::fs::write(&initrd, super::python_guest::initrd()?)?;
    let machine = json!({
        "kernel": kernel.image, "initrd": initrd, "command_line": linux_command_line(), "accelerator": "tcg",
    });
    let wanted = json!({ "name": "python", "vmm": "qemu", "memory_bytes": MEMORY_BYTES, "machine": machine });
    let begun = Instant::now();
    client.create_sandbox(None, &serde_json::from_value(wanted)?)?;
    Console::of(&client, "python").line("python ready")?;
    println!("the guest is up after {:?}", begun.elapsed());
    let (mut sandbox, mut first_bytes) = ("python".to_owned(), 0);
    for pause in 1..=PAUSES {
        let snapshot = format!("pause-{pause}");
        step(&client, &sandbox)?;
        let how = PauseSandbox { name: Some(snapshot.parse().expect("it is a name")), ..Default::default() };
        client.pause_sandbox(&sandbox, None, &how)?;
        client.wait_snapshot(&snapshot, SnapshotState::Published, PATIENCE)?;
        if pause == 1 {
            first_bytes = layers_bytes(&place.store_directory())?;
        }
        sandbox = format!("python-{pause}");
        let name = Some(sandbox.parse().expect("it is a name"));
        let how = ResumeSnapshot { name, ..Default::default() };
        client.resume_snapshot(&snapshot, None, &how)?;
    }
    step(&client, &sandbox)?;
    std::thread::park_timeout(RECORDED_AFTER);
    client.remove_sandbox(&sandbox)?;
    let id = client.snapshot(&format!("pause-{PAUSES}"))?.id;
    let stored = place.store_directory().join("working-sets").join(id.to_string());
    ensure!(stored.is_dir(), "the working set of the last snapshot is not in the store");
    Ok((id.into(), first_bytes))
}

fn step(client: &Client, sandbox: &str) -> anyhow::Result<()> {
    Console::from_now(client, sandbox)?.ask("step", "stepped ")?;
    Ok(())
}

fn layers_bytes(store: &Path) -> anyhow::Result<u64> {
    super::pauses::bytes_under(&in_memory(store)?, "layers")
}

/// The objects of a store in a directory, in memory: its reads take no real time.
fn in_memory(store: &Path) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let (files, objects) = (LocalFileSystem::new_with_prefix(store)?, InMemory::new());
    let copied = async {
        let listed: Vec<_> = files.list(None).try_collect().await?;
        for object in listed {
            let bytes = files.get(&object.location).await?.bytes().await?;
            objects.put(&object.location, bytes.into()).await?;
        }
        Ok::<_, object_store::Error>(())
    };
    tokio::runtime::Builder::new_current_thread().build()?.block_on(copied)?;
    Ok(Arc::new(objects))
}
