//! What people and scripts see: results on standard output, everything else on standard error.
//!
//! Texts that came from devices or the network are cleaned of control characters before they reach a terminal.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table};
use jiff::Timestamp;
use muster_shared::quality::Estimate;
use serde::Serialize;

use crate::failure::Failure;

/// Longest word of what went wrong.
const MAX_FAULT_CHARS: usize = 8_000;

/// The forms a result can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For scripts.
    Json,
}

/// Standard output, in the form asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: Format,
}

/// How good the news in a cell is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As wished.
    Good,
    /// To be looked at.
    Bad,
    /// Under way.
    Busy,
}

impl Output {
    /// Results in `format`.
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether a script reads.
    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Prints `value` as JSON, or what `text` makes of it.
    ///
    /// # Errors
    /// [`Failure`] when standard output cannot be written.
    pub(crate) fn show<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        match self.format {
            Format::Json => print(&json(value, true)?),
            Format::Table => print(&text(value)),
        }
    }

    /// Prints `value` as one line of JSON, or what `text` makes of it.
    ///
    /// # Errors
    /// [`Failure`] when standard output cannot be written.
    pub(crate) fn show_line<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        match self.format {
            Format::Json => print(&json(value, false)?),
            Format::Table => print(&text(value)),
        }
    }
}

fn json<T: Serialize>(value: &T, pretty: bool) -> Result<String, Failure> {
    if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) }
        .map_err(|error| Failure::unmet("the result has no form in JSON").because(error))
}

/// Prints `text` and a line's end.
///
/// # Errors
/// [`Failure`] when standard output cannot be written.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = out.write_all(clean(text).as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    written.map_err(|error| {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Failure::closed()
        } else {
            Failure::unmet("standard output cannot be written").because(error)
        }
    })
}

/// Tells the person at the terminal something that is no result.
pub(crate) fn note(text: &str) {
    // Whoever closed standard error does not want to know.
    let _ = writeln!(io::stderr().lock(), "{}", clean(text));
}

/// Tells the person at the terminal what may go wrong.
pub(crate) fn warn(text: &str) {
    note(&format!("warning: {}", shortened(text)));
}

/// Tells the person at the terminal what went wrong.
pub(crate) fn error(text: &str) {
    note(&format!("error: {}", shortened(text)));
}

/// At most [`MAX_FAULT_CHARS`] of `text`: a parser may repeat all of what it does not understand.
fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MAX_FAULT_CHARS) {
        Some((end, _)) => format!("{}... (and more)", &text[..end]).into(),
        None => text.into(),
    }
}

/// `text` without characters that would steer a terminal; line ends and tabs stay.
pub(crate) fn clean(text: &str) -> String {
    let steers = |c: char| {
        (c.is_control() && !matches!(c, '\n' | '\t'))
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
    };
    text.chars().map(|c| if steers(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A cell of a table.
pub(crate) fn cell(text: impl AsRef<str>) -> Cell {
    Cell::new(clean(text.as_ref()))
}

/// A cell that holds a number.
pub(crate) fn number(text: impl AsRef<str>) -> Cell {
    cell(text).set_alignment(CellAlignment::Right)
}

/// A cell in the colour of its news, where there are colours.
pub(crate) fn toned(text: impl AsRef<str>, tone: Tone) -> Cell {
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        return cell(text);
    }
    cell(text).fg(match tone {
        Tone::Good => Color::Green,
        Tone::Bad => Color::Red,
        Tone::Busy => Color::Yellow,
    })
}

/// A table without lines. Fits a terminal's width; elsewhere every row is one line.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<Cell>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header.iter().map(|title| cell(title.to_uppercase())));
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    } else {
        table.force_no_tty();
    }
    for row in rows {
        table.add_row(row);
    }
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    table.trim_fmt()
}

/// Names and values, one pair a line.
pub(crate) fn properties(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let line = |(name, value): &(&str, String)| {
        let indented = clean(value).replace('\n', &format!("\n{:width$}  ", ""));
        format!("{name:width$}  {indented}").trim_end().to_owned()
    };
    pairs.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A time in milliseconds since the Unix epoch, in UTC to the second (RFC 3339).
pub(crate) fn time(ms: u64) -> String {
    i64::try_from(ms / 1_000)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .map_or_else(|| format!("{ms} ms"), |time| time.to_string())
}

/// [`time`], or a dash.
pub(crate) fn time_or_dash(ms: Option<u64>) -> String {
    ms.map_or_else(|| "-".to_owned(), time)
}

/// The time now, in milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

/// A number of bytes, for people.
pub(crate) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// A value of the API spelled as the API does.
pub(crate) fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => "?".to_owned(),
    }
}

/// A number with as many digits as are worth reading.
pub(crate) fn significant(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude >= 100.0 => format!("{value:.0}"),
        magnitude if magnitude >= 1.0 => format!("{value:.2}"),
        magnitude if magnitude >= 0.001 || value == 0.0 => format!("{value:.4}"),
        _ => format!("{value:.1e}"),
    }
}

/// What `show` makes of a value, or a dash.
pub(crate) fn optional<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

/// An estimate with its interval, where that is known.
pub(crate) fn interval(estimate: &Estimate, show: impl Fn(f64) -> String) -> String {
    match (estimate.low, estimate.high) {
        (Some(low), Some(high)) => format!("{} ({} to {})", show(estimate.value), show(low), show(high)),
        (None, _) | (_, None) => show(estimate.value),
    }
}

/// A group of devices, as people call it: the value of the label they are grouped by.
pub(crate) fn group_name(group_by: Option<&str>, group: &str) -> String {
    match group_by {
        None => "whole fleet".to_owned(),
        Some(label) if group.is_empty() => format!("without {label}"),
        Some(label) => format!("{label}={group}"),
    }
}

/// A share as a percentage.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_utc_to_the_second() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(1_700_000_000_999), "2023-11-14T22:13:20Z");
        assert_eq!(time(u64::MAX), format!("{} ms", u64::MAX));
        assert_eq!(time_or_dash(None), "-");
    }

    #[test]
    fn terminals_are_not_steered() {
        assert_eq!(clean("a\u{1b}[2Jb\r\n\tc\u{202e}"), "a\u{fffd}[2Jb\u{fffd}\n\tc\u{fffd}");
    }

    #[test]
    fn tables_are_plain_text_where_nobody_watches() {
        let text =
            table(&["id", "state"], [vec![cell("a"), toned("running", Tone::Good)], vec![cell("long"), cell("b")]]);
        assert_eq!(text, "ID    STATE\na     running\nlong  b");
        assert_eq!(
            properties(&[("id", "x".into()), ("reason", "two\nlines".into())]),
            "id      x\nreason  two\n        lines"
        );
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in
            [(0.0, "0.0000"), (3.412_9, "3.41"), (1_604.2, "1604"), (0.05, "0.0500"), (0.000_01, "1.0e-5")]
        {
            assert_eq!(significant(value), text);
        }
        assert_eq!(percent(0.123_4), "12.3 %");
    }

    #[test]
    fn endless_words_are_cut() {
        assert_eq!(shortened("short"), "short");
        let long = "é".repeat(MAX_FAULT_CHARS + 1);
        let cut = shortened(&long);
        assert!(cut.ends_with("é... (and more)") && cut.chars().count() < MAX_FAULT_CHARS + 20);
    }

    proptest! {
        #[test]
        fn any_text_and_time_can_be_shown(text in ".*", ms: u64) {
            prop_assert!(clean(&text).chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t')));
            let _ = (time(ms), properties(&[("x", text)]));
        }
    }
}
