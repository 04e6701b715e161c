//! `rekindle catalog rebuild`: has a node know every snapshot that its store has.

use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use super::session::Session;
use super::status::Status;

/// Work on the catalog of a node.
#[derive(Args, Clone, Debug)]
pub struct CatalogArguments {
    #[command(subcommand)]
    work: Work,
}

/// The work.
#[derive(Clone, Copy, Debug, Subcommand)]
enum Work {
    /// List every snapshot of the store on this node again, with its name and labels
    #[command(after_long_help = "\
For a node whose state directory was lost, or a new node that takes over from another: the snapshots in the store are all \
there, and each can be resumed by its id, but the node lists only those that it knows. It needs the key ring of the nodes \
that made them. Nothing is changed in the store, and running it again does no harm.")]
    Rebuild,
}

/// Snapshots of the store after a rebuild.
#[derive(Debug, Default, Serialize)]
struct Rebuilt {
    /// Those that the node knew before.
    known: usize,
    /// Those that it knows now.
    found: Vec<Uuid>,
    /// Those that it cannot read.
    unread: Vec<Unread>,
}

#[derive(Debug, Serialize)]
struct Unread {
    id: Uuid,
    reason: String,
}

/// Does it.
pub fn run(session: &Session, arguments: &CatalogArguments) -> anyhow::Result<Status> {
    let Work::Rebuild = arguments.work;
    let client = session.client()?;
    let stored = session.output.during("listing the store", || client.stored_snapshots())?;
    let mut rebuilt = Rebuilt::default();
    for snapshot in stored {
        if snapshot.is_known {
            rebuilt.known += 1;
            continue;
        }
        // A daemon that is asked for a snapshot of the store knows it from then on.
        match session.output.during("reading manifests", || client.snapshot(&snapshot.id.to_string())) {
            Ok(found) => rebuilt.found.push(found.id),
            Err(error) if error.code().is_some() => {
                rebuilt.unread.push(Unread { id: snapshot.id, reason: error.to_string() });
            }
            Err(error) => return Err(error.into()),
        }
    }
    show(session, &rebuilt)?;
    Ok(if rebuilt.unread.is_empty() { Status::Done } else { Status::CheckFailed })
}

fn show(session: &Session, rebuilt: &Rebuilt) -> anyhow::Result<()> {
    if session.output.json {
        return session.output.value(rebuilt);
    }
    let Rebuilt { known, found, unread } = rebuilt;
    session
        .output
        .line(&format!("{} snapshots of the store are listed here now, {known} were before", found.len()))?;
    for Unread { id, reason } in unread {
        session.output.line(&format!("snapshot {id} cannot be read: {reason}"))?;
    }
    Ok(())
}
