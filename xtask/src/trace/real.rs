//! A real Linux guest that runs Python in QEMU, paused by a real daemon when it is up and six times more, and a cold resume of
//! the last snapshot over a store with virtual time.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::TryStreamExt as _;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};
use rekindle_api::client::Client;
use rekindle_api::types::{PauseSandbox, ResumeSandbox, SnapshotState};
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
/// Pauses of it, after the one when it is up.
const PAUSES: usize = 6;
/// Time after a resume in which its touches are recorded, and a little more.
const RECORDED_AFTER: Duration = Duration::from_secs(7);

/// The numbers of these pauses, and of the resume.
#[derive(Debug, Serialize)]
struct Found {
    /// Objects of layers of the guest that is up.
    first_mib: f64,
    /// Objects of layers that the later pauses added.
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
        stored_mib: mib(super::pauses::bytes_under(objects, "layers")? - first_bytes),
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
    let sandbox = "python";
    let wanted = json!({ "name": sandbox, "vmm": "qemu", "memory_bytes": MEMORY_BYTES, "machine": machine });
    client.create_sandbox(None, &serde_json::from_value(wanted)?)?;
    Console::of(&client, sandbox).line("python ready")?;
    let mut snapshot = pause_and_resume(&client, sandbox)?;
    let first_bytes = super::pauses::bytes_under(&in_memory(&place.store_directory())?, "layers")?;
    for _ in 0..PAUSES {
        step(&client, sandbox)?;
        snapshot = pause_and_resume(&client, sandbox)?;
    }
    step(&client, sandbox)?;
    std::thread::park_timeout(RECORDED_AFTER);
    client.remove_sandbox(sandbox)?;
    let stored = place.store_directory().join("working-sets").join(snapshot.to_string());
    ensure!(stored.is_dir(), "the working set of the last snapshot is not in the store");
    Ok((snapshot, first_bytes))
}

/// Pauses the guest until all is in the store, and resumes it.
fn pause_and_resume(client: &Client, sandbox: &str) -> anyhow::Result<SnapshotId> {
    let snapshot = client.pause_sandbox(sandbox, None, &PauseSandbox::default())?.id;
    client.wait_snapshot(&snapshot.to_string(), SnapshotState::Published, PATIENCE)?;
    client.resume_sandbox(sandbox, &ResumeSandbox::default())?;
    Ok(snapshot.into())
}

fn step(client: &Client, sandbox: &str) -> anyhow::Result<()> {
    Console::from_now(client, sandbox)?.ask("step", "stepped ")?;
    Ok(())
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
