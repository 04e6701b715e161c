//! The words of the command line, and the commands, a module each.

pub mod catalog;
pub mod confirm;
pub mod connect;
pub mod console;
pub mod delete;
pub mod demo;
pub mod doctor;
pub mod drain;
pub mod events;
pub mod export;
pub mod failure;
pub mod gc;
pub mod guests;
pub mod keys;
pub mod list;
pub mod machine;
pub mod moving;
pub mod numbers;
pub mod output;
pub mod pause;
pub mod placement;
mod period;
mod private_node;
pub mod resume;
pub mod run;
pub mod selection;
pub mod serve;
pub mod session;
pub mod settings;
pub mod shell;
pub mod show;
pub mod shown;
pub mod shutdown;
pub mod status;
pub mod target;
pub mod tell;
pub mod usage;
pub mod verify;
pub mod wait;
pub mod words;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use catalog::CatalogArguments;
use connect::ConnectArguments;
use console::ConsoleArguments;
use delete::{EndArguments, ForgetArguments, UndeleteArguments};
use demo::arguments::DemoArguments;
use doctor::DoctorArguments;
use drain::DrainArguments;
use events::EventsArguments;
use export::{ExportArguments, ImportArguments};
use gc::GcArguments;
use guests::GuestsArguments;
use keys::KeysArguments;
use list::ListArguments;
use moving::MoveArguments;
use pause::{CheckpointArguments, PauseArguments};
use placement::PlacementArguments;
use rekindle_guest::process::arguments::GuestArguments;
use rekindle_keeper::arguments::KeeperArguments;
use rekindle_vmm::namespace::EnterArguments;
use resume::{ForkArguments, ResumeArguments};
use run::RunArguments;
use serve::ServeArguments;
use session::{GlobalArguments, Session};
use settings::SettingsArguments;
use shell::{CompletionsArguments, ManArguments};
use show::ShowArguments;
use shutdown::ShutdownArguments;
use status::{EXIT_STATUSES, Status};
use tell::TellArguments;
use usage::UsageArguments;
use verify::VerifyArguments;
use wait::WaitArguments;

/// Text below the list of commands.
const AFTER_HELP: &str = "\
First steps:
  rekindle demo                    the whole story in one go; needs no daemon
  rekindle serve                   start the daemon, in a terminal of its own
  rekindle run web                 start a sandbox named web
  rekindle tell web fill           have its test guest write all of its memory
  rekindle pause web               pause it; resume it at once, or fork it:
  rekindle fork web --count 10
  rekindle doctor                  when something does not work";

/// Pauses microVM sandboxes and brings them back at once, even while the pause is still being saved.
#[derive(Debug, Parser)]
#[command(
    name = "rekindle",
    version,
    propagate_version = true,
    after_help = AFTER_HELP,
    after_long_help = format!("{AFTER_HELP}\n\n{EXIT_STATUSES}"),
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: GlobalArguments,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The words.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pause, resume and fork a real guest process on this machine, and check every byte; needs no daemon
    Demo(DemoArguments),
    /// Run the daemon, which keeps sandboxes and snapshots and answers all other commands
    Serve(ServeArguments),
    /// Start a sandbox
    Run(RunArguments),
    /// Pause sandboxes, each into a snapshot
    Pause(PauseArguments),
    /// Take snapshots of running sandboxes, which go on
    Checkpoint(CheckpointArguments),
    /// Resume a paused sandbox, or make new ones of a snapshot
    Resume(ResumeArguments),
    /// Make new sandboxes that go on from the present state of one
    Fork(ForkArguments),
    /// Have a sandbox go on at another node
    Move(MoveArguments),
    /// List sandboxes and snapshots
    #[command(visible_alias = "ls")]
    List(ListArguments),
    /// Show everything about a sandbox or a snapshot
    Show(ShowArguments),
    /// Wait until a snapshot is sealed or in the store
    Wait(WaitArguments),
    /// Read every page of a snapshot and check it
    Verify(VerifyArguments),
    /// Show how many bytes snapshots take, in the store and on the node
    Usage(UsageArguments),
    /// Show what the node has, and how near a resume of snapshots would be there
    Placement(PlacementArguments),
    /// Have a test guest fill, rewrite, verify or discard its memory (test guests only)
    Tell(TellArguments),
    /// Show what a virtual machine prints at its console, and type there
    Console(ConsoleArguments),
    /// Join standard input and output to the agent of a virtual machine's guest
    Connect(ConnectArguments),
    /// End guests without a snapshot
    Stop(EndArguments),
    /// Delete sandboxes and snapshots, for all nodes
    Delete(EndArguments),
    /// Bring deleted snapshots back, for all nodes
    Undelete(UndeleteArguments),
    /// Forget snapshots on this node; they stay in the store
    Forget(ForgetArguments),
    /// Delete from the store what no snapshot and no node needs
    Gc(GcArguments),
    /// Pause all sandboxes until the daemon starts again, so that the machine can go down
    Drain(DrainArguments),
    /// End the guests and the keeper that a daemon left when it ended
    Shutdown(ShutdownArguments),
    /// Write a snapshot of the store into a file
    Export(ExportArguments),
    /// Put a snapshot from a file into the store
    Import(ImportArguments),
    /// Have the node list every snapshot that its store has
    Catalog(CatalogArguments),
    /// Show events, as they happen
    Events(EventsArguments),
    /// Show every setting, its value, and the source of that value
    Settings(SettingsArguments),
    /// Show the keys of domains in this node's key ring, and replace them
    Keys(KeysArguments),
    /// Check whether this machine and this user have what rekindle needs
    Doctor(DoctorArguments),
    /// Write the demo's guests as files, to run them as machines of your own
    Guests(GuestsArguments),
    /// Print completions for a shell
    Completions(CompletionsArguments),
    /// Print a manual page, or write all of them
    Man(ManArguments),
    /// Be a process guest, driven by the program that starts it
    #[command(hide = true)]
    Guest(GuestArguments),
    /// Hold open files for the daemon and be the parent of its VMMs, so that both outlive it
    #[command(hide = true)]
    Keeper(KeeperArguments),
    /// Enter a network namespace and become a VMM
    #[command(hide = true)]
    Enter(EnterArguments),
    /// Print the OpenAPI document of the control API
    #[command(hide = true)]
    Openapi,
}

/// Does what a command line that was understood says.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let session = Session::new(cli.global);
    let status = match &cli.command {
        Command::Serve(arguments) => serve::run(&session, arguments),
        Command::Run(arguments) => run::run(&session, arguments),
        Command::Pause(arguments) => pause::run(&session, arguments),
        Command::Checkpoint(arguments) => pause::checkpoint(&session, arguments),
        Command::Resume(arguments) => resume::run(&session, arguments),
        Command::Fork(arguments) => resume::fork(&session, arguments),
        Command::Move(arguments) => moving::run(&session, arguments),
        Command::List(arguments) => list::run(&session, arguments),
        Command::Show(arguments) => show::run(&session, arguments),
        Command::Wait(arguments) => wait::run(&session, arguments),
        Command::Verify(arguments) => verify::run(&session, arguments),
        Command::Usage(arguments) => usage::run(&session, arguments),
        Command::Placement(arguments) => placement::run(&session, arguments),
        Command::Tell(arguments) => tell::run(&session, arguments),
        Command::Console(arguments) => console::run(&session, arguments),
        Command::Connect(arguments) => connect::run(&session, arguments),
        Command::Stop(arguments) => delete::stop(&session, arguments),
        Command::Delete(arguments) => delete::run(&session, arguments),
        Command::Undelete(arguments) => delete::undelete(&session, arguments),
        Command::Forget(arguments) => delete::forget(&session, arguments),
        Command::Gc(arguments) => gc::run(&session, arguments),
        Command::Drain(arguments) => drain::run(&session, arguments),
        Command::Shutdown(arguments) => shutdown::run(&session, arguments),
        Command::Export(arguments) => export::export(&session, arguments),
        Command::Import(arguments) => export::import(&session, arguments),
        Command::Catalog(arguments) => catalog::run(&session, arguments),
        Command::Events(arguments) => events::run(&session, arguments),
        Command::Settings(arguments) => settings::run(&session, arguments),
        Command::Keys(arguments) => keys::run(&session, arguments),
        Command::Doctor(arguments) => doctor::run(&session, arguments),
        Command::Guests(arguments) => guests::run(&session, arguments),
        Command::Completions(arguments) => shell::completions(arguments),
        Command::Man(arguments) => shell::man(arguments),
        Command::Demo(arguments) => return demo::run(arguments),
        Command::Guest(arguments) => rekindle_guest::process::run_with(arguments).map(|()| Status::Done),
        Command::Keeper(arguments) => return rekindle_keeper::run(arguments),
        Command::Enter(arguments) => arguments.run().map(|()| Status::Done).map_err(anyhow::Error::from),
        Command::Openapi => output::write(&rekindle_api::document_text()).map(|()| Status::Done),
    };
    status.map(ExitCode::from)
}
