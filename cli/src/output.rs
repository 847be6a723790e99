//! Writes results to standard output: a table for people, the API's JSON for programs.

use std::io::{ErrorKind, Write as _, stdout};

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::error::{Error, Result};

pub(crate) struct Output {
    json: bool,
}

/// How a state is coloured on a terminal. The word is always there too.
#[derive(Clone, Copy)]
pub(crate) enum Tone {
    Good,
    Busy,
    Warning,
    Bad,
    Plain,
}

pub(crate) fn state(word: impl ToString, tone: Tone) -> Cell {
    let cell = Cell::new(word.to_string());
    match tone {
        Tone::Good => cell.fg(Color::Green),
        Tone::Busy => cell.fg(Color::Blue),
        Tone::Warning => cell.fg(Color::Yellow),
        Tone::Bad => cell.fg(Color::Red),
        Tone::Plain => cell,
    }
}

/// A number: to the right.
pub(crate) fn number(value: impl ToString) -> Cell {
    Cell::new(value.to_string()).set_alignment(CellAlignment::Right)
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// `body` as JSON, or what `text` makes of it.
    pub(crate) fn show<T: Serialize + ?Sized>(
        &self,
        body: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<()> {
        if self.json {
            let json = serde_json::to_string_pretty(body).map_err(|e| Error::Output(e.into()))?;
            return line(&json);
        }
        line(&text(body))
    }

    /// A list: JSON array, table, or `none` where it is empty.
    pub(crate) fn list<T: Serialize>(
        &self,
        items: &[T],
        none: &str,
        headers: &[&str],
        row: impl Fn(&T) -> Vec<Cell>,
    ) -> Result<()> {
        self.show(items, |items| {
            if items.is_empty() { none.to_owned() } else { table(headers, items.iter().map(row)) }
        })
    }

    /// Something that was done. Silent with `--json`, where the body says it.
    pub(crate) fn done<T: Serialize>(&self, body: &T, text: impl Into<String>) -> Result<()> {
        let text = text.into();
        self.show(body, |_| text)
    }
}

/// A closed pipe (`andon devices | head`) is the reader's choice, not a failure.
fn line(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::Output(e)),
        _ => Ok(()),
    }
}

pub(crate) fn table(headers: &[&str], rows: impl Iterator<Item = Vec<Cell>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(headers.iter().map(|h| Cell::new(h.to_uppercase()).add_attribute(Attribute::Bold)));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    trimmed(&table)
}

/// `name  value` lines for one object.
pub(crate) fn facts(facts: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    for (name, value) in facts {
        table.add_row([Cell::new(name).add_attribute(Attribute::Dim), Cell::new(value)]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    trimmed(&table)
}

fn trimmed(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.truncate(text.trim_end_matches('\n').len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_no_trailing_blanks() {
        let text = table(&["device", "frames"], [vec![Cell::new("cell-1"), number(5)]].into_iter());
        assert_eq!(text, "DEVICE  FRAMES\ncell-1       5");
    }

    #[test]
    fn facts_line_up() {
        assert_eq!(
            facts([("id", "a".to_owned()), ("release", "b/1".to_owned())]),
            "id       a\nrelease  b/1"
        );
    }
}
