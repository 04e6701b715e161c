//! Every numbered promise names a test that exists, or the file whose documentation shows what does not compile.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::document::NumberedItem;
use super::source::{Source, TokenKind};
use super::{Finding, Workspace};

const PAGE: &str = "docs/promises.md";

/// Mark before the name of a test that a promise cites.
const TEST_MARK: &str = "test:";
/// Mark before the path of a file with an example that must not compile.
const TYPE_MARK: &str = "compile_fail:";

pub(crate) fn check(workspace: &Workspace, findings: &mut Vec<Finding>) {
    let mut report = |line, what| findings.push(Finding { file: PathBuf::from(PAGE), line, what });
    let Some(page) = workspace.documents.iter().find(|document| document.path == Path::new(PAGE)) else {
        return report(0, "the page is missing".to_owned());
    };
    let tests: BTreeSet<&str> = workspace.sources.iter().flat_map(tests_of).collect();
    let refusals: BTreeSet<&str> = workspace.sources.iter().filter_map(refusing_path).collect();
    for item in &page.numbered_items {
        for what in complaints(item, &tests, &refusals) {
            report(item.line, what);
        }
    }
}

fn complaints(item: &NumberedItem, tests: &BTreeSet<&str>, refusals: &BTreeSet<&str>) -> Vec<String> {
    let cited = |mark| item.code_spans.iter().filter_map(move |span| span.strip_prefix(mark));
    if cited(TEST_MARK).chain(cited(TYPE_MARK)).next().is_none() {
        return vec![format!("the promise cites no `{TEST_MARK}name` and no `{TYPE_MARK}path`")];
    }
    let tests_missing = cited(TEST_MARK).filter(|name| !tests.contains(name));
    let refusals_missing = cited(TYPE_MARK).filter(|path| !refusals.contains(path));
    tests_missing
        .map(|name| format!("there is no test `{name}`"))
        .chain(refusals_missing.map(|path| format!("`{path}` shows nothing that does not compile")))
        .collect()
}

/// The path of a file that documents something that does not compile.
fn refusing_path(source: &Source) -> Option<&str> {
    source.text.contains("```compile_fail").then(|| source.path.to_str())?
}

/// The functions of a file that stand after an attribute ending in `test`, or inside `proptest!`.
fn tests_of(source: &Source) -> Vec<&str> {
    (1..source.tokens.len())
        .filter(|&position| source.word(position) == Some("fn") && has_test_attribute(source, position))
        .filter_map(|position| source.word(position + 1))
        .collect()
}

/// True if an attribute that ends in `test` stands before the `fn` at `position`, past others and `async`.
fn has_test_attribute(source: &Source, position: usize) -> bool {
    let mut at = position;
    while at > 0 {
        at -= 1;
        match &source.tokens[at].kind {
            TokenKind::Word(word) if word == "test" && closes_attribute(source, at + 1) => return true,
            TokenKind::Open('{') | TokenKind::Close('}') | TokenKind::Sign(';') => return false,
            TokenKind::Word(_)
            | TokenKind::Sign(_)
            | TokenKind::Literal
            | TokenKind::Open(_)
            | TokenKind::Close(_) => {}
        }
    }
    false
}

/// True if an attribute's name ends before `position`: by its closing bracket, or by its arguments.
fn closes_attribute(source: &Source, position: usize) -> bool {
    source
        .tokens
        .get(position)
        .is_some_and(|token| matches!(token.kind, TokenKind::Close(']') | TokenKind::Open('(')))
}

#[cfg(test)]
mod tests {
    use super::super::source::of_text;
    use super::*;

    const FILE: &str = "fn a() {}\n#[test]\nfn b() {}\n#[tokio::test(flavor = \"x\")]\nasync fn c() {}\n\
                        #[test]\n#[should_panic = \"d\"]\nfn d() {}\n#[cfg(test)]\nmod tests { fn e() {} }\n\
                        proptest! { #[test]\n fn f(g in 0..1u32) {} }";

    #[test]
    fn tests_are_found_by_their_attribute() {
        assert_eq!(tests_of(&of_text("a.rs", FILE)), ["b", "c", "d", "f"]);
    }

    #[test]
    fn a_promise_without_a_test_or_with_a_missing_one_is_found() {
        let tests = BTreeSet::from(["b"]);
        let refusals = BTreeSet::from(["crates/a.rs"]);
        let complaints = |item| complaints(&item, &tests, &refusals);
        let item = |spans: &[&str]| NumberedItem {
            line: 1,
            code_spans: spans.iter().map(|span| (*span).to_owned()).collect(),
        };
        assert!(complaints(item(&["View", "test:b", "compile_fail:crates/a.rs"])).is_empty());
        assert_eq!(complaints(item(&["b"])).len(), 1);
        assert_eq!(complaints(item(&["test:b", "test:z", "compile_fail:b.rs"])).len(), 2);
    }
}
