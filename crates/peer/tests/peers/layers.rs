//! Layers of published snapshots that come from another node's disk, with the store beside it.

use std::sync::Arc;

use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::identity::LayerId;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::peer::{Peers, WantedLayer};
use rekindle_engine::snapshot::Snapshot;
use rekindle_testkit::guest::judge;
use rekindle_testkit::model::ModelMemory;
use rekindle_testkit::site::{PATIENCE, Site};
use rekindle_testkit::stores::{Fault, Operation, Rule};

use crate::failures::{Lie, eventually, lying};
use crate::fleet::{Fleet, Listening, any_port, first_pause, run};
use crate::window::sites;

/// Half of them are in the layer: 50 frames.
const PAGES: u32 = 6400;

/// A node that has published a snapshot and serves others, and another one that has opened it.
struct Warm {
    of_b: Site,
    b: Engine,
    opened: Arc<Snapshot>,
    memory: ModelMemory,
    serves_a: Listening,
    a: Arc<Engine>,
    _of_a: Site,
    _fleet: Fleet,
}

impl Warm {
    fn start(peers: impl FnOnce(&Fleet) -> Arc<dyn Peers>) -> Self {
        let fleet = Fleet::new();
        let (of_a, of_b, _) = sites();
        let a = fleet.engine(&of_a, "a");
        let (at_a, serves_a) = fleet.listen(&a, "a", any_port());
        let (paused, memory) = first_pause(&a, PAGES);
        assert!(paused.wait_state(SnapshotState::Published, PATIENCE), "{:?}", paused.status());
        let options = EngineOptions { peers: peers(&fleet), ..of_b.options() };
        let b = Engine::start(options).expect("threads for an engine");
        let opened = b.open_from(paused.id(), &at_a.to_string()).expect("it is in the store");
        assert_eq!(opened.state(), SnapshotState::Published);
        eventually(|| b.layers_elsewhere(&opened) > 0);
        Self { of_b, b, opened, memory, serves_a, a, _of_a: of_a, _fleet: fleet }
    }

    fn layer_reads(&self) -> usize {
        self.of_b.faults.calls(Operation::Get, "layers/")
    }

    fn read_some(&self) {
        let mut bytes = vec![0; 4096];
        for page in (0..PAGES / 4).step_by(320) {
            self.b.read(self.opened.memory(), run(page, 1), &mut bytes).expect("a page that can be had");
        }
    }

    fn assert_all_right(&self) {
        judge(&self.b, &self.opened, &self.memory).expect("every page is the snapshot's");
    }
}

#[test]
fn a_published_snapshot_is_read_from_a_node_that_has_it_and_from_the_store_when_that_node_dies() {
    let warm = Warm::start(|fleet| fleet.peers("b"));
    // As long as the store has no layer, only the node can give pages.
    let away = warm.of_b.faults.inject(Rule::always(Operation::Get, "layers/", Fault::Fail));
    warm.read_some();
    let came = warm.b.peer_counts();
    assert!(came.frames > 0 && came.bytes > 0, "{came:?}");
    drop(away);
    let Warm { of_b, b, opened, memory, serves_a, .. } = warm;
    serves_a.stop();
    let before = of_b.faults.calls(Operation::Get, "layers/");
    judge(&b, &opened, &memory).expect("the rest is in the store");
    assert!(of_b.faults.calls(Operation::Get, "layers/") > before, "{:?}", b.peer_counts());
}

#[test]
fn case_44_wrong_bytes_of_a_layer_are_refused_by_its_name_and_come_from_the_store() {
    let warm = Warm::start(|fleet| lying(fleet, Lie::Frames));
    warm.assert_all_right();
    let counts = warm.b.peer_counts();
    assert!(counts.failed > 0 && counts.frames == 0, "{counts:?}");
    assert!(warm.layer_reads() > 0);
    assert_eq!(warm.b.layers_elsewhere(&warm.opened), 0, "it is not asked for that layer again");
}

#[test]
fn a_node_that_never_answers_is_late_and_the_store_is_asked_beside_it() {
    let warm = Warm::start(|fleet| lying(fleet, Lie::Silence));
    warm.assert_all_right();
    let counts = warm.b.peer_counts();
    assert!(counts.late > 0 && counts.frames == 0, "{counts:?}");
    assert!(warm.layer_reads() > 0);
}

#[test]
fn a_node_says_what_it_has_of_layers_and_gives_frames_that_are_on_its_disk_only() {
    let warm = Warm::start(|fleet| fleet.peers("b"));
    let named = warm.opened.named_now().expect("it is published");
    let layer = &named.layers()[0];
    let wanted = WantedLayer { layer: layer.id(), pages: layer.pages(), frames: 40..42 };
    assert_eq!(warm.b.frames_here(&wanted).there(), [false, false], "nothing of it was read here");
    let held = warm.a.held_layers(&[layer.id(), LayerId::from_bytes([7; 32])]);
    assert!(held.bytes[0] > 0 && held.bytes[1] == 0, "{held:?}");
    let (here, mut bytes) = (warm.a.frames_here(&wanted), Vec::new());
    here.append_to(&mut bytes).expect("they are on its disk");
    assert_eq!((here.there(), bytes.len()), (&[true, true][..], wanted.lengths().sum()));
    let beyond = WantedLayer { pages: layer.pages() + 64, ..wanted };
    assert_eq!(warm.a.frames_here(&beyond).there(), [false, false], "no layer of that name is as long");
}
