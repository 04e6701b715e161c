//! `rekindle run`: starts a sandbox.

use anyhow::bail;
use clap::{Args, ValueEnum};
use rekindle_api::limits;
use rekindle_api::types::{CreateSandbox, MemoryBacking, Name, VmmKind};
use rekindle_engine::identity::DomainName;
use rekindle_settings::parse_size;
use uuid::Uuid;

use super::machine::MachineArguments;
use super::period::PeriodArguments;
use super::session::Session;
use super::shown;
use super::status::Status;
use super::target::{LabelArguments, Target, bracketed_id, sandbox_title, snapshot_of};

/// The sandbox to start.
#[derive(Args, Clone, Debug)]
pub struct RunArguments {
    /// Its name
    #[arg(value_name = "NAME", conflicts_with = "name")]
    word: Option<Name>,
    /// Its name, as a flag
    #[arg(long)]
    name: Option<Name>,
    /// Guest memory, such as 512MiB: a multiple of 4KiB (of 2MiB for huge pages)
    /// [default: 256MiB; with --disks-of, that of the snapshot]
    #[arg(long, short, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Kind of guest memory
    #[arg(long, value_enum, default_value_t = BackingWord::Shared)]
    backing: BackingWord,
    /// Domain (tenant) that its snapshots belong to; the daemon's own unless given
    #[arg(long, value_name = "NAME")]
    domain: Option<DomainName>,
    #[command(flatten)]
    period: PeriodArguments,
    #[command(flatten)]
    machine: MachineArguments,
    #[command(flatten)]
    labels: LabelArguments,
    /// A key of your choice: the same request under the same key is done once, however often it is sent
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

/// Guest memory where nothing is said.
const MEMORY_BYTES: u64 = 256 << 20;

/// Kind of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackingWord {
    /// A shared memory file, which a pause takes over as it is
    Shared,
    /// Private memory, of which a pause copies what was written
    Private,
    /// A shared memory file of 2 MiB pages, which must be reserved first
    Huge,
}

impl RunArguments {
    /// Checks that a guest can have this much memory.
    fn check_memory(&self, bytes: u64) -> anyhow::Result<()> {
        let (unit, word) = match self.backing {
            BackingWord::Shared | BackingWord::Private => (4 << 10, "4KiB"),
            BackingWord::Huge => (2 << 20, "2MiB, as --backing huge needs"),
        };
        let most = limits::MEMORY_BYTES_MAX;
        if (1..=most).contains(&bytes) && bytes.is_multiple_of(unit) {
            return Ok(());
        }
        bail!(
            "--memory: {bytes} bytes ({}) cannot be guest memory, which is a multiple of {word}, at most {}; write a \
             size such as 64MiB or 1GiB (1GB is 1000000000 bytes)",
            shown::size(bytes),
            shown::size(most)
        )
    }
}

/// The snapshot whose disks a machine boots on, with the bytes of its memory.
fn snapshot_with_disks(session: &Session, word: &str) -> anyhow::Result<(Uuid, u64)> {
    let client = session.client()?;
    let id = snapshot_of(&Target::find(&client, word)?)?;
    let snapshot = client.snapshot(&id.to_string())?;
    Ok((id, snapshot.volumes.first().map_or(MEMORY_BYTES, |memory| memory.bytes)))
}

/// Starts it.
pub fn run(session: &Session, arguments: &RunArguments) -> anyhow::Result<Status> {
    let disks_of = arguments.machine.disks_of.as_ref();
    let disks_of = disks_of.map(|word| snapshot_with_disks(session, word)).transpose()?;
    let default = disks_of.map_or(MEMORY_BYTES, |(_, memory_bytes)| memory_bytes);
    let memory_bytes = arguments.memory.unwrap_or(default);
    arguments.check_memory(memory_bytes)?;
    let (vmm, machine) = arguments.machine.machine(disks_of.map(|(id, _)| id))?;
    let client = session.client()?;
    let wanted = CreateSandbox {
        name: arguments.word.clone().or_else(|| arguments.name.clone()),
        labels: arguments.labels.labels()?,
        domain: arguments.domain.clone(),
        vmm,
        memory_bytes,
        backing: match arguments.backing {
            BackingWord::Shared => MemoryBacking::Shared,
            BackingWord::Private => MemoryBacking::Private,
            BackingWord::Huge => MemoryBacking::Huge,
        },
        machine,
        checkpoints: arguments.period.checkpoints(),
    };
    let sandbox = session
        .output
        .during("starting", || client.create_sandbox(arguments.idempotency_key.as_deref(), &wanted))?;
    if session.output.json {
        session.output.value(&sandbox)?;
        return Ok(Status::Done);
    }
    let title = sandbox_title(&sandbox);
    session.output.line(&format!(
        "{title} runs with {} of memory{}",
        shown::size(sandbox.memory_bytes),
        bracketed_id(sandbox.name.as_deref(), &sandbox.id)
    ))?;
    let name = shown::name_or_id(sandbox.name.as_deref(), &sandbox.id);
    session.output.hint(&match vmm {
        VmmKind::Process => {
            format!(
                "Write its memory with `rekindle tell {name} fill`, pause it with `rekindle pause {name}`."
            )
        }
        VmmKind::Qemu | VmmKind::Firecracker => {
            format!("Its console is at `rekindle console {name}`; pause it with `rekindle pause {name}`.")
        }
    });
    Ok(Status::Done)
}
