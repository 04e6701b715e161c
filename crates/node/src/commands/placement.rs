//! `rekindle placement`: what the node has, and how near a resume of snapshots would be there.

use clap::Args;
use rekindle_api::client::Client;
use rekindle_api::types::{NodePlacement, PlacedSnapshot, PlacementQuery, ResumeHint};
use uuid::Uuid;

use super::list::snapshot_state;
use super::output::{Rows, Tone, Word};
use super::session::Session;
use super::shown::size;
use super::status::Status;

/// The snapshots to ask about.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
A resume is local if all its bytes are on the node, warm if some are, and remote if none is, or the node does not know the \
snapshot. The answer never waits for the store: a snapshot that only the store has is asked about by its whole id.")]
pub struct PlacementArguments {
    /// Snapshots, by name or id; without any, the newest of the store that are on the node
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
}

/// Shows it.
pub fn run(session: &Session, arguments: &PlacementArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let ids = arguments.snapshots.iter().map(|word| id_of(&client, word));
    let node = client.node_placement(&PlacementQuery { snapshots: ids.collect::<anyhow::Result<_>>()? })?;
    if session.output.json {
        session.output.value(&node)?;
        return Ok(Status::Done);
    }
    session.output.rows(facts(&node))?;
    if !node.placed.is_empty() {
        session.output.line("")?;
        session.output.rows(rows(&node.placed))?;
    }
    Ok(Status::Done)
}

/// A whole id, or that of a snapshot which the node knows.
fn id_of(client: &Client, word: &str) -> anyhow::Result<Uuid> {
    match Uuid::try_parse(word) {
        Ok(id) => Ok(id),
        Err(_) => Ok(client.placement(word)?.snapshot),
    }
}

fn facts(node: &NodePlacement) -> Rows {
    let within = |bytes: u64, max: Option<u64>| match max {
        Some(max) => format!("{} of {}", size(bytes), size(max)),
        None => size(bytes),
    };
    let mut rows = Rows::bare();
    rows.fact("node", node.node.as_str());
    if let Some(address) = &node.address {
        rows.fact("served at", address.as_str());
    }
    rows.fact("new guests", if node.open { "taken" } else { "not taken: it is drained" });
    rows.fact("sandboxes", format!("{} running", node.running));
    rows.fact("snapshots", node.snapshots.to_string());
    rows.fact("layers", within(node.layer_bytes, node.layer_bytes_max));
    rows.fact("captures", within(node.capture_bytes, Some(node.capture_bytes_max)));
    rows
}

fn rows(placed: &[PlacedSnapshot]) -> Rows {
    let mut rows = Rows::new(&["SNAPSHOT", "RESUME", "STATE", "BYTES", "HERE"]);
    for placed in placed {
        let resume = match placed.resume {
            Some(hint @ ResumeHint::Local) => Word::from(hint.word()).tone(Tone::Good),
            Some(hint) => Word::from(hint.word()),
            None => Word::from("no").tone(Tone::Bad),
        };
        let unknown = || Word::from("unknown").tone(Tone::Faint);
        rows.add([
            placed.snapshot.to_string().into(),
            resume,
            placed.state.map_or_else(unknown, snapshot_state),
            placed.bytes.map_or_else(unknown, |bytes| size(bytes).into()),
            size(placed.local_bytes).into(),
        ]);
    }
    rows
}
