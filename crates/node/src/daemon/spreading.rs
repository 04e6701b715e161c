//! Drains one sandbox: it goes on at one of several nodes, or is paused here if none takes it.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::join_all;
use rekindle_api::control::{Answer, Asked};
use rekindle_api::types::{DrainedSandbox, MovedSandbox, PauseSandbox};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::origin::Origin;
use rekindle_engine::peer::{Peer, PeerError};
use uuid::Uuid;

use super::entry::{Entry, MOVING, Turn};
use super::known::Known;
use super::moving::{NotTaken, of_peer, question, unknown};
use super::record::RecordedLife;
use super::references::Named as _;
use super::sandboxes::Sandboxes;

/// The nodes that a drain spreads sandboxes over; there may be none.
#[derive(Debug, Default)]
pub(super) struct Spread {
    nodes: Vec<Node>,
    /// Of the nodes that cannot be asked: the reason.
    not_asked: Vec<String>,
}

/// A node that can be asked.
#[derive(Debug)]
struct Node {
    name: String,
    /// Memory of the sandboxes that it was asked to take.
    asked_bytes: u64,
    /// The connection to it, which is warm as long as this lives.
    _connection: Arc<dyn Peer>,
}

/// End of a drain of one sandbox.
#[derive(Debug)]
pub(super) enum Drained {
    /// It had no guest any more.
    Ended,
    /// It is paused here, since no node took it for these reasons; none if none was to be asked.
    Paused(Option<String>),
    /// It runs at another node.
    Moved(Box<DrainedSandbox>),
}

impl Spread {
    /// True if sandboxes are to move, though every node may be away.
    pub(super) fn is_asked_for(&self) -> bool {
        !self.nodes.is_empty() || !self.not_asked.is_empty()
    }

    /// The node that was asked for the least memory so far, and not for this sandbox.
    fn next(&self, asked: &[String]) -> Option<String> {
        let others = self.nodes.iter().filter(|node| !asked.contains(&node.name));
        others.min_by_key(|node| node.asked_bytes).map(|node| node.name.clone())
    }

    fn note_asked(&mut self, name: &str, bytes: u64) {
        for node in self.nodes.iter_mut().filter(|node| node.name == name) {
            node.asked_bytes = node.asked_bytes.saturating_add(bytes);
        }
    }

    fn note_away(&mut self, name: &str, reason: String) {
        self.nodes.retain(|node| node.name != name);
        self.not_asked.push(reason);
    }
}

impl Sandboxes {
    /// Connects to the nodes of a drain. Those that are away are not asked; a name that is none of the settings is an error.
    pub(super) fn spread_over(&self, nodes: &[String]) -> Answer<Spread> {
        let mut spread = Spread::default();
        if nodes.is_empty() {
            return Ok(spread);
        }
        let (peers, _) = (self.peers_to_move_to()?, self.origin()?);
        let mut names = nodes.to_vec();
        names.sort();
        names.dedup();
        let reached = join_all(names.iter().map(|node| peers.reach(node)));
        for (name, reached) in names.iter().zip(self.host.engine.wait_for(reached)) {
            match reached {
                Ok(connection) => {
                    spread.nodes.push(Node { name: name.clone(), asked_bytes: 0, _connection: connection });
                }
                Err(error @ PeerError::Unconfigured { .. }) => return Err(of_peer(&error)),
                Err(error) => spread.not_asked.push(error.to_string()),
            }
        }
        Ok(spread)
    }

    /// Pauses a sandbox, and has one of the nodes go on with it. One that a drain of this daemon has paused is asked for too.
    pub(super) fn drain_one(&self, entry: &Arc<Entry>, spread: &mut Spread) -> Answer<Drained> {
        let mut turn = entry.turn(MOVING, self.host.settings().pause_wait, &Asked::default())?;
        let stays = RecordedLife::Drained { daemon: self.daemon };
        let stands = spread.not_asked.join("; ");
        let stands = Some(stands).filter(|stands| !stands.is_empty());
        let (began, ran, life) = (Instant::now(), turn.live.is_some(), turn.record().life);
        if spread.nodes.is_empty() {
            return match (ran, life) {
                (true, _) => self.pause_as(&mut turn, stays).map(|_| Drained::Paused(stands)),
                (false, RecordedLife::Drained { .. }) => Ok(Drained::Paused(stands)),
                (false, _) => Ok(Drained::Ended),
            };
        }
        let origin = self.origin()?;
        // Nothing but a request may resume it as long as another node may run it.
        let known = match (ran, life, turn.record().snapshot) {
            (true, _, _) => self.pause_as(&mut turn, RecordedLife::Paused)?,
            (false, RecordedLife::Drained { .. }, Some(snapshot)) => {
                let known = self.snapshots.readable(&snapshot.into())?;
                self.set_paused(&turn, RecordedLife::Paused)?;
                known
            }
            (false, _, _) => return Ok(Drained::Ended),
        };
        match self.taken_by_one(&turn, &known, origin, spread)? {
            Ok((node, there)) => {
                let stopped_seconds = ran.then(|| began.elapsed().as_secs_f64());
                let snapshot = known.id();
                let before = shown(entry);
                self.gone_to(turn, (snapshot, &node), Vec::new())?;
                let moved = MovedSandbox { sandbox: there, node, snapshot, stopped_seconds };
                Ok(Drained::Moved(Box::new(DrainedSandbox { moved: Some(moved), ..before })))
            }
            Err(reasons) => {
                self.set_paused(&turn, stays)?;
                Ok(Drained::Paused(Some(reasons)))
            }
        }
    }

    fn pause_as(&self, turn: &mut Turn, life: RecordedLife) -> Answer<Known> {
        let (id, asker) = (SnapshotId::from(Uuid::now_v7()), Asked::default().asker);
        let snapshot = self.pause_in_turn(turn, id, PauseSandbox::default(), (life, Vec::new()), &asker)?;
        Ok(Known::of(snapshot))
    }

    /// The node that has taken a paused sandbox, and its id there; the reasons if surely none has.
    fn taken_by_one(
        &self,
        turn: &Turn,
        known: &Known,
        origin: Origin,
        spread: &mut Spread,
    ) -> Answer<Result<(String, Uuid), String>> {
        let (peers, record) = (self.peers_to_move_to()?, turn.record());
        let taking = question(&record, known.snapshot.id(), origin);
        let (mut asked, mut refused) = (Vec::new(), Vec::new());
        while let Some(node) = spread.next(&asked) {
            spread.note_asked(&node, record.spec.memory_bytes());
            match self.ask_to_take(peers, &node, &taking) {
                Ok(there) => return Ok(Ok((node, there))),
                Err(NotTaken::Refused(reason)) => refused.push(reason),
                Err(NotTaken::NotAsked(reason)) => spread.note_away(&node, reason),
                Err(NotTaken::Perhaps(reason)) => return Err(unknown(turn, known, (&node, &reason))),
            }
            asked.push(node);
        }
        refused.extend(spread.not_asked.iter().cloned());
        Ok(Err(refused.join("; ")))
    }
}

/// A drained sandbox, of which nothing else is told.
pub(super) fn shown(entry: &Entry) -> DrainedSandbox {
    let sandbox = entry.show();
    DrainedSandbox {
        sandbox: sandbox.id,
        name: sandbox.name,
        snapshot: sandbox.snapshot,
        moved: None,
        not_moved: None,
        problem: None,
    }
}
