//! Leftovers of a daemon: processes without a sandbox, descriptors without a use, files.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use std::{fs, io};

use anyhow::Context as _;
use rekindle_api::client::Client;
use rekindle_api::types::{SandboxState, SnapshotState};
use rekindle_keeper::HeldEntry;
use rekindle_testkit::black_box::{BlackBox, Process, Role, ask_until};

use crate::load::{Findings, World};

/// Longest time for guests that were told to end, and for their descriptors, to go.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// Descriptors that the keeper has open for itself, while only its daemon is connected.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KeeperOwn {
    /// The keeper, and the number of its own descriptors.
    known: Option<(u32, u64)>,
}

impl KeeperOwn {
    /// Waits until only what is listed is there; what else stays is wrong.
    pub(crate) fn check(
        &mut self,
        place: &BlackBox,
        client: &Client,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let mut last = Err(anyhow::anyhow!("nothing was looked at"));
        let clean = ask_until(GONE_WITHIN, || {
            last = self.look(place, client);
            last.as_ref().is_ok_and(Vec::is_empty).then_some(())
        });
        if clean.is_none() {
            let left = last.context("looking for what is left over")?;
            left.into_iter().for_each(|words| findings.wrong(words));
        }
        Ok(())
    }

    /// Things that are there and should not be.
    fn look(&mut self, place: &BlackBox, client: &Client) -> anyhow::Result<Vec<String>> {
        let world = World::of(client)?;
        let mut left = processes_left(place, &world)?;
        left.extend(files_left(place)?);
        left.extend(self.keys_left(place, &world)?);
        Ok(left)
    }

    fn keys_left(&mut self, place: &BlackBox, world: &World) -> anyhow::Result<Vec<String>> {
        let keeper = place.keeper()?;
        let held = keeper.list()?;
        // A key without any descriptor is not held.
        let is_held = |entry: &&HeldEntry| !entry.names.is_empty();
        let of =
            |prefix: &str| held.iter().filter(is_held).filter(|entry| entry.key.starts_with(prefix)).count();
        let running = world.sandboxes.values().filter(|sandbox| is_running(sandbox.state)).count();
        let captured =
            world.snapshots.values().filter(|shown| shown.state == SnapshotState::Captured).count();
        let mut left = Vec::new();
        if of("guest/") != running {
            left.push(format!("the keeper holds {} guests, {running} run", of("guest/")));
        }
        if of("snapshot/") > captured {
            left.push(format!("the keeper holds {} snapshots, {captured} are not sealed", of("snapshot/")));
        }
        let process = Process { pid: keeper.identity().pid, role: Role::Keeper };
        let fds = process.fds()?;
        if keeper.list()? != held {
            left.push("the keeper does not come to rest".to_owned());
            return Ok(left);
        }
        let for_others: usize = held.iter().map(|entry| entry.names.len()).sum();
        let own = fds.saturating_sub(u64::try_from(for_others)?);
        match self.known {
            Some((known, before)) if known == process.pid && own > before => {
                let (kinds, names) = (process.fd_kinds()?, names_of(&held));
                left.push(format!(
                    "the keeper has {own} descriptors of its own, and had {before}: {kinds:?} for {names:?}"
                ));
            }
            Some((known, _)) if known == process.pid => {}
            Some(_) | None if left.is_empty() => self.known = Some((process.pid, own)),
            Some(_) | None => {}
        }
        Ok(left)
    }
}

/// The names of held descriptors, each with how often it is there.
fn names_of(held: &[HeldEntry]) -> BTreeMap<&str, u64> {
    let mut names = BTreeMap::new();
    for name in held.iter().flat_map(|entry| &entry.names) {
        *names.entry(name.as_str()).or_default() += 1;
    }
    names
}

fn processes_left(place: &BlackBox, world: &World) -> anyhow::Result<Vec<String>> {
    let owned: BTreeSet<u32> = world.sandboxes.values().filter_map(|sandbox| sandbox.pid).collect();
    let processes = place.processes()?;
    let mut left = Vec::new();
    for process in &processes {
        if process.role == Role::Guest && !owned.contains(&process.pid) {
            let doing = process.doing().unwrap_or_default();
            left.push(format!("guest {} is of no sandbox: {doing}", process.pid));
        }
    }
    for role in [Role::Daemon, Role::Keeper] {
        let count = processes.iter().filter(|process| process.role == role).count();
        if count != 1 {
            left.push(format!("there are {count} processes that are a {role:?}"));
        }
    }
    Ok(left)
}

/// Waits until no layer is left, after everything was deleted. Files that a start set aside, in a directory of their own,
/// are left on purpose.
pub(crate) fn check_layers(place: &BlackBox, findings: &mut Findings) {
    let layers = place.state_directory().join("layers");
    let count = || {
        let files = fs::read_dir(&layers)?.flatten();
        io::Result::Ok(files.filter(|entry| entry.path().is_file()).count())
    };
    if ask_until(GONE_WITHIN, || count().is_ok_and(|count| count == 0).then_some(())).is_none() {
        findings.wrong(format!("{:?} layer files are left of deleted snapshots", count()));
    }
}

/// Hand-over sockets are for a moment.
fn files_left(place: &BlackBox) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    for entry in fs::read_dir(place.run_directory())? {
        let name = entry?.file_name();
        if name.to_string_lossy().starts_with("handover-") {
            left.push(format!("{} is left in the run directory", name.display()));
        }
    }
    Ok(left)
}

fn is_running(state: SandboxState) -> bool {
    matches!(state, SandboxState::Running | SandboxState::Stalled)
}
