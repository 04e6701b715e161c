//! Checks that no name of ours has a word that hides which of several things is meant.

use super::source::{Source, TokenKind};
use super::{Finding, Workspace};

/// The words, lower case; a name carries one when a part of it, cut at `_` and at capitals, equals it.
const WORDS: [&str; 13] = [
    "header",
    "build",
    "template",
    "provisional",
    "durable",
    "swap",
    "pin",
    "grace",
    "inflight",
    "manager",
    "helper",
    "utils",
    "common",
];

/// Names that other people's interfaces force on us; they may be used, not defined.
const FOREIGN_NAMES: [(&str, &str); 15] = [
    ("ArcSwap", "arc-swap's cell"),
    ("arc_swap", "the crate arc-swap"),
    ("compare_and_swap", "arc-swap's method"),
    ("swap", "a method of atomics, slices and cells of the standard library"),
    ("swap_remove", "a method of the standard library's vectors"),
    ("build", "the last call of other crates' builders"),
    ("pin", "the standard library's module of `Pin`"),
    ("Pin", "the standard library's type of futures that may not move"),
    ("header", "hyper's and axum's module of the names of a message's fields"),
    ("header_read_timeout", "hyper's limit for a message's head"),
    ("Header", "utoipa's word for a parameter that is a field of the request"),
    ("HeaderMap", "the fields of a message in hyper and axum"),
    ("HeaderName", "the name of such a field"),
    ("HeaderValue", "the value of such a field"),
    ("with_template", "indicatif's constructor of a progress bar's style"),
];

/// Words before a name that is being defined.
const DEFINING: [&str; 11] =
    ["fn", "let", "mut", "struct", "enum", "union", "trait", "type", "mod", "const", "static"];

pub(crate) fn check(workspace: &Workspace, findings: &mut Vec<Finding>) {
    for source in &workspace.sources {
        // `build.rs` beside a crate's `src` is Cargo's name for it.
        let stem = source.path.file_stem().unwrap_or_default().to_string_lossy();
        if let Some(word) = forbidden_word(&stem).filter(|_| !source.path.ends_with("build.rs")) {
            findings.push(finding(source, 0, &stem, word));
        }
        look(source, findings);
    }
}

fn look(source: &Source, findings: &mut Vec<Finding>) {
    for (position, token) in source.tokens.iter().enumerate() {
        let TokenKind::Word(name) = &token.kind else { continue };
        let Some(word) = forbidden_word(name) else { continue };
        let defined =
            position > 0 && source.word(position - 1).is_some_and(|before| DEFINING.contains(&before));
        let foreign = FOREIGN_NAMES.iter().any(|(allowed, _)| allowed == name);
        if defined || !foreign {
            findings.push(finding(source, token.line, name, word));
        }
    }
}

fn finding(source: &Source, line: usize, name: &str, word: &str) -> Finding {
    Finding {
        file: source.path.clone(),
        line,
        what: format!("`{name}` carries `{word}`, a word we do without"),
    }
}

/// The word of [`WORDS`] that `name` carries, if any.
fn forbidden_word(name: &str) -> Option<&'static str> {
    let parts = parts(name);
    let joined = parts.windows(2).map(|pair| pair.concat());
    let all: Vec<String> = joined.chain(parts.iter().cloned()).collect();
    WORDS.into_iter().find(|word| all.iter().any(|part| part == word))
}

/// The parts of a name, cut at `_` and before capitals, lower case.
fn parts(name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut previous_is_upper = true;
    for letter in name.chars() {
        let starts_part = letter == '_' || (letter.is_uppercase() && !previous_is_upper);
        if starts_part {
            parts.push(String::new());
        }
        if letter != '_' {
            let last = parts.last_mut().expect("there is always a part");
            last.extend(letter.to_lowercase());
        }
        previous_is_upper = letter.is_uppercase();
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::super::source::of_text;
    use super::*;

    fn names_found(text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        look(&of_text("crates/a/src/b.rs", text), &mut findings);
        findings.into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn a_word_is_found_as_a_part_of_a_name_only() {
        for name in ["header", "LayerHeader", "in_flight", "InFlight", "pages_swap", "SWAP_BYTES", "utils"] {
            assert!(forbidden_word(name).is_some(), "{name}");
        }
        for name in ["builder", "PAGE_IS_SWAPPED", "spinning", "commonly", "Pinned"] {
            assert_eq!(forbidden_word(name), None, "{name}");
        }
    }

    #[test]
    fn a_foreign_name_may_be_called_but_not_defined() {
        assert!(names_found("fn a() { cell.swap(b); list.swap_remove(0); } // header").is_empty());
        assert_eq!(names_found("fn swap() { let pin = 1; }").len(), 2);
    }
}
