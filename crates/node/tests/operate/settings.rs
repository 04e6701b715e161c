//! The example settings and their reference against the existing settings.

use std::collections::BTreeSet;

use rekindle_settings::keys::KEYS;
use rekindle_settings::{SettingFlags, Settings, Source};

use crate::file;

/// The example with every line that is commented out said.
fn said() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest)
            if rest.starts_with('[') || rest.split_once(" = ").is_some_and(|(name, _)| is_name(name)) =>
        {
            rest.to_owned()
        }
        Some(_) | None => line.to_owned(),
    };
    file("packaging/rekindle.toml").lines().map(line).collect::<Vec<_>>().join("\n")
}

fn is_name(text: &str) -> bool {
    text.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_')
}

#[test]
fn the_example_says_every_setting_and_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rekindle.toml");
    std::fs::write(&path, said()).unwrap();
    let flags = SettingFlags::default().with_config(Some(path.clone()));
    let settings = Settings::load(&flags).unwrap_or_else(|error| panic!("{error}\n{}", said()));
    let from_file: BTreeSet<&str> = settings
        .entries()
        .iter()
        .filter(|entry| matches!(&entry.source, Source::File { path: from, .. } if *from == path))
        .map(|entry| entry.key.name)
        .collect();
    assert_eq!(from_file, KEYS.iter().map(|key| key.name).collect());
}

#[test]
fn the_example_changes_nothing_as_it_is_installed() {
    let text = file("packaging/rekindle.toml");
    assert!(text.lines().all(|line| line.is_empty() || line.starts_with('#')));
    let marked = text.matches("(reloads)").count() - 1;
    assert_eq!(marked, KEYS.iter().filter(|key| key.reloads).count());
}

#[test]
fn the_reference_names_each_setting_as_the_program_does() {
    let guide = file("docs/operations.md");
    for key in &KEYS {
        let reloads = if key.reloads { " (reloads)" } else { "" };
        let row = format!("| `{}` | {}{reloads} | {} |\n", key.name, key.help, key.default);
        assert!(guide.contains(&row), "docs/operations.md has the row\n{row}");
    }
}
