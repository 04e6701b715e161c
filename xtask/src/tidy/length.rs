//! Checks the length of files: one past the limit may be more than one thing.

use super::source::Source;
use super::{Finding, Workspace};

/// Lines a file may have before its tests.
const LINES_MAX: usize = 400;
/// Lines that a file of tests may have.
const TESTS_LINES_MAX: usize = 500;

/// Files that were asked and are still one thing, each with the reason.
const LONG_AND_ONE_THING: [(&str, &str); 3] = [
    ("crates/engine/src/store_gate.rs", "the states of one gate, and the calls that pass it"),
    ("crates/engine/src/store.rs", "every call to the object store, each with its name and its limits"),
    ("crates/settings/src/lib.rs", "every setting, with its type"),
];

pub(crate) fn check(workspace: &Workspace, findings: &mut Vec<Finding>) {
    for source in &workspace.sources {
        let lines = lines_before_tests(source);
        let excused = LONG_AND_ONE_THING.iter().any(|(path, _)| source.path.ends_with(path));
        let lines_max = if is_of_tests(source) { TESTS_LINES_MAX } else { LINES_MAX };
        if lines > lines_max && !excused {
            findings.push(Finding {
                file: source.path.clone(),
                line: 0,
                what: format!(
                    "{lines} lines before its tests, more than {lines_max}: is it still one thing?"
                ),
            });
        }
    }
}

/// True if the file has nothing but tests and what they stand on.
fn is_of_tests(source: &Source) -> bool {
    let is_name = source.path.file_stem().is_some_and(|stem| stem == "tests");
    is_name || source.path.components().any(|part| part.as_os_str() == "tests")
}

/// The lines before the test module, or all of them where there is none.
fn lines_before_tests(source: &Source) -> usize {
    let lines: Vec<&str> = source.text.lines().collect();
    lines
        .windows(2)
        .position(|pair| {
            let is_of_tests =
                ["#[cfg(test)]", "#[cfg(all(test,"].iter().any(|start| pair[0].trim().starts_with(start));
            is_of_tests && pair[1].trim().starts_with("mod ")
        })
        .unwrap_or(lines.len())
}

#[cfg(test)]
mod tests {
    use super::super::source::of_text;
    use super::*;

    #[test]
    fn a_file_of_tests_may_be_longer_than_others() {
        for (path, is_tests) in [("a/tests/b.rs", true), ("a/src/b/tests.rs", true), ("a/src/b.rs", false)] {
            assert_eq!(is_of_tests(&of_text(path, "")), is_tests, "{path}");
        }
    }

    #[test]
    fn the_test_module_does_not_count() {
        let source = of_text("a.rs", "fn a() {}\n#[cfg(test)]\nfn b() {}\n\n#[cfg(test)]\nmod tests {}\n");
        assert_eq!(lines_before_tests(&source), 4);
        let source = of_text("a.rs", "fn a() {}\n#[cfg(all(test, not(shuttle)))]\nmod tests {}\n");
        assert_eq!(lines_before_tests(&source), 1);
        assert_eq!(lines_before_tests(&of_text("a.rs", "fn a() {}\nfn b() {}\n")), 2);
    }
}
