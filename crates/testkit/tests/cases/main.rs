//! Faults that other systems have had, each by its number, against the real engine.

mod catalog;
mod collection;
mod domains;
mod earlier_store;
mod eviction;
mod handover;
mod limits;
mod local_disk;
mod reading;
mod restart;
mod roots;
mod run_roots;
mod starts;
mod store;
mod undeletion;
mod window;
mod wrong_bytes;

use std::sync::Arc;

use rekindle_engine::engine::Engine;
use rekindle_engine::geometry::{GuestPage, GuestPages};
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::verify::Verification;
use rekindle_testkit::guest::{Guest, Tracking, judge};
use rekindle_testkit::model::ModelMemory;
use rekindle_testkit::random::Random;
use rekindle_testkit::site::{PATIENCE, Site};
use rekindle_testkit::stores::Injected;

fn site() -> Site {
    Site::new().expect("a temporary directory")
}

fn start(site: &Site) -> Engine {
    site.engine().expect("threads for an engine")
}

fn run(start: u32, count: u32) -> GuestPages {
    GuestPages::new(GuestPage::new(start), count)
}

/// A snapshot of a guest that has written all of its pages; its VMM has ended.
fn first_pause(engine: &Engine, pages: u32) -> (Arc<Snapshot>, ModelMemory) {
    let mut guest = Guest::fresh(pages);
    guest.write_random(engine, run(0, pages), &mut Random::new(1)).expect("its own pages");
    pause(engine, guest)
}

fn pause(engine: &Engine, guest: Guest) -> (Arc<Snapshot>, ModelMemory) {
    guest.pause(engine, Tracking::Exact).expect("nothing stands against it").end_vmm()
}

/// A child of `parent` that rewrote some pages.
fn child(
    engine: &Engine,
    parent: &(Arc<Snapshot>, ModelMemory),
    written: GuestPages,
    seed: u64,
) -> (Arc<Snapshot>, ModelMemory) {
    let mut guest = Guest::resume(&parent.0, parent.1.clone());
    guest.write_random(engine, written, &mut Random::new(seed)).expect("the parent can be read");
    pause(engine, guest)
}

fn check(engine: &Engine, (snapshot, memory): &(Arc<Snapshot>, ModelMemory)) {
    judge(engine, snapshot, memory).expect("every page is the model's");
}

fn verified(engine: &Engine, snapshot: &Snapshot) -> Verification {
    engine.verify(snapshot, &|| true).expect("it is wanted to its end")
}

fn wait_published(snapshot: &Snapshot) {
    let published = snapshot.wait_state(SnapshotState::Published, PATIENCE);
    assert!(published, "it is not published: {:?}", snapshot.status());
}

fn wait_sealed(snapshot: &Snapshot) {
    let sealed = snapshot.wait_manifest(PATIENCE).is_ok();
    assert!(sealed, "it is not sealed: {:?}", snapshot.status());
}

/// A node with a published snapshot of `pages` pages.
fn published(pages: u32) -> (Site, Engine, (Arc<Snapshot>, ModelMemory)) {
    let site = site();
    let engine = start(&site);
    let snapshot = first_pause(&engine, pages);
    wait_published(&snapshot.0);
    (site, engine, snapshot)
}

/// A sealed snapshot of `pages` pages, which is not published before the faults are dropped.
fn sealed_in_an_outage(
    site: &Site,
    engine: &Engine,
    pages: u32,
) -> (Vec<Injected>, (Arc<Snapshot>, ModelMemory)) {
    let outage = site.faults.outage();
    let snapshot = first_pause(engine, pages);
    wait_sealed(&snapshot.0);
    (outage, snapshot)
}

/// A published snapshot, opened on a node that has nothing of it.
struct Cold {
    snapshot: Arc<Snapshot>,
    engine: Engine,
    _site: Site,
}

fn open_elsewhere(site: &Site, snapshot: &Snapshot) -> Cold {
    let elsewhere = site.elsewhere().expect("a temporary directory");
    let engine = start(&elsewhere);
    let snapshot = engine.open(snapshot.id()).expect("it is published");
    Cold { snapshot, engine, _site: elsewhere }
}

/// Opens a snapshot on a node that has nothing of it, and checks every page.
fn check_elsewhere(site: &Site, (snapshot, memory): &(Arc<Snapshot>, ModelMemory)) {
    let cold = open_elsewhere(site, snapshot);
    judge(&cold.engine, &cold.snapshot, memory).expect("every page is the model's");
}
