//! `rekindle show`: everything about one sandbox or snapshot.

use clap::Args;
use rekindle_api::types::{
    Accelerator, Board, Labels, MemoryBacking, Origin, Placement, Sandbox, SandboxState, ShownBootFile,
    Snapshot, VmmKind,
};
use rekindle_engine::identity::DomainName;
use serde::Serialize;
use uuid::Uuid;

use super::list::{sandbox_state, snapshot_state};
use super::output::{Output, Rows, Tone, Word};
use super::period;
use super::session::Session;
use super::shown::{self, DOMAIN_DEFAULT};
use super::status::Status;
use super::target::{Reference, Target};

/// The thing to show.
#[derive(Args, Clone, Debug)]
pub struct ShowArguments {
    #[command(flatten)]
    target: Reference,
}

/// The details of a thing.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Shown {
    /// A sandbox.
    Sandbox {
        /// The sandbox.
        sandbox: Box<Sandbox>,
    },
    /// A snapshot and where its bytes are.
    Snapshot {
        /// The snapshot.
        snapshot: Box<Snapshot>,
        /// Places of its layers.
        placement: Placement,
    },
}

/// Shows it.
pub fn run(session: &Session, arguments: &ShowArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let shown = match Target::find(&client, &arguments.target.reference)? {
        Target::Sandbox(sandbox) => Shown::Sandbox { sandbox },
        Target::Snapshot(snapshot) => {
            let placement = client.placement(&snapshot.id.to_string())?;
            Shown::Snapshot { snapshot, placement }
        }
    };
    if session.output.json {
        session.output.value(&shown)?;
    } else {
        super::output::write(&shown.to_text(session.output, shown::now_ms()))?;
    }
    Ok(Status::Done)
}

impl Shown {
    /// Facts, a line each, as of `now_ms`.
    pub fn to_text(&self, output: Output, now_ms: u64) -> String {
        match self {
            Self::Sandbox { sandbox } => sandbox_facts(sandbox, now_ms).to_text(output),
            Self::Snapshot { snapshot, placement } => {
                let facts = snapshot_facts(snapshot, placement, now_ms).to_text(output);
                if placement.layers.is_empty() {
                    facts
                } else {
                    format!("{facts}\n{}", layer_rows(placement).to_text(output))
                }
            }
        }
    }
}

fn sandbox_facts(sandbox: &Sandbox, now_ms: u64) -> Rows {
    let mut rows = Rows::bare();
    first_facts(&mut rows, "sandbox", &sandbox.id, sandbox.name.as_deref());
    domain(&mut rows, sandbox.domain.as_ref().map(DomainName::as_str));
    rows.fact("state", sandbox_state(sandbox.state));
    reason(&mut rows, sandbox.reason.as_deref());
    let backing = match sandbox.backing {
        MemoryBacking::Shared => "shared",
        MemoryBacking::Private => "private",
        MemoryBacking::Huge => "shared, huge pages",
        MemoryBacking::PrivateHuge => "private, huge pages",
    };
    rows.fact("memory", format!("{} ({backing})", shown::size(sandbox.memory_bytes)));
    machine_facts(&mut rows, sandbox);
    if let Some(pid) = sandbox.pid {
        rows.fact("process", pid.to_string());
    }
    optional_id(&mut rows, "runs from", sandbox.origin.as_ref());
    let is_paused = sandbox.state == SandboxState::Paused;
    optional_id(&mut rows, if is_paused { "paused into" } else { "snapshot" }, sandbox.snapshot.as_ref());
    if let Some(checkpoints) = sandbox.checkpoints {
        rows.fact("checkpoints", period::shown(checkpoints));
    }
    if let Some(served) = sandbox.served {
        rows.fact(
            "pages served",
            format!(
                "{} from captures, {} from layers, {} from another node, {} shared with others, {} zero; {} faults answered",
                served.from_capture,
                served.from_layer,
                served.from_peer,
                served.shared,
                served.zero,
                served.faults
            ),
        );
    }
    last_facts(&mut rows, sandbox.created_unix_ms, &sandbox.labels, now_ms);
    rows
}

fn machine_facts(rows: &mut Rows, sandbox: &Sandbox) {
    let vmm = match sandbox.vmm {
        VmmKind::Process => "process guest",
        VmmKind::Qemu => "QEMU",
        VmmKind::Firecracker => "Firecracker",
    };
    let Some(machine) = &sandbox.machine else { return rows.fact("runs in", vmm) };
    let version = machine.vmm_version.as_ref().map_or_else(String::new, |version| format!(" {version}"));
    let board = match machine.board {
        Some(Board::Microvm) => ", microvm",
        Some(Board::Q35) => ", q35",
        None => "",
    };
    let accelerator = match machine.accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    };
    rows.fact("runs in", format!("{vmm}{version}{board}, {accelerator}"));
    let model = machine.cpu.as_ref().map_or_else(String::new, |model| format!(" ({model})"));
    rows.fact("CPUs", format!("{}{model}", machine.cpus));
    rows.fact("kernel", boot_file(&machine.kernel));
    if let Some(initrd) = &machine.initrd {
        rows.fact("initrd", boot_file(initrd));
    }
    rows.fact("command line", machine.command_line.as_str());
    for disk in &machine.disks {
        rows.fact("disk", format!("{}, {}", disk.name, shown::size(disk.bytes)));
    }
    if let Some(netns) = &machine.netns {
        rows.fact("network", netns.as_str());
    }
    for tap in &machine.taps {
        rows.fact("tap", tap.as_str());
    }
    if machine.channel {
        rows.fact("channel", "yes: `rekindle connect` talks to the guest's agent");
    }
}

fn boot_file(file: &ShownBootFile) -> String {
    let digest: String = file.blake3.chars().take(12).collect();
    format!("{} (BLAKE3 {digest})", file.path)
}

fn snapshot_facts(snapshot: &Snapshot, placement: &Placement, now_ms: u64) -> Rows {
    let mut rows = Rows::bare();
    first_facts(&mut rows, "snapshot", &snapshot.id, snapshot.name.as_deref());
    domain(&mut rows, Some(&snapshot.domain));
    rows.fact("state", snapshot_state(snapshot.state));
    reason(&mut rows, snapshot.reason.as_deref());
    optional_id(&mut rows, "of sandbox", snapshot.sandbox.as_ref());
    optional_id(&mut rows, "parent", snapshot.parent.as_ref());
    rows.fact("generation", snapshot.generation.to_string());
    for volume in &snapshot.volumes {
        let pages = shown::size(volume.page_bytes);
        rows.fact(&volume.name, format!("{} in pages of {pages}", shown::size(volume.bytes)));
    }
    if let Some(classes) = snapshot.classes {
        rows.fact(
            "pages",
            format!(
                "{} captured: {} kept, {} equal to the parent's, {} zero",
                classes.dirty, classes.kept, classes.equal, classes.zero
            ),
        );
    }
    if let Some(seconds) = snapshot.seal_seconds.filter(|seconds| seconds.is_finite() && *seconds >= 0.0) {
        rows.fact("sealed in", shown::duration(std::time::Duration::from_secs_f64(seconds)));
    }
    match (&snapshot.origin, &placement.origin) {
        (Some(Origin { node, address: Some(address) }), _) => {
            rows.fact("served by", format!("{node}, at {address}"))
        }
        (_, Some(origin)) => rows.fact("served by", origin.as_str()),
        (_, None) => {}
    }
    if let Some(missing) = snapshot.missing_bytes {
        rows.fact("not here yet", shown::size(missing));
    }
    last_facts(&mut rows, snapshot.created_unix_ms, &snapshot.labels, now_ms);
    rows
}

fn layer_rows(placement: &Placement) -> Rows {
    let mut rows = Rows::new(&["LAYER", "BYTES", "HERE", "STORED"]);
    for layer in &placement.layers {
        let id: String = layer.id.chars().take(16).collect();
        let stored = layer.stored_bytes.map_or_else(|| "not yet".to_owned(), shown::size);
        rows.add([id, shown::size(layer.bytes), shown::size(layer.local_bytes), stored].map(Word::from));
    }
    rows
}

fn first_facts(rows: &mut Rows, kind: &str, id: &Uuid, name: Option<&str>) {
    rows.fact(kind, id.to_string());
    if let Some(name) = name {
        rows.fact("name", name);
    }
}

/// The domain, where it is not the one of nodes that set none.
fn domain(rows: &mut Rows, domain: Option<&str>) {
    if let Some(domain) = domain.filter(|domain| *domain != DOMAIN_DEFAULT) {
        rows.fact("domain", domain);
    }
}

fn last_facts(rows: &mut Rows, created_unix_ms: u64, labels: &Labels, now_ms: u64) {
    let age = shown::age(created_unix_ms, now_ms);
    rows.fact("created", format!("{} ({age} ago)", shown::utc(created_unix_ms)));
    for (name, value) in labels.iter() {
        rows.fact("label", format!("{name}={value}"));
    }
}

fn reason(rows: &mut Rows, reason: Option<&str>) {
    if let Some(reason) = reason {
        rows.fact("reason", Word::from(reason).tone(Tone::Doubtful));
    }
}

fn optional_id(rows: &mut Rows, name: &str, id: Option<&Uuid>) {
    if let Some(id) = id {
        rows.fact(name, id.to_string());
    }
}
