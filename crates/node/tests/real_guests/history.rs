//! Random histories of real guests: every page is as the guest's own history says, on every way it took.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rekindle_engine::engine::Engine;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::tracking::Tracking;
use rekindle_guest::process::arguments::MemoryKind;
use rekindle_guest::process::history::{Rewrite, Share};
use rekindle_guest::process::protocol::DeviceState;
use rekindle_testkit::random::Random;
use rekindle_testkit::sandbox::Sandbox;

use crate::support::{
    Case, Node, assert_reads, assert_verified, pause, random_of_this_run, resume, state_of, wait_published,
};

/// Time in which new histories are begun.
const TIME: Duration = Duration::from_secs(20);
/// Steps of one history.
const STEPS: usize = 40;
/// Guests that run at once.
const GUESTS_MAX: usize = 3;
/// Snapshots kept at once.
const SNAPSHOTS_MAX: usize = 6;

/// One node's guests and snapshots, and what is known of them.
struct Story<'a> {
    random: &'a mut Random,
    case: Case,
    node: Node,
    guests: Vec<Guest>,
    snapshots: Vec<Known>,
    colds: usize,
}

/// A running guest and the state it must have.
struct Guest {
    sandbox: Sandbox,
    expected: DeviceState,
}

/// An acknowledged snapshot and the state of its guest.
struct Known {
    snapshot: Arc<Snapshot>,
    expected: DeviceState,
}

impl Story<'_> {
    fn tell(mut self) {
        self.begin();
        for step in 0..STEPS {
            let choice = self.random.below(20);
            eprintln!("  step {step}: {choice}");
            match choice {
                0..=4 => self.rewrite(),
                5..=6 => self.discard(),
                7 => self.tick(),
                8 => self.verify_one(),
                9..=11 => self.pause_one(),
                12..=15 => self.resume_one(),
                16 => self.kill_one(),
                17 => self.read_one(),
                18 => self.delete_one(),
                _ => self.publish_one(),
            }
        }
        self.end();
    }

    /// A guest, and every one after it, begins here or in a snapshot.
    fn begin(&mut self) {
        let mut sandbox = Sandbox::start(self.case.shape.clone()).expect("a guest starts");
        sandbox.guest.control.fill(self.random.number()).expect("fills");
        let expected = sandbox.guest.control.state().expect("answers");
        self.guests.push(Guest { sandbox, expected });
        self.pause_one();
    }

    fn one_guest(&mut self) -> Option<&mut Guest> {
        if self.guests.is_empty() {
            return None;
        }
        let index = self.random.position(self.guests.len());
        self.guests.get_mut(index)
    }

    fn share(&mut self) -> Share {
        let run_pages = [1, 3, 16, 600][self.random.position(4)];
        Share { seed: self.random.number(), percent: self.percent_below(50), run_pages }
    }

    fn percent_below(&mut self, end: u32) -> u8 {
        u8::try_from(self.random.below(end)).expect("below a hundred")
    }

    fn rewrite(&mut self) {
        let share = self.share();
        let (zero_percent, same_percent) = (self.percent_below(34), self.percent_below(34));
        let Some(guest) = self.one_guest() else { return };
        guest.change(|sandbox| {
            let rewrite = Rewrite { share, zero_percent, same_percent };
            sandbox.guest.control.rewrite(rewrite).map(drop).expect("rewrites");
        });
    }

    fn discard(&mut self) {
        let (share, how) = (self.share(), self.case.discard);
        let Some(guest) = self.one_guest() else { return };
        guest.change(|sandbox| sandbox.guest.control.discard(share, how).map(drop).expect("discards"));
    }

    fn tick(&mut self) {
        let pages = self.random.below(200);
        let Some(guest) = self.one_guest() else { return };
        guest.change(|sandbox| {
            let ticked = sandbox.guest.control.tick(pages).expect("ticks");
            assert_eq!(ticked.verified.mismatches, 0, "{ticked:?}");
        });
    }

    fn verify_one(&mut self) {
        let Some(guest) = self.one_guest() else { return };
        guest.verify();
    }

    fn pause_one(&mut self) {
        if self.guests.is_empty() {
            return;
        }
        let Guest { sandbox, expected } = self.guests.swap_remove(self.random.position(self.guests.len()));
        let snapshot = pause(&self.node.engine, sandbox).snapshot;
        assert_eq!(state_of(&snapshot), expected);
        self.snapshots.push(Known { snapshot, expected });
        if self.snapshots.len() > SNAPSHOTS_MAX {
            self.delete_one();
        }
    }

    fn resume_one(&mut self) {
        if self.guests.len() < GUESTS_MAX {
            let known = &self.snapshots[self.random.position(self.snapshots.len())];
            self.guests.push(known.resume(&self.node.engine, &self.case));
        }
    }

    fn kill_one(&mut self) {
        if !self.guests.is_empty() {
            drop(self.guests.swap_remove(self.random.position(self.guests.len())));
        }
    }

    fn read_one(&mut self) {
        let known = &self.snapshots[self.random.position(self.snapshots.len())];
        assert_reads(&self.node.engine, &known.snapshot, &known.expected.history);
    }

    /// Guests of it run on; the last snapshot stays.
    fn delete_one(&mut self) {
        if self.snapshots.len() > 1 {
            let known = self.snapshots.swap_remove(self.random.position(self.snapshots.len()));
            self.node.engine.delete(&known.snapshot).expect("nothing to write");
        }
    }

    /// A snapshot is resumed by another node that has nothing of it.
    fn publish_one(&mut self) {
        let known = &self.snapshots[self.random.position(self.snapshots.len())];
        wait_published(&known.snapshot);
        self.colds += 1;
        let elsewhere = self.node.elsewhere(&format!("cold-{}", self.colds));
        let snapshot = elsewhere.open(known.snapshot.id()).expect("it was published");
        let cold = Known { snapshot, expected: known.expected.clone() };
        cold.resume(&elsewhere, &self.case).verify();
    }

    fn end(mut self) {
        self.guests.iter_mut().for_each(Guest::verify);
        self.guests.clear();
        for known in &self.snapshots {
            known.resume(&self.node.engine, &self.case).verify();
            wait_published(&known.snapshot);
        }
        let names: Vec<_> =
            self.snapshots.drain(..).map(|known| (known.snapshot.id(), known.expected.history)).collect();
        let elsewhere = self.node.elsewhere("at-last");
        for (id, history) in names {
            assert_reads(&elsewhere, &elsewhere.open(id).expect("it was published"), &history);
        }
    }
}

impl Guest {
    fn change(&mut self, work: impl FnOnce(&mut Sandbox)) {
        work(&mut self.sandbox);
        self.expected = self.sandbox.guest.control.state().expect("answers");
    }

    fn verify(&mut self) {
        assert_eq!(self.sandbox.guest.control.state().expect("answers"), self.expected);
        assert_verified(&mut self.sandbox.guest);
    }
}

impl Known {
    fn resume(&self, engine: &Engine, case: &Case) -> Guest {
        let sandbox = resume(engine, &self.snapshot, &case.shape);
        Guest { sandbox, expected: self.expected.clone() }
    }
}

#[test]
fn random_histories_keep_every_page() {
    let mut random = random_of_this_run("random histories");
    let begun = Instant::now();
    while begun.elapsed() < TIME {
        let kind = [MemoryKind::Shared, MemoryKind::Private][random.position(2)];
        let tracking = [Tracking::Scan, Tracking::Events, Tracking::Resident][random.position(3)];
        let mut case = Case::new(kind, 1 + random.position(4), tracking);
        case.shape.memory_bytes /= 4;
        eprintln!("{kind:?}, {} regions, {tracking:?}", case.shape.regions);
        let (guests, snapshots) = (Vec::new(), Vec::new());
        Story { random: &mut random, case, node: Node::start(), guests, snapshots, colds: 0 }.tell();
    }
}
