//! The soak: one daemon works with many sandboxes for long, and between times everything is removed. The rest left each
//! time must not grow: descriptors, RAM, files. With a stock, the store has more snapshots than the daemon's cache takes:
//! they are read meanwhile, and the cache keeps its budget.

mod growth;
mod samples;
mod stock;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rekindle_api::client::Client;
use rekindle_api::types::Collect;
use rekindle_settings::parse_size;
use rekindle_testkit::black_box::{BlackBox, RunningDaemon, ask_until};
use rekindle_testkit::random::Random;
use serde::Serialize;

use crate::crash::{KeeperOwn, Watchdog, check_contents};
use crate::load::{self, Actor, Ended, Findings, Limits, Shard, World};
use growth::grown;
use samples::{RESTS_WITHIN, Sample, files_below};
use stock::Stock;

/// For how long and by which choices a daemon works.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Let it work so long.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Sandboxes at once, at most.
    #[arg(long, default_value_t = 50)]
    sandboxes: usize,
    /// Give the daemon a cache of so many bytes, such as 1GiB.
    #[arg(long, value_name = "BYTES", requires = "snapshots", value_parser = parse_size)]
    cache: Option<u64>,
    /// Fill the store first, with snapshots of so many bytes, and read them meanwhile.
    #[arg(long, value_name = "BYTES", requires = "cache", value_parser = parse_size)]
    snapshots: Option<u64>,
    /// Make the choices of an earlier soak.
    #[arg(long)]
    seed: Option<u64>,
    /// Write what was found to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Let this program work instead of one that Cargo makes of this workspace.
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// Users at once.
const USERS: usize = 4;
/// Threads that read the stock.
const READERS: usize = 2;
/// Bytes by which layer files may pass the cache's bound: what was just packed, and is the only copy.
const BEYOND_CACHE_BYTES: u64 = 256 * MIB;
/// The time is cut into this many parts, each ended by removing everything.
const PARTS_MIN: u64 = 4;
const PARTS_MAX: u64 = 12;
/// A part is about so long.
const PART_SECONDS: u64 = 30;
/// Between two samples while the daemon works.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

const MIB: u64 = 1 << 20;

/// Results of a soak, in numbers.
#[derive(Debug, Serialize)]
struct Report {
    seconds: f64,
    seed: u64,
    requests: u64,
    wrong_pages: u64,
    lost_snapshots: u64,
    hung_guests: u64,
    /// Snapshots of the stock that were read, every page of them.
    stock_read: u64,
    /// While it worked, the most of each.
    at_work_max: Sample,
    /// After everything was removed, each time.
    at_rest: Vec<Sample>,
    wrong: Vec<String>,
}

/// Lets a daemon work as `options` ask for.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    let program = match &options.program {
        Some(program) => program.clone(),
        None => load::program(root)?,
    };
    let seed = options.seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("seed {seed}");
    let settings = options.cache.map_or_else(String::new, |bytes| format!("cache_bytes_max = {bytes}\n"));
    let place = Arc::new(BlackBox::with_settings(&program, &settings)?);
    let watchdog = Watchdog::over(&place)?;
    let daemon = place.start()?;
    let mut soak = Soak::new(&place, &daemon, options, seed);
    if let Some(bytes) = options.snapshots {
        soak.stock = Stock::make(&soak.client, bytes, &mut Random::new(seed), &watchdog)?;
        println!("the store is filled: {}", Sample::now(&place, &daemon, &soak.client)?);
    }
    let begun = Instant::now();
    // Everything is removed after a part, the stock too.
    let parts_max = if options.snapshots.is_some() { 1 } else { PARTS_MAX };
    let parts = (options.seconds / PART_SECONDS).clamp(PARTS_MIN.min(parts_max), parts_max);
    for part in 0..parts {
        let until = Duration::from_secs(options.seconds) * u32::try_from(part + 1)? / u32::try_from(parts)?;
        soak.part(begun + until, &watchdog)
            .with_context(|| format!("part {part}, with everything left in {}", place.leave().display()))?;
        println!("after {:.0} s everything was removed: {}", begun.elapsed().as_secs_f64(), soak.last());
        if !soak.findings.is_clean() {
            break;
        }
    }
    let wrong = match options.cache {
        Some(bytes_max) => soak.beyond(bytes_max),
        None => grown(&soak.at_rest, soak.requests),
    };
    wrong.into_iter().for_each(|words| soak.findings.wrong(words));
    let report = soak.report(begun.elapsed(), seed);
    report.print();
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
    }
    if report.wrong.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("what there is is left in {}", place.leave().display());
    Ok(ExitCode::FAILURE)
}

/// A soak between two parts.
struct Soak<'a> {
    place: &'a BlackBox,
    daemon: &'a RunningDaemon,
    client: Client,
    actors: Vec<Actor>,
    random: Random,
    stock: Stock,
    stock_read: u64,
    keeper_own: KeeperOwn,
    requests: u64,
    at_work_max: Sample,
    at_rest: Vec<Sample>,
    findings: Findings,
}

impl<'a> Soak<'a> {
    fn new(place: &'a BlackBox, daemon: &'a RunningDaemon, options: &Options, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let share = |number: usize| (options.sandboxes + number) / USERS;
        let actors = (0..USERS).map(|number| Actor {
            shard: Shard::new(format!("user{number}")),
            random: Random::new(random.number()),
            limits: Limits {
                sandboxes_max: share(number).max(1),
                snapshots_max: 6,
                memory_bytes: vec![4 * MIB, 8 * MIB, 16 * MIB],
            },
            wish: None,
            may_fail: &[],
        });
        let actors = actors.collect();
        Self {
            place,
            daemon,
            client: place.client(),
            actors,
            random,
            stock: Stock::default(),
            stock_read: 0,
            keeper_own: KeeperOwn::default(),
            requests: 0,
            at_work_max: Sample::default(),
            at_rest: Vec::new(),
            findings: Findings::default(),
        }
    }

    /// Works until `until`, compares every page, removes everything and sees what is left.
    fn part(&mut self, until: Instant, watchdog: &Watchdog) -> anyhow::Result<()> {
        self.work(until, watchdog)?;
        self.check();
        watchdog.is_alive();
        self.remove_all()?;
        self.keeper_own.check(self.place, &self.client, &mut self.findings)?;
        self.at_rest.push(Sample::at_rest(self.place, self.daemon, &self.client)?);
        self.collect();
        watchdog.is_alive();
        Ok(())
    }

    fn work(&mut self, until: Instant, watchdog: &Watchdog) -> anyhow::Result<()> {
        let seeds = self.seeds_of_readers();
        let (stop, client) = (AtomicBool::new(false), &self.client);
        let actors = std::mem::take(&mut self.actors);
        let (place, daemon) = (self.place, self.daemon);
        let mut most = self.at_work_max;
        let stock = &self.stock;
        let (ended, read, sampled) = thread::scope(|scope| {
            let stop = &stop;
            let read = move |(reader, seed)| {
                scope.spawn(move || stock.read(reader, client, Random::new(seed), stop))
            };
            let reading: Vec<_> = seeds.into_iter().enumerate().map(read).collect();
            let working: Vec<_> = actors
                .into_iter()
                .map(|actor| scope.spawn(move || fill_and_work(actor, client, stop)))
                .collect();
            let mut sampled = Ok(());
            while Instant::now() < until && sampled.is_ok() && !working.iter().any(|user| user.is_finished())
            {
                sampled = Sample::now(place, daemon, client).map(|sample| most = most.most(sample));
                watchdog.is_alive();
                thread::park_timeout(SAMPLE_EVERY.min(until.saturating_duration_since(Instant::now())));
            }
            stop.store(true, Ordering::Release);
            let ended: Vec<Ended> =
                working.into_iter().map(|user| user.join().expect("no user panics")).collect();
            let read: Vec<_> =
                reading.into_iter().map(|reader| reader.join().expect("no reader panics")).collect();
            (ended, read, sampled)
        });
        for (read, findings) in read {
            self.stock_read += read;
            self.findings.take_in(findings);
        }
        self.at_work_max = most;
        for ended in ended {
            if let Some((operation, _)) = ended.lost {
                self.findings.wrong(format!("{operation:?} was not answered: the daemon ended by itself"));
            }
            self.findings.take_in(ended.findings);
            self.requests += ended.answered;
            self.actors.push(ended.actor);
        }
        sampled
    }

    fn check(&mut self) {
        for actor in &mut self.actors {
            self.findings.take_in(check_contents(&self.client, &mut actor.shard));
        }
    }

    fn remove_all(&mut self) -> anyhow::Result<()> {
        let world = World::of(&self.client)?;
        for sandbox in world.sandboxes.keys() {
            self.client.remove_sandbox(&sandbox.to_string())?;
        }
        for snapshot in world.snapshots.keys() {
            self.client.delete_snapshot(&snapshot.to_string())?;
        }
        for actor in &mut self.actors {
            actor.shard.sandboxes.clear();
            actor.shard.snapshots.clear();
        }
        Ok(())
    }

    fn seeds_of_readers(&mut self) -> Vec<u64> {
        let readers = if self.stock.is_empty() { 0 } else { READERS };
        (0..readers).map(|_| self.random.number()).collect()
    }

    /// Collects the store until it has nothing of any snapshot.
    fn collect(&mut self) {
        let (how, store) = (Collect { dry_run: false, probation_ms: Some(0) }, self.place.store_directory());
        let mut left = Ok(0);
        let done = ask_until(RESTS_WITHIN, || {
            let collected = self.client.collect(&how);
            left = collected.map_err(anyhow::Error::from).and_then(|_| objects_of_snapshots(&store));
            left.as_ref().is_ok_and(|left| *left == 0).then_some(())
        });
        if done.is_none() {
            self.findings
                .wrong(format!("after all was deleted and collected, the store has {left:?} objects"));
        }
    }

    /// Findings on a cache beyond its bound, and on remains of a store with a stock.
    fn beyond(&self, bytes_max: u64) -> Vec<String> {
        let mut wrong = Vec::new();
        let most = self.at_work_max.layers_bytes;
        if most > bytes_max + BEYOND_CACHE_BYTES {
            wrong.push(format!("layer files took {most} bytes, with a bound of {bytes_max}"));
        }
        for rest in self.at_rest.iter().filter(|rest| rest.layers_bytes + rest.manifests > 0) {
            wrong.push(format!("after everything was removed there is {rest}"));
        }
        wrong
    }

    fn last(&self) -> String {
        self.at_rest.last().map_or_else(String::new, ToString::to_string)
    }

    fn report(&self, took: Duration, seed: u64) -> Report {
        Report {
            seconds: took.as_secs_f64(),
            seed,
            requests: self.requests,
            wrong_pages: self.findings.wrong_pages,
            lost_snapshots: self.findings.lost_snapshots,
            hung_guests: self.findings.hung_guests,
            stock_read: self.stock_read,
            at_work_max: self.at_work_max,
            at_rest: self.at_rest.clone(),
            wrong: self.findings.words.clone(),
        }
    }
}

impl Report {
    fn print(&self) {
        println!(
            "{} requests in {:.0} s; the most while it worked: {}",
            self.requests, self.seconds, self.at_work_max
        );
        self.wrong.iter().for_each(|words| println!("wrong: {words}"));
        if self.stock_read > 0 {
            println!(
                "{} snapshots of the stock were read; {} wrong pages, {} guests that hung",
                self.stock_read, self.wrong_pages, self.hung_guests
            );
        } else if self.wrong.is_empty() {
            println!("nothing has grown");
        }
    }
}

/// The number of a store's objects that are there because of snapshots.
fn objects_of_snapshots(store: &Path) -> anyhow::Result<u64> {
    let places = ["layers", "manifests", "working-sets", "roots", "condemned"];
    places.iter().try_fold(0, |sum, place| Ok(sum + files_below(&store.join(place))?))
}

/// Makes as many sandboxes as there may be, then works.
fn fill_and_work(mut actor: Actor, client: &Client, stop: &AtomicBool) -> Ended {
    let mut filling = Findings::default();
    while actor.shard.sandboxes.len() < actor.limits.sandboxes_max
        && !stop.load(Ordering::Acquire)
        && filling.is_clean()
    {
        let create = actor.shard.create(&actor.limits, &mut actor.random);
        match create.ask(client) {
            Ok(outcome) => actor.shard.answered(&create, &outcome, &mut filling),
            Err(error) => filling.guest_failed(&format!("{create:?}"), &error),
        }
    }
    let mut ended = actor.work(client, stop, None);
    ended.findings.take_in(filling);
    ended
}
