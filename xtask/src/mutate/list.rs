//! The list of mutations, and a check that the sources still have the text each one replaces.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

/// One fault to put in.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mutation {
    /// Short name of the fault.
    pub(super) name: String,
    /// Its file, from the workspace's root.
    pub(super) file: String,
    /// Text that the file has once.
    pub(super) find: String,
    /// The text to put there.
    pub(super) replace: String,
    /// Words for `cargo test` to run the test that must fail then.
    pub(super) noticed_by: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutation: Vec<Mutation>,
}

pub(super) fn read(path: &Path) -> anyhow::Result<Vec<Mutation>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let List { mutation } =
        toml::from_str(&text).with_context(|| format!("{} cannot be read", path.display()))?;
    Ok(mutation)
}

/// Fails unless each file has its text exactly once: the list is to follow the sources.
pub(super) fn check(root: &Path, all: &[Mutation]) -> anyhow::Result<()> {
    let mut names = BTreeSet::new();
    let mut wrong = Vec::new();
    for mutation in all {
        let Mutation { name, file, find, replace, .. } = mutation;
        let path = root.join(file);
        let source =
            std::fs::read_to_string(&path).with_context(|| format!("mutation `{name}`: reading {file}"))?;
        match source.matches(find.as_str()).count() {
            1 => {}
            times => wrong.push(format!("`{name}`: {file} has its text {times} times, not once:\n{find}")),
        }
        if find == replace {
            wrong.push(format!("`{name}` changes nothing"));
        }
        if !names.insert(name) {
            wrong.push(format!("`{name}` is listed twice"));
        }
    }
    ensure!(wrong.is_empty(), "mutations that do not fit the sources any more:\n{}", wrong.join("\n"));
    Ok(())
}
