//! `rekindle serve` as a service manager and a terminal meet it: it says when it serves, reads settings again, ends when
//! it is told to, and leaves nothing where another could not begin.

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, ChildStderr, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rekindle_keeper::KeeperClient;
use rekindle_kernel::ProcessHandle;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::program::{Place, said};

/// Longest wait for anything here.
const LIMIT: Duration = Duration::from_secs(60);

/// A daemon in a place, and what it tells its service manager.
struct Served {
    daemon: Child,
    told: UnixDatagram,
    log: BufReader<ChildStderr>,
}

impl Served {
    /// Starts one and waits until it says that it serves.
    fn start(place: &Place, settings: &str) -> Self {
        Self::start_with(place, settings, None)
    }

    /// The same as systemd starts it, which sets one more variable.
    fn start_by_systemd(place: &Place) -> Self {
        Self::start_with(place, "", Some("INVOCATION_ID"))
    }

    fn start_with(place: &Place, settings: &str, variable: Option<&str>) -> Self {
        std::fs::write(place.path("rekindle.toml"), settings).expect("the place can be written");
        let told = place.path("told");
        if told.exists() {
            std::fs::remove_file(&told).expect("it can be made anew");
        }
        let told = UnixDatagram::bind(&told).expect("the place can be written");
        told.set_read_timeout(Some(LIMIT)).expect("a limit can be set");
        let mut program = place.program(["serve", "--config", "rekindle.toml"]);
        program.env("NOTIFY_SOCKET", place.path("told")).env("WATCHDOG_USEC", "400000");
        program.envs(variable.map(|name| (name, "1")));
        let mut daemon = program.stderr(Stdio::piped()).spawn().expect("the program starts");
        let log = BufReader::new(daemon.stderr.take().expect("it was asked for"));
        let served = Self { daemon, told, log };
        served.wait_told("READY=1");
        served
    }

    /// Waits until the service manager is told this.
    fn wait_told(&self, what: &str) {
        let mut message = [0; 512];
        loop {
            let bytes = self.told.recv(&mut message).expect("it is told within the limit");
            let text = String::from_utf8_lossy(&message[..bytes]);
            if text.lines().any(|line| line == what) {
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.daemon), signal).expect("it is our child");
    }

    /// Ends it, and gives how it ended and what it logged.
    fn end(self) -> (ExitStatus, String) {
        self.signal(Signal::TERM);
        self.wait_told("STOPPING=1");
        let Self { mut daemon, log, .. } = self;
        let lines: Vec<String> = log.lines().map_while(Result::ok).collect();
        (daemon.wait().expect("it is our child"), lines.join("\n"))
    }
}

/// Ends the keeper that daemons in this place left.
fn end_keeper(place: &Place) {
    let keeper = KeeperClient::connect(&place.path("run/keeper.sock")).expect("it outlives the daemon");
    let process = ProcessHandle::open(keeper.identity().pid).expect("it runs");
    keeper.shutdown(true).expect("it ends when it is told to");
    assert!(process.wait_exit(LIMIT));
}

#[test]
fn whoever_started_it_is_told_how_it_goes_and_the_next_daemon_begins_where_this_one_ended() {
    let place = Place::new();
    let served = Served::start(&place, "");
    served.wait_told("WATCHDOG=1");
    let ran = place.says("run web --memory 4MiB");
    assert_eq!(ran.status, 0, "{}", ran.error);
    let (status, log) = served.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!place.path("run/api.sock").exists(), "nobody connects to a daemon that is gone");
    let served = Served::start(&place, "");
    let listed = place.says("list sandboxes").out;
    assert!(listed.contains("web   running"), "{listed}");
    let deleted = place.says("delete web --yes");
    assert_eq!(deleted.status, 0, "{}", deleted.error);
    served.end();
    end_keeper(&place);
}

#[test]
fn a_shutdown_ends_guests_and_keeper_once_their_daemon_has_ended() {
    let place = Place::new();
    let served = Served::start(&place, "");
    assert_eq!(place.says("run web --memory 4MiB").status, 0);
    let early = place.says("shutdown --yes");
    assert!(early.status == 2 && early.error.contains("end it first"), "{early:?}");
    served.end();
    let unasked = place.says("shutdown");
    assert!(unasked.status == 2 && unasked.error.contains("--yes"), "{unasked:?}");
    let keeper = KeeperClient::connect(&place.path("run/keeper.sock")).expect("it outlives the daemon");
    let process = ProcessHandle::open(keeper.identity().pid).expect("it runs");
    let ended = place.says("shutdown --yes");
    assert_eq!(ended.status, 0, "{}", ended.error);
    assert!(!process.is_alive());
    assert!(place.says("shutdown --yes").out.contains("nothing is left to end"));
}

#[test]
fn a_shutdown_finds_the_keeper_beside_the_socket_it_is_given() {
    let place = Place::new();
    let served = Served::start(&place, "");
    assert_eq!(place.says("run web --memory 4MiB").status, 0);
    let socket = place.path("run/api.sock");
    let elsewhere = || {
        let mut shutdown = place.program(["shutdown", "--yes", "--socket"]);
        shutdown.arg(&socket).env_remove("REKINDLE_RUN_DIRECTORY").env_remove("REKINDLE_STATE_DIRECTORY");
        said(shutdown)
    };
    let early = elsewhere();
    assert!(early.status == 2 && early.error.contains("end it first"), "{early:?}");
    served.end();
    let ended = elsewhere();
    assert!(ended.status == 0 && ended.out.contains("the keeper has ended"), "{ended:?}");
}

#[test]
fn doctor_tells_why_the_store_of_a_daemon_is_away() {
    let place = Place::new();
    let served = Served::start(&place, "store = \"/no such/store\"\n");
    let deadline = Instant::now() + LIMIT;
    let daemon = loop {
        let report: Value = serde_json::from_str(&place.says("doctor --json").out).expect("it is JSON");
        let checks = report["checks"].as_array().expect("a list");
        let daemon = checks.iter().find(|check| check["name"] == "daemon").expect("it is looked at");
        // The daemon looks at its store beside all else that it begins with.
        if daemon["outcome"] == "warn" || Instant::now() > deadline {
            break daemon.clone();
        }
    };
    let found = daemon["found"].as_str().expect("text");
    assert!(found.contains("is ready, though: ") && found.contains("/no such/store"), "{daemon}");
    served.end();
    end_keeper(&place);
}

#[test]
fn settings_are_read_again_on_sighup_and_what_needs_a_restart_is_said() {
    let place = Place::new();
    let served = Served::start(&place, "domain = \"one\"\n");
    let text = "domain = \"two\"\nserve_before_seal = false\nlog_level = \"debug\"\n";
    std::fs::write(place.path("rekindle.toml"), text).expect("the place can be written");
    served.signal(Signal::HUP);
    served.wait_told("RELOADING=1");
    served.wait_told("READY=1");
    std::fs::write(place.path("rekindle.toml"), "domian = \"two\"\n").expect("the place can be written");
    served.signal(Signal::HUP);
    served.wait_told("RELOADING=1");
    served.wait_told("READY=1");
    let (status, log) = served.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("serve_before_seal is now false; it was true"), "{log}");
    assert!(log.contains("log_level is now debug; it was info"), "{log}");
    assert!(
        log.contains("domain is two in the settings and stays one until the daemon is restarted"),
        "{log}"
    );
    assert!(
        log.contains("settings were not changed: rekindle.toml:1: there is no setting `domian`"),
        "{log}"
    );
    end_keeper(&place);
}

#[test]
fn users_who_may_ask_get_to_the_socket_in_a_directory_that_was_shut() {
    let place = Place::new();
    let run = place.path("run");
    std::fs::create_dir(&run).expect("the place can be written");
    for shut in [run.as_path(), place.directory()] {
        std::fs::set_permissions(shut, Permissions::from_mode(0o700)).expect("it is ours");
    }
    let served = Served::start(&place, "[api]\nallowed_uids = [65534]\n");
    let mode = |path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(run), 0o711, "others get through it and see nothing in it");
    assert_eq!(mode(place.path("run/keeper.sock")) & 0o077, 0, "the keeper is nobody else's");
    let (_, log) = served.end();
    assert!(log.contains("users of api.allowed_uids may not get through"), "the place itself is shut: {log}");
    end_keeper(&place);
}

#[test]
fn a_daemon_of_systemd_leaves_the_keeper_to_systemd() {
    let place = Place::new();
    std::fs::create_dir(place.path("run")).expect("the place can be written");
    let socket = place.path("run/keeper.sock");
    let words = ["keeper", "--socket", socket.to_str().expect("plain letters")];
    let mut systemds = place.program(words);
    systemds.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let (mut keeper, served) = std::thread::scope(|scope| {
        let served = scope.spawn(|| Served::start_by_systemd(&place));
        (systemds.spawn().expect("the program starts"), served.join().expect("it serves"))
    });
    let found = KeeperClient::connect(&socket).expect("it listens");
    assert_eq!(found.identity().pid, keeper.id());
    served.end();
    end_keeper(&place);
    keeper.wait().expect("it is our child");
}

#[test]
fn a_second_daemon_is_refused_by_name_and_disturbs_nothing() {
    let place = Place::new();
    let served = Served::start(&place, "");
    // Each waits for a while, as for one that is ending.
    let (second, elsewhere) = std::thread::scope(|scope| {
        let second = scope.spawn(|| said(place.program(["serve"])));
        let elsewhere = said(place.program(["serve", "--api-socket", "other.sock"]));
        (second.join().expect("it does not panic"), elsewhere)
    });
    assert_eq!(second.status, 2, "{}", second.error);
    assert!(second.error.contains("another daemon listens on"), "{}", second.error);
    assert_eq!(elsewhere.status, 2, "{}", elsewhere.error);
    assert!(elsewhere.error.contains("catalog.redb"), "{}", elsewhere.error);
    assert!(!place.path("other.sock").exists());
    assert_eq!(place.says("list").status, 0, "the first one goes on");
    served.end();
    end_keeper(&place);
}
