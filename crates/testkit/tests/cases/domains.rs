//! Cases of snapshots of several domains on one node.

use std::sync::Arc;

use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::geometry::bytes_of_pages;
use rekindle_engine::identity::{DomainName, KeyId, SnapshotId};
use rekindle_engine::key_ring::{DomainKey, KeyRing};
use rekindle_engine::open::OpenError;
use rekindle_engine::pause::Base;
use rekindle_engine::snapshot::Snapshot;
use rekindle_testkit::guest::{Guest, Tracking, judge};
use rekindle_testkit::hooks::Point;
use rekindle_testkit::model::ModelMemory;
use rekindle_testkit::random::Random;
use rekindle_testkit::site::Site;

use crate::{child, run, site, wait_published, wait_sealed};

const PAGES: u32 = 100;

fn name(domain: &str) -> DomainName {
    domain.parse().expect("a legal name")
}

/// Keys of the node's own domain and of a tenant's.
fn of_two_domains() -> KeyRing {
    KeyRing::new(DomainKey::of_name(name("default")), vec![DomainKey::of_name(name("tenant-1"))])
}

fn start(site: &Site) -> Engine {
    start_with(site, of_two_domains())
}

fn start_with(site: &Site, keys: KeyRing) -> Engine {
    let options = EngineOptions { keys, ..site.recording().expect("a catalog") };
    Engine::start(options).expect("threads for an engine")
}

/// The domains of a snapshot's layers.
fn domains_of(snapshot: &Snapshot) -> Vec<String> {
    let manifest = snapshot.manifest_now().expect("it is sealed");
    manifest.layers().iter().map(|layer| layer.domain.name().to_string()).collect()
}

/// A guest with the same pages each time, paused in a domain.
fn pause_in(engine: &Engine, domain: &DomainName) -> (Arc<Snapshot>, ModelMemory) {
    let mut guest = Guest::fresh(PAGES);
    guest.write_random(engine, run(0, PAGES), &mut Random::new(1)).expect("its own pages");
    let permit = engine.permit_pause_while(Base::Domain(domain), bytes_of_pages(PAGES), &|| true);
    let permit = permit.expect("there is room");
    let paused = guest.commit_as(SnapshotId::new(), engine, permit, (Tracking::Exact, Vec::new()));
    paused.map_err(|(_, error)| error).expect("it is taken over").end_vmm()
}

#[test]
fn a_snapshot_of_another_domain_and_its_children_stay_in_it_over_starts_and_on_other_nodes() {
    let site = site();
    let engine = start(&site);
    let tenant = engine.domain(Some(&name("tenant-1"))).expect("its key is in the ring");
    let mut guest = Guest::fresh(PAGES);
    guest.write_random(&engine, run(0, PAGES), &mut Random::new(1)).expect("its own pages");
    let permit = engine.permit_pause_while(Base::Domain(&tenant), bytes_of_pages(PAGES), &|| true);
    let held = site.hooks.hold(Point::Compare);
    let permit = permit.expect("there is room");
    let paused = guest.commit_as(SnapshotId::new(), &engine, permit, (Tracking::Exact, Vec::new()));
    let (snapshot, memory) = paused.map_err(|(_, error)| error).expect("it is taken over").end_vmm();
    assert_eq!(*snapshot.domain(), tenant);
    // It is captured when the engine ends, and named by the next one.
    let id = snapshot.id();
    drop((snapshot, engine, held));
    let engine = start(&site);
    let first = (engine.snapshot(id).expect("it is recorded"), memory);
    let second = child(&engine, &first, run(20, 6), 2);
    for (snapshot, _) in [&first, &second] {
        wait_published(snapshot);
        assert_eq!(*snapshot.domain(), tenant);
        assert!(domains_of(snapshot).iter().all(|domain| domain == "tenant-1"), "{:?}", domains_of(snapshot));
    }
    // A node with the key opens it in its domain; one without says which key it lacks.
    let elsewhere = site.elsewhere().expect("a temporary directory");
    let other = start(&elsewhere);
    let opened = other.open(second.0.id()).expect("it is published");
    assert_eq!(*opened.domain(), tenant);
    judge(&other, &opened, &second.1).expect("every page is the model's");
    let without = site.elsewhere().expect("a temporary directory").engine().expect("threads");
    let refused = without.open(id).expect_err("it has no key");
    assert!(matches!(refused, OpenError::Manifest { .. }), "{refused}");
    assert!(refused.to_string().contains("of domain tenant-1"), "{refused}");
}

#[test]
fn equal_pages_of_two_domains_are_two_layers_and_a_domain_without_a_key_is_refused() {
    let site = site();
    let engine = start(&site);
    let ids = ["default", "tenant-1"].map(|domain| {
        let (snapshot, _) = pause_in(&engine, &name(domain));
        wait_sealed(&snapshot);
        snapshot.manifest_now().expect("it is sealed").layers()[0].id
    });
    assert_ne!(ids[0], ids[1]);
    let refused = engine.domain(Some(&name("tenant-2"))).expect_err("it has no key").to_string();
    assert!(refused.starts_with("the key ring has no key of domain tenant-2: add one"), "{refused}");
    let permit = engine.permit_pause_while(Base::Domain(&name("tenant-2")), 4096, &|| true);
    assert!(permit.is_err(), "it is refused before a guest is frozen");
}

#[test]
fn equal_pages_under_two_keys_of_a_domain_are_two_layers_and_a_child_reads_both() {
    let (site, domain) = (site(), name("default"));
    let old = DomainKey::new(domain.clone(), &[1; 32]);
    let new = DomainKey::replacing(domain.clone(), old.domain().key_id(), &[2; 32]);
    let keys_of = |snapshot: &Snapshot| -> Vec<KeyId> {
        let manifest = snapshot.manifest_now().expect("it is sealed");
        manifest.layers().iter().map(|layer| layer.domain.key_id()).collect()
    };
    let engine = start_with(&site, KeyRing::new(old.clone(), Vec::new()));
    let (before, memory) = pause_in(&engine, &domain);
    wait_published(&before);
    let id = before.id();
    drop((before, engine));
    let engine = start_with(&site, KeyRing::new(new.clone(), vec![old.clone()]));
    let before = (engine.snapshot(id).expect("it is recorded"), memory);
    judge(&engine, &before.0, &before.1).expect("every page is the model's");
    let (after, memory) = pause_in(&engine, &domain);
    wait_published(&after);
    judge(&engine, &after, &memory).expect("every page is the model's");
    let [old, new] = [old, new].map(|key| key.domain().key_id());
    assert_eq!((keys_of(&before.0), keys_of(&after)), (vec![old], vec![new]));
    let second = child(&engine, &before, run(20, 6), 2);
    wait_published(&second.0);
    assert_eq!(keys_of(&second.0), [old, new]);
    judge(&engine, &second.0, &second.1).expect("every page is the model's");
}
