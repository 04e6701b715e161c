//! The Markdown pages of the workspace, reduced to what the checks read.

use std::path::{Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};

use super::source::{files_with_extension, read};

/// One Markdown page.
pub(crate) struct Document {
    /// Relative to the workspace's root.
    pub(crate) path: PathBuf,
    pub(crate) links: Vec<Located>,
    pub(crate) code_spans: Vec<Located>,
    /// Fenced blocks of shell commands.
    pub(crate) shell_blocks: Vec<Located>,
    /// The items of ordered lists, each with the code spans in it.
    pub(crate) numbered_items: Vec<NumberedItem>,
    pub(crate) headings: Vec<String>,
}

/// A piece of a page with the line it starts on, counted from 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) line: usize,
    pub(crate) text: String,
}

/// One item of an ordered list.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NumberedItem {
    pub(crate) line: usize,
    pub(crate) code_spans: Vec<String>,
}

impl Document {
    /// The page at `path` with the content `text`.
    pub(crate) fn parse(path: PathBuf, text: &str) -> Self {
        let mut page = Self {
            path,
            links: Vec::new(),
            code_spans: Vec::new(),
            shell_blocks: Vec::new(),
            numbered_items: Vec::new(),
            headings: Vec::new(),
        };
        let mut inside = Inside::default();
        for (event, range) in Parser::new(text).into_offset_iter() {
            let line = 1 + text[..range.start].matches('\n').count();
            page.take(event, line, &mut inside);
        }
        page
    }

    fn take(&mut self, event: Event<'_>, line: usize, inside: &mut Inside) {
        match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                self.links.push(Located { line, text: dest_url.into_string() });
            }
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) => {
                inside.shell = ["sh", "bash", "console"].contains(&&*language);
            }
            Event::End(TagEnd::CodeBlock) => inside.shell = false,
            Event::Start(Tag::List(first_number)) => inside.lists.push(first_number.is_some()),
            Event::End(TagEnd::List(_)) => {
                inside.lists.pop();
            }
            Event::Start(Tag::Item) if inside.lists == [true] => {
                self.numbered_items.push(NumberedItem { line, code_spans: Vec::new() });
            }
            Event::Start(Tag::Heading { .. }) => {
                inside.heading = true;
                self.headings.push(String::new());
            }
            Event::End(TagEnd::Heading(_)) => inside.heading = false,
            Event::Text(text) if inside.shell => {
                self.shell_blocks.push(Located { line, text: text.into_string() });
            }
            Event::Text(text) if inside.heading => inside.extend_heading(&mut self.headings, &text),
            Event::Code(code) => {
                inside.extend_heading(&mut self.headings, &code);
                if let (false, Some(item)) = (inside.lists.is_empty(), self.numbered_items.last_mut()) {
                    item.code_spans.push(code.to_string());
                }
                self.code_spans.push(Located { line, text: code.into_string() });
            }
            Event::Start(_)
            | Event::End(_)
            | Event::Text(_)
            | Event::InlineMath(_)
            | Event::DisplayMath(_)
            | Event::Html(_)
            | Event::InlineHtml(_)
            | Event::FootnoteReference(_)
            | Event::SoftBreak
            | Event::HardBreak
            | Event::Rule
            | Event::TaskListMarker(_) => {}
        }
    }
}

/// Position of the parser in the page.
#[derive(Default)]
struct Inside {
    shell: bool,
    heading: bool,
    /// For each open list, whether it is an ordered one.
    lists: Vec<bool>,
}

impl Inside {
    fn extend_heading(&self, headings: &mut [String], text: &str) {
        if let (true, Some(heading)) = (self.heading, headings.last_mut()) {
            heading.push_str(text);
        }
    }
}

/// Every Markdown page under `root`, sorted by path.
pub(crate) fn read_all(root: &Path) -> anyhow::Result<Vec<Document>> {
    files_with_extension(root, "md")?
        .into_iter()
        .map(|path| {
            let text = read(root, &path)?;
            Ok(Document::parse(path, &text))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_reduced_to_links_code_commands_and_items() {
        let text = "# A `b` c\n\nSee [it](x.md) and `d`.\n\n1. One `e`\n2. Two\n\n```sh\ncargo test\n```\n";
        let page = Document::parse(PathBuf::from("a.md"), text);
        assert_eq!(page.headings, ["A b c"]);
        assert_eq!(page.links, [Located { line: 3, text: "x.md".to_owned() }]);
        assert_eq!(page.numbered_items.len(), 2);
        assert_eq!(page.numbered_items[0].code_spans, ["e"]);
        assert_eq!(page.shell_blocks, [Located { line: 9, text: "cargo test\n".to_owned() }]);
        let spans: Vec<&str> = page.code_spans.iter().map(|span| span.text.as_str()).collect();
        assert_eq!(spans, ["b", "d", "e"]);
    }
}
