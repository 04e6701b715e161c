//! The files of a folder do not use each other in a circle.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use super::source::{Source, TokenKind};
use super::{Finding, Workspace};

/// A module's path from the root of its crate; the root's is empty.
type ModulePath = Vec<String>;

/// The files and folders beside each other in one folder, each with those that it uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

pub(crate) fn check(workspace: &Workspace, findings: &mut Vec<Finding>) {
    let mut crates: BTreeMap<PathBuf, Vec<(ModulePath, &Source)>> = BTreeMap::new();
    for source in &workspace.sources {
        if let Some((root, module)) = place_of(&source.path) {
            crates.entry(root).or_default().push((module, source));
        }
    }
    for (root, modules) in crates {
        check_crate(&root, &modules, findings);
    }
}

/// The source directory of a file's crate, and the file's module; `None` for files of tests.
fn place_of(path: &Path) -> Option<(PathBuf, ModulePath)> {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    let at = parts.iter().position(|part| *part == "src")?;
    let mut module: ModulePath = parts[at + 1..].iter().map(|part| (*part).to_owned()).collect();
    let file = module.pop()?;
    let name = file.strip_suffix(".rs")?;
    if !["mod", "lib", "main"].contains(&name) {
        module.push(name.to_owned());
    }
    let is_tests = module.iter().any(|part| part == "tests");
    (!is_tests).then(|| (parts[..=at].iter().collect(), module))
}

fn check_crate(root: &Path, sources: &[(ModulePath, &Source)], findings: &mut Vec<Finding>) {
    let names = Names::of(sources);
    let mut folders: BTreeMap<ModulePath, Uses> = BTreeMap::new();
    for (module, source) in sources {
        for used in names.used_by(module, source) {
            let same = module.iter().zip(&used).take_while(|(own, other)| own == other).count();
            if let (Some(from), Some(to)) = (module.get(same), used.get(same)) {
                let folder = folders.entry(module[..same].to_vec()).or_default();
                folder.entry(from.clone()).or_default().insert(to.clone());
            }
        }
    }
    for (folder, uses) in folders {
        let file = folder.iter().fold(root.to_owned(), |path, part| path.join(part));
        for circle in circles(&uses) {
            let what = format!("its files use each other in a circle: {}", circle.join(" → "));
            findings.push(Finding { file: file.clone(), line: 0, what });
        }
    }
}

/// Modules of a crate, and the names that they pass on from modules inside them.
struct Names {
    modules: BTreeSet<ModulePath>,
    passed_on: BTreeMap<(ModulePath, String), ModulePath>,
}

/// A path in the source; `name` is its last part, or the name that it is given.
struct WrittenPath {
    parts: Vec<String>,
    name: String,
}

impl Names {
    fn of(sources: &[(ModulePath, &Source)]) -> Self {
        let modules = sources.iter().flat_map(|(path, _)| (0..=path.len()).map(|end| path[..end].to_vec()));
        let mut names = Self { modules: modules.collect(), passed_on: BTreeMap::new() };
        for (module, source) in sources {
            for position in paths_of_uses(source) {
                for path in paths_at(source, position) {
                    let from = names.module_of(module, &path.parts);
                    if from.len() > module.len() {
                        names.passed_on.insert((module.clone(), path.name), from);
                    }
                }
            }
        }
        names
    }

    /// The innermost module that `parts` names, seen from `base`.
    fn module_of(&self, base: &ModulePath, parts: &[String]) -> ModulePath {
        let mut module = base.clone();
        for part in parts.iter().filter(|part| *part != "self") {
            module.push(part.clone());
            if !self.modules.contains(&module) {
                module.pop();
                break;
            }
        }
        module
    }

    /// The module that the thing at `parts` is in, seen from `base`: names that a module passes on are followed.
    fn home_of(&self, base: &ModulePath, parts: &[String]) -> ModulePath {
        let mut module = base.clone();
        for part in parts {
            let inner: ModulePath = module.iter().chain([part]).cloned().collect();
            if self.modules.contains(&inner) {
                module = inner;
                continue;
            }
            // A module inside may pass the name on from one inside itself.
            while let Some(from) = self.passed_on.get(&(module.clone(), part.clone())) {
                module = from.clone();
            }
            break;
        }
        module
    }

    /// The modules of the crate that `source` uses outside of its tests.
    fn used_by(&self, module: &ModulePath, source: &Source) -> BTreeSet<ModulePath> {
        let tests = tests_in(source);
        let mut used = BTreeSet::new();
        for position in 0..source.tokens.len() {
            if tests.iter().any(|range| range.contains(&position)) || !begins_a_path(source, position) {
                continue;
            }
            for WrittenPath { parts, .. } in paths_at(source, position) {
                let ups = parts.iter().take_while(|part| *part == "super").count();
                let base = match ups {
                    0 => Vec::new(),
                    ups => module[..module.len().saturating_sub(ups)].to_vec(),
                };
                used.insert(self.home_of(&base, &parts[ups.max(1)..]));
            }
        }
        used
    }
}

/// True for a `crate` or `super` that begins a path of names in the crate.
fn begins_a_path(source: &Source, position: usize) -> bool {
    let before = position.checked_sub(1).map(|before| &source.tokens[before].kind);
    let is_inner = position.checked_sub(2).is_some_and(|before| source.is_path_separator(before));
    let is_visibility = before == Some(&TokenKind::Word("in".to_owned()));
    matches!(source.word(position), Some("crate" | "super"))
        && source.is_path_separator(position + 1)
        && !is_inner
        && !is_visibility
}

/// Positions of the paths in `use` items.
fn paths_of_uses(source: &Source) -> impl Iterator<Item = usize> {
    (0..source.tokens.len())
        .filter(|&position| source.word(position) == Some("use"))
        .map(|position| position + 1)
}

/// The paths that begin at `position`: several if the path has braces.
fn paths_at(source: &Source, position: usize) -> Vec<WrittenPath> {
    let mut paths = Vec::new();
    follow(source, position, &[], &mut paths);
    paths
}

/// Adds the paths at `position`, which continue `before`; gives the position after them.
fn follow(source: &Source, position: usize, before: &[String], paths: &mut Vec<WrittenPath>) -> usize {
    if let Some(word) = source.word(position) {
        let parts: Vec<String> = before.iter().cloned().chain([word.to_owned()]).collect();
        if source.is_path_separator(position + 1) {
            return follow(source, position + 3, &parts, paths);
        }
        let renamed = source.word(position + 1) == Some("as");
        let name = if renamed { source.word(position + 2) } else { Some(word) };
        let name = name.unwrap_or_default().to_owned();
        paths.push(WrittenPath { parts, name });
        return position + if renamed { 3 } else { 1 };
    }
    if source.tokens.get(position).is_none_or(|token| token.kind != TokenKind::Open('{')) {
        // A star, or the types of a generic item.
        paths.push(WrittenPath { parts: before.to_vec(), name: String::new() });
        return position + 1;
    }
    let mut next = position + 1;
    while let Some(token) = source.tokens.get(next) {
        match token.kind {
            TokenKind::Close(_) => return next + 1,
            TokenKind::Sign(',') => next += 1,
            TokenKind::Word(_) | TokenKind::Sign(_) | TokenKind::Literal | TokenKind::Open(_) => {
                next = follow(source, next, before, paths);
            }
        }
    }
    next
}

/// The tokens of the modules that are built for tests only.
fn tests_in(source: &Source) -> Vec<std::ops::Range<usize>> {
    let mut ranges = Vec::new();
    let mut position = 0;
    while position < source.tokens.len() {
        let opens = source.tokens.get(position + 2).is_some_and(|token| token.kind == TokenKind::Open('{'));
        if source.word(position) == Some("mod") && opens && has_attribute_of_tests(source, position) {
            let end = end_of_group(source, position + 2);
            ranges.push(position..end);
            position = end;
        } else {
            position += 1;
        }
    }
    ranges
}

/// True if the attribute before `position` names tests.
fn has_attribute_of_tests(source: &Source, position: usize) -> bool {
    let before = &source.tokens[..position];
    if before.last().is_none_or(|token| token.kind != TokenKind::Close(']')) {
        return false;
    }
    let attribute = before.iter().rev().skip(1).take_while(|token| token.kind != TokenKind::Open('['));
    let is_tests = |kind: &TokenKind| *kind == TokenKind::Word("test".to_owned());
    attribute.into_iter().any(|token| is_tests(&token.kind))
}

/// The position after the group that opens at `position`.
fn end_of_group(source: &Source, position: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, token) in source.tokens.iter().enumerate().skip(position) {
        match token.kind {
            TokenKind::Open(_) => depth += 1,
            TokenKind::Close(_) if depth == 1 => return offset + 1,
            TokenKind::Close(_) => depth -= 1,
            TokenKind::Word(_) | TokenKind::Sign(_) | TokenKind::Literal => {}
        }
    }
    source.tokens.len()
}

/// A shortest circle out of each group of names that use each other; its first name comes last again.
fn circles(uses: &Uses) -> Vec<Vec<String>> {
    let mut told: BTreeSet<&String> = BTreeSet::new();
    let mut circles = Vec::new();
    for start in uses.keys() {
        if told.contains(start) {
            continue;
        }
        if let Some(circle) = way(uses, start, start) {
            let same_group =
                |other: &&String| way(uses, start, other).is_some() && way(uses, other, start).is_some();
            told.extend(uses.keys().filter(same_group));
            circles.push(circle);
        }
    }
    circles
}

/// A shortest way of at least one step, with both its ends.
fn way(uses: &Uses, from: &str, to: &str) -> Option<Vec<String>> {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut ways = VecDeque::from([vec![from]]);
    while let Some(way) = ways.pop_front() {
        let last = way.last().expect("a way has a beginning");
        for next in uses.get(*last).into_iter().flatten() {
            let longer: Vec<&str> = way.iter().copied().chain([next.as_str()]).collect();
            if next == to {
                return Some(longer.into_iter().map(str::to_owned).collect());
            }
            if seen.insert(next) {
                ways.push_back(longer);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::source::of_text;
    use super::*;

    /// The findings in a crate of these files.
    fn findings(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> =
            files.iter().map(|(file, text)| of_text(&format!("crates/a/src/{file}"), text)).collect();
        let placed = sources.iter().filter_map(|source| Some((place_of(&source.path)?.1, source)));
        let placed: Vec<_> = placed.collect();
        let mut findings = Vec::new();
        check_crate(Path::new("crates/a/src"), &placed, &mut findings);
        findings.into_iter().map(|finding| format!("{}: {}", finding.file.display(), finding.what)).collect()
    }

    #[test]
    fn files_that_use_each_other_are_told_with_the_way_around() {
        let found = findings(&[
            ("serve/mod.rs", "mod a; mod b; mod c;"),
            ("serve/a.rs", "use super::b::B;"),
            ("serve/b.rs", "use crate::{serve::{c::C}, other};"),
            ("serve/c.rs", "fn f(a: super::a::A) {}"),
            ("serve/d.rs", "use super::a::A;"),
        ]);
        assert_eq!(found, ["crates/a/src/serve: its files use each other in a circle: a → b → c → a"]);
    }

    #[test]
    fn a_circle_of_folders_is_told_and_a_file_that_uses_its_folder_is_none() {
        let found = findings(&[
            ("one/inner.rs", "use crate::two::Two;"),
            ("one/mod.rs", "mod inner; pub struct One;"),
            ("two.rs", "use crate::one::One;"),
        ]);
        assert_eq!(found, ["crates/a/src: its files use each other in a circle: one → two → one"]);
        let alone = [("one/inner.rs", "use super::One;"), ("one/mod.rs", "mod inner; use inner::Inner;")];
        assert!(findings(&alone).is_empty());
    }

    #[test]
    fn a_name_that_the_folder_passes_on_counts_as_its_own_file() {
        let found = findings(&[
            ("one/mod.rs", "mod a; mod b; pub use a::{First, Second as Other};"),
            ("one/a.rs", "use super::b::B;"),
            ("one/b.rs", "use super::Other;"),
        ]);
        assert_eq!(found, ["crates/a/src/one: its files use each other in a circle: a → b → a"]);
    }

    #[test]
    fn tests_and_visibilities_do_not_count() {
        let found = findings(&[
            ("a.rs", "use crate::b::B;"),
            ("b.rs", "pub(in crate::a) struct B;\n#[cfg(test)]\nmod tests { use crate::a::A; }"),
            ("tests.rs", "use crate::a::A;"),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }
}
