//! Every command that README.md and CONTRIBUTING.md show can be given: its program, subcommand and options exist.

use std::path::Path;

use clap::CommandFactory;

use super::{Finding, Workspace};

/// The pages whose shell blocks a reader is told to run.
const PAGES: [&str; 2] = ["README.md", "CONTRIBUTING.md"];

/// What stock cargo does, with and without `clippy` and `fmt`.
const CARGO_COMMANDS: [&str; 5] = ["test", "build", "fmt", "clippy", "install"];

pub(crate) fn check(workspace: &Workspace, findings: &mut Vec<Finding>) {
    for page in &workspace.documents {
        if !PAGES.iter().any(|name| page.path == Path::new(name)) {
            continue;
        }
        for block in page.shell_blocks.iter().filter(|block| !is_script(&block.text)) {
            for (offset, line) in block.text.lines().enumerate() {
                if let Err(what) = check_command(&workspace.root, line) {
                    findings.push(Finding { file: page.path.clone(), line: block.line + offset, what });
                }
            }
        }
    }
    for name in PAGES {
        if !workspace.documents.iter().any(|page| page.path == Path::new(name)) {
            findings.push(Finding { file: name.into(), line: 0, what: "the page is missing".to_owned() });
        }
    }
}

/// Whether a block is more than commands one by one: the quickstart, which a test runs as it stands.
fn is_script(block: &str) -> bool {
    block.contains("rekindle serve") && block.contains("daemon=$!")
}

/// Says what is wrong with one line of a shell block; comments and empty lines are right.
fn check_command(root: &Path, line: &str) -> Result<(), String> {
    let line = line.split(" #").next().unwrap_or_default().trim();
    let line = line.strip_prefix("$ ").unwrap_or(line);
    if line.is_empty() || line.starts_with('#') {
        return Ok(());
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["cargo", "xtask", arguments @ ..] => accepts(crate::CommandLine::command(), arguments),
        ["cargo", "run", rest @ ..] => match rest.iter().position(|word| *word == "--") {
            Some(dashes) => accepts(program(), &rest[dashes + 1..]),
            None => Err("`cargo run` without `--` and a subcommand".to_owned()),
        },
        ["cargo", command, ..] if CARGO_COMMANDS.contains(command) => Ok(()),
        ["rekindle", arguments @ ..] => accepts(program(), arguments),
        [path, ..] if path.contains('/') && root.join(path).exists() => Ok(()),
        _ => Err(format!("`{line}` is no command that exists here")),
    }
}

/// The command line of the program `rekindle`.
fn program() -> clap::Command {
    rekindle::commands::Cli::command()
}

fn accepts(command: clap::Command, arguments: &[&str]) -> Result<(), String> {
    let words = std::iter::once(&"program").chain(arguments);
    match command.try_get_matches_from(words) {
        Ok(_) => Ok(()),
        Err(error) if !error.use_stderr() => Ok(()),
        Err(error) => Err(format!("`{}`: {}", arguments.join(" "), error.kind())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_does_not_exist_is_found() {
        let root = crate::workspace_root().expect("tests run inside the workspace");
        for line in
            ["", "# why", "cargo test --workspace", "$ cargo xtask tidy", "cargo xtask bench --quick # fast"]
        {
            assert_eq!(check_command(&root, line), Ok(()), "{line}");
        }
        for line in ["cargo xtask polish", "cargo xtask bench --sloppy", "./no/such/file", "make"] {
            assert!(check_command(&root, line).is_err(), "{line}");
        }
    }
}
