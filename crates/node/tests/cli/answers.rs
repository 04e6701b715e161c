//! Output and exit status of each command, to people and to programs, for each answer of the daemon.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::Value;

use crate::listening_daemon::ListeningDaemon;
use crate::program::{Place, compare, said};

/// Says each line of words in turn; what came of them, as one text.
fn transcript(place: &Place, lines: &[&str]) -> String {
    let told = lines.iter().map(|words| {
        let said = place.says(words);
        let status = if said.status == 0 { String::new() } else { format!("[status {}]\n", said.status) };
        format!("$ rekindle {words}\n{}{}{status}\n", place.plain(&said.out), place.plain(&said.error))
    });
    told.collect()
}

#[test]
fn a_checkpoint_leaves_its_sandbox_running() {
    let place = Place::new();
    let _daemon = ListeningDaemon::start(&place);
    let lines = [
        "run web",
        "checkpoint web --name moment --snapshot-label why=test",
        "checkpoint web",
        "show web",
        "resume moment --name other",
        "checkpoint web other",
        "checkpoint web other --name both",
        "pause web --name end",
        "checkpoint web",
        "checkpoint nothing",
    ];
    compare("checkpoint.txt", &transcript(&place, &lines));
}

#[test]
fn a_sandbox_that_moved_is_no_longer_listed() {
    let place = Place::new();
    let _daemon = ListeningDaemon::start(&place);
    let lines = [
        "run web",
        "run other",
        "move web --to second",
        "move other --to second --json",
        "list sandboxes",
        "move web --to second",
        "move web",
    ];
    compare("move.txt", &transcript(&place, &lines));
}

#[test]
fn a_day_with_a_daemon() {
    let place = Place::new();
    let _daemon = ListeningDaemon::start(&place);
    let told = transcript(
        &place,
        &[
            "list",
            "run web --memory 256MiB --label team=blue",
            "run web",
            "run --name other --backing private",
            "tell web fill",
            "tell web rewrite --percent 30",
            "tell web verify",
            "tell web tick",
            "tell web tick --pages 13",
            "tell web discard",
            "tell web state",
            "pause web --name base",
            "pause web",
            "show base",
            "wait web --state sealed",
            "show snapshot/base",
            "verify base",
            "resume web",
            "show web",
            "pause web --name damaged --wait published",
            "verify damaged",
            "wait base --timeout 0s",
            "fork web --count 3 --name fork",
            "fork base",
            "resume base --count 2",
            "resume web --name again",
            "list",
            "ls sandboxes --label team=blue",
            "list snapshots",
            "events --after 0 --count 3",
            "events --after 0 --about web --count 1",
            "events -n 5",
            "events --known --after 2",
            "list sandboxes --label team=blue --label team=red",
            "list snapshots --label team=blue",
            "run both --label team=blue --label tier=web",
            "list sandboxes --quiet --label team=blue",
            "list sandboxes --quiet --label team=blue --label tier=web",
        ],
    );
    compare("day.txt", &told);
}

#[test]
fn what_is_not_there_or_cannot_be_done_is_said_with_its_status() {
    let place = Place::new();
    let _daemon = ListeningDaemon::start(&place);
    for words in ["run both", "pause both --name both", "run unpaused"] {
        assert_eq!(place.says(words).status, 0, "{words}");
    }
    let told = transcript(
        &place,
        &[
            "show nothing",
            "pause nothing",
            "pause base",
            "tell nothing fill",
            "show both",
            "show sandbox/nothing",
            "show snapshot/nothing",
            "verify unpaused",
            "wait unpaused",
            "resume unpaused --count 2",
            "resume sandbox/both --idempotency-key k",
            "pause sandbox/both",
        ],
    );
    compare("refusals.txt", &told);
}

#[test]
fn what_cannot_be_undone_is_asked_about_and_refused_where_nobody_can_answer() {
    let place = Place::new();
    let _daemon = ListeningDaemon::start(&place);
    for words in ["run web", "run other", "pause other --name base"] {
        assert_eq!(place.says(words).status, 0, "{words}");
    }
    let told = transcript(
        &place,
        &[
            "delete web",
            "delete other base",
            "stop web",
            "delete base nothing --yes",
            "stop web web --yes",
            "delete web sandbox/web base --yes",
            "list",
        ],
    );
    compare("destructive.txt", &told);
}

#[test]
fn several_that_are_deleted_go_sandboxes_first_and_those_that_went_are_told_where_one_is_refused() {
    let place = Place::new();
    let _daemon = ListeningDaemon::start(&place);
    for words in ["run web", "pause web --name base", "run other", "run busy", "pause busy --name held"] {
        assert_eq!(place.says(words).status, 0, "{words}");
    }
    let together = place.says("delete base web --yes");
    assert_eq!((together.status, together.error.as_str()), (0, ""), "its sandbox went first");
    let refused = place.says("delete held other --yes --json");
    assert_ne!(refused.status, 0);
    let told: Value = serde_json::from_str(&refused.out).expect("it says what went");
    assert_eq!(told["deleted"].as_array().map(Vec::len), Some(1), "{told}");
    assert_eq!(told["deleted"][0]["kind"], "sandbox");
    let problem: Value = serde_json::from_str(&refused.error).expect("errors are JSON too");
    assert_eq!(problem["code"], "wrong_state");
    assert_eq!(place.says("show snapshot/held").status, 0, "it is there");
}

#[test]
fn things_are_selected_by_labels_or_all_at_once() {
    let place = Place::new();
    let _daemon = ListeningDaemon::start(&place);
    let told = transcript(
        &place,
        &[
            "run web --label team=blue",
            "run other --label team=red",
            "run third --label team=blue",
            "pause --label team=blue",
            "pause --label team=blue",
            "pause --label team=blue --json",
            "pause web --label team=blue",
            "pause web other --name both",
            "stop other web --yes",
            "resume third",
            "drain",
            "run late",
            "list sandboxes",
            "drain --undo",
            "drain --label team=none",
            "drain --to second,full",
            "drain --undo",
            "delete --label team=red --yes",
            "delete --all",
            "delete --all --yes",
            "delete --all --yes",
            "stop --all --yes",
        ],
    );
    compare("selection.txt", &told);
}

#[test]
fn a_domain_is_shown_where_it_is_not_the_one_of_nodes_that_set_none() {
    let place = Place::new();
    let _daemon = ListeningDaemon::start(&place);
    for words in ["run web", "run theirs --domain tenant-1"] {
        assert_eq!(place.says(words).status, 0, "{words}");
    }
    for words in ["show theirs", "list"] {
        let told = place.says(words).out;
        assert!(told.contains("domain") && told.contains("tenant-1"), "{words}: {told}");
        assert!(!told.contains("default"), "{words}: {told}");
    }
    assert!(!place.says("show web").out.contains("domain"));
    assert_ne!(place.says("run wrong --domain Tenant").status, 0);
}

#[test]
fn programs_are_answered_in_json_by_every_command() {
    let place = Place::new();
    let _daemon = ListeningDaemon::start(&place);
    let json = |words: &str| -> Value {
        let said = place.says(&format!("{words} --json"));
        assert_eq!((said.status, said.error.as_str()), (0, ""), "{words}");
        serde_json::from_str(&said.out).unwrap_or_else(|error| unreachable!("{words}: {error}: {}", said.out))
    };
    let web = json("run web");
    assert_eq!(web["state"], "running");
    let snapshot = json("pause web --name base");
    assert_eq!(snapshot["state"], "captured");
    assert_eq!(json("list")["sandboxes"][0]["id"], web["id"]);
    assert_eq!(json("gc --dry-run")["condemned"], 0);
    assert_eq!(json("gc")["waiting"], 0);
    assert_eq!(json("drain")["closed"], true);
    assert_eq!(json("drain --undo")["closed"], false);
    assert!(json("list snapshots").get("sandboxes").is_none());
    assert_eq!(json("show web")["sandbox"]["snapshot"], snapshot["id"]);
    assert_eq!(json("show base")["placement"]["snapshot"], snapshot["id"]);
    assert_eq!(json("wait base")["state"], "published");
    assert_eq!(json("placement base")["placed"][0]["snapshot"], snapshot["id"]);
    assert_eq!(json("verify base")["wrong_pages"], 0);
    assert_eq!(json("resume web")["state"], "running");
    assert_eq!(json("fork web -n 2")["sandboxes"].as_array().map(Vec::len), Some(2));
    assert_eq!(json("tell web fill")["new_pages"], 65_536);
    assert_eq!(json("events -n 1")["kind"], "sandbox.paused");
    assert_eq!(json("stop web --yes")["sandboxes"][0]["state"], "stopped");
    assert_eq!(json("delete web base --yes")["deleted"][1]["kind"], "snapshot");
    let said = place.says("show web --json");
    assert_eq!((said.status, said.out.as_str()), (3, ""));
    let error: Value = serde_json::from_str(&said.error).expect("errors are JSON too");
    assert_eq!(error["code"], "not_found");
}

#[test]
fn ids_alone_are_printed_whole_for_scripts() {
    let place = Place::new();
    let _daemon = ListeningDaemon::start(&place);
    let web: Value = serde_json::from_str(&place.says("run web --json").out).expect("JSON");
    let ids = place.says("list sandboxes --quiet").out;
    assert_eq!(Some(ids.trim_end()), web["id"].as_str());
    let beginning: String = ids.chars().take(13).collect();
    assert_eq!(place.says(&format!("pause {beginning}")).status, 0, "the beginning of an id names it");
    let shown = place.says("list").out;
    for id in shown.lines().filter_map(|line| line.split(' ').next()).filter(|word| word.len() == 8) {
        let known = place.says(&format!("show {id}"));
        assert!(id == "SNAPSHOT" || known.status == 0, "what is shown of an id names it: {id}: {known:?}");
    }
}

#[test]
fn a_list_fits_a_terminal_of_eighty_columns_whatever_names_are_in_it() {
    let place = Place::new();
    let _daemon = ListeningDaemon::start(&place);
    let long = "n".repeat(64);
    for words in [format!("run {long}"), format!("pause {long} --name {long}"), "run short".to_owned()] {
        assert_eq!(place.says(&words).status, 0, "{words}");
    }
    let mut program = place.program(["list"]);
    program.env("COLUMNS", "80");
    let listed = said(program).out;
    assert!(listed.lines().all(|line| line.chars().count() <= 80), "{listed}");
    assert!(listed.contains("nnn…") && listed.contains("running"), "{listed}");
    assert!(place.says("list").out.contains(&long), "nothing is cut where nobody says how wide it may be");
}

#[test]
fn events_go_on_when_the_daemon_is_started_again_and_what_was_missed_is_said() {
    let place = Place::new();
    let mut daemon = ListeningDaemon::start(&place);
    let mut program = place.program(["events", "--json"]);
    program.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut following = program.spawn().expect("the program starts");
    let printed = BufReader::new(following.stdout.take().expect("it was asked for")).lines();
    let ids = printed.map_while(|line| {
        let event: Value = serde_json::from_str(&line.ok()?).expect("an event a line");
        event["id"].as_u64()
    });
    let mut ids = ids.fuse();
    for first in [1, 4, 20] {
        if first > 1 {
            drop(daemon);
            daemon = ListeningDaemon::start_at(&place, first);
        }
        for kind in ["sandbox.created", "sandbox.paused"] {
            daemon.fake.say(kind);
        }
        let next: Vec<u64> = ids.by_ref().take(3).collect();
        assert_eq!(next, [first, first + 1, first + 2]);
    }
    following.kill().expect("it runs");
    let said = following.wait_with_output().expect("it ends").stderr;
    let said = String::from_utf8(said).expect("it speaks UTF-8");
    assert_eq!(said.matches("waiting until it is back").count(), 2, "{said}");
    assert!(said.contains("up to 13 events were missed"), "{said}");
    drop(daemon);
}

#[test]
fn without_a_daemon_it_is_said_how_to_start_one() {
    let place = Place::new();
    let told =
        transcript(&place, &["list", "run web", "list --json", "events", "show web --socket elsewhere.sock"]);
    compare("no_daemon.txt", &told);
}

#[test]
fn who_answers_and_is_no_daemon_is_said_to_be_none() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path("odd.sock")).expect("the place is empty");
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        std::io::Write::write_all(&mut stream, b"220 mail.example ESMTP\r\n")
    });
    let said = place.says("list --socket odd.sock");
    assert_eq!((said.status, said.out.as_str()), (2, ""), "{}", said.error);
    assert!(said.error.contains("odd.sock"), "{}", said.error);
    answering.join().expect("it does not panic").expect("it answers");
}

#[test]
fn a_daemon_elsewhere_wants_a_token_and_a_certificate() {
    let place = Place::new();
    let told = transcript(
        &place,
        &[
            "list --url https://127.0.0.1:1",
            "list --url https://127.0.0.1:1 --token-file token",
            "list --url http://127.0.0.1:1 --token-file token --ca-file ca",
            "list --url http://127.0.0.1:1",
            "list --url https://127.0.0.1:1 --socket s",
        ],
    );
    compare("elsewhere.txt", &told);
}
