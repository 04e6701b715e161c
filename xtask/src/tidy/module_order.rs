//! The modules of `engine` and `node` are listed lowest first, and each uses only those listed before it.

use std::path::Path;

use super::source::{Source, TokenKind};
use super::{Finding, Workspace};

/// Sources of the crates whose modules have an order.
const ORDERED: [&str; 2] = ["crates/engine/src", "crates/node/src"];

pub(crate) fn check(workspace: &Workspace, findings: &mut Vec<Finding>) {
    for directory in ORDERED {
        check_crate(&workspace.sources, directory, findings);
    }
}

/// Checks the crate whose sources are in `directory`.
fn check_crate(sources: &[Source], directory: &str, findings: &mut Vec<Finding>) {
    let Some(list) = sources.iter().find(|source| source.path == Path::new(directory).join("lib.rs")) else {
        findings.push(Finding { file: directory.into(), line: 0, what: "it has no lib.rs".to_owned() });
        return;
    };
    let modules = listed_modules(list);
    for source in sources.iter().filter(|source| source.is_in(directory)) {
        let inner = source.path.strip_prefix(directory).expect("the file lies in the crate's sources");
        let first = inner.components().next().expect("a file has a name").as_os_str().to_string_lossy();
        let name = first.strip_suffix(".rs").unwrap_or(&first);
        if name == "lib" || name == "main" {
            continue;
        }
        match modules.iter().position(|module| module == name) {
            Some(own) => look(source, &modules[..=own], findings),
            None => findings.push(Finding {
                file: source.path.clone(),
                line: 0,
                what: format!("`{name}` is not listed in {directory}/lib.rs"),
            }),
        }
    }
}

/// The modules a `lib.rs` declares, in its order.
fn listed_modules(list: &Source) -> Vec<String> {
    (0..list.tokens.len())
        .filter(|&position| list.word(position) == Some("mod"))
        .filter(|&position| {
            list.tokens.get(position + 2).is_some_and(|token| token.kind == TokenKind::Sign(';'))
        })
        .filter_map(|position| list.word(position + 1).map(str::to_owned))
        .collect()
}

/// Reports every `crate::name` of `source` whose name is not among `allowed`, the last of which is its own module.
fn look(source: &Source, allowed: &[String], findings: &mut Vec<Finding>) {
    let mut report = |line, what| findings.push(Finding { file: source.path.clone(), line, what });
    for position in 0..source.tokens.len() {
        let line = source.tokens[position].line;
        if source.word(position) == Some("super")
            && source.is_path_separator(position + 1)
            && source.word(position + 3) == Some("super")
        {
            report(line, "`super::super` hides which module is used: write `crate::`".to_owned());
        }
        if source.word(position) != Some("crate") || !source.is_path_separator(position + 1) {
            continue;
        }
        for name in names_at(source, position + 3) {
            if !allowed.contains(&name) {
                let own = allowed.last().map_or("", String::as_str);
                report(line, format!("`{own}` uses `crate::{name}`, which is not listed before it"));
            }
        }
    }
}

/// The first names of the path or of the braced paths at `position`.
fn names_at(source: &Source, position: usize) -> Vec<String> {
    if let Some(name) = source.word(position) {
        return vec![name.to_owned()];
    }
    let mut names = Vec::new();
    let mut depth = 0_usize;
    let mut starts = false;
    for (offset, token) in source.tokens.iter().enumerate().skip(position) {
        match token.kind {
            TokenKind::Open(_) => (depth, starts) = (depth + 1, depth == 0),
            TokenKind::Close(_) if depth <= 1 => break,
            TokenKind::Close(_) => depth -= 1,
            TokenKind::Sign(',') => starts = depth == 1,
            TokenKind::Word(_) | TokenKind::Sign(_) | TokenKind::Literal => {
                if starts {
                    names.extend(source.word(offset).map(str::to_owned));
                }
                starts = false;
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::super::source::of_text;
    use super::*;

    fn complaints(text: &str) -> Vec<String> {
        let allowed: Vec<String> = ["limits", "geometry", "view"].map(str::to_owned).to_vec();
        let mut findings = Vec::new();
        look(&of_text("crates/engine/src/view.rs", text), &allowed, &mut findings);
        findings.into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn modules_before_and_the_own_one_may_be_used() {
        assert!(complaints("use crate::geometry::GuestPage;\nfn a(b: crate::view::View) {}").is_empty());
        assert!(complaints("use crate::{geometry::{GuestPage, LayerPage}, limits};").is_empty());
    }

    #[test]
    fn a_later_module_is_found_alone_and_in_braces() {
        assert_eq!(complaints("use crate::seal::Sealed;").len(), 1);
        assert_eq!(complaints("use crate::{geometry::{a, b}, seal::Sealed, limits, engine};").len(), 2);
        assert_eq!(complaints("use super::super::seal;").len(), 1);
    }

    #[test]
    fn the_order_of_each_crate_is_that_of_its_own_list() {
        let sources = [
            of_text("crates/node/src/lib.rs", "mod keeper;\nmod daemon;\n"),
            of_text("crates/node/src/main.rs", "use crate::anything;"),
            of_text("crates/node/src/keeper/client.rs", "use crate::daemon::Daemon;"),
            of_text("crates/node/src/daemon.rs", "use crate::keeper::KeeperClient;"),
            of_text("crates/node/src/left.rs", ""),
        ];
        let mut findings = Vec::new();
        check_crate(&sources, "crates/node/src", &mut findings);
        let files: Vec<_> = findings.iter().map(|finding| finding.file.display().to_string()).collect();
        assert_eq!(files, ["crates/node/src/keeper/client.rs", "crates/node/src/left.rs"]);
        check_crate(&sources, "crates/engine/src", &mut findings);
        assert_eq!(findings.len(), 3, "a crate without a list is told");
    }

    #[test]
    fn the_list_is_read_in_its_order() {
        let list = of_text("lib.rs", "//! Engine.\npub mod limits;\nmod sync;\n#[cfg(test)]\nmod tests {}\n");
        assert_eq!(listed_modules(&list), ["limits", "sync"]);
    }
}
