//! `rekindle completions` and `rekindle man`: write completions for shells and manual pages.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::Shells;
use rekindle_api::client::{Client, ClientError};

use super::Cli;
use super::session::{GlobalArguments, Session};
use super::status::Status;

/// For which shell.
#[derive(Args, Clone, Debug)]
pub struct CompletionsArguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// The pages to write, and their directory.
#[derive(Args, Clone, Debug)]
pub struct ManArguments {
    /// The command whose page to print; the program's own if none is named
    #[arg(conflicts_with = "directory")]
    command: Option<String>,
    /// Write the pages of all commands into this directory instead
    #[arg(long, value_name = "PATH")]
    directory: Option<PathBuf>,
}

/// Prints what has a shell ask this program what can come next.
pub fn completions(arguments: &CompletionsArguments) -> anyhow::Result<Status> {
    let shells = Shells::builtins();
    let name = arguments.shell.to_string();
    let shell = shells.completer(&name).with_context(|| format!("there are no completions for {name}"))?;
    let mut text = Vec::new();
    shell.write_registration(COMPLETE, "rekindle", "rekindle", "rekindle", &mut text)?;
    super::output::write(&String::from_utf8(text).context("completions are text")?)?;
    Ok(Status::Done)
}

/// The variable by which a shell asks what can come next.
pub const COMPLETE: &str = "COMPLETE";

/// The command line as completions offer it: without commands and options that are hidden.
pub fn offered() -> Command {
    let whole = Cli::command();
    let commands = whole.get_subcommands().filter(|command| !command.is_hide_set());
    let commands = commands.cloned().map(|command| {
        let names = completer_of(command.get_name());
        command.mut_args(|argument| match (&names, argument.get_id().as_str()) {
            (Some(names), "reference" | "references" | "sandbox" | "about") => {
                argument.add(ArgValueCandidates::new(*names))
            }
            _ => argument,
        })
    });
    let arguments = whole.get_arguments().filter(|argument| !argument.is_hide_set());
    Command::new("rekindle").args(arguments).subcommands(commands)
}

/// The things whose names are offered to a command.
fn completer_of(command: &str) -> Option<fn() -> Vec<CompletionCandidate>> {
    match command {
        "pause" | "checkpoint" | "stop" | "tell" | "console" => Some(sandbox_names),
        "resume" | "fork" | "show" | "wait" | "verify" | "delete" | "events" => Some(all_names),
        _ => None,
    }
}

fn all_names() -> Vec<CompletionCandidate> {
    let mut names = sandbox_names();
    let snapshots = asked(|client| client.all_snapshots(&[]));
    names.extend(snapshots.into_iter().filter_map(|snapshot| {
        Some(
            CompletionCandidate::new(String::from(snapshot.name?))
                .help(Some(snapshot.state.to_string().into())),
        )
    }));
    names
}

fn sandbox_names() -> Vec<CompletionCandidate> {
    let sandboxes = asked(|client| client.all_sandboxes(&[]));
    let named = sandboxes.into_iter().filter_map(|sandbox| {
        Some(
            CompletionCandidate::new(String::from(sandbox.name?))
                .help(Some(sandbox.state.to_string().into())),
        )
    });
    named.collect()
}

/// Longest time that a person at a shell waits for names.
const NAMES_WITHIN: Duration = Duration::from_secs(2);

/// The answer of the default daemon; nothing if it does not answer.
fn asked<T>(question: impl FnOnce(&Client) -> Result<Vec<T>, ClientError>) -> Vec<T> {
    let client = Session::new(GlobalArguments::default()).client();
    client.ok().and_then(|client| question(&client.answered_within(NAMES_WITHIN)).ok()).unwrap_or_default()
}

/// The command line as manual pages show it: with the text of options that short help leaves out.
fn in_full(command: Command) -> Command {
    command.mut_args(|argument| argument.hide_short_help(false)).mut_subcommands(in_full)
}

/// Prints one page, or writes all.
pub fn man(arguments: &ManArguments) -> anyhow::Result<Status> {
    let mut program = in_full(Cli::command());
    if let Some(directory) = &arguments.directory {
        let written = std::fs::create_dir_all(directory)
            .and_then(|()| clap_mangen::generate_to(program.disable_help_subcommand(true), directory));
        written.with_context(|| format!("writing man pages into {}", directory.display()))?;
        return Ok(Status::Done);
    }
    program.build();
    let command = match &arguments.command {
        Some(name) => program
            .find_subcommand(name)
            .with_context(|| format!("there is no command `{name}`; `rekindle help` lists them"))?
            .clone(),
        None => program,
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text)?;
    super::output::write(&String::from_utf8(text).context("a man page is text")?)?;
    Ok(Status::Done)
}
