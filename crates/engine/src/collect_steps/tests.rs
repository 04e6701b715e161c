//! Every interleaving of few publishers, a deleter and collectors that take the steps of this module and of
//! [`publish_steps`](crate::publish_steps) over a store in memory.
//!
//! A put of a manifest is answered, or lands later or never without an answer, or is answered and lands a second time. A
//! collector may end anywhere. Copy `old` of a layer is named by a manifest that is deleted meanwhile, and every publisher
//! has that layer too. `REKINDLE_COLLECTION_STATES` allows explorations of ten million states, which take minutes.

mod collecting;
mod fault;
mod undeletion;
mod world;

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use fault::{FAULTS, Fault, READERS_FAULTS, UNDELETERS_FAULTS};
use world::World;

/// The number of states, or the way to a wrong one.
fn explore(start: World, fault: Option<Fault>) -> Result<usize, String> {
    let mut known = HashSet::from([digest_of(&start)]);
    // Each state that is still to be looked at, with the number of the step to it.
    let mut ways: Vec<(usize, String)> = vec![(0, "start".to_owned())];
    let mut open = VecDeque::from([(0, start)]);
    while let Some((way, world)) = open.pop_front() {
        if let Some(wrong) = world.wrong() {
            return Err(format!("{wrong}: {}", told(&ways, way)));
        }
        for (label, next) in world.steps(fault) {
            if known.insert(digest_of(&next)) {
                ways.push((way, label));
                open.push_back((ways.len() - 1, next));
            }
        }
    }
    Ok(known.len())
}

/// 128 bits of a state, so that states need not be kept.
fn digest_of(world: &World) -> (u64, u64) {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    let first = hasher.finish();
    first.hash(&mut hasher);
    (first, hasher.finish())
}

fn told(ways: &[(usize, String)], mut way: usize) -> String {
    let mut steps = Vec::new();
    while way != 0 {
        steps.push(ways[way].1.as_str());
        way = ways[way].0;
    }
    steps.reverse();
    steps.join(" > ")
}

#[test]
fn no_interleaving_of_publishers_deleters_and_collectors_deletes_what_a_manifest_names() {
    let is_deep = std::env::var_os("REKINDLE_COLLECTION_STATES").is_some();
    let sizes: &[(usize, usize)] = if is_deep { &[(1, 1), (2, 1), (1, 2)] } else { &[(1, 1)] };
    for (publishers, collectors) in sizes {
        let states = explore(World::new(*publishers, *collectors), None)
            .unwrap_or_else(|wrong| unreachable!("{wrong}"));
        println!("{publishers} publishers, {collectors} collectors: {states} states hold");
    }
}

#[test]
fn no_interleaving_deletes_what_a_sandbox_reads_that_runs_from_a_snapshot_which_is_deleted() {
    let is_deep = std::env::var_os("REKINDLE_COLLECTION_STATES").is_some();
    let sizes: &[(usize, usize)] = if is_deep { &[(0, 1), (0, 2), (1, 1)] } else { &[(0, 1), (0, 2)] };
    for (publishers, collectors) in sizes {
        let start = World::new(*publishers, *collectors).with_reader();
        let states = explore(start, None).unwrap_or_else(|wrong| unreachable!("{wrong}"));
        println!("a reader, {publishers} publishers, {collectors} collectors: {states} states hold");
    }
    for fault in READERS_FAULTS {
        let found = explore(World::new(0, 1).with_reader(), Some(fault));
        println!("{fault:?}: {}", found.expect_err(&format!("{fault:?} is wrong")));
    }
}

#[test]
fn no_interleaving_takes_away_what_was_brought_back_or_brings_back_what_is_deleted_for_good() {
    let is_deep = std::env::var_os("REKINDLE_COLLECTION_STATES").is_some();
    let sizes: &[(usize, usize)] = if is_deep { &[(0, 1), (0, 2), (1, 1)] } else { &[(0, 1), (0, 2)] };
    for (publishers, collectors) in sizes {
        let start = World::new(*publishers, *collectors).with_undeletion();
        let states = explore(start, None).unwrap_or_else(|wrong| unreachable!("{wrong}"));
        println!("an undeletion, {publishers} publishers, {collectors} collectors: {states} states hold");
    }
    for fault in UNDELETERS_FAULTS {
        let found = explore(World::new(0, 1).with_undeletion(), Some(fault));
        println!("{fault:?}: {}", found.expect_err(&format!("{fault:?} is wrong")));
    }
}

#[test]
fn each_fault_of_the_protocol_is_found() {
    for fault in FAULTS {
        let found = explore(World::new(1, 1), Some(fault)).expect_err(&format!("{fault:?} is wrong"));
        println!("{fault:?}: {found}");
    }
}
