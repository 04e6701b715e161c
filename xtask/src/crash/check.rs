//! Checks that the daemon has all that it acknowledged, and nothing else, and that every page of it is right.

use rekindle_api::client::Client;
use rekindle_api::types::{SandboxState, SnapshotState};
use rekindle_testkit::black_box::Told;
use uuid::Uuid;

use super::settle::runs;
use crate::load::{Findings, GuestModel, Life, Operation, Outcome, Shard, SnapshotModel, World};

/// Compares what is listed with what was acknowledged.
pub(crate) fn check_listing(world: &World, shards: &[&Shard], findings: &mut Findings) {
    for shard in shards {
        check_sandboxes(world, shard, findings);
        check_snapshots(world, shard, findings);
    }
    for (id, sandbox) in &world.sandboxes {
        if !shards.iter().any(|shard| shard.sandboxes.contains_key(id)) {
            findings.wrong(format!("sandbox {id} ({:?}) is there although nobody was told", sandbox.name));
        }
    }
    for (id, snapshot) in &world.snapshots {
        if !shards.iter().any(|shard| shard.snapshots.contains_key(id)) {
            findings.wrong(format!("snapshot {id} ({:?}) is there although nobody was told", snapshot.name));
        }
    }
}

fn check_sandboxes(world: &World, shard: &Shard, findings: &mut Findings) {
    for (id, model) in &shard.sandboxes {
        let Some(shown) = world.sandboxes.get(id) else {
            findings.wrong(format!("sandbox {id} is not listed any more"));
            continue;
        };
        let is_right = match &model.life {
            Life::Running { .. } => runs(shown),
            Life::Paused(snapshot) => {
                shown.state == SandboxState::Paused && shown.snapshot == Some(*snapshot)
            }
        };
        if !is_right {
            findings.wrong(format!(
                "sandbox {id} is {:?} ({:?}) in {:?}, and was {:?}",
                shown.state, shown.reason, shown.snapshot, model.life
            ));
        }
    }
}

fn check_snapshots(world: &World, shard: &Shard, findings: &mut Findings) {
    for id in shard.snapshots.keys() {
        match world.snapshots.get(id) {
            None => findings.lost_snapshot(format!("snapshot {id} is not listed any more")),
            Some(shown) if shown.state == SnapshotState::Lost => {
                findings.lost_snapshot(format!("snapshot {id} is lost: {:?}", shown.reason));
            }
            Some(_) => {}
        }
    }
}

/// Lets every guest compare every page, and resumes every snapshot to let another guest do so. Afterwards the model
/// knows which of several possible states each guest is in.
pub(crate) fn check_contents(client: &Client, shard: &mut Shard) -> Findings {
    let mut findings = Findings::default();
    for sandbox in shard.sandboxes.values_mut() {
        let id = sandbox.id;
        if let Some(guest) = sandbox.guest() {
            check_guest(client, id, guest, &format!("sandbox {id}"), &mut findings);
        }
    }
    let snapshots: Vec<SnapshotModel> = shard.snapshots.values().cloned().collect();
    for snapshot in snapshots {
        let name = shard.new_name("checked");
        check_snapshot(client, snapshot, name, &mut findings);
    }
    findings
}

/// A guest of the snapshot runs, goes on where the paused one was, and every page of it is right.
pub(crate) fn check_snapshot(
    client: &Client,
    mut model: SnapshotModel,
    name: String,
    findings: &mut Findings,
) {
    let what = format!("snapshot {}", model.id);
    let resume = Operation::ResumeSnapshot { snapshot: model.id, name, count: 1 };
    let made = match resume.ask(client) {
        Ok(Outcome::Made(made)) => made,
        Ok(other) => return findings.wrong(format!("{what} was resumed into {other:?}")),
        Err(error) => return findings.lost_snapshot(format!("{what} cannot be resumed: {error}")),
    };
    for sandbox in made {
        check_guest(client, sandbox.id, &mut model.guest, &what, findings);
        if let Err(error) = (Operation::RemoveSandbox { sandbox: sandbox.id }).ask(client) {
            findings.guest_failed(&format!("removing a sandbox of {what}"), &error);
        }
    }
}

fn check_guest(client: &Client, sandbox: Uuid, guest: &mut GuestModel, what: &str, findings: &mut Findings) {
    let told = Told::new(client, sandbox);
    match told.state() {
        Ok(state) if guest.admits(&state) => guest.is_in(state),
        Ok(state) => findings.wrong(format!(
            "{what} has a guest at count {} with another past than {} has",
            state.count,
            guest.words()
        )),
        Err(error) => return findings.guest_failed(&format!("asking {what} for its state"), &error),
    }
    check_pages(client, sandbox, findings);
}

/// Lets a guest compare every page.
pub(crate) fn check_pages(client: &Client, sandbox: Uuid, findings: &mut Findings) {
    let what = format!("sandbox {sandbox}");
    match Told::new(client, sandbox).verify() {
        Ok(verified) if verified.mismatches == 0 => {}
        Ok(verified) => {
            findings.wrong_pages(u64::from(verified.mismatches), format!("{what}: {verified:?}"));
        }
        Err(error) => findings.guest_failed(&format!("verifying {what}"), &error),
    }
}
