use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::{Args as _, FromArgMatches as _};
use tempfile::TempDir;

use super::*;

/// A machine of its own: no settings file but those a test writes.
struct Machine {
    root: TempDir,
    around: Surroundings,
}

impl Machine {
    fn of_user() -> Self {
        let root = TempDir::new().unwrap();
        let home = root.path().join("home");
        let variables = BTreeMap::from([("HOME".to_owned(), home.into_os_string())]);
        let system_file = root.path().join("etc/rekindle.toml");
        Self { around: Surroundings { variables, system_file, is_root: false }, root }
    }

    fn with_file(self, place: &str, text: &str) -> Self {
        let path = self.path(place);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    fn with_variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.around.variables.insert(name.to_owned(), value.into());
        self
    }

    fn path(&self, place: &str) -> PathBuf {
        self.root.path().join(place)
    }

    fn load(&self, words: &[&str]) -> Result<Settings, SettingsError> {
        Settings::load_in(&flags(words), &self.around)
    }

    /// The refusal of a settings file of this text, without the directory of the test.
    fn refusal(self, text: &str) -> String {
        let machine = self.with_file("etc/rekindle.toml", text);
        let error = machine.load(&[]).expect_err("it is refused").to_string();
        error.replace(&format!("{}/", machine.root.path().display()), "")
    }
}

fn flags(words: &[&str]) -> SettingFlags {
    let command = SettingFlags::augment_args(clap::Command::new("test").no_binary_name(true));
    SettingFlags::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap()
}

#[test]
fn without_a_word_everything_has_its_default_and_says_so() {
    let machine = Machine::of_user();
    let settings = machine.load(&[]).unwrap();
    let state = machine.path("home/.local/state/rekindle");
    assert_eq!(settings.state_directory, state);
    assert_eq!(settings.run_directory, state.join("run"));
    assert_eq!(settings.api.socket, state.join("run/api.sock"));
    assert_eq!(settings.store, StoreLocation::Directory(state.join("store")));
    assert!(settings.serve_before_seal && settings.api.tcp.is_none() && settings.file.is_none());
    let named: Vec<&str> = settings.entries().iter().map(|entry| entry.key.name).collect();
    let listed: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(named, listed, "every setting is shown, in the listed order");
    assert!(settings.entries().iter().all(|entry| entry.source == Source::Default));
}

#[test]
fn root_has_the_system_s_directories_and_a_session_its_own() {
    let mut machine = Machine::of_user().with_variable("XDG_RUNTIME_DIR", "/run/user/7");
    assert_eq!(machine.load(&[]).unwrap().run_directory, Path::new("/run/user/7/rekindle"));
    machine.around.is_root = true;
    let settings = machine.load(&[]).unwrap();
    assert_eq!(settings.state_directory, Path::new("/var/lib/rekindle"));
    assert_eq!(settings.api.socket, Path::new("/run/rekindle/api.sock"));
}

#[test]
fn flags_win_over_variables_and_variables_over_the_file() {
    let machine = Machine::of_user()
        .with_file(
            "etc/rekindle.toml",
            "# first\npause_wait = \"1m\"\ndomain = \"a\"\nlog_level = \"warn\"\n",
        )
        .with_variable("REKINDLE_PAUSE_WAIT", "500ms")
        .with_variable("REKINDLE_DOMAIN", "b");
    let settings = machine.load(&["--domain", "c"]).unwrap();
    assert_eq!((settings.domain.as_str(), settings.source("domain").to_string().as_str()), ("c", "--domain"));
    assert_eq!(settings.pause_wait, Duration::from_millis(500));
    assert_eq!(settings.source("pause_wait").to_string(), "REKINDLE_PAUSE_WAIT");
    let file = machine.path("etc/rekindle.toml");
    assert_eq!(*settings.source("log_level"), Source::File { path: file.clone(), line: 4 });
    assert_eq!(settings.file, Some(file));
}

#[test]
fn the_user_s_file_is_read_instead_of_the_system_s_and_a_named_one_instead_of_both() {
    let machine = Machine::of_user().with_file("etc/rekindle.toml", "domain = \"system\"");
    assert_eq!(machine.load(&[]).unwrap().domain.as_str(), "system");
    let machine = machine.with_file("home/.config/rekindle/rekindle.toml", "domain = \"user\"");
    assert_eq!(machine.load(&[]).unwrap().domain.as_str(), "user");
    let machine =
        machine.with_file("other.toml", "domain = \"variable\"").with_file("one.toml", "domain = \"flag\"");
    let other = machine.path("other.toml");
    let machine = machine.with_variable("REKINDLE_CONFIG", other);
    assert_eq!(machine.load(&[]).unwrap().domain.as_str(), "variable");
    let named = SettingFlags::default().with_config(Some(machine.path("one.toml")));
    assert_eq!(Settings::load_in(&named, &machine.around).unwrap().domain.as_str(), "flag");
    let missing = SettingFlags::default().with_config(Some(machine.path("missing.toml")));
    let error = Settings::load_in(&missing, &machine.around).expect_err("a named file is there").to_string();
    assert!(error.contains("missing.toml cannot be read") && error.contains("--config"), "{error}");
}

#[test]
fn a_file_may_be_written_in_any_of_toml_s_ways() {
    let text = "\
        capture_bytes_max = 0x4000_0000\npause_wait = 90\ncompare_workers = 2\nserve_before_seal = false\n\
        store = \"file:///srv/store\"\nstate_directory = \"beside\"\napi.allowed_uids = [1000, 1001]\n\
        [api.tcp]\nlisten = \"[::1]:7433\"\ncertificate = \"/c\"\nkey = \"/k\"\ntoken_file = \"/t\"\n\
        [telemetry]\notlp_endpoint = \"http://127.0.0.1:4318\"\n";
    let machine = Machine::of_user().with_file("etc/rekindle.toml", text);
    let settings = machine.load(&[]).unwrap();
    assert_eq!(settings.capture_bytes_max, 1 << 30);
    assert_eq!(settings.pause_wait, Duration::from_secs(90));
    assert_eq!(settings.compare_workers, Some(2));
    assert!(!settings.serve_before_seal);
    assert_eq!(settings.store, StoreLocation::Directory("/srv/store".into()));
    assert_eq!(settings.state_directory, machine.path("etc/beside"), "relative to the file");
    assert_eq!(settings.api.allowed_uids, [1000, 1001]);
    let tcp = settings.api.tcp.expect("all four are given");
    assert_eq!((tcp.listen.port(), tcp.token_file), (7433, "/t".into()));
    assert_eq!(settings.telemetry.otlp_endpoint.as_deref(), Some("http://127.0.0.1:4318"));
}

#[test]
fn an_unknown_key_is_refused_at_its_line_with_the_one_that_was_meant() {
    assert_eq!(
        Machine::of_user().refusal("\n[api]\nsockte = \"/a\"\n"),
        "etc/rekindle.toml:3: there is no setting `api.sockte`; did you mean `api.socket`?"
    );
    assert_eq!(
        Machine::of_user().refusal("listen = \"127.0.0.1:1\""),
        "etc/rekindle.toml:1: there is no setting `listen`; did you mean `peers.listen`?"
    );
    assert_eq!(
        Machine::of_user().refusal("colour = 1"),
        "etc/rekindle.toml:1: there is no setting `colour`; `rekindle settings` lists all there are"
    );
}

#[test]
fn a_wrong_value_is_refused_where_it_was_said_with_what_could_be() {
    let cases = [
        (
            "capture_bytes_max = \"lots\"",
            "capture_bytes_max cannot be \"lots\": it must be a size such as 64GiB, or",
        ),
        (
            "publish_bytes_a_second_max = 1",
            "publish_bytes_a_second_max cannot be 1: it must be a size such as 50MiB, at least 64KiB, or 0",
        ),
        ("capture_bytes_max = -1", "capture_bytes_max cannot be -1: it must be a size"),
        (
            "pause_wait = \"soon\"",
            "pause_wait cannot be \"soon\": it must be a time such as 500ms, 30s, 5m, 1h or 7d",
        ),
        ("pause_wait = 1.5", "pause_wait cannot be 1.5: it must be a time"),
        ("compare_workers = 0", "compare_workers cannot be 0: it must be auto, or a number from 1 to 1024"),
        ("working_set_share = 101", "working_set_share cannot be 101: it must be a number from 0 to 100"),
        ("prefault = \"some\"", "prefault cannot be \"some\": it must be none, working-set or all"),
        ("memory_mode = \"mine\"", "memory_mode cannot be \"mine\": it must be auto, own or shared"),
        ("serve_before_seal = \"maybe\"", "serve_before_seal cannot be \"maybe\": it must be true or false"),
        (
            "log_level = \"inof\"",
            "log_level cannot be \"inof\": it must be error, warn, info, debug, trace or off",
        ),
        ("log_format = \"xml\"", "log_format cannot be \"xml\": it must be human or json"),
        (
            "domain = \"Tenant\"",
            "domain cannot be \"Tenant\": it must be a name of 1 to 64 of a-z, 0-9 and -",
        ),
        (
            "store = \"ftp://b/p\"",
            "store cannot be \"ftp://b/p\": it must be a directory, or a URL that begins with s3://",
        ),
        (
            "store = \"s3://KEY:secret@b\"",
            "store cannot be \"s3://...@b\": it must be s3://BUCKET/PREFIX without user or password",
        ),
        (
            "store = \"s3:///p\"",
            "store cannot be \"s3:///p\": it must be s3://BUCKET/PREFIX, where BUCKET is",
        ),
        (
            "bucket.endpoint = \"s3.example.org\"",
            "bucket.endpoint cannot be \"s3.example.org\": it must be the URL of a service, such as",
        ),
        (
            "bucket.endpoint = \"https://u:secret@h\"",
            "bucket.endpoint cannot be \"https://...@h\": it must be the URL of a service",
        ),
        (
            "bucket.endpoint = \"http://h:9000\"",
            "bucket.endpoint cannot be http://h:9000: it must be a URL that begins with https://, as guests' memory",
        ),
        ("store = \"~/store\"", "store cannot be \"~/store\": it must be a path, written in full"),
        (
            "api.allowed_uids = [\"bob\"]",
            "api.allowed_uids cannot be [\"bob\"]: it must be a list of user ids",
        ),
        (
            "api.tcp.listen = \"localhost\"",
            "api.tcp.listen cannot be \"localhost\": it must be an address and a port",
        ),
        (
            "telemetry.otlp_endpoint = \"host:1\"",
            "telemetry.otlp_endpoint cannot be \"host:1\": it must be the address of a collector on this node",
        ),
        ("domain = 2020-01-01", "domain cannot be a datetime: it must be a name"),
    ];
    for (text, expected) in cases {
        let said = Machine::of_user().refusal(text);
        assert!(said.starts_with(&format!("etc/rekindle.toml:1: {expected}")), "{text}: {said}");
    }
}

#[test]
fn what_is_no_toml_is_refused_at_its_line() {
    let said = Machine::of_user().refusal("domain = \"a\"\nstore = \n");
    assert!(said.starts_with("etc/rekindle.toml:2: "), "{said}");
    let said = Machine::of_user().refusal("domain = \"a\"\ndomain = \"b\"\n");
    assert!(said.starts_with("etc/rekindle.toml:2: duplicate key"), "{said}");
}

#[test]
fn tcp_without_certificate_or_token_is_refused() {
    assert_eq!(
        Machine::of_user().refusal("[api.tcp]\nlisten = \"127.0.0.1:7433\"\nkey = \"/k\"\n"),
        "etc/rekindle.toml:2: api.tcp.listen needs api.tcp.certificate, api.tcp.token_file as well"
    );
    let machine = Machine::of_user();
    let error =
        machine.load(&["--api-tcp-token-file", "/t"]).expect_err("a token for no listener").to_string();
    assert!(error.starts_with("--api-tcp-token-file: api.tcp.token_file needs api.tcp.listen, "), "{error}");
}

#[test]
fn a_variable_that_was_mistyped_is_refused_and_one_of_others_is_named() {
    let machine = Machine::of_user().with_variable("REKINDLE_STATE_DIR", "/x");
    assert_eq!(
        machine.load(&[]).expect_err("a slip").to_string(),
        "no setting is read from REKINDLE_STATE_DIR; did you mean REKINDLE_STATE_DIRECTORY?"
    );
    let machine = Machine::of_user().with_variable("REKINDLE_PORT_80_TCP_ADDR", "10.0.0.1");
    assert_eq!(machine.load(&[]).unwrap().ignored_variables, ["REKINDLE_PORT_80_TCP_ADDR"]);
}

#[test]
fn without_a_home_the_state_directory_must_be_said() {
    let mut machine = Machine::of_user();
    machine.around.variables.clear();
    let error = machine.load(&[]).expect_err("nowhere to put state").to_string();
    assert!(error.contains("--state-directory"), "{error}");
    assert_eq!(machine.load(&["--state-directory", "/s"]).unwrap().run_directory, Path::new("/s/run"));
}

#[test]
fn a_reload_says_what_changed_and_what_of_it_can_change_now() {
    let machine = Machine::of_user();
    let before = machine.load(&[]).unwrap();
    let after = machine.load(&["--serve-before-seal", "false", "--domain", "other"]).unwrap();
    let changes = before.changes(&after);
    let told: Vec<(&str, &str, &str, bool)> = changes
        .iter()
        .map(|change| (change.key.name, change.before.as_str(), change.after.as_str(), change.key.reloads))
        .collect();
    assert_eq!(told, [("domain", "default", "other", false), ("serve_before_seal", "true", "false", true)]);
    let running = before.reloaded(&after);
    assert!(!running.serve_before_seal && running.domain.as_str() == "default");
    let left: Vec<&str> = running.changes(&after).iter().map(|change| change.key.name).collect();
    assert_eq!(left, ["domain"], "what waits for a restart is told of again");
    let reloading = KEYS.iter().filter(|key| key.reloads).map(|key| key.name);
    let (others, firecracker): (Vec<_>, Vec<_>) =
        reloading.partition(|name| !name.starts_with("firecracker."));
    assert_eq!(
        others,
        [
            "run_unpausable",
            "memory_overcommit",
            "prefault",
            "memory_mode",
            "serve_before_seal",
            "keep",
            "undelete_window",
            "set_aside_kept",
            "log_level",
            "log_format"
        ]
    );
    assert_eq!(firecracker.len(), KEYS.iter().filter(|key| key.name.starts_with("firecracker.")).count());
}

#[test]
fn every_example_is_a_value_its_setting_can_have() {
    let text: String = KEYS.iter().map(|key| format!("{} = {}\n", key.name, key.example)).collect();
    let machine = Machine::of_user().with_file("etc/rekindle.toml", &text);
    let settings = machine.load(&[]).unwrap();
    assert!(settings.entries().iter().all(|entry| entry.source != Source::Default));
}

#[test]
fn a_file_url_is_decoded_and_one_that_is_not_of_this_machine_is_refused() {
    let store = |url: &str| {
        let settings = Machine::of_user().load(&["--store", url])?;
        Ok::<_, SettingsError>(settings.store.directory().expect("it is one").to_owned())
    };
    assert_eq!(store("file:///srv/st%20ore").unwrap(), Path::new("/srv/st ore"));
    assert_eq!(store("FILE://localhost/srv/100%25%c3%a9").unwrap(), Path::new("/srv/100%é"));
    for refused in
        ["file://srv/store", "file:///a%2", "file:///a%zz", "file:///a?b", "file:///a#b", "file:///a%00b"]
    {
        let error = store(refused).expect_err("it is refused").to_string();
        assert!(error.contains("file:///srv/store"), "{refused}: {error}");
    }
}

#[test]
fn directories_are_refused_in_which_a_later_socket_would_have_too_long_a_path() {
    let of_length = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
    let check = |words: &[&str]| Machine::of_user().load(words).unwrap().check_sockets();
    let refused = |words: &[&str]| check(words).expect_err("a path is too long").to_string();
    check(&["--run-directory", &of_length(53)]).unwrap();
    let error = refused(&["--run-directory", &of_length(54)]);
    assert!(error.starts_with("--run-directory: run_directory is /xx"), "{error}");
    assert!(error.ends_with("set run_directory to a path of at most 53 bytes"), "{error}");
    check(&["--run-directory", "/r", "--api-socket", &of_length(107)]).unwrap();
    let error = refused(&["--run-directory", "/r", "--api-socket", &format!("/a{}", of_length(106))]);
    assert!(error.contains("api.socket"), "{error}");
    let jail = |bytes| {
        let base = of_length(bytes);
        let words =
            ["--run-directory", "/r", "--firecracker-jailer-program", "/j", "--firecracker-jailer-uid", "1"];
        check(&[&words[..], &["--firecracker-jailer-gid", "1", "--firecracker-jailer-base", &base]].concat())
    };
    jail(39).unwrap();
    assert!(jail(40).expect_err("a path is too long").to_string().contains("firecracker.jailer.base"));
}

#[test]
fn a_bucket_and_the_way_to_it_are_taken_from_every_place_of_settings() {
    let machine = Machine::of_user().with_file(
        "etc/rekindle.toml",
        "store = \"S3://b/nodes/\"\n[bucket]\nregion = \"eu-west-1\"\ncredentials_file = \"keys\"\n",
    );
    let machine = machine.with_variable("REKINDLE_BUCKET_ENDPOINT", "http://127.0.0.1:9000/");
    let settings = machine.load(&["--bucket-allow-http", "true"]).unwrap();
    assert_eq!(settings.store.to_string(), "s3://b/nodes");
    assert_eq!(settings.store.directory(), None);
    assert_eq!(settings.bucket.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
    assert_eq!(settings.bucket.region.as_deref(), Some("eu-west-1"));
    let file = settings.bucket.credentials_file.as_deref();
    assert!(file.is_some_and(|path| path.ends_with("etc/keys")), "beside the settings: {file:?}");
    assert_eq!((settings.bucket.path_style, settings.bucket.allow_http), (None, true));
}
