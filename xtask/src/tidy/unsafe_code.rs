//! `unsafe` is written in the crates that hold it, and nowhere else.

use super::source::{Source, TokenKind};
use super::{Finding, Workspace};

/// The crates whose reason to exist is to hold what the compiler cannot check.
const UNSAFE_CRATES: [&str; 2] = ["crates/kernel", "crates/shim"];

pub(crate) fn check(workspace: &Workspace, findings: &mut Vec<Finding>) {
    for source in &workspace.sources {
        if !UNSAFE_CRATES.iter().any(|directory| source.is_in(directory)) {
            look(source, findings);
        }
    }
}

fn look(source: &Source, findings: &mut Vec<Finding>) {
    let unsafe_words =
        source.tokens.iter().filter(|token| token.kind == TokenKind::Word("unsafe".to_owned()));
    findings.extend(unsafe_words.map(|token| Finding {
        file: source.path.clone(),
        line: token.line,
        what: "`unsafe` outside crates/kernel".to_owned(),
    }));
}

#[cfg(test)]
mod tests {
    use super::super::source::of_text;
    use super::*;

    #[test]
    fn an_unsafe_block_is_found_and_a_comment_about_one_is_not() {
        let mut findings = Vec::new();
        look(&of_text("a.rs", "// unsafe\n#![forbid(unsafe_code)]\nfn a() {}"), &mut findings);
        assert!(findings.is_empty(), "{findings:?}");
        look(&of_text("a.rs", "fn a() {\n unsafe { b() }\n}"), &mut findings);
        assert_eq!(findings.iter().map(|finding| finding.line).collect::<Vec<_>>(), [2]);
    }
}
