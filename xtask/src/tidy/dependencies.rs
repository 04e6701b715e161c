//! Every library the workspace depends on stands in docs/decisions/dependencies.md, with its reason.

use std::path::{Path, PathBuf};

use super::{Finding, Workspace};

const PAGE: &str = "docs/decisions/dependencies.md";

pub(crate) fn check(workspace: &Workspace, findings: &mut Vec<Finding>) {
    let mut report = |what| findings.push(Finding { file: PathBuf::from(PAGE), line: 0, what });
    let Some(page) = workspace.documents.iter().find(|document| document.path == Path::new(PAGE)) else {
        return report("the page is missing".to_owned());
    };
    for name in shared_dependencies(&workspace.manifest) {
        if !page.code_spans.iter().any(|span| span.text == name) {
            report(format!("`{name}` has no line"));
        }
    }
}

/// The names under `[workspace.dependencies]` that are not the workspace's own crates.
fn shared_dependencies(manifest: &str) -> Vec<&str> {
    manifest
        .lines()
        .skip_while(|line| line.trim() != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .filter(|(_, value)| !value.contains("path ="))
        .map(|(name, _)| name.trim())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_peoples_crates_are_listed_and_our_own_are_not() {
        let manifest = "[a]\nb = 1\n[workspace.dependencies]\nrekindle = { path = \"x\" }\n\nserde = \"1\"\n[c]\nd = 1\n";
        assert_eq!(shared_dependencies(manifest), ["serde"]);
    }
}
