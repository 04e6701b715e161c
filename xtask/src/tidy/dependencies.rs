//! Every library a crate of ours depends on stands in docs/decisions/dependencies.md, with its reason.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Finding, Workspace};

const PAGE: &str = "docs/decisions/dependencies.md";

pub(crate) fn check(workspace: &Workspace, findings: &mut Vec<Finding>) {
    let mut report = |what| findings.push(Finding { file: PathBuf::from(PAGE), line: 0, what });
    let Some(page) = workspace.documents.iter().find(|document| document.path == Path::new(PAGE)) else {
        return report("the page is missing".to_owned());
    };
    let named: BTreeSet<&str> = page.code_spans.iter().map(|span| span.text.as_str()).collect();
    let used: BTreeSet<&str> =
        workspace.manifests.iter().flat_map(|manifest| dependencies(manifest)).collect();
    for name in used.difference(&named) {
        report(format!("`{name}` has no line"));
    }
}

/// The names in a manifest's tables of dependencies that are not crates of ours.
fn dependencies(manifest: &str) -> Vec<&str> {
    let mut in_table = false;
    let mut names = Vec::new();
    for line in manifest.lines() {
        if let Some(table) = line.strip_prefix('[') {
            in_table = table.trim_end_matches(']').ends_with("dependencies");
        } else if let (true, Some((key, _))) = (in_table, line.split_once('=')) {
            let name = key.trim().trim_end_matches(".workspace");
            if !name.starts_with('#') && !name.starts_with("rekindle") {
                names.push(name);
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_peoples_crates_are_listed_and_our_own_are_not() {
        let manifest = "[package]\nname = 1\n[dependencies]\nrekindle-kernel.workspace = true\n\nserde = \"1\"\n\
                        # why = 1\n[dev-dependencies]\nproptest.workspace = true\n[lints]\nworkspace = true\n";
        assert_eq!(dependencies(manifest), ["serde", "proptest"]);
    }
}
