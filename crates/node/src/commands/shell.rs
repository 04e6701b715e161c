//! `rekindle completions` and `rekindle man`: what shells and `man` read.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;
use super::status::Status;

/// For which shell.
#[derive(Args, Clone, Debug)]
pub struct CompletionsArguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Which pages, and where to.
#[derive(Args, Clone, Debug)]
pub struct ManArguments {
    /// The command whose page to print; the program's where none is named
    #[arg(conflicts_with = "directory")]
    command: Option<String>,
    /// Write the pages of all commands into this directory instead
    #[arg(long, value_name = "PATH")]
    directory: Option<PathBuf>,
}

/// Prints completions.
pub fn completions(arguments: &CompletionsArguments) -> anyhow::Result<Status> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "rekindle", &mut text);
    super::output::write(&String::from_utf8(text).context("completions are text")?)?;
    Ok(Status::Done)
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
