//! Words of other tools that people try here, each with rekindle's word for it.

use clap::CommandFactory as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::{Cli, shown};

/// Words that people type, each with the command that does it here.
const ELSEWHERE: [(&str, &str); 55] = [
    ("attach", "console"),
    ("boot", "run"),
    ("check", "doctor"),
    ("clone", "fork"),
    ("commit", "pause"),
    ("completion", "completions"),
    ("config", "settings"),
    ("configuration", "settings"),
    ("create", "run"),
    ("daemon", "serve"),
    ("del", "delete"),
    ("describe", "show"),
    ("destroy", "delete"),
    ("diagnose", "doctor"),
    ("dir", "list"),
    ("down", "stop"),
    ("end", "stop"),
    ("follow", "events"),
    ("freeze", "pause"),
    ("fsck", "verify"),
    ("get", "show"),
    ("hibernate", "pause"),
    ("info", "show"),
    ("inspect", "show"),
    ("kill", "stop"),
    ("launch", "run"),
    ("log", "console` or `rekindle events"),
    ("logs", "console` or `rekindle events"),
    ("monitor", "events"),
    ("new", "run"),
    ("options", "settings"),
    ("prune", "delete"),
    ("ps", "list"),
    ("remove", "delete"),
    ("restart", "resume"),
    ("restore", "resume"),
    ("rm", "delete"),
    ("sandboxes", "list sandboxes"),
    ("save", "pause` or `rekindle checkpoint"),
    ("server", "serve"),
    ("snapshot", "pause` or `rekindle checkpoint"),
    ("snapshots", "list snapshots"),
    ("spawn", "run"),
    ("start", "run` for a new sandbox, or `rekindle resume"),
    ("stat", "show"),
    ("status", "list` or `rekindle doctor"),
    ("suspend", "pause"),
    ("tail", "events"),
    ("thaw", "resume"),
    ("top", "list"),
    ("unpause", "resume"),
    ("up", "serve"),
    ("ver", "--version"),
    ("version", "--version"),
    ("watch", "events"),
];

/// Functions that people look for and rekindle lacks, each with another way to the goal.
const ABSENT: [(&[&str], &str); 5] = [
    (
        &["bash", "exec", "execute", "sh", "shell", "ssh"],
        "commands in a guest are run at its console (`rekindle console NAME`), or by ssh over its network",
    ),
    (
        &["copy", "cp", "scp"],
        "files come into a guest on a disk (`rekindle run --disk FILE`), or over its network",
    ),
    (
        &["build", "image", "images", "pull"],
        "a machine starts from files (`rekindle run --kernel`), or from a snapshot (`rekindle list snapshots`)",
    ),
    (
        &["metrics", "stats"],
        "`rekindle list` and `rekindle show` say how things are; the daemon's measurements are at /metrics of its socket",
    ),
    (
        &["label", "rename", "tag", "update"],
        "names and labels are given when a sandbox or a snapshot is made, and stay: `rekindle run --name --label`",
    ),
];

/// Letters of a word that are shown when it is not understood.
const WORD_LETTERS_MAX: usize = 60;

/// The command to type instead of a word that is no command here.
pub fn instead_of(word: &str) -> Option<&'static str> {
    let word = word.to_lowercase();
    ELSEWHERE.iter().find(|(elsewhere, _)| *elsewhere == word).map(|(_, here)| *here)
}

/// Advice on a command line that begins with a word that is no command here; `None` if clap's own message says enough.
pub fn explain(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::InvalidSubcommand || !is_of_the_program(error) {
        return None;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    let said = word.to_lowercase();
    if let Some((_, advice)) = ABSENT.iter().find(|(words, _)| words.contains(&said.as_str())) {
        return Some(format!("there is no command `{word}`: {advice}"));
    }
    let shown = shown::cut(word, WORD_LETTERS_MAX);
    Some(match instead_of(word).map(str::to_owned).or_else(|| slip_of(&said)) {
        Some(here) => format!("there is no command `{shown}`; did you mean `rekindle {here}`?"),
        None => format!("there is no command `{shown}`; `rekindle help` lists them all"),
    })
}

/// True if the missed command is one of the program's own, and not one below such a command.
fn is_of_the_program(error: &clap::Error) -> bool {
    error
        .get(ContextKind::Usage)
        .is_some_and(|usage| usage.to_string().contains("rekindle [OPTIONS] <COMMAND>"))
}

/// The command that `word` is with a letter or two wrong, left out, doubled or swapped.
fn slip_of(word: &str) -> Option<String> {
    let program = Cli::command();
    let commands = program.get_subcommands().filter(|command| !command.is_hide_set());
    let slips = commands.map(|command| (strsim::damerau_levenshtein(word, command.get_name()), command));
    let (slips, command) = slips.min_by_key(|(slips, _)| *slips)?;
    (slips <= 2 && slips * 3 <= word.chars().count()).then(|| command.get_name().to_owned())
}

/// The same error in which long words are cut, and without the advice to pass an unknown option as a value.
pub fn in_short(mut error: clap::Error) -> clap::Error {
    let long = |(kind, value): (ContextKind, &ContextValue)| {
        let ContextValue::String(text) = value else { return None };
        let cut = shown::cut(text, WORD_LETTERS_MAX);
        (cut != *text).then_some((kind, ContextValue::String(cut)))
    };
    let cut: Vec<(ContextKind, ContextValue)> = error.context().filter_map(long).collect();
    if let Some(ContextValue::StyledStrs(tips)) = error.get(ContextKind::Suggested) {
        let useful = tips.iter().filter(|tip| !tip.to_string().starts_with("to pass"));
        let useful: Vec<_> = useful.cloned().collect();
        let useful = if useful.is_empty() { ContextValue::None } else { ContextValue::StyledStrs(useful) };
        error.insert(ContextKind::Suggested, useful);
    }
    for (kind, value) in cut {
        error.insert(kind, value);
    }
    error
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn each_word_of_elsewhere_leads_to_a_command_and_is_none_itself() {
        let mut command = Cli::command();
        command.build();
        let known: Vec<String> = command
            .get_subcommands()
            .flat_map(|command| command.get_name_and_visible_aliases().into_iter().map(str::to_owned))
            .collect();
        for (elsewhere, here) in ELSEWHERE {
            assert!(!known.iter().any(|name| name == elsewhere), "{elsewhere}");
            for suggestion in here.split("` ").filter_map(|part| part.split_whitespace().next()) {
                let word = suggestion.trim_matches('`');
                let is_option = |long| command.get_arguments().any(|option| option.get_long() == Some(long));
                let is_option = word.strip_prefix("--").is_some_and(is_option);
                assert!(
                    word == "for" || word == "or" || is_option || known.iter().any(|name| name == word),
                    "{here}"
                );
            }
        }
        assert!(ELSEWHERE.is_sorted());
        let absent = ABSENT.iter().flat_map(|(words, _)| *words);
        for word in absent {
            assert!(instead_of(word).is_none() && !known.iter().any(|name| name == word), "{word}");
        }
    }

    #[test]
    fn a_long_word_is_cut_and_an_unknown_option_is_not_called_a_value() {
        let said = |words: &[&str]| {
            let error = Cli::try_parse_from(words).expect_err("it is not understood");
            explain(&error).unwrap_or_else(|| in_short(error).to_string())
        };
        let long = "x".repeat(5000);
        let option = format!("--{long}");
        for words in [["rekindle", "list", long.as_str()], ["rekindle", "list", &option]] {
            let said = said(&words);
            assert!(said.len() < 400 && said.contains("xxx…"), "{said}");
        }
        assert!(said(&["rekindle", &long]).len() < 200);
        assert!(!said(&["rekindle", "list", "-a"]).contains("as a value"));
    }

    #[test]
    fn what_people_try_first_is_answered_with_what_works() {
        let said =
            |word: &str| explain(&Cli::try_parse_from(["rekindle", word]).expect_err("no such command"));
        assert_eq!(said("rm").as_deref(), Some("there is no command `rm`; did you mean `rekindle delete`?"));
        assert_eq!(
            said("Kill").as_deref(),
            Some("there is no command `Kill`; did you mean `rekindle stop`?")
        );
        assert_eq!(
            said("pasue").as_deref(),
            Some("there is no command `pasue`; did you mean `rekindle pause`?")
        );
        assert_eq!(said("lst").as_deref(), Some("there is no command `lst`; did you mean `rekindle list`?"));
        assert_eq!(
            said("frobnicate").as_deref(),
            Some("there is no command `frobnicate`; `rekindle help` lists them all")
        );
        for word in ["exec", "ssh", "cp", "images", "stats"] {
            assert!(said(word).is_some_and(|advice| !advice.contains("did you mean")), "{word}");
        }
        assert!(Cli::try_parse_from(["rekindle", "ls"]).is_ok(), "the most usual one simply works");
    }
}
