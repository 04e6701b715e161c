//! Every command that the pages show can be given: its program, subcommand and options exist. In README.md and
//! CONTRIBUTING.md it checks every command; in all pages, each call of `rekindle`, in blocks and in the text.

use std::path::Path;

use clap::CommandFactory;
use clap::error::ErrorKind;

use super::document::Document;
use super::{Finding, Workspace};

/// The pages whose shell blocks a reader is told to run.
const PAGES: [&str; 2] = ["README.md", "CONTRIBUTING.md"];

/// Commands of stock cargo, and `clippy` and `fmt`.
const CARGO_COMMANDS: [&str; 5] = ["test", "build", "fmt", "clippy", "install"];

pub(crate) fn check(workspace: &Workspace, findings: &mut Vec<Finding>) {
    check_calls(workspace, findings);
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

/// Looks at each call of `rekindle` in every page but the ones that tell of the past.
fn check_calls(workspace: &Workspace, findings: &mut Vec<Finding>) {
    let tells_of_the_past = |page: &Document| page.path == Path::new("CHANGELOG.md");
    for page in workspace.documents.iter().filter(|page| !tells_of_the_past(page)) {
        let in_blocks = page.shell_blocks.iter().map(|block| (block, false));
        let in_text = page.code_spans.iter().filter(|span| span.text.starts_with("rekindle "));
        for (piece, is_mention) in in_blocks.chain(in_text.map(|span| (span, true))) {
            for call in calls(&piece.text) {
                let words: Vec<&str> = call.iter().map(String::as_str).collect();
                if let Err(what) = accepts_call(&words, is_mention) {
                    findings.push(Finding { file: page.path.clone(), line: piece.line, what });
                }
            }
        }
    }
}

/// The words behind `rekindle` of each call in some shell text.
fn calls(text: &str) -> Vec<Vec<String>> {
    let joined = text.replace("\\\n", " ");
    joined
        .lines()
        .flat_map(simple_commands)
        .filter_map(|words| {
            let at = words.iter().position(|word| word == "rekindle" || word.ends_with("/rekindle"))?;
            let before = ["$", "until", "while", "if", "!", "do", "then", "sudo", "xargs", "-r"];
            let is_call =
                words[..at].iter().all(|word| before.contains(&word.as_str()) || word.contains('='));
            is_call
                .then(|| words[at + 1..].iter().filter(|word| !word.contains(['<', '>'])).cloned().collect())
        })
        .collect()
}

/// The simple commands of a line, each as its words; a comment ends the line.
fn simple_commands(line: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words) = (Vec::new(), Vec::new());
    let (mut word, mut quote, mut last) = (String::new(), None, ' ');
    for letter in line.chars() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (None, '"' | '\'') => quote = Some(letter),
            (None, '#') if word.is_empty() && last.is_whitespace() => break,
            (None, '&') if last == '>' => word.push(letter),
            (None, '|' | ';' | '&' | '(' | ')') => {
                // `$(` begins a command in the middle of another one's words.
                words.push(std::mem::take(&mut word));
                commands.push(std::mem::take(&mut words));
            }
            (None, _) if letter.is_whitespace() => words.push(std::mem::take(&mut word)),
            _ => word.push(letter),
        }
        last = letter;
    }
    words.push(word);
    commands.push(words);
    commands.iter_mut().for_each(|words| words.retain(|word| !word.is_empty()));
    commands
}

/// Says what is wrong with a call of `rekindle`; one that is only mentioned may lack what it needs.
fn accepts_call(words: &[&str], is_mention: bool) -> Result<(), String> {
    let incomplete = [
        ErrorKind::MissingRequiredArgument,
        ErrorKind::MissingSubcommand,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
    ];
    let all = std::iter::once("rekindle").chain(words.iter().copied().filter(|word| *word != "..."));
    match program().try_get_matches_from(all) {
        Ok(_) => Ok(()),
        Err(error) if !error.use_stderr() || is_mention && incomplete.contains(&error.kind()) => Ok(()),
        Err(error) => Err(format!("`rekindle {}`: {}", words.join(" "), error.kind())),
    }
}

/// True if a block is more than commands one by one: the quickstart, which a test runs as it stands.
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

    #[test]
    fn calls_are_found_wherever_a_shell_has_them_and_wrong_ones_are_told() {
        let text = "until rekindle list >/dev/null 2>&1; do sleep 0.1; done\n$ rekindle wait web --state sealed # why\n\
                    rekindle delete $(rekindle list --quiet) --yes\nkill $daemon && rekindle serve \\\n  --store x 2>log &\n\
                    rekindle console vm --until \"two words\"\necho rekindle\n";
        let found = calls(text);
        let found: Vec<String> = found.iter().map(|words| words.join(" ")).collect();
        assert_eq!(
            found,
            [
                "list",
                "wait web --state sealed",
                "delete $",
                "list --quiet",
                "serve --store x",
                "console vm --until two words"
            ]
        );
        assert!(accepts_call(&["wait", "web", "--for-how-long", "1s"], false).is_err());
        assert!(accepts_call(&["wait"], false).is_err() && accepts_call(&["wait"], true).is_ok());
        assert!(accepts_call(&["polish"], true).is_err());
    }
}
