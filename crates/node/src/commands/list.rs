//! `rekindle list`: the sandboxes and snapshots there are.

use clap::{Args, ValueEnum};
use rekindle_api::client::Client;
use rekindle_api::types::{
    LabelFilter, Labels, Sandbox, SandboxState, Snapshot, SnapshotState, StoredSnapshot, WithdrawnSnapshot,
};
use rekindle_engine::identity::DomainName;
use serde::Serialize;
use uuid::Uuid;

use super::output::{Column, Output, Rows, Tone, Word};
use super::period;
use super::session::Session;
use super::shown::{self, DOMAIN_DEFAULT, ShortIds};
use super::status::Status;
use super::target::label_filter;

/// The things to list.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Ids are shown by their ends, each as long as it takes to mean one sandbox or snapshot; every command takes them so. At \
a terminal names and reasons are cut to its width, and columns without room are left out. Elsewhere nothing is cut; \
--quiet prints whole ids for scripts, --json everything.")]
pub struct ListArguments {
    /// Kind of things to list
    #[arg(value_enum, default_value_t = Which::All)]
    which: Which,
    /// Only those with this label; given again, with all of them
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label_filter)]
    labels: Vec<LabelFilter>,
    /// List the snapshots that the store has, whichever node published them
    #[arg(long, conflicts_with = "labels")]
    store: bool,
    /// List the deleted snapshots of the store that `rekindle undelete` can bring back
    #[arg(long, conflicts_with_all = ["labels", "store"])]
    deleted: bool,
    /// Print ids only, whole, one a line
    #[arg(long, short)]
    quiet: bool,
}

/// Kinds of things to list.
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

/// The sandboxes and snapshots listed.
#[derive(Debug, Default, Serialize)]
pub struct Listed {
    /// The sandboxes, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandboxes: Option<Vec<Sandbox>>,
    /// The snapshots, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<Vec<Snapshot>>,
    /// The snapshots in the store, if asked for instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored: Option<Vec<StoredSnapshot>>,
    /// The deleted snapshots that can be brought back, if asked for instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted: Option<Vec<WithdrawnSnapshot>>,
}

/// Everything that a reference may mean, and how each is called in a table.
struct Known {
    sandboxes: Vec<Sandbox>,
    snapshots: Vec<Snapshot>,
    short: ShortIds,
}

/// Lists them.
pub fn run(session: &Session, arguments: &ListArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    if session.output.json {
        session.output.value(&arguments.listed(&client)?)?;
    } else if arguments.quiet {
        let ids: String = arguments.listed(&client)?.ids().map(|id| format!("{id}\n")).collect();
        super::output::write(&ids)?;
    } else if arguments.store {
        let listed = arguments.listed(&client)?;
        let stored = listed.stored.unwrap_or_default();
        super::output::write(&stored_to_text(&stored, session.output, shown::now_ms()))?;
    } else if arguments.deleted {
        let deleted = arguments.listed(&client)?.deleted.unwrap_or_default();
        super::output::write(&deleted_to_text(&deleted, session.output, shown::now_ms()))?;
    } else {
        let known = Known::new(client.all_sandboxes(&[])?, client.all_snapshots(&[])?);
        super::output::write(&arguments.to_text(&known, session.output, shown::now_ms()))?;
    }
    Ok(Status::Done)
}

impl ListArguments {
    /// The things asked for.
    fn listed(&self, client: &Client) -> anyhow::Result<Listed> {
        let mut listed = Listed::default();
        if self.deleted || self.store {
            let switch = if self.store { "--store" } else { "--deleted" };
            anyhow::ensure!(
                self.which != Which::Sandboxes,
                "the store has no sandboxes: give `snapshots`, or leave {switch} out"
            );
            if self.deleted {
                listed.deleted = Some(client.withdrawn_snapshots()?);
                return Ok(listed);
            }
            listed.stored = Some(client.stored_snapshots()?);
            return Ok(listed);
        }
        if self.which != Which::Snapshots {
            listed.sandboxes = Some(client.all_sandboxes(&self.labels)?);
        }
        if self.which != Which::Sandboxes {
            listed.snapshots = Some(client.all_snapshots(&self.labels)?);
        }
        Ok(listed)
    }

    fn has_labels(&self, labels: &Labels) -> bool {
        self.labels.iter().all(|label| label.is_in(labels))
    }

    /// Tables of what is asked for, as of `now_ms`.
    fn to_text(&self, known: &Known, output: Output, now_ms: u64) -> String {
        let mut tables = Vec::new();
        if self.which != Which::Snapshots {
            let mut rows = sandbox_columns();
            let wanted = known.sandboxes.iter().filter(|sandbox| self.has_labels(&sandbox.labels));
            wanted.for_each(|sandbox| rows.add(known.sandbox_row(sandbox, now_ms)));
            tables.push(match rows.is_empty() {
                true => self.nothing("sandboxes", known.sandboxes.len(), "`rekindle run` starts one."),
                false => rows.to_text(output),
            });
        }
        if self.which != Which::Sandboxes {
            let mut rows = snapshot_columns();
            let wanted = known.snapshots.iter().filter(|snapshot| self.has_labels(&snapshot.labels));
            wanted.for_each(|snapshot| rows.add(known.snapshot_row(snapshot, now_ms)));
            let advice = "`rekindle pause` makes one of a sandbox.";
            tables.push(match rows.is_empty() {
                true => self.nothing("snapshots", known.snapshots.len(), advice),
                false => rows.to_text(output),
            });
        }
        tables.join("\n")
    }

    fn nothing(&self, what: &str, there_are: usize, advice: &str) -> String {
        match there_are {
            0 => format!("No {what}. {advice}\n"),
            _ => {
                let labels: String = self.labels.iter().map(|label| format!(" --label {label}")).collect();
                format!("No {what} match{labels}; without it there are {there_are}.\n")
            }
        }
    }
}

impl Listed {
    fn ids(&self) -> impl Iterator<Item = &Uuid> {
        let sandboxes = self.sandboxes.iter().flatten().map(|sandbox| &sandbox.id);
        let snapshots = self.snapshots.iter().flatten().map(|snapshot| &snapshot.id);
        let stored = self.stored.iter().flatten().map(|stored| &stored.id);
        let deleted = self.deleted.iter().flatten().map(|deleted| &deleted.id);
        sandboxes.chain(snapshots).chain(stored).chain(deleted)
    }
}

/// A table of the snapshots in a store, as of `now_ms`.
fn stored_to_text(stored: &[StoredSnapshot], output: Output, now_ms: u64) -> String {
    if stored.is_empty() {
        return "No snapshots are in the store. `rekindle pause` makes one of a sandbox.\n".to_owned();
    }
    let names = stored.iter().filter_map(|stored| stored.name.as_deref());
    let short = ShortIds::new(stored.iter().map(|stored| &stored.id), names);
    let mut rows = Rows::of_columns([
        Column::new("SNAPSHOT"),
        Column::new("NAME").cut_to(16),
        Column::new("KNOWN HERE"),
        Column::new("PUBLISHED").left_out(1),
    ]);
    for stored in stored {
        rows.add([
            short.of(&stored.id).into(),
            name_or_dash(stored.name.as_deref()),
            if stored.is_known { "yes".into() } else { Word::from("no").tone(Tone::Faint) },
            format!("{} ago", shown::age(stored.stored_unix_ms, now_ms)).into(),
        ]);
    }
    rows.to_text(output)
}

/// A table of deleted snapshots that can be brought back, as of `now_ms`.
fn deleted_to_text(deleted: &[WithdrawnSnapshot], output: Output, now_ms: u64) -> String {
    if deleted.is_empty() {
        return "No deleted snapshot can be brought back. The setting undelete_window says for how long one can.\n"
            .to_owned();
    }
    let short = ShortIds::new(deleted.iter().map(|deleted| &deleted.id), []);
    let mut rows = Rows::of_columns([
        Column::new("SNAPSHOT"),
        Column::new("DELETED"),
        Column::new("CAN BE BROUGHT BACK"),
        Column::new("BY NODE").left_out(1),
    ]);
    for deleted in deleted {
        let left = deleted.until_unix_ms.saturating_sub(now_ms);
        rows.add([
            short.of(&deleted.id).into(),
            format!("{} ago", shown::age(deleted.deleted_unix_ms, now_ms)).into(),
            match left {
                0 => "until the next collection".into(),
                _ => format!("for {} at least", shown::age(now_ms, deleted.until_unix_ms)).into(),
            },
            name_or_dash(deleted.deleted_by.as_deref()),
        ]);
    }
    rows.to_text(output)
}

fn sandbox_columns() -> Rows {
    Rows::of_columns([
        Column::new("SANDBOX"),
        Column::new("NAME").cut_to(16),
        Column::new("STATE"),
        Column::new("MEMORY").left_out(2),
        Column::new("LAST SNAPSHOT").cut_to(8),
        Column::new("AGE").left_out(1),
        Column::new("").cut_to(20).left_out(3),
    ])
}

fn snapshot_columns() -> Rows {
    Rows::of_columns([
        Column::new("SNAPSHOT"),
        Column::new("NAME").cut_to(16),
        Column::new("STATE"),
        Column::new("SIZE").left_out(3),
        Column::new("UNIQUE").left_out(4),
        Column::new("FROM").cut_to(8),
        Column::new("PARENT").cut_to(8).left_out(1),
        Column::new("AGE").left_out(2),
        Column::new("").cut_to(20).left_out(5),
    ])
}

impl Known {
    fn new(sandboxes: Vec<Sandbox>, snapshots: Vec<Snapshot>) -> Self {
        let ids = sandboxes.iter().map(|sandbox| &sandbox.id);
        let names = sandboxes.iter().filter_map(|sandbox| sandbox.name.as_deref());
        let short = ShortIds::new(
            ids.chain(snapshots.iter().map(|snapshot| &snapshot.id)),
            names.chain(snapshots.iter().filter_map(|snapshot| snapshot.name.as_deref())),
        );
        Self { sandboxes, snapshots, short }
    }

    fn sandbox_row(&self, sandbox: &Sandbox, now_ms: u64) -> [Word; 7] {
        [
            self.short.of(&sandbox.id).into(),
            name_or_dash(sandbox.name.as_deref()),
            sandbox_state(sandbox.state),
            shown::size(sandbox.memory_bytes).into(),
            self.snapshot_name(sandbox.snapshot.or(sandbox.origin).as_ref()),
            shown::age(sandbox.created_unix_ms, now_ms).into(),
            sandbox_note(sandbox),
        ]
    }

    fn snapshot_row(&self, snapshot: &Snapshot, now_ms: u64) -> [Word; 9] {
        let bytes = snapshot.volumes.iter().map(|volume| volume.bytes).sum();
        let kept =
            snapshot.classes.map_or_else(|| "-".to_owned(), |classes| shown::size(classes.kept * 4096));
        [
            self.short.of(&snapshot.id).into(),
            name_or_dash(snapshot.name.as_deref()),
            snapshot_state(snapshot.state),
            shown::size(bytes).into(),
            kept.into(),
            self.sandbox_name(snapshot.sandbox.as_ref()),
            self.snapshot_name(snapshot.parent.as_ref()),
            shown::age(snapshot.created_unix_ms, now_ms).into(),
            note(Some(&snapshot.domain), snapshot.reason.as_deref()),
        ]
    }

    fn snapshot_name(&self, id: Option<&Uuid>) -> Word {
        let named = |id: &Uuid| {
            self.snapshots.iter().find(|snapshot| snapshot.id == *id)?.name.clone().map(String::from)
        };
        related(id, named, &self.short)
    }

    fn sandbox_name(&self, id: Option<&Uuid>) -> Word {
        let named = |id: &Uuid| {
            self.sandboxes.iter().find(|sandbox| sandbox.id == *id)?.name.clone().map(String::from)
        };
        related(id, named, &self.short)
    }
}

fn related(id: Option<&Uuid>, named: impl Fn(&Uuid) -> Option<String>, short: &ShortIds) -> Word {
    match id {
        Some(id) => named(id).unwrap_or_else(|| short.of(id)).into(),
        None => Word::from("-").tone(Tone::Faint),
    }
}

/// The last word of a sandbox's row: the reason of its state, or the checkpoints that it takes.
fn sandbox_note(sandbox: &Sandbox) -> Word {
    let checkpoints = || sandbox.checkpoints.map(|set| format!("checkpoints {}", period::shown(set)));
    let reason = sandbox.reason.clone().or_else(checkpoints);
    note(sandbox.domain.as_ref().map(DomainName::as_str), reason.as_deref())
}

/// The last word of a row: the domain, where it is not the one of nodes that set none, and the reason of the state.
fn note(domain: Option<&str>, reason: Option<&str>) -> Word {
    let domain = domain.filter(|domain| *domain != DOMAIN_DEFAULT).map(|domain| format!("domain {domain}"));
    let words: Vec<_> = domain.into_iter().chain(reason.map(str::to_owned)).collect();
    Word::from(words.join("; ")).tone(Tone::Faint)
}

fn name_or_dash(name: Option<&str>) -> Word {
    name.map_or_else(|| Word::from("-").tone(Tone::Faint), Word::from)
}

/// A sandbox's state, coloured.
pub fn sandbox_state(state: SandboxState) -> Word {
    let tone = match state {
        SandboxState::Running => Tone::Good,
        SandboxState::Stalled | SandboxState::Undecided => Tone::Doubtful,
        SandboxState::Paused => Tone::Plain,
        SandboxState::Stopped => Tone::Faint,
        SandboxState::Lost => Tone::Bad,
    };
    Word::from(state.to_string()).tone(tone)
}

/// A snapshot's state, coloured.
pub fn snapshot_state(state: SnapshotState) -> Word {
    let tone = match state {
        SnapshotState::Captured | SnapshotState::Sealed | SnapshotState::Remote => Tone::Plain,
        SnapshotState::Published => Tone::Good,
        SnapshotState::Discarded => Tone::Faint,
        SnapshotState::Undecided => Tone::Doubtful,
        SnapshotState::Lost => Tone::Bad,
    };
    Word::from(state.to_string()).tone(tone)
}
