//! What is said to people and to programs: words and tables on standard output, progress and hints on standard error.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// How often a spinner turns.
const TURN: Duration = Duration::from_millis(100);

/// Where a command's words go.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Whether it speaks to a program.
    pub json: bool,
    /// Whether colours may be used on standard output.
    styled: bool,
    /// Whether progress may be shown on standard error.
    lively: bool,
}

/// Rows of words, the first of them the names of the columns.
#[derive(Debug)]
pub struct Rows(Table);

/// A word in a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    text: String,
    tone: Tone,
}

/// How a word is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Like any other.
    Plain,
    /// As it should be.
    Good,
    /// Worth a look.
    Doubtful,
    /// As it should not be.
    Bad,
    /// Beside the point.
    Faint,
}

impl Output {
    /// For this process's streams.
    pub fn of_process(json: bool) -> Self {
        let coloured = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        Self {
            json,
            styled: coloured && !dumb && io::stdout().is_terminal(),
            lively: !json && coloured && !dumb && io::stderr().is_terminal(),
        }
    }

    /// For text that nobody looks at.
    pub fn plain() -> Self {
        Self { json: false, styled: false, lively: false }
    }

    /// Says something for programs: one JSON value, indented.
    pub fn value(&self, value: &impl Serialize) -> anyhow::Result<()> {
        write(&format!("{}\n", serde_json::to_string_pretty(value)?))
    }

    /// Says something for programs: one JSON value in one line.
    pub fn value_line(&self, value: &impl Serialize) -> anyhow::Result<()> {
        write(&format!("{}\n", serde_json::to_string(value)?))
    }

    /// Says something for people.
    pub fn line(&self, text: &str) -> anyhow::Result<()> {
        write(&format!("{text}\n"))
    }

    /// Shows rows.
    pub fn rows(&self, rows: Rows) -> anyhow::Result<()> {
        write(&rows.to_text(*self))
    }

    /// Says what could be done next, where a person may read it.
    pub fn hint(&self, text: &str) {
        if self.lively {
            eprintln!("{text}");
        }
    }

    /// Does `work`, and shows that it goes on where a person may watch.
    pub fn during<T>(&self, text: &str, work: impl FnOnce() -> T) -> T {
        let bar = self.spinner(text);
        let done = work();
        bar.finish_and_clear();
        done
    }

    /// Something that turns beside `text` until it is finished.
    pub fn spinner(&self, text: &str) -> ProgressBar {
        if !self.lively {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("it is well formed");
        let bar = ProgressBar::new_spinner().with_style(style).with_message(text.to_owned());
        bar.enable_steady_tick(TURN);
        bar
    }
}

/// Writes to standard output. Whoever reads it may have read enough: that is no error.
pub fn write(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Rows {
    /// With these columns.
    pub fn new(columns: &[&str]) -> Self {
        let mut rows = Self::bare();
        rows.0.add_row(columns.iter().map(|name| Cell::new(name).add_attribute(Attribute::Bold)));
        rows
    }

    /// Without names of columns.
    pub fn bare() -> Self {
        let mut table = Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        Self(table)
    }

    /// Adds a row.
    pub fn add(&mut self, words: impl IntoIterator<Item = Word>) {
        self.0.add_row(words.into_iter().map(Word::cell));
    }

    /// Adds a row of a name and what is to be said of it.
    pub fn fact(&mut self, name: &str, word: impl Into<Word>) {
        self.add([Word::from(name).tone(Tone::Faint), word.into()]);
    }

    /// The rows as text, each line ended.
    pub fn to_text(mut self, output: Output) -> String {
        if output.styled {
            self.0.enforce_styling();
        } else {
            self.0.force_no_tty();
        }
        for column in self.0.column_iter_mut() {
            column.set_padding((0, 2));
        }
        self.0.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

impl Word {
    /// The same, meant so.
    #[must_use]
    pub fn tone(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }

    fn cell(self) -> Cell {
        let cell = Cell::new(self.text);
        match self.tone {
            Tone::Plain => cell,
            Tone::Good => cell.fg(Color::Green),
            Tone::Doubtful => cell.fg(Color::Yellow),
            Tone::Bad => cell.fg(Color::Red),
            Tone::Faint => cell.add_attribute(Attribute::Dim),
        }
    }
}

impl From<String> for Word {
    fn from(text: String) -> Self {
        Self { text, tone: Tone::Plain }
    }
}

impl From<&str> for Word {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_each_other_and_nothing_trails() {
        let mut rows = Rows::new(&["NAME", "STATE"]);
        rows.add([Word::from("a"), Word::from("running").tone(Tone::Good)]);
        rows.add([Word::from("longer"), Word::from("")]);
        assert_eq!(rows.to_text(Output::plain()), "NAME    STATE\na       running\nlonger\n");
    }

    #[test]
    fn colours_are_used_where_they_may_be() {
        let mut rows = Rows::bare();
        rows.fact("state", Word::from("lost").tone(Tone::Bad));
        let styled = Output { styled: true, ..Output::plain() };
        assert!(rows.to_text(styled).contains("\u{1b}["));
    }
}
