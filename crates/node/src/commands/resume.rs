//! `rekindle resume` and `rekindle fork`: let sandboxes go on from a snapshot.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, ValueEnum};
use rekindle_api::client::Client;
use rekindle_api::limits;
use rekindle_api::types::{
    self, ForkSandbox, NameOfSeveral, Netns, ResumeSandbox, ResumeSnapshot, Sandbox, SandboxCount,
    SandboxState, TapName,
};
use serde_json::json;
use uuid::Uuid;

use super::numbers::number;
use super::period::PeriodArguments;
use super::session::Session;
use super::shown;
use super::status::{NoSuchThing, Status};
use super::target::{
    LabelArguments, Reference, Target, bracketed_id, sandbox_title, snapshot_of, snapshot_title,
};

/// The sandbox or snapshot to resume, with options.
#[derive(Args, Clone, Debug)]
pub struct ResumeArguments {
    #[command(flatten)]
    target: Reference,
    /// Start this many new sandboxes from the snapshot instead of resuming the original
    #[arg(long, short = 'n', value_name = "NUMBER", value_parser = number::<SandboxCount>(1..=limits::COUNT_MAX.into()))]
    count: Option<SandboxCount>,
    /// The new sandbox's name; several get a number behind it
    #[arg(long)]
    name: Option<NameOfSeveral>,
    #[command(flatten)]
    labels: LabelArguments,
    /// Serve it before its snapshot is sealed, or not [default: the daemon's setting]
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    serve_before_seal: Option<bool>,
    /// The pages to bring ahead of its guest [default: the daemon's setting]
    #[arg(long, value_name = "PAGES")]
    prefault: Option<Prefault>,
    /// Whose pages its guest runs on [default: the daemon's setting]
    #[arg(long, value_name = "MODE")]
    memory_mode: Option<MemoryMode>,
    #[command(flatten)]
    network: NetworkArguments,
    #[command(flatten)]
    period: PeriodArguments,
    /// Let a stopped or lost sandbox go on from its last snapshot: everything its guest did after that is gone.
    /// One with --every does so in any case
    #[arg(long, conflicts_with_all = ["count", "name", "labels"])]
    from_last_snapshot: bool,
    /// The node that has the snapshot, which need not be saved yet: a name in peers.static, or HOST:PORT [default: as the store says]
    #[arg(long, value_name = "NODE")]
    from: Option<String>,
    /// A key of your choice: the same request for new sandboxes under the same key is done once
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

/// Pages that are brought ahead of a resumed guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Prefault {
    /// None: each page comes when the guest touches it
    None,
    /// Those that earlier guests of the snapshot touched first, or else those that its own pause kept
    WorkingSet,
    /// All of its memory
    All,
}

impl From<Prefault> for types::Prefault {
    fn from(pages: Prefault) -> Self {
        match pages {
            Prefault::None => Self::None,
            Prefault::WorkingSet => Self::WorkingSet,
            Prefault::All => Self::All,
        }
    }
}

/// Whose pages a resumed guest runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MemoryMode {
    /// Its own, which a pause takes over as they are
    Own,
    /// Those that the snapshot's guests share; a pause copies what it wrote
    Shared,
}

impl From<MemoryMode> for types::MemoryMode {
    fn from(mode: MemoryMode) -> Self {
        match mode {
            MemoryMode::Own => Self::Own,
            MemoryMode::Shared => Self::Shared,
        }
    }
}

/// The network of each machine. `{index}` stands for its number, `{name}` for its sandbox's name.
#[derive(Args, Clone, Debug)]
struct NetworkArguments {
    /// A tap device of its machine, instead of the one it had; again for each of its network devices. {index} in it stands
    /// for the number of the sandbox, {name} for its name
    #[arg(long = "tap", value_name = "DEVICE")]
    taps: Vec<String>,
    /// Run its VMM in this network namespace; {index} and {name} as in --tap
    #[arg(long, value_name = "NAME|PATH")]
    netns: Option<String>,
}

impl NetworkArguments {
    fn taps(&self) -> Option<Vec<TapName>> {
        (!self.taps.is_empty()).then(|| self.taps.iter().cloned().map(TapName).collect())
    }

    fn netns(&self) -> Option<Netns> {
        self.netns.clone().map(Netns)
    }
}

/// The sandbox to fork, with options.
#[derive(Args, Clone, Debug)]
pub struct ForkArguments {
    #[command(flatten)]
    target: Reference,
    /// Number of forks
    #[arg(long, short = 'n', value_name = "NUMBER", default_value = "1", value_parser = number::<SandboxCount>(1..=limits::COUNT_MAX.into()))]
    count: SandboxCount,
    /// Their name; several get a number behind it
    #[arg(long)]
    name: Option<NameOfSeveral>,
    #[command(flatten)]
    labels: LabelArguments,
    #[command(flatten)]
    network: NetworkArguments,
    #[command(flatten)]
    period: PeriodArguments,
    /// The pages to bring ahead of their guests [default: the daemon's setting]
    #[arg(long, value_name = "PAGES")]
    prefault: Option<Prefault>,
    /// Whose pages their guests run on [default: the daemon's setting]
    #[arg(long, value_name = "MODE")]
    memory_mode: Option<MemoryMode>,
    /// A key of your choice: the same request under the same key is done once, however often it is sent
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

/// Resumes it.
pub fn run(session: &Session, arguments: &ResumeArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    if let Some(from) = &arguments.from {
        return resume_from(session, &client, arguments, from);
    }
    let target = match Target::find(&client, &arguments.target.reference) {
        // The daemon finds a snapshot that another node has not saved yet; no list has it.
        Err(error) if is_elsewhere(&error, &arguments.target.reference) => {
            return resume_from(session, &client, arguments, "another node");
        }
        found => found?,
    };
    let wants_new =
        arguments.count.is_some() || arguments.name.is_some() || !arguments.labels.labels()?.is_empty();
    let asked = Instant::now();
    match &target {
        Target::Sandbox(sandbox) if !wants_new => {
            if arguments.idempotency_key.is_some() {
                bail!(
                    "--idempotency-key is for new sandboxes, which --count, --name, --label or a snapshot make"
                );
            }
            let how = ResumeSandbox {
                serve_before_seal: arguments.serve_before_seal,
                taps: arguments.network.taps(),
                netns: arguments.network.netns(),
                from_last_snapshot: arguments.from_last_snapshot,
                prefault: arguments.prefault.map(types::Prefault::from),
                memory_mode: arguments.memory_mode.map(types::MemoryMode::from),
                checkpoints: arguments.period.checkpoints(),
            };
            let id = sandbox.id.to_string();
            let resumed = session.output.during("resuming", || client.resume_sandbox(&id, &how))?;
            let took = asked.elapsed();
            let has_ended = matches!(sandbox.state, SandboxState::Stopped | SandboxState::Lost);
            let went_back = if has_ended { went_back(&client, &resumed)? } else { String::new() };
            tell_of_one(session, &resumed, took, &went_back)
        }
        Target::Sandbox(_) | Target::Snapshot(_) => {
            let how = arguments.of_snapshot()?;
            let snapshot = snapshot_of(&target)?.to_string();
            let key = arguments.idempotency_key.as_deref();
            let made = session.output.during("resuming", || client.resume_snapshot(&snapshot, key, &how))?;
            tell_of_several(session, &made, asked.elapsed(), "resumed")
        }
    }
}

/// True if the word that means nothing here is a whole id, which may mean a snapshot of another node.
fn is_elsewhere(error: &anyhow::Error, word: &str) -> bool {
    error.is::<NoSuchThing>() && Uuid::try_parse(word).is_ok()
}

impl ResumeArguments {
    /// The options of new sandboxes.
    fn of_snapshot(&self) -> anyhow::Result<ResumeSnapshot> {
        Ok(ResumeSnapshot {
            count: self.count.unwrap_or_default(),
            name: self.name.clone(),
            labels: self.labels.labels()?,
            serve_before_seal: self.serve_before_seal,
            taps: self.network.taps(),
            netns: self.network.netns(),
            prefault: self.prefault.map(types::Prefault::from),
            memory_mode: self.memory_mode.map(types::MemoryMode::from),
            from: self.from.clone(),
            checkpoints: self.period.checkpoints(),
        })
    }
}

/// Resumes a snapshot that another node has, and that this one need not know.
fn resume_from(
    session: &Session,
    client: &Client,
    arguments: &ResumeArguments,
    from: &str,
) -> anyhow::Result<Status> {
    let (asked, how) = (Instant::now(), arguments.of_snapshot()?);
    let (snapshot, key) = (&arguments.target.reference, arguments.idempotency_key.as_deref());
    let doing = format!("resuming from {from}");
    let made = session.output.during(&doing, || client.resume_snapshot(snapshot, key, &how))?;
    tell_of_several(session, &made, asked.elapsed(), "resumed")
}

/// Forks it.
pub fn fork(session: &Session, arguments: &ForkArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let target = Target::find(&client, &arguments.target.reference)?;
    let asked = Instant::now();
    let made = session.output.during("forking", || make_forks(&client, &target, arguments))?;
    tell_of_several(session, &made, asked.elapsed(), "forked")
}

fn make_forks(client: &Client, target: &Target, arguments: &ForkArguments) -> anyhow::Result<Vec<Sandbox>> {
    let ForkArguments {
        count, name, labels, network, period, prefault, memory_mode, idempotency_key, ..
    } = arguments;
    let (taps, netns) = (network.taps(), network.netns());
    let (id, key, labels) = (target.id().to_string(), idempotency_key.as_deref(), labels.labels()?);
    let (count, name, prefault) = (*count, name.clone(), prefault.map(types::Prefault::from));
    let checkpoints = period.checkpoints();
    let memory_mode = memory_mode.map(types::MemoryMode::from);
    Ok(match target {
        Target::Sandbox(_) => {
            let how = ForkSandbox { count, name, labels, taps, netns, prefault, memory_mode, checkpoints };
            client.fork_sandbox(&id, key, &how)?
        }
        Target::Snapshot(_) => {
            let how = ResumeSnapshot {
                count,
                name,
                labels,
                taps,
                netns,
                prefault,
                memory_mode,
                checkpoints,
                ..ResumeSnapshot::default()
            };
            client.resume_snapshot(&id, key, &how)?
        }
    })
}

/// The snapshot that a sandbox goes on from whose guest had ended, in words.
fn went_back(client: &Client, sandbox: &Sandbox) -> anyhow::Result<String> {
    let Some(origin) = sandbox.origin else { return Ok(String::new()) };
    let snapshot = client.snapshot(&origin.to_string())?;
    let age = shown::age(snapshot.created_unix_ms, shown::now_ms());
    Ok(format!(
        "; it goes on from {}, taken {age} ago, and what came after that is gone",
        snapshot_title(&snapshot)
    ))
}

fn tell_of_one(
    session: &Session,
    sandbox: &Sandbox,
    took: Duration,
    went_back: &str,
) -> anyhow::Result<Status> {
    if session.output.json {
        session.output.value(sandbox)?;
    } else {
        let title = sandbox_title(sandbox);
        let id = bracketed_id(sandbox.name.as_deref(), &sandbox.id);
        session.output.line(&format!("{title} runs again after {}{id}{went_back}", shown::duration(took)))?;
    }
    Ok(Status::Done)
}

fn tell_of_several(
    session: &Session,
    made: &[Sandbox],
    took: Duration,
    verb: &str,
) -> anyhow::Result<Status> {
    if session.output.json {
        session.output.value(&json!({ "sandboxes": made }))?;
        return Ok(Status::Done);
    }
    for sandbox in made {
        let id = bracketed_id(sandbox.name.as_deref(), &sandbox.id);
        session.output.line(&format!("{} runs{id}", sandbox_title(sandbox)))?;
    }
    if made.len() > 1 {
        session.output.line(&format!("{} {verb} in {}", made.len(), shown::duration(took)))?;
    }
    Ok(Status::Done)
}
