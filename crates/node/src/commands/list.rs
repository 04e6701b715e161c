//! `rekindle list`: the sandboxes and snapshots there are.

use clap::{Args, ValueEnum};
use serde::Serialize;
use uuid::Uuid;

use super::output::{Output, Rows, Tone, Word};
use super::session::Session;
use super::shown::{self, ShortIds};
use super::status::Status;
use crate::api::types::{Sandbox, SandboxState, Snapshot, SnapshotState};

/// What to list.
#[derive(Args, Clone, Debug)]
pub struct ListArguments {
    /// Which of them
    #[arg(value_enum, default_value_t = Which::All)]
    which: Which,
    /// Only those with this label
    #[arg(long, value_name = "NAME=VALUE")]
    label: Option<String>,
    /// Print ids only, whole, one a line
    #[arg(long, short)]
    quiet: bool,
}

/// Which resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// Both
    All,
    /// Sandboxes
    #[value(alias = "sandbox")]
    Sandboxes,
    /// Snapshots
    #[value(alias = "snapshot")]
    Snapshots,
}

/// What there is.
#[derive(Debug, Default, Serialize)]
pub struct Listed {
    /// The sandboxes, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandboxes: Option<Vec<Sandbox>>,
    /// The snapshots, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<Vec<Snapshot>>,
}

/// Lists them.
pub fn run(session: &Session, arguments: &ListArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let label = arguments.label.as_deref();
    let mut listed = Listed::default();
    if arguments.which != Which::Snapshots {
        listed.sandboxes = Some(client.all_sandboxes(label)?);
    }
    if arguments.which != Which::Sandboxes {
        listed.snapshots = Some(client.all_snapshots(label)?);
    }
    if session.output.json {
        session.output.value(&listed)?;
    } else if arguments.quiet {
        let ids: String = listed.ids().map(|id| format!("{id}\n")).collect();
        super::output::write(&ids)?;
    } else {
        super::output::write(&listed.to_text(session.output, shown::now_ms()))?;
    }
    Ok(Status::Done)
}

impl Listed {
    fn ids(&self) -> impl Iterator<Item = &Uuid> {
        let sandboxes = self.sandboxes.iter().flatten().map(|sandbox| &sandbox.id);
        sandboxes.chain(self.snapshots.iter().flatten().map(|snapshot| &snapshot.id))
    }

    /// Tables of what there is, as of `now_ms`.
    pub fn to_text(&self, output: Output, now_ms: u64) -> String {
        let short = ShortIds::new(self.ids());
        let mut tables = Vec::new();
        if let Some(sandboxes) = &self.sandboxes {
            tables.push(match sandboxes.as_slice() {
                [] => "No sandboxes. `rekindle run` starts one.\n".to_owned(),
                some => self.sandbox_rows(some, &short, now_ms).to_text(output),
            });
        }
        if let Some(snapshots) = &self.snapshots {
            tables.push(match snapshots.as_slice() {
                [] => "No snapshots. `rekindle pause` makes one of a sandbox.\n".to_owned(),
                some => self.snapshot_rows(some, &short, now_ms).to_text(output),
            });
        }
        tables.join("\n")
    }

    fn sandbox_rows(&self, sandboxes: &[Sandbox], short: &ShortIds, now_ms: u64) -> Rows {
        let mut rows = Rows::new(&["SANDBOX", "NAME", "STATE", "MEMORY", "LAST SNAPSHOT", "AGE", ""]);
        for sandbox in sandboxes {
            rows.add([
                short.of(&sandbox.id).into(),
                name_or_dash(sandbox.name.as_deref()),
                sandbox_state(sandbox.state),
                shown::size(sandbox.memory_bytes).into(),
                self.snapshot_name(sandbox.snapshot.or(sandbox.origin).as_ref(), short),
                shown::age(sandbox.created_unix_ms, now_ms).into(),
                Word::from(sandbox.reason.as_deref().unwrap_or_default()).tone(Tone::Faint),
            ]);
        }
        rows
    }

    fn snapshot_rows(&self, snapshots: &[Snapshot], short: &ShortIds, now_ms: u64) -> Rows {
        let mut rows =
            Rows::new(&["SNAPSHOT", "NAME", "STATE", "SIZE", "KEPT", "OF SANDBOX", "PARENT", "AGE", ""]);
        for snapshot in snapshots {
            let bytes = snapshot.volumes.iter().map(|volume| volume.bytes).sum();
            let kept =
                snapshot.classes.map_or_else(|| "-".to_owned(), |classes| shown::size(classes.kept * 4096));
            rows.add([
                short.of(&snapshot.id).into(),
                name_or_dash(snapshot.name.as_deref()),
                snapshot_state(snapshot.state),
                shown::size(bytes).into(),
                kept.into(),
                self.sandbox_name(snapshot.sandbox.as_ref(), short),
                self.snapshot_name(snapshot.parent.as_ref(), short),
                shown::age(snapshot.created_unix_ms, now_ms).into(),
                Word::from(snapshot.reason.as_deref().unwrap_or_default()).tone(Tone::Faint),
            ]);
        }
        rows
    }

    fn snapshot_name(&self, id: Option<&Uuid>, short: &ShortIds) -> Word {
        let named =
            |id: &Uuid| self.snapshots.iter().flatten().find(|snapshot| snapshot.id == *id)?.name.clone();
        related(id, named, short)
    }

    fn sandbox_name(&self, id: Option<&Uuid>, short: &ShortIds) -> Word {
        let named =
            |id: &Uuid| self.sandboxes.iter().flatten().find(|sandbox| sandbox.id == *id)?.name.clone();
        related(id, named, short)
    }
}

fn related(id: Option<&Uuid>, named: impl Fn(&Uuid) -> Option<String>, short: &ShortIds) -> Word {
    match id {
        Some(id) => named(id).unwrap_or_else(|| short.of(id)).into(),
        None => Word::from("-").tone(Tone::Faint),
    }
}

fn name_or_dash(name: Option<&str>) -> Word {
    name.map_or_else(|| Word::from("-").tone(Tone::Faint), Word::from)
}

/// A sandbox's state, coloured.
pub fn sandbox_state(state: SandboxState) -> Word {
    let tone = match state {
        SandboxState::Running => Tone::Good,
        SandboxState::Stalled => Tone::Doubtful,
        SandboxState::Paused => Tone::Plain,
        SandboxState::Stopped => Tone::Faint,
        SandboxState::Lost => Tone::Bad,
    };
    Word::from(state.to_string()).tone(tone)
}

/// A snapshot's state, coloured.
pub fn snapshot_state(state: SnapshotState) -> Word {
    let tone = match state {
        SnapshotState::Captured | SnapshotState::Sealed => Tone::Plain,
        SnapshotState::Published => Tone::Good,
        SnapshotState::Discarded => Tone::Faint,
        SnapshotState::Lost => Tone::Bad,
    };
    Word::from(state.to_string()).tone(tone)
}
