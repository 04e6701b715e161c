//! The crash campaign: a real daemon with real guests under load, or its keeper, is killed at random instants, its disk
//! fills up, its store goes away, and all that it acknowledged is compared with a model, page by page.
//!
//! The seed decides the requests, the phase aimed at and the part of it to wait for. It replays these choices; the
//! machine's own timing differs in each run.

mod check;
mod keeper_loss;
mod leftovers;
mod phase;
mod report;
mod round;
mod saving;
mod settle;
mod small_disk;
mod ticker;
mod trouble;
mod watchdog;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use anyhow::Context as _;
use rekindle_api::client::Client;
use rekindle_testkit::black_box::{BlackBox, RunningDaemon};
use rekindle_testkit::random::Random;

use crate::load::{self, Actor, Findings, Kind, Limits, Operation, Shard, World};
use check::check_listing;
pub(crate) use check::{check_contents, check_snapshot};
pub(crate) use leftovers::KeeperOwn;
use phase::{Durations, Phase};
use report::Tally;
use round::{Restarted, Round};
use saving::Saving;
use settle::Settling;
use small_disk::SmallDisk;
use ticker::Ticker;
use trouble::Trouble;
pub(crate) use watchdog::Watchdog;

/// Number of kills of the daemon, and the choices for them.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Number of rounds: in each the daemon is killed, in some the keeper too, or it alone, or the daemon is stopped
    /// for a while, the store is away, or the disk is full.
    #[arg(long, default_value_t = 20)]
    rounds: u64,
    /// Make the choices of an earlier campaign.
    #[arg(long)]
    seed: Option<u64>,
    /// Write what was found to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Kill this program instead of one that Cargo makes of this workspace.
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// Actors that only let guests work, and those that do everything else too.
const WORKERS: usize = 2;
const ACTORS: usize = 4;
const MIB: u64 = 1 << 20;

/// Kills, starts again and compares, as `options` ask for.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    let program = match &options.program {
        Some(program) => program.clone(),
        None => load::program(root)?,
    };
    let seed = options.seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("seed {seed}");
    let place = Arc::new(BlackBox::new(&program)?);
    let watchdog = Watchdog::over(&place)?;
    let mut campaign = Campaign::new(&place, seed)?;
    for number in 0..options.rounds {
        let done = campaign
            .round(number)
            .with_context(|| format!("round {number}, with everything left in {}", place.leave().display()));
        watchdog.is_alive();
        done?;
        if !campaign.tally.findings.is_clean() {
            println!("round {number} found something; what there is is left in {}", place.leave().display());
            campaign.leave_disk();
            break;
        }
    }
    if campaign.tally.findings.is_clean() {
        campaign.end()?;
    }
    let report = campaign.tally.report(seed);
    report.print();
    if let Some(path) = &options.json {
        report.write_json(path)?;
    }
    Ok(if campaign.tally.findings.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A campaign between two rounds.
struct Campaign<'a> {
    place: &'a BlackBox,
    client: Client,
    random: Random,
    daemon: Option<RunningDaemon>,
    actors: Vec<Actor>,
    ticker: Ticker,
    durations: Durations,
    targets: Vec<Phase>,
    keeper_own: KeeperOwn,
    tally: Tally,
    /// Disk of the state directory, unless this user may not mount one; unmounted last.
    disk: Option<SmallDisk>,
}

impl<'a> Campaign<'a> {
    fn new(place: &'a BlackBox, seed: u64) -> anyhow::Result<Self> {
        let mut random = Random::new(seed);
        let actors = (0..ACTORS).map(|number| actor(number, &mut random)).collect();
        let disk = SmallDisk::mount(place.state_directory())
            .inspect_err(|error| println!("the disk is never full here, as it cannot be mounted: {error:#}"))
            .ok();
        let daemon = Some(place.start()?);
        Ok(Self {
            place,
            client: place.client(),
            random,
            daemon,
            actors,
            ticker: Ticker::new(),
            durations: Durations::default(),
            targets: Vec::new(),
            keeper_own: KeeperOwn::default(),
            tally: Tally::default(),
            disk,
        })
    }

    /// Leaves the disk where it is, with all that is on it.
    fn leave_disk(&mut self) {
        if let Some(disk) = &mut self.disk {
            disk.leave();
        }
    }

    fn round(&mut self, number: u64) -> anyhow::Result<()> {
        let trouble = Trouble::of_round(number, self.disk.is_some());
        let target = self.next_target(trouble);
        self.ticker.resume(&self.client, &mut self.tally.findings).context("resuming the ticking guest")?;
        for actor in &mut self.actors {
            actor.may_fail = trouble.may_fail();
        }
        self.actors.iter_mut().skip(WORKERS).for_each(|actor| actor.wish = target.wish());
        let actors = std::mem::take(&mut self.actors);
        let daemon = self.daemon.take().context("there is no daemon")?;
        let mut round = Round {
            place: self.place,
            client: &self.client,
            target,
            trouble,
            disk: self.disk.as_ref(),
            random: &mut self.random,
            durations: &mut self.durations,
            tally: &mut self.tally,
        };
        let Restarted { daemon, actors, lost, saved, saving } =
            round.run(daemon, actors, &mut self.ticker)?;
        self.actors = actors;
        self.tally.rounds += 1;
        self.tally.answers_lost += u64::try_from(lost.len())?;
        if trouble == Trouble::BothKilled {
            self.daemon = Some(daemon);
            self.check_without_keeper(&saved, &lost)?;
        } else {
            if saving.is_some() {
                // Until the next keeper has everything, what is asked again may fail again.
                self.keeper_own.check(self.place, &self.client, &mut self.tally.findings)?;
            }
            self.settle(lost)?;
            self.check()?;
            self.daemon = Some(match saving {
                None => daemon,
                Some(saving) => self.outlive(daemon, saving)?,
            });
        }
        self.keeper_own.check(self.place, &self.client, &mut self.tally.findings)
    }

    /// Events that the daemon lived through are outlived by everything once more when the daemon itself is killed.
    fn outlive(&mut self, daemon: RunningDaemon, saving: Saving) -> anyhow::Result<RunningDaemon> {
        self.keeper_own.check(self.place, &self.client, &mut self.tally.findings)?;
        daemon.kill()?;
        drop(saving.finish(&mut self.durations));
        let daemon = self.place.start().context("starting the daemon again")?;
        self.check()?;
        Ok(daemon)
    }

    /// Every phase once, in an order of its own, and again; a keeper dies alone where something is handed to it.
    fn next_target(&mut self, trouble: Trouble) -> Phase {
        if trouble == Trouble::KeeperKilled {
            return Phase::OF_KEEPER[self.random.position(Phase::OF_KEEPER.len())];
        }
        if self.targets.is_empty() {
            self.targets = Phase::ALL.to_vec();
        }
        let place = self.random.position(self.targets.len());
        self.targets.swap_remove(place)
    }

    /// Finds out what became of the requests whose answers were lost; half of them are asked again.
    fn settle(&mut self, lost: Vec<(usize, Operation)>) -> anyhow::Result<()> {
        let world = World::of(&self.client).context("listing what there is after the restart")?;
        for (number, operation) in lost {
            let mut settling = Settling {
                client: &self.client,
                world: &world,
                shard: &mut self.actors[number].shard,
                findings: &mut self.tally.findings,
            };
            settling.settle(&operation);
            if self.random.percent(50) {
                settling.ask_again(&operation);
            }
        }
        Ok(())
    }

    /// Compares what is listed, and every page of it, with the model.
    fn check(&mut self) -> anyhow::Result<()> {
        let world = World::of(&self.client).context("listing what there is")?;
        let shards: Vec<&Shard> =
            self.actors.iter().map(|actor| &actor.shard).chain([&self.ticker.shard]).collect();
        check_listing(&world, &shards, &mut self.tally.findings);
        let client = &self.client;
        let shards = self.actors.iter_mut().map(|actor| &mut actor.shard).chain([&mut self.ticker.shard]);
        let found: Vec<(Findings, usize)> = thread::scope(|scope| {
            let threads: Vec<_> = shards
                .map(|shard| {
                    let guests = shard.sandboxes.len() + shard.snapshots.len();
                    scope.spawn(move || (check_contents(client, shard), guests))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("checking does not panic")).collect()
        });
        for (findings, guests) in found {
            self.tally.findings.take_in(findings);
            self.tally.guests_verified += u64::try_from(guests)?;
        }
        Ok(())
    }

    /// Ends everything that runs, in order; then nothing may be left.
    fn end(&mut self) -> anyhow::Result<()> {
        let world = World::of(&self.client)?;
        for sandbox in world.sandboxes.keys() {
            self.client.remove_sandbox(&sandbox.to_string())?;
        }
        for snapshot in world.snapshots.keys() {
            self.client.delete_snapshot(&snapshot.to_string())?;
        }
        leftovers::check_layers(self.place, &mut self.tally.findings);
        self.keeper_own.check(self.place, &self.client, &mut self.tally.findings)
    }
}

fn actor(number: usize, random: &mut Random) -> Actor {
    let is_worker = number < WORKERS;
    let limits = match is_worker {
        true => Limits { sandboxes_max: 1, snapshots_max: 1, memory_bytes: vec![16 * MIB, 32 * MIB] },
        false => Limits {
            sandboxes_max: 4,
            snapshots_max: 3,
            memory_bytes: vec![16 * MIB, 16 * MIB, 32 * MIB, 64 * MIB],
        },
    };
    Actor {
        shard: Shard::new(format!("user{number}")),
        random: Random::new(random.number()),
        limits,
        wish: is_worker.then_some(Kind::TellServed),
        may_fail: &[],
    }
}
