//! Checks that ARCHITECTURE.md names every module exactly once, and that every path in it exists.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Finding, Workspace};

const PAGE: &str = "ARCHITECTURE.md";

pub(crate) fn check(workspace: &Workspace, findings: &mut Vec<Finding>) {
    let mut report = |line, what| findings.push(Finding { file: PathBuf::from(PAGE), line, what });
    let Some(page) = workspace.documents.iter().find(|document| document.path == Path::new(PAGE)) else {
        return report(0, "the page is missing".to_owned());
    };
    let mut times_named: BTreeMap<&Path, usize> = BTreeMap::new();
    for span in &page.code_spans {
        let path = Path::new(&span.text);
        if span.text.starts_with("crates/") || span.text.starts_with("xtask/") {
            *times_named.entry(path).or_default() += 1;
            if !workspace.root.join(path).exists() {
                report(span.line, format!("`{}` does not exist", span.text));
            }
        }
    }
    for source in workspace.sources.iter().map(|source| &source.path).filter(|path| is_module(path)) {
        let times = times_named.get(source.as_path()).copied().unwrap_or_default();
        if times != 1 {
            report(0, format!("`{}` is named {times} times, not once", source.display()));
        }
    }
}

/// True if `path` is the file of a module that its crate's root declares.
fn is_module(path: &Path) -> bool {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    match parts.as_slice() {
        ["crates", _, "src", file] | ["xtask", "src", file] => !["lib.rs", "main.rs"].contains(file),
        ["crates", _, "src", _, "mod.rs"] | ["xtask", "src", _, "mod.rs"] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_a_file_or_a_directory_beside_the_crate_root() {
        for module in ["crates/engine/src/view.rs", "crates/engine/src/serve/mod.rs", "xtask/src/tidy/mod.rs"]
        {
            assert!(is_module(Path::new(module)), "{module}");
        }
        for other in
            ["crates/engine/src/lib.rs", "crates/engine/src/serve/pending.rs", "crates/node/tests/a.rs"]
        {
            assert!(!is_module(Path::new(other)), "{other}");
        }
    }
}
