//! `rekindle usage`: what snapshots cost, in the store and on this node.

use clap::Args;
use rekindle_api::client::Client;
use rekindle_api::types::{SnapshotUsage, Usage};

use super::output::{Rows, Tone, Word};
use super::session::Session;
use super::shown::{name_or_id, size};
use super::status::Status;
use super::target::{Target, snapshot_of};

/// The snapshot, or all of them.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Every object of the store counts once, so that the parts add up to what a list of the store shows. Layers that several \
snapshots name are freed by the deletion of the last of them only.")]
pub struct UsageArguments {
    /// A snapshot's name or id, or a sandbox's for its last snapshot; all of the store without it
    #[arg(value_name = "NAME|ID")]
    reference: Option<String>,
}

/// Shows it.
pub fn run(session: &Session, arguments: &UsageArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    match &arguments.reference {
        Some(word) => {
            let snapshot = snapshot_of(&Target::find(&client, word)?)?.to_string();
            let usage = session.output.during("reading the store", || client.snapshot_usage(&snapshot))?;
            show(session, &usage, || rows_of_one(&usage))?;
        }
        None => {
            let usage = session.output.during("reading the store", || client.usage())?;
            show(session, &usage, || rows_of_all(&usage))?;
            if !session.output.json && !usage.largest.is_empty() {
                session.output.line("")?;
                session.output.rows(largest(&client, &usage.largest))?;
            }
        }
    }
    Ok(Status::Done)
}

fn show(session: &Session, usage: &impl serde::Serialize, rows: impl FnOnce() -> Rows) -> anyhow::Result<()> {
    if session.output.json { session.output.value(usage) } else { session.output.rows(rows()) }
}

fn rows_of_all(usage: &Usage) -> Rows {
    let mut rows = Rows::bare();
    let mut add = |name: &str, bytes: u64, what: String| {
        rows.add([name.into(), size(bytes).into(), Word::from(what).tone(Tone::Faint)]);
    };
    add(
        "in the store",
        usage.stored_bytes,
        format!("{} objects, {} snapshots", usage.stored_objects, usage.snapshots),
    );
    add("  unique", usage.unique_bytes, "layers that one snapshot names".to_owned());
    add("  shared", usage.shared_bytes, "layers that several snapshots name".to_owned());
    add("  own", usage.own_bytes, "manifests and working sets".to_owned());
    add("  unnamed", usage.unnamed_bytes, unnamed(usage.unread_snapshots));
    add("  bookkeeping", usage.bookkeeping_bytes, "roots, tombstones, nodes".to_owned());
    add("on this node", usage.local_bytes, "layer files".to_owned());
    add("  only here", usage.only_here_bytes, "not in the store yet".to_owned());
    rows
}

fn unnamed(unread: u64) -> String {
    match unread {
        0 => "named by no snapshot".to_owned(),
        unread => format!("named by no snapshot, or by {unread} with manifests of an older program"),
    }
}

fn rows_of_one(usage: &SnapshotUsage) -> Rows {
    let mut rows = Rows::bare();
    let parts = [
        ("in the store", usage.stored_bytes, "everything that it needs there"),
        ("  unique", usage.unique_bytes, "layers that only it names"),
        ("  shared", usage.shared_bytes, "layers that others name too"),
        ("  own", usage.own_bytes, "its manifest and working sets"),
        ("freed if deleted", usage.freed_bytes, "unique and own"),
        ("on this node", usage.local_bytes, "layer files"),
    ];
    for (name, bytes, what) in parts {
        rows.add([name.into(), size(bytes).into(), Word::from(what).tone(Tone::Faint)]);
    }
    rows
}

fn largest(client: &Client, snapshots: &[SnapshotUsage]) -> Rows {
    let listed = client.all_snapshots(&[]).unwrap_or_default();
    let name = |id| listed.iter().find(|listed| listed.id == id).and_then(|listed| listed.name.as_deref());
    let mut rows = Rows::new(&["SNAPSHOT", "FREED IF DELETED", "SHARED", "ON THIS NODE"]);
    for of in snapshots {
        rows.add([
            name_or_id(name(of.snapshot), &of.snapshot).into(),
            size(of.freed_bytes).into(),
            size(of.shared_bytes).into(),
            size(of.local_bytes).into(),
        ]);
    }
    rows
}
