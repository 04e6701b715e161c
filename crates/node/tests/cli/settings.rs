//! `rekindle settings`, and settings that are refused.

use crate::program::{Place, compare, said};

#[test]
fn each_setting_is_shown_with_where_it_came_from() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("config/rekindle")).unwrap();
    std::fs::write(
        place.path("config/rekindle/rekindle.toml"),
        "pause_wait = \"1m\"\n\n[api]\nallowed_uids = [1000]\n",
    )
    .unwrap();
    let words =
        ["settings", "--state-directory", "/s", "--run-directory", "/r", "--capture-bytes-max", "8GiB"];
    let mut program = place.program(words);
    program.env("REKINDLE_LOG_LEVEL", "debug").env("REKINDLE_PORT_80_TCP", "tcp://10.0.0.1:80");
    let said = said(program);
    assert_eq!((said.status, said.error.as_str()), (0, ""));
    compare("settings.txt", &place.plain(&said.out));
}

#[test]
fn programs_get_values_as_they_are() {
    let place = Place::new();
    let said = place.says("settings --json --capture-bytes-max 1GiB --socket /x/api.sock");
    let entries: serde_json::Value = serde_json::from_str(&said.out).expect("it is JSON");
    let of = |name: &str| {
        let entries = entries.as_array().expect("a list");
        entries.iter().find(|entry| entry["key"] == name).expect("it is listed").clone()
    };
    assert_eq!(of("capture_bytes_max")["value"], 1 << 30);
    assert_eq!(of("capture_bytes_max")["source"], "--capture-bytes-max");
    assert_eq!(of("capture_bytes_max")["variable"], "REKINDLE_CAPTURE_BYTES_MAX");
    assert_eq!(of("api.socket")["value"], "/x/api.sock");
    assert_eq!(of("api.socket")["source"], "--socket");
    assert!(of("api.tcp.listen")["value"].is_null());
    assert_eq!(of("serve_before_seal")["reloads"], true);
}

#[test]
fn the_example_is_a_settings_file_and_says_nothing_until_it_is_uncommented() {
    let place = Place::new();
    let example = place.says("settings --example").out;
    compare("example.toml", &example);
    std::fs::write(place.path("example.toml"), &example).unwrap();
    let said = place.says("settings --config example.toml --json");
    assert!(!said.out.contains("example.toml"), "{}", said.out);
    let uncommented: Vec<&str> = example
        .lines()
        .filter_map(|line| {
            let line = line.strip_prefix('#').filter(|rest| rest.contains(" = ") && !rest.starts_with(' '));
            // Files of secrets must be there, and are not.
            line.filter(|line| !line.starts_with("api.tcp."))
        })
        .collect();
    std::fs::write(place.path("said.toml"), uncommented.join("\n")).unwrap();
    let said = place.says("settings --config said.toml --json");
    assert_eq!((said.status, said.error.as_str()), (0, ""));
    let unsaid = said.out.matches("\"default\",\n    \"variable\"").count();
    assert_eq!(unsaid, 4, "every line but those of api.tcp says something: {}", said.out);
}

#[test]
fn settings_refuses_what_serve_refuses_in_the_same_words() {
    let place = Place::new();
    std::fs::write(place.path("empty.pem"), "").unwrap();
    for flags in [
        "--telemetry-otlp-endpoint https://127.0.0.1:4318",
        "--telemetry-otlp-endpoint http:///v1/traces",
        "--api-tcp-listen 127.0.0.1:0 --api-tcp-certificate no.pem --api-tcp-key no.pem --api-tcp-token-file no",
        "--api-tcp-listen 127.0.0.1:0 --api-tcp-certificate empty.pem --api-tcp-key no.pem --api-tcp-token-file no",
        "--api-tcp-listen 127.0.0.1:0",
    ] {
        let (shown, served) =
            (place.says(&format!("settings {flags}")), place.says(&format!("serve {flags}")));
        assert_eq!((shown.status, shown.out.as_str()), (2, ""), "{flags}: {}", shown.error);
        assert_eq!(shown.error, served.error, "{flags}");
    }
}

#[test]
fn whatever_asks_the_daemon_refuses_settings_it_does_not_understand() {
    let place = Place::new();
    std::fs::write(place.path("wrong.toml"), "\nstate_dir = \"/s\"\n").unwrap();
    let mut all = String::new();
    for words in [
        "settings --config wrong.toml",
        "list --config wrong.toml",
        "serve --config wrong.toml",
        "list --config no.toml",
    ] {
        let said = place.says(words);
        assert_eq!((said.status, said.out.as_str()), (2, ""), "{words}");
        all += &format!("$ rekindle {words}\n{}", place.plain(&said.error));
    }
    compare("settings_refused.txt", &all);
}
