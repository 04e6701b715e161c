//! Rows on nodes that read from each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use rekindle_api::client::Client;
use rekindle_api::types::{CreateSandbox, MoveSandbox, PauseSandbox, ResumeSandbox, SnapshotState};
use rekindle_engine::frame::frames_of;
use rekindle_engine::geometry::{GuestPage, GuestPages, u64_of};
use rekindle_engine::limits::PEER_FRAMES_MAX;
use rekindle_engine::peer::{Peer, WantedLayer, WantedPages};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::sources::Class;
use rekindle_guest::process::history::Share;
use rekindle_testkit::black_box::{BlackBox, PATIENCE, RunningDaemon, Told};
use rekindle_testkit::hooks::Held;
use serde_json::json;

use super::caching::{fault_p99, published};
use super::node::Node;
use super::peer_nodes::{BareTls, Certificates, Pair};
use super::row::{Effort, Part, Row, Target, Unit, interleave};
use super::statistics::as_float;

const MIB: u64 = 1 << 20;
/// Pages of a frame, which a fault asks for.
const FRAME_PAGES: u32 = 64;
/// Pages of one message.
const MESSAGE_PAGES: u32 = 1024;
/// Messages under way at once.
const AT_ONCE: usize = 4;
/// The way between nodes in each direction, where its time counts.
const WAY: Duration = Duration::from_millis(5);
/// Cost allowed for a fault beyond one round trip.
const FAULT_SECONDS: f64 = 2e-3;
/// Cost allowed for a move beyond a pause and a resume: the answers of two daemons.
const MOVE_SECONDS: f64 = 20e-3;

pub(crate) const FIRST_PAGE: Row = Row {
    name: "peer-first-page",
    what: "From asking another node for a frame of 64 pages of a snapshot that it has not saved, over a warm connection, \
           until they are here.",
    ours: "`Peer::pages` of the class of faults, the snapshot's compare held",
    reference: "one page over bare TLS on one warm connection: a round trip",
    fast: false,
    measure: measure_first_page,
};

pub(crate) const THROUGHPUT: Row = Row {
    name: "peer-throughput",
    what: "Bytes a second from another node over one connection, in messages of 4 MiB, four at once.",
    ours: "pages of a snapshot that is not saved; raw frames of a layer",
    reference: "as many bytes over bare TLS on one connection",
    fast: false,
    measure: measure_throughput,
};

pub(crate) const OVERLAP: Row = Row {
    name: "peer-overlap-resume",
    what: "From asking for a resume to the guest's first page, of a snapshot whose compare is held for ever, on another node \
           that is a way of 5 ms in each direction from the first; the connection is warm.",
    ours: "on the other node, of 64 MiB",
    reference: "on the node that has it; two round trips more are allowed",
    fast: false,
    measure: measure_overlap,
};

pub(crate) const MOVE: Row = Row {
    name: "move-stop",
    what: "Time that a guest of 64 MiB stands still when it moves from one daemon to another.",
    ours: "the stop time in the answer to a move",
    reference: "a pause and a resume at the same daemon, from the one's request to the other's answer",
    fast: false,
    measure: measure_move,
};

pub(crate) const TAX: Row = Row {
    name: "peer-tax",
    what: "Faults of a guest, at the 99th percentile, while another node pulls another snapshot's layer from its node at \
           full speed.",
    ours: "with the other node, which throws away what comes",
    reference: "without it",
    fast: false,
    measure: measure_tax,
};

/// A snapshot of the first node whose compare is held.
fn in_window(node: &Node, memory_bytes: u64) -> anyhow::Result<(Held, Arc<Snapshot>)> {
    let base = node.filled(memory_bytes)?;
    let held = node.hold_seals();
    let paused = node.changed(&base, Share { seed: 2, percent: 100, run_pages: 8 })?;
    drop(paused.ending);
    node.wait_held(&paused.snapshot)?;
    Ok((held, paused.snapshot))
}

/// Messages for all pages of a snapshot's memory, so many pages each.
fn pages_of(snapshot: &Snapshot, each: u32) -> Vec<WantedPages> {
    let pages = snapshot.memory().pages();
    let run = |start: u32| GuestPages::new(GuestPage::new(start), each.min(pages - start));
    let starts = (0..pages).step_by(usize::try_from(each).expect("a few"));
    starts.map(|start| WantedPages { snapshot: snapshot.id(), volume: 0, runs: vec![run(start)] }).collect()
}

fn measure_first_page(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let pair = Pair::new(Duration::ZERO)?;
    let (_held, snapshot) = in_window(&pair.first, 64 * MIB)?;
    let mut frames = pages_of(&snapshot, FRAME_PAGES).into_iter().cycle();
    let mut bare = BareTls::start(&pair.certificates)?;
    let ours = || {
        let wanted = frames.next().context("it has pages")?;
        let asked = Instant::now();
        pair.runtime.block_on(pair.peer.pages(wanted, Class::Fault))?;
        Ok(asked.elapsed().as_secs_f64())
    };
    let pairs = interleave(effort.pairs(), ours, || bare.seconds_for(4096))?;
    let (label, target) = ("in the window".to_owned(), Target::BeyondReferenceAtMost(FAULT_SECONDS));
    Ok(vec![Part { label, unit: Unit::Seconds, pairs, target }])
}

fn measure_throughput(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let memory_bytes = effort.choose(256, 16) * MIB;
    let pair = Pair::new(Duration::ZERO)?;
    let mut bare = BareTls::start(&pair.certificates)?;
    let bytes = usize::try_from(memory_bytes)?;
    let mut bare = || -> anyhow::Result<f64> { Ok(rate(memory_bytes, bare.seconds_for(bytes)?)) };
    let layers = frames_in(&*pair.first.filled(memory_bytes)?)?;
    let frames = || {
        let begun = Instant::now();
        let got: u64 = pair.runtime.block_on(all_frames(&*pair.peer, &layers))?;
        Ok(rate(got, begun.elapsed().as_secs_f64()))
    };
    let of_layer = interleave(effort.heavy_pairs(), frames, &mut bare)?;
    let (_held, snapshot) = in_window(&pair.first, memory_bytes)?;
    let messages = pages_of(&snapshot, MESSAGE_PAGES);
    let pages = || {
        let begun = Instant::now();
        let got = iter(messages.clone()).map(|wanted| pair.peer.pages(wanted, Class::Background));
        let got = got.buffer_unordered(AT_ONCE).try_fold(0, async |sum, bytes| Ok(sum + u64_of(bytes.len())));
        let got = pair.runtime.block_on(got)?;
        Ok(rate(got, begun.elapsed().as_secs_f64()))
    };
    let of_window = interleave(effort.heavy_pairs(), pages, &mut bare)?;
    let part = |label: &str, pairs| {
        let target = Target::RatioAtLeast(0.9);
        Part { label: label.to_owned(), unit: Unit::BytesPerSecond, pairs, target }
    };
    Ok(vec![part("pages in the window", of_window), part("frames of a layer", of_layer)])
}

fn rate(bytes: u64, seconds: f64) -> f64 {
    as_float(usize::try_from(bytes).expect("it was in memory")) / seconds
}

/// Messages for all frames of a snapshot's layers.
fn frames_in(snapshot: &Snapshot) -> anyhow::Result<Vec<WantedLayer>> {
    let named = snapshot.named_now().context("it is published")?;
    let of_layer = |layer: &Arc<rekindle_engine::layer::Layer>| {
        let (id, pages) = (layer.id(), layer.pages());
        let frames = frames_of(pages);
        let starts = (0..frames).step_by(PEER_FRAMES_MAX);
        starts
            .map(|start| WantedLayer { layer: id, pages, frames: start..frames.min(start + PEER_FRAMES_MAX) })
            .collect::<Vec<_>>()
    };
    Ok(named.layers().iter().flat_map(of_layer).collect())
}

/// Bytes of all frames, which came and are thrown away.
async fn all_frames(peer: &dyn Peer, wanted: &[WantedLayer]) -> anyhow::Result<u64> {
    let got = iter(wanted.to_vec()).map(|wanted| peer.frames(wanted, Class::Background));
    let mut got = std::pin::pin!(got.buffer_unordered(AT_ONCE));
    let mut sum = 0;
    while let Some(frames) = got.next().await {
        for frame in frames? {
            sum += u64_of(frame.context("the node has each frame")?.len());
        }
    }
    Ok(sum)
}

fn measure_overlap(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let pair = Pair::new(WAY)?;
    let base = pair.first.filled(64 * MIB)?;
    let with_one_in_window = |step: &dyn Fn(&Arc<Snapshot>) -> anyhow::Result<f64>| {
        let held = pair.first.hold_seals();
        let paused = pair.first.changed(&base, Share { seed: 2, percent: 100, run_pages: 8 })?;
        drop(paused.ending);
        pair.first.wait_held(&paused.snapshot)?;
        let seconds = step(&paused.snapshot);
        ensure!(paused.snapshot.manifest_now().is_none(), "its compare was held");
        drop(held);
        pair.first.forget(&paused.snapshot)?;
        seconds
    };
    let elsewhere = |snapshot: &Arc<Snapshot>| {
        let asked = Instant::now();
        let remote = pair.second.engine.open_from(snapshot.id(), &pair.at.to_string())?;
        let opened = asked.elapsed().as_secs_f64();
        let stepped = pair.second.first_step_of(&remote, 1)?;
        pair.second.engine.forget(remote)?;
        Ok(opened + stepped)
    };
    let pairs = interleave(
        effort.heavy_pairs(),
        || with_one_in_window(&elsewhere),
        || with_one_in_window(&|snapshot: &Arc<Snapshot>| pair.first.first_step_of(snapshot, 1)),
    )?;
    let two_round_trips = 4.0 * WAY.as_secs_f64();
    let (label, target) = ("64 MiB".to_owned(), Target::BeyondReferenceAtMost(two_round_trips));
    Ok(vec![Part { label, unit: Unit::Seconds, pairs, target }])
}

/// A daemon of a fleet.
struct Daemon {
    _running: RunningDaemon,
    client: Client,
    _place: BlackBox,
}

impl Daemon {
    /// Two daemons that know each other.
    fn two(certificates: &Certificates, store: &tempfile::TempDir) -> anyhow::Result<[Self; 2]> {
        let program = crate::load::program(&crate::workspace_root()?)?;
        let at = [free_address()?, free_address()?];
        let files = &certificates.files;
        let place = |this: usize, other: &str| -> anyhow::Result<BlackBox> {
            let settings = format!(
                "[peers]\ncertificate = {:?}\nkey = {:?}\nauthority = {:?}\nlisten = {:?}\nstatic = [\"{other}={}\"]\n",
                files.certificate,
                files.key,
                files.authority,
                at[this],
                at[1 - this]
            );
            let mut place = BlackBox::with_settings(&program, &settings)?;
            place.serve_with(&["--store", &store.path().join("store").display().to_string()]);
            Ok(place)
        };
        let first = place(0, "second")?;
        let running = first.start()?;
        let second = place(1, "first")?;
        second.copy_key_ring(&first)?;
        let started = second.start()?;
        let daemon =
            |running, place: BlackBox| Self { _running: running, client: place.client(), _place: place };
        Ok([daemon(running, first), daemon(started, second)])
    }

    fn wait_saved(&self, snapshot: &str) -> anyhow::Result<()> {
        self.client.wait_snapshot(snapshot, SnapshotState::Published, PATIENCE)?;
        Ok(())
    }
}

fn free_address() -> anyhow::Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn measure_move(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let (certificates, store) = (Certificates::new()?, tempfile::tempdir().context("a store")?);
    let nodes = Daemon::two(&certificates, &store)?;
    for name in ["moves", "stays"] {
        let wanted: CreateSandbox =
            serde_json::from_value(json!({ "name": name, "memory_bytes": 64 * MIB }))?;
        nodes[0].client.create_sandbox(None, &wanted)?;
        Told::new(&nodes[0].client, name).fill(1)?;
    }
    let mut here = 0;
    let ours = || {
        let to = ["second", "first"][here].to_owned();
        let moved = nodes[here].client.move_sandbox("moves", None, &MoveSandbox { to })?;
        nodes[here].wait_saved(&moved.snapshot.to_string())?;
        here = 1 - here;
        // It follows the snapshot until it has the names.
        nodes[here].wait_saved(&moved.snapshot.to_string())?;
        moved.stopped_seconds.context("it ran")
    };
    let reference = || {
        let client = &nodes[0].client;
        let asked = Instant::now();
        let paused = client.pause_sandbox("stays", None, &PauseSandbox::default())?;
        client.resume_sandbox("stays", &ResumeSandbox::default())?;
        let seconds = asked.elapsed().as_secs_f64();
        nodes[0].wait_saved(&paused.id.to_string())?;
        Ok(seconds)
    };
    let pairs = interleave(effort.heavy_pairs(), ours, reference)?;
    let (label, target) = ("64 MiB".to_owned(), Target::BeyondReferenceAtMost(MOVE_SECONDS));
    Ok(vec![Part { label, unit: Unit::Seconds, pairs, target }])
}

fn measure_tax(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let pair = Pair::new(Duration::ZERO)?;
    let served = published(&pair.first.engine, 1)?;
    let frames = frames_in(&*pair.first.filled(effort.choose(128, 16) * MIB)?)?;
    let faults = || fault_p99(&pair.first.engine, &served);
    let with_reader = || {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| -> anyhow::Result<()> {
                while !is_over.load(Ordering::Relaxed) {
                    pair.runtime.block_on(all_frames(&*pair.peer, &frames))?;
                }
                Ok(())
            });
            let faults = faults();
            is_over.store(true, Ordering::Relaxed);
            reading.join().expect("reading does not panic")?;
            faults
        })
    };
    let pairs = interleave(effort.pairs(), with_reader, faults)?;
    let (label, target) = ("p99".to_owned(), Target::RatioAtMost(1.2));
    Ok(vec![Part { label, unit: Unit::Seconds, pairs, target }])
}
