//! Output for users who ask for help, or mistype.

use crate::listening_daemon::ListeningDaemon;
use crate::program::{Place, compare, said};

const COMMANDS: &[&str] = &[
    "serve",
    "run",
    "pause",
    "checkpoint",
    "resume",
    "fork",
    "move",
    "list",
    "show",
    "wait",
    "verify",
    "usage",
    "placement",
    "tell",
    "connect",
    "stop",
    "delete",
    "undelete",
    "forget",
    "gc",
    "drain",
    "shutdown",
    "export",
    "import",
    "catalog",
    "events",
    "settings",
    "keys",
    "doctor",
    "completions",
    "man",
    "demo",
];

#[test]
fn help_of_the_program_and_of_every_command() {
    let place = Place::new();
    let mut all = place.says("--help").out;
    for command in COMMANDS {
        let said = place.says(&format!("{command} -h"));
        assert_eq!((said.status, said.error.as_str()), (0, ""), "{command}");
        all += &format!("\n==== rekindle {command} -h\n\n{}", said.out);
    }
    for what in ["fill", "rewrite", "verify", "tick", "discard", "state"] {
        all += &format!(
            "\n==== rekindle tell web {what} -h\n\n{}",
            place.says(&format!("tell web {what} -h")).out
        );
    }
    all += &format!("\n==== rekindle keys rotate -h\n\n{}", place.says("keys rotate -h").out);
    compare("help.txt", &all);
}

#[test]
fn what_is_mistyped_is_answered_with_what_was_meant() {
    let place = Place::new();
    let mut all = String::new();
    for words in [
        "ps",
        "rm web",
        "kill web",
        "start web",
        "attach web",
        "pasue web",
        "frobnicate",
        "run --memry 1GiB",
        "run --memory lots",
        "wait web --state stored",
        "run --memory 1GB",
        "events --after x",
        "list -a",
        "exec web ls",
        "lst",
        "run --label team=blue --label team=red",
        "demo --memory banana",
        "run --label novalue",
        "fork web --count 0",
        "tell web fil",
        "delete",
    ] {
        let said = place.says(words);
        assert_eq!((said.status, said.out.as_str()), (2, ""), "{words}");
        all += &format!("$ rekindle {words}\n{}\n", said.error);
    }
    compare("mistyped.txt", &all);
}

#[test]
fn hidden_commands_are_nowhere_in_help() {
    let help = Place::new().says("--help").out;
    for hidden in ["guest", "keeper", "openapi"] {
        let listed = help.lines().any(|line| line.trim_start().starts_with(&format!("{hidden} ")));
        assert!(!listed, "{hidden}");
    }
}

#[test]
fn completions_know_every_command() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let said = place.says(&format!("completions {shell}"));
        assert_eq!(said.status, 0, "{shell}: {}", said.error);
        assert!(said.out.contains("COMPLETE"), "{shell}: {}", said.out);
    }
    let offered = offered(&place, &["rekindle", ""]);
    assert!(COMMANDS.iter().all(|command| offered.contains(&(*command).to_owned())), "{offered:?}");
    for hidden in ["guest", "keeper", "openapi"] {
        assert!(!offered.contains(&hidden.to_owned()), "{hidden}");
    }
}

/// Words that bash is offered in place of the last of these words.
fn offered(place: &Place, words: &[&str]) -> Vec<String> {
    let mut program = place.program(["--"].iter().chain(words));
    let at = (words.len() - 1).to_string();
    program.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", at).env("_CLAP_IFS", "\n");
    let said = said(program);
    assert_eq!(said.status, 0, "{}", said.error);
    said.out.lines().map(str::to_owned).collect()
}

#[test]
fn completions_offer_the_names_of_sandboxes_and_snapshots() {
    let place = Place::new();
    assert_eq!(offered(&place, &["rekindle", "show", "w"]), Vec::<String>::new(), "without a daemon");
    let _daemon = ListeningDaemon::start(&place);
    for words in ["run web", "run other", "pause web --name base"] {
        assert_eq!(place.says(words).status, 0, "{words}");
    }
    assert_eq!(offered(&place, &["rekindle", "show", "w"]), ["web"]);
    assert_eq!(offered(&place, &["rekindle", "delete", "other", "ba"]), ["base"]);
    let pausable = offered(&place, &["rekindle", "pause", ""]);
    assert!(pausable.contains(&"other".to_owned()) && !pausable.contains(&"base".to_owned()));
}

#[test]
fn every_option_in_every_manual_page_has_its_text() {
    let place = Place::new();
    assert_eq!(place.says("man --directory pages").status, 0);
    let pages = std::fs::read_dir(place.path("pages")).expect("they were written");
    let mut options = 0;
    for page in pages.map(|page| page.expect("it is listed").path()) {
        let text = std::fs::read_to_string(&page).expect("it is text");
        let (_, after) = text.split_once(".SH OPTIONS").unwrap_or(("", ""));
        for option in after.split(".TP\n").skip(1) {
            let said = option.lines().skip(1).find(|line| !line.starts_with('.'));
            assert!(said.is_some_and(|line| line.len() > 5), "{}: {option}", page.display());
            options += 1;
        }
    }
    assert!(options > 200, "{options} options were seen");
}

#[test]
fn every_command_has_a_manual_page() {
    let place = Place::new();
    let page = place.says("man").out;
    assert!(page.starts_with(".ie") || page.contains(".TH rekindle 1"), "{page}");
    assert!(place.says("man pause").out.contains("rekindle"));
    assert_eq!(place.says("man --directory pages").status, 0);
    for command in COMMANDS {
        assert!(place.path(&format!("pages/rekindle-{command}.1")).exists(), "{command}");
    }
    assert!(!place.path("pages/rekindle-guest.1").exists());
    let said = place.says("man frobnicate");
    assert_eq!(said.status, 2);
    assert!(said.error.contains("there is no command `frobnicate`"), "{}", said.error);
}
