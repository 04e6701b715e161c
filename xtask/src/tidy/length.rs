//! Checks the length of files: one past the limit may be more than one thing.

use super::source::Source;
use super::{Finding, Workspace};

/// Lines a file may have before its tests.
const LINES_MAX: usize = 500;

/// Files that were asked and are still one thing, each with the reason.
const LONG_AND_ONE_THING: [(&str, &str); 0] = [];

pub(crate) fn check(workspace: &Workspace, findings: &mut Vec<Finding>) {
    for source in &workspace.sources {
        let lines = lines_before_tests(source);
        let excused = LONG_AND_ONE_THING.iter().any(|(path, _)| source.path.ends_with(path));
        if lines > LINES_MAX && !excused {
            findings.push(Finding {
                file: source.path.clone(),
                line: 0,
                what: format!(
                    "{lines} lines before its tests, more than {LINES_MAX}: is it still one thing?"
                ),
            });
        }
    }
}

/// The lines before the test module, or all of them where there is none.
fn lines_before_tests(source: &Source) -> usize {
    let lines: Vec<&str> = source.text.lines().collect();
    lines
        .windows(2)
        .position(|pair| pair[0].trim() == "#[cfg(test)]" && pair[1].trim().starts_with("mod "))
        .unwrap_or(lines.len())
}

#[cfg(test)]
mod tests {
    use super::super::source::of_text;
    use super::*;

    #[test]
    fn the_test_module_does_not_count() {
        let source = of_text("a.rs", "fn a() {}\n#[cfg(test)]\nfn b() {}\n\n#[cfg(test)]\nmod tests {}\n");
        assert_eq!(lines_before_tests(&source), 4);
        assert_eq!(lines_before_tests(&of_text("a.rs", "fn a() {}\nfn b() {}\n")), 2);
    }
}
