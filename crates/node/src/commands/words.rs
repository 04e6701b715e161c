//! Words of other tools that people try here, and what they are called here.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// What people type, and what does that here.
const ELSEWHERE: [(&str, &str); 54] = [
    ("attach", "console"),
    ("boot", "run"),
    ("check", "doctor"),
    ("checkpoint", "pause"),
    ("clone", "fork"),
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
    ("exec", "tell"),
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
    ("ps", "list"),
    ("remove", "delete"),
    ("restore", "resume"),
    ("rm", "delete"),
    ("sandboxes", "list sandboxes"),
    ("save", "pause"),
    ("server", "serve"),
    ("snapshot", "pause"),
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

/// What to type instead of a word that is no command here.
pub fn instead_of(word: &str) -> Option<&'static str> {
    let word = word.to_lowercase();
    ELSEWHERE.iter().find(|(elsewhere, _)| *elsewhere == word).map(|(_, here)| *here)
}

/// What is said of a command line that begins with a word that is no command here; `None` where clap's own message
/// says enough.
pub fn explain(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    let here = instead_of(word)?;
    Some(format!("there is no command `{word}`; did you mean `rekindle {here}`?"))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::super::Cli;
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
        assert_eq!(said("pasue"), None, "a slip is left to clap, which knows what is near");
        assert!(Cli::try_parse_from(["rekindle", "ls"]).is_ok(), "the most usual one simply works");
    }
}
