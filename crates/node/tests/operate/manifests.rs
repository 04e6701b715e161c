//! The settings in the manifests for Kubernetes and Nomad; packaging/check.sh has validators look at all of these.

use rekindle_settings::{SettingFlags, Settings, StoreLocation};

use crate::file;

/// The lines of `text` between two, without what all of them are indented by.
fn block(text: &str, begin: &str, end: impl Fn(&str) -> bool) -> String {
    let lines = text.lines().skip_while(|line| !line.contains(begin)).skip(1);
    let lines: Vec<&str> = lines.take_while(|line| !end(line)).collect();
    let indent = lines[0].len() - lines[0].trim_start().len();
    lines.iter().map(|line| format!("{}\n", line.get(indent..).unwrap_or_default())).collect()
}

#[test]
fn the_manifests_say_settings_that_the_program_takes_and_the_same_on_both() {
    let kubernetes = file("packaging/kubernetes/rekindle.yaml");
    let nomad = file("packaging/nomad/rekindle.nomad.hcl");
    let ends_block = |line: &str| !line.is_empty() && !line.starts_with("    ");
    let of_kubernetes = block(&kubernetes, "  rekindle.toml: |", |line| {
        ends_block(line) || line.trim_start().starts_with("label-node.sh")
    });
    let (_, of_daemon) = nomad.split_once("destination = \"local/rekindle.toml\"").unwrap();
    let of_nomad = block(of_daemon, "<<-EOT", |line| line.trim() == "EOT");
    let loaded = |text: &str| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rekindle.toml");
        std::fs::write(&path, text).unwrap();
        let flags = SettingFlags::default().with_config(Some(path));
        Settings::load(&flags).unwrap_or_else(|error| panic!("{error}\n{text}"))
    };
    let (kubernetes, nomad) = (loaded(&of_kubernetes), loaded(&of_nomad));
    for settings in [&kubernetes, &nomad] {
        assert!(matches!(settings.store, StoreLocation::Bucket(_)), "{:?}", settings.store);
        assert!(settings.peers.listen.is_some() && settings.peers.files.is_some());
        assert_eq!(settings.peers.found.len(), 1, "{:?}", settings.peers.found);
        let file = settings.placement_file.as_deref().unwrap();
        assert_eq!(file.to_str(), Some("/run/rekindle/placement"));
    }
    let unlike: Vec<&str> = kubernetes.changes(&nomad).iter().map(|change| change.key.name).collect();
    assert_eq!(unlike, ["peers.dns"]);
}
