//! Facts about the sources and documents that a machine can check; taste is left to readers.

mod architecture;
mod circles;
mod dependencies;
mod document;
mod length;
mod links;
mod module_order;
mod promises;
mod readme;
mod source;
mod unsafe_code;
mod words;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use document::Document;
use source::Source;

/// One thing that does not hold, and where.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    file: PathBuf,
    /// Counted from 1; 0 where the whole file is meant.
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// Files to check: every Rust source and every Markdown page of the workspace, read once.
struct Workspace {
    root: PathBuf,
    /// The text of every `Cargo.toml`.
    manifests: Vec<String>,
    sources: Vec<Source>,
    documents: Vec<Document>,
}

/// Everything in the workspace under `root` that does not hold, sorted by file and line.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<Finding>> {
    let workspace = Workspace {
        root: root.to_owned(),
        manifests: manifests(root)?,
        sources: source::read_all(root)?,
        documents: document::read_all(root)?,
    };
    let mut findings = Vec::new();
    for look in [
        module_order::check,
        circles::check,
        unsafe_code::check,
        words::check,
        length::check,
        dependencies::check,
        architecture::check,
        links::check,
        readme::check,
        promises::check,
    ] {
        look(&workspace, &mut findings);
    }
    findings.sort();
    Ok(findings)
}

fn manifests(root: &Path) -> anyhow::Result<Vec<String>> {
    let files = source::files_with_extension(root, "toml")?.into_iter();
    files.filter(|path| path.ends_with("Cargo.toml")).map(|path| source::read(root, &path)).collect()
}

/// Prints the findings and says by its exit code whether there were any.
pub(crate) fn report(findings: &[Finding]) -> ExitCode {
    for finding in findings {
        eprintln!("{finding}");
    }
    if findings.is_empty() {
        println!("tidy: everything holds");
        ExitCode::SUCCESS
    } else {
        eprintln!("tidy: {} findings", findings.len());
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        let root = crate::workspace_root().expect("tests run inside the workspace");
        let findings = check(&root).expect("every source and page can be read");
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "{}", lines.join("\n"));
    }
}
