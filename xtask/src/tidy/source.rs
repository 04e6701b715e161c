//! The Rust sources of the workspace, as text and as a flat list of tokens.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use proc_macro2::{TokenStream, TokenTree};

/// Directories that hold nothing of ours.
const FOREIGN_DIRECTORIES: [&str; 3] = [".git", "target", "corpus"];

/// One Rust source file.
pub(crate) struct Source {
    /// Relative to the workspace's root.
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    /// Groups are flattened between their opening and closing tokens; comments are no tokens.
    pub(crate) tokens: Vec<Token>,
}

/// One token, with the line it starts on, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) line: usize,
}

/// Kind of a token; literals are dropped to their presence because no check reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Word(String),
    Sign(char),
    Literal,
    Open(char),
    Close(char),
}

impl Source {
    /// The source at `path` with the content `text`; fails where it is no Rust.
    pub(crate) fn parse(path: PathBuf, text: String) -> anyhow::Result<Self> {
        let stream = TokenStream::from_str(&text)
            .map_err(|error| anyhow::anyhow!("{error}"))
            .with_context(|| format!("reading {} as Rust", path.display()))?;
        let mut tokens = Vec::new();
        flatten(stream, &mut tokens);
        Ok(Self { path, text, tokens })
    }

    /// True if the file lies in `directory`, given relative to the workspace's root.
    pub(crate) fn is_in(&self, directory: &str) -> bool {
        self.path.starts_with(directory)
    }

    /// The word at `position`, if there is one.
    pub(crate) fn word(&self, position: usize) -> Option<&str> {
        match &self.tokens.get(position)?.kind {
            TokenKind::Word(word) => Some(word),
            TokenKind::Sign(_) | TokenKind::Literal | TokenKind::Open(_) | TokenKind::Close(_) => None,
        }
    }

    /// True if the token at `position` is a `::`.
    pub(crate) fn is_path_separator(&self, position: usize) -> bool {
        [position, position + 1]
            .iter()
            .all(|&at| self.tokens.get(at).is_some_and(|token| token.kind == TokenKind::Sign(':')))
    }
}

fn flatten(stream: TokenStream, into: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        let mut push = |kind| into.push(Token { kind, line });
        match tree {
            TokenTree::Ident(word) => push(TokenKind::Word(word.to_string())),
            TokenTree::Punct(sign) => push(TokenKind::Sign(sign.as_char())),
            TokenTree::Literal(_) => push(TokenKind::Literal),
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    proc_macro2::Delimiter::Parenthesis => ('(', ')'),
                    proc_macro2::Delimiter::Brace => ('{', '}'),
                    proc_macro2::Delimiter::Bracket => ('[', ']'),
                    proc_macro2::Delimiter::None => (' ', ' '),
                };
                push(TokenKind::Open(open));
                flatten(group.stream(), into);
                let line = group.span_close().start().line;
                into.push(Token { kind: TokenKind::Close(close), line });
            }
        }
    }
}

/// Every Rust source under `root`, sorted by path.
pub(crate) fn read_all(root: &Path) -> anyhow::Result<Vec<Source>> {
    files_with_extension(root, "rs")?
        .into_iter()
        .map(|path| {
            let text = read(root, &path)?;
            Source::parse(path, text)
        })
        .collect()
}

/// The text of the file at `path`, relative to `root`.
pub(crate) fn read(root: &Path, path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(root.join(path)).with_context(|| format!("reading {}", path.display()))
}

/// Every file of ours under `root` whose name ends in `.extension`, relative to `root`, sorted.
pub(crate) fn files_with_extension(root: &Path, extension: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        let listing = std::fs::read_dir(root.join(&directory))
            .with_context(|| format!("listing {}", directory.display()))?;
        for entry in listing {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                if !FOREIGN_DIRECTORIES.iter().any(|foreign| path.ends_with(foreign)) {
                    directories.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
pub(crate) fn of_text(path: &str, text: &str) -> Source {
    Source::parse(PathBuf::from(path), text.to_owned()).expect("the test's text is Rust")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_no_tokens_and_lines_are_counted_from_one() {
        let source = of_text("a.rs", "// unsafe\nfn a() {\n    b::c();\n}\n");
        assert_eq!(source.word(0), Some("fn"));
        assert_eq!(source.word(1), Some("a"));
        let position = source.tokens.iter().position(|token| token.kind == TokenKind::Word("b".to_owned()));
        let position = position.expect("the body's tokens are in the list");
        assert_eq!(source.tokens[position].line, 3);
        assert!(source.is_path_separator(position + 1));
    }
}
