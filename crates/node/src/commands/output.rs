//! Output to people and to programs: words and tables on standard output, progress and hints on standard error.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::shown;

/// Time of a spinner's step.
const TURN: Duration = Duration::from_millis(100);

/// Destination and form of a command's output.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// True if it speaks to a program.
    pub json: bool,
    /// True if colours may be used on standard output.
    styled: bool,
    /// True if progress may be shown on standard error.
    lively: bool,
    /// Letters of a line on standard output, where it has an end.
    width: Option<usize>,
}

/// Rows of words, the first of them the names of the columns where they have names.
#[derive(Debug)]
pub struct Rows {
    columns: Vec<Column>,
    rows: Vec<Vec<Word>>,
}

/// A column, and how it gives way where the terminal is too narrow for all of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Column {
    name: &'static str,
    letters_min: Option<usize>,
    left_out: Option<u8>,
}

/// A word in a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    text: String,
    tone: Tone,
}

/// Meaning of a word, shown by its colour.
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
            width: width(),
        }
    }

    /// For text that is not shown to people.
    pub fn plain() -> Self {
        Self { json: false, styled: false, lively: false, width: None }
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

    /// Says something that matters now, on standard error.
    pub fn note(&self, text: &str) {
        if !self.json {
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

/// Value of `COLUMNS`, else the width of the terminal, if standard output is one.
fn width() -> Option<usize> {
    let said = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let seen = || io::stdout().is_terminal().then(|| crossterm::terminal::size().ok()).flatten();
    said.or_else(|| seen().map(|(columns, _)| usize::from(columns))).filter(|columns| *columns > 0)
}

/// Writes to standard output. A reader may have read enough and gone: that is no error.
pub fn write(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Column {
    /// One that stays as wide as its words are.
    pub fn new(name: &'static str) -> Self {
        Self { name, ..Self::default() }
    }

    /// The same, cut to this many letters if there is no room for more.
    #[must_use]
    pub fn cut_to(self, letters_min: usize) -> Self {
        Self { letters_min: Some(letters_min), ..self }
    }

    /// The same, left out where cutting does not help; those with the lowest number go first.
    #[must_use]
    pub fn left_out(self, turn: u8) -> Self {
        Self { left_out: Some(turn), ..self }
    }
}

/// Spaces between two columns.
const GAP: usize = 2;

impl Rows {
    /// With these columns.
    pub fn new(names: &[&'static str]) -> Self {
        Self::of_columns(names.iter().copied().map(Column::new))
    }

    /// The same with columns that give way on a narrow terminal.
    pub fn of_columns(columns: impl IntoIterator<Item = Column>) -> Self {
        Self { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    /// Without names of columns.
    pub fn bare() -> Self {
        Self { columns: Vec::new(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn add(&mut self, words: impl IntoIterator<Item = Word>) {
        self.rows.push(words.into_iter().collect());
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds a row of a name and a word on it.
    pub fn fact(&mut self, name: &str, word: impl Into<Word>) {
        self.add([Word::from(name).tone(Tone::Faint), word.into()]);
    }

    /// The rows as text, each line ended and none longer than the terminal where the columns can give way.
    pub fn to_text(mut self, output: Output) -> String {
        if let Some(width) = output.width {
            self.fit(width);
        }
        let mut table = Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if output.styled {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        if !self.columns.is_empty() {
            table.add_row(
                self.columns.iter().map(|column| Cell::new(column.name).add_attribute(Attribute::Bold)),
            );
        }
        for row in self.rows {
            table.add_row(row.into_iter().map(Word::cell));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    /// Cuts columns, and leaves some out, until lines of `width` letters hold them all.
    fn fit(&mut self, width: usize) {
        loop {
            let widths = self.widths();
            let gaps = GAP * widths.iter().filter(|letters| **letters > 0).count().saturating_sub(1);
            let excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(width);
            let spare = |at: usize| {
                let least = self.columns[at].letters_min.map(|least| least.max(self.columns[at].name.len()));
                least.map_or(0, |least| widths[at].saturating_sub(least))
            };
            if excess <= (0..widths.len()).map(spare).sum() {
                return self.cut(&widths, excess);
            }
            let columns = self.columns.iter().enumerate();
            let next = columns.filter_map(|(at, column)| Some((column.left_out?, at))).min();
            let Some((_, at)) = next else { return self.cut(&widths, excess) };
            self.columns.remove(at);
            self.rows.iter_mut().for_each(|row| drop(row.remove(at)));
        }
    }

    /// Letters of the widest word of each column, its name included.
    fn widths(&self) -> Vec<usize> {
        let words = |at: usize| self.rows.iter().filter_map(move |row| row.get(at));
        let widest = |at| words(at).map(|word| word.text.chars().count()).max().unwrap_or(0);
        let columns = self.columns.iter().enumerate();
        columns.map(|(at, column)| widest(at).max(column.name.len())).collect()
    }

    /// Cuts `excess` letters off the columns that can be cut, always off the widest of them.
    fn cut(&mut self, widths: &[usize], excess: usize) {
        let mut cut = widths.to_vec();
        for _ in 0..excess {
            let can = |at: &usize| {
                let column = self.columns[*at];
                column.letters_min.is_some_and(|least| cut[*at] > least.max(column.name.len()))
            };
            let Some(widest) = (0..cut.len()).filter(can).max_by_key(|at| cut[*at]) else { break };
            cut[widest] -= 1;
        }
        for row in &mut self.rows {
            row.iter_mut().zip(&cut).for_each(|(word, letters)| word.cut_to(*letters));
        }
    }
}

impl Word {
    /// The same, meant so.
    #[must_use]
    pub fn tone(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }

    /// Cuts it to this many letters, the last of which then shows the cut.
    fn cut_to(&mut self, letters: usize) {
        self.text = shown::cut(&self.text, letters);
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
    fn columns_give_way_until_lines_fit() {
        let rows = |width| {
            let columns = [
                Column::new("ID"),
                Column::new("NAME").cut_to(6),
                Column::new("SIZE").left_out(2),
                Column::new("AGE").left_out(1),
            ];
            let mut rows = Rows::of_columns(columns);
            rows.add(["aa", "a-long-name", "4 KiB", "2h"].map(Word::from));
            rows.to_text(Output { width: Some(width), ..Output::plain() })
        };
        assert_eq!(rows(27), "ID  NAME         SIZE   AGE\naa  a-long-name  4 KiB  2h\n");
        assert_eq!(rows(24), "ID  NAME      SIZE   AGE\naa  a-long-…  4 KiB  2h\n");
        assert_eq!(rows(19), "ID  NAME      SIZE\naa  a-long-…  4 KiB\n");
        assert_eq!(rows(10), "ID  NAME\naa  a-lon…\n");
    }

    #[test]
    fn colours_are_used_where_they_may_be() {
        let mut rows = Rows::bare();
        rows.fact("state", Word::from("lost").tone(Tone::Bad));
        let styled = Output { styled: true, ..Output::plain() };
        assert!(rows.to_text(styled).contains("\u{1b}["));
    }
}
