//! A random history: operations that follow from a seed, on the real engine; the model checks each page that is read.

use std::fmt;

use rekindle_engine::engine::Engine;
use rekindle_engine::geometry::{GuestPage, GuestPages};
use rekindle_engine::identity::SnapshotId;

use crate::catalogs::InjectedFate;
use crate::guest::EndingVmm;
use crate::hooks::{Failing, Held};
use crate::random::Random;
use crate::site::Site;
use crate::stores::Injected;

mod background;
mod foreground;
mod known;
mod machine;
mod neighbour;
mod threads;
mod undeletion;
mod wrong_bytes;

use known::{Known, Plan, Rules};
use machine::Machine;
use neighbour::Neighbour;
use undeletion::Withdrawn;
use wrong_bytes::WrongObject;

/// A failed history.
#[derive(Debug)]
pub struct Failure {
    /// The seed that reproduces it.
    pub seed: u64,
    /// The operations, in order; the last one failed.
    pub operations: Vec<String>,
    /// The fault.
    pub what: String,
}

/// Counts of a history.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Pages checked.
    pub pages: u64,
    /// Snapshots made.
    pub pauses: u64,
    /// Snapshots of guests that went on.
    pub checkpoints: u64,
    /// Guests with three running threads.
    pub served: u64,
    /// Reads that had to fail, by an outage of the store or by its wrong bytes.
    pub stalls: u64,
    /// Restarts of the engine.
    pub restarts: u64,
    /// Restarts after the engine had ended in the middle of its work.
    pub crashes: u64,
    /// Local files evicted, by the engine itself or when it was asked to.
    pub evictions: u64,
    /// Collections of the store.
    pub collections: u64,
    /// Objects that they deleted.
    pub collected: u64,
    /// Snapshots that another node made on those of the history.
    pub neighbours_pauses: u64,
    /// Deletions that could be undone.
    pub undoable: u64,
    /// Deleted snapshots that were brought back.
    pub brought_back: u64,
    /// Histories.
    pub histories: u64,
    /// Those in which a file was evicted, and the store was collected, and a node was started anew.
    pub with_all: u64,
}

impl Tally {
    /// Adds the counts of another history.
    pub fn add(&mut self, other: Self) {
        let Self { pages, pauses, checkpoints, served, stalls, restarts, crashes, evictions, .. } = other;
        let Self { collections, collected, neighbours_pauses, undoable, brought_back, .. } = other;
        self.pages += pages;
        self.pauses += pauses;
        self.checkpoints += checkpoints;
        self.served += served;
        self.stalls += stalls;
        self.restarts += restarts;
        self.crashes += crashes;
        self.evictions += evictions;
        self.collections += collections;
        self.collected += collected;
        self.neighbours_pauses += neighbours_pauses;
        self.undoable += undoable;
        self.brought_back += brought_back;
        self.histories += other.histories;
        self.with_all += other.with_all;
    }

    /// The rates of what is rare, for people.
    #[must_use]
    pub fn rates(&self) -> String {
        let Self { histories, evictions, collections, collected, .. } = *self;
        let a_history = |count: u64| count * 10 / histories.max(1);
        let [evicted, collections, collected, restarts, undone] =
            [evictions, collections, collected, self.restarts, self.brought_back]
                .map(|count| format!("{}.{}", a_history(count) / 10, a_history(count) % 10));
        format!(
            "a history has {evicted} evictions, {collections} collections that delete {collected} objects, {restarts} \
             restarts and {undone} snapshots brought back; {} of {histories} have the first, the second and the third",
            self.with_all
        )
    }
}

/// A history under way.
struct History {
    seed: u64,
    random: Random,
    /// Pages of each volume, memory first.
    shape: Vec<u32>,
    site: Site,
    rules: Rules,
    guests: Vec<Machine>,
    snapshots: Vec<Known>,
    plans: Vec<Plan>,
    vmms: Vec<EndingVmm>,
    held: Vec<Held>,
    outage: Vec<Injected>,
    wrong_objects: Vec<WrongObject>,
    /// Present while the catalog fails.
    catalog_fault: Option<InjectedFate>,
    /// True once the catalog has reported a write that it did not make: acknowledged changes may be gone after a crash.
    catalog_lied: bool,
    /// True once another node has taken the place of this one: deletions of the last moment may never have been made.
    has_moved: bool,
    /// Snapshots whose deletion failed: the next start may find them deleted.
    perhaps_deleted: Vec<SnapshotId>,
    /// Deleted snapshots that can be brought back.
    withdrawn: Vec<Withdrawn>,
    tally: Tally,
    operations: Vec<String>,
    /// Another node of the store, in some histories.
    neighbour: Option<Neighbour>,
    /// The last field: the holders of background work above are dropped before the engine waits for that work.
    engine: Option<Engine>,
}

const GUESTS_MAX: usize = 4;
const SNAPSHOTS_MAX: usize = 14;

/// Runs the history of `seed`: `operations` operations on volumes of a few hundred to a few thousand pages.
pub fn run(seed: u64, operations: u32) -> Result<Tally, Failure> {
    let mut random = Random::new(seed);
    let shape = shape(&mut random);
    let merge_at_layers = if random.percent(80) { 2 + random.position(6) } else { 32 };
    let cache_bytes_max = random.percent(75).then(|| 1 << (17 + random.below(5)));
    let rules = Rules { recording: random.percent(60), merge_at_layers, cache_bytes_max };
    let site = Site::new().expect("a temporary directory");
    let neighbour = random.percent(50).then(|| Neighbour::beside(&site, rules));
    let options = rules.options(&site).expect("a new catalog");
    let mut history = History {
        engine: Some(Engine::start(options).expect("threads for an engine")),
        rules,
        guests: vec![Machine::fresh(&shape)],
        operations: vec![format!("volumes of {shape:?} pages, {rules:?}")],
        seed,
        random,
        shape,
        site,
        snapshots: Vec::new(),
        plans: Vec::new(),
        vmms: Vec::new(),
        held: Vec::new(),
        outage: Vec::new(),
        wrong_objects: Vec::new(),
        catalog_fault: None,
        catalog_lied: false,
        has_moved: false,
        perhaps_deleted: Vec::new(),
        withdrawn: Vec::new(),
        tally: Tally::default(),
        neighbour,
    };
    let done = (0..operations).try_for_each(|_| history.step()).and_then(|()| history.finish());
    match done {
        Ok(()) => Ok(history.tallied()),
        Err(what) => Err(Failure { seed, operations: std::mem::take(&mut history.operations), what }),
    }
}

/// Volume sizes: memory, and sometimes a disk or two.
fn shape(random: &mut Random) -> Vec<u32> {
    let disks = if random.percent(50) { 0 } else { 1 + random.below(2) };
    let mut pages = || if random.percent(15) { 1 + random.below(3000) } else { 1 + random.below(700) };
    let memory = pages();
    std::iter::once(memory).chain((0..disks).map(|_| pages() / 2 + 1)).collect()
}

impl History {
    fn step(&mut self) -> Result<(), String> {
        match self.random.below(100) {
            0..15 => self.write_pages(),
            15..19 => self.neighbour_works(),
            19..24 => self.store_is_collected(),
            24..28 => self.remove_pages(),
            28..32 => self.guest_reads(),
            32..36 => self.layers_are_evicted(),
            36..38 => self.snapshot_is_brought_back(),
            38..41 => self.three_threads_run(),
            41..42 => self.store_is_wrong_or_right(),
            42..43 => self.catalog_fails_or_not(),
            43..53 => self.snapshot_is_read(),
            53..57 => self.read_is_planned(),
            57..61 => self.plan_is_read(),
            61..69 => self.pause(),
            69..72 => self.checkpoint(),
            72..79 => self.resume(),
            79..82 => self.vmm_ends(),
            82..85 => self.hold_or_release(),
            85..88 => self.outage_begins_or_ends(),
            88..90 => self.parent_reads_fail(),
            90..93 => self.local_file_is_lost(),
            93..94 => self.wait_sealed(),
            94..96 => self.wait_published(),
            96..98 => self.delete(),
            98..99 => self.crash(),
            _ => self.restart(),
        }
    }

    /// Finally, everything acknowledged must be published and right, also on a node that has nothing of it.
    fn finish(&mut self) -> Result<(), String> {
        self.say("the end");
        self.wait_all_published()?;
        for volume in 0..self.shape.len() {
            for position in 0..self.guests.len() {
                self.read_in_guest(position, volume, self.all_of(volume))?;
            }
            for position in 0..self.snapshots.len() {
                self.read_in_snapshot(position, volume, self.all_of(volume))?;
            }
        }
        while !self.plans.is_empty() {
            self.plan_is_read()?;
        }
        self.read_elsewhere()?;
        self.neighbour_is_read()?;
        self.all_is_deleted_and_collected()
    }

    /// The counts of a history that has ended well.
    fn tallied(&self) -> Tally {
        let evicted = |engine: &Engine| engine.cache_status().evicted.files;
        let neighbour = self.neighbour.as_ref().map_or(0, |neighbour| evicted(&neighbour.engine));
        let evictions = self.tally.evictions + evicted(self.engine()) + neighbour;
        let has_all = evictions > 0 && self.tally.collected > 0 && self.tally.restarts > 0;
        Tally { evictions, histories: 1, with_all: u64::from(has_all), ..self.tally }
    }

    fn say(&mut self, operation: impl fmt::Display) {
        self.operations.push(operation.to_string());
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("there is none only while it is started anew")
    }

    /// A volume, and a run of its pages.
    fn some_run(&mut self, pages_max: u32) -> (usize, GuestPages) {
        let volume = self.random.position(self.shape.len());
        let pages = self.shape[volume];
        let start = self.random.below(pages);
        let count = (1 + self.random.below(pages_max)).min(pages - start);
        (volume, GuestPages::new(GuestPage::new(start), count))
    }

    fn all_of(&self, volume: usize) -> GuestPages {
        GuestPages::new(GuestPage::FIRST, self.shape[volume])
    }

    fn end_faults(&mut self) {
        self.vmms.clear();
        self.held.clear();
        self.outage.clear();
        self.mend_store();
        self.catalog_fault = None;
        self.site.hooks.fail_parent_reads(Failing::None);
    }
}

impl Drop for History {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (seed, operations) = (self.seed, std::mem::take(&mut self.operations));
            eprintln!("{}", Failure { seed, operations, what: "it panicked".into() });
        }
        self.end_faults();
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, operations, what } = self;
        writeln!(out, "history of seed {seed}: {what}; replay it with REKINDLE_SEED={seed}; what was done:")?;
        operations.iter().try_for_each(|operation| writeln!(out, "  {operation}"))
    }
}
