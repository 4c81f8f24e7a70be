//! Text for a terminal of 80 columns.

use std::fmt::Write as _;

use gorego_telemetry::{
    builds::Tally,
    web::{Lookups, format},
};
use ratatui::text::Span;

/// The columns of a screen.
pub(super) const COLUMNS: usize = 80;

/// Escapes the characters that a terminal would interpret: control characters, and those that reorder text. Clients choose
/// the names of targets and builds.
pub(crate) fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for char in text.chars() {
        let reorders = matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if char.is_control() || reorders || matches!(char, '\u{2028}' | '\u{2029}') {
            let _ = write!(cleaned, "{}", char.escape_default());
        } else {
            cleaned.push(char);
        }
    }
    cleaned
}

/// Returns the number of columns that the text takes.
pub(super) fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// Cuts the text to `columns`, and marks the cut.
pub(super) fn fit(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut cut = String::new();
    for char in text.chars() {
        cut.push(char);
        if width(&cut) + 1 > columns {
            cut.pop();
            break;
        }
    }
    cut.push('…');
    cut
}

/// Breaks a sentence into lines of at most 80 columns that begin with `indent`.
pub(super) fn wrap(indent: &str, sentence: &str) -> String {
    let mut lines = String::new();
    let mut line = indent.to_owned();
    for word in sentence.split_whitespace() {
        if line.len() > indent.len() {
            if width(&line) + 1 + width(word) > COLUMNS {
                lines.push_str(&line);
                lines.push('\n');
                line.clear();
                line.push_str(indent);
            } else {
                line.push(' ');
            }
        }
        line.push_str(word);
    }
    lines + &line + "\n"
}

/// Renders a number of the page with the spaces of a terminal.
fn plain(text: &str) -> String {
    text.replace(['\u{a0}', '\u{202f}'], " ")
}

/// Renders a count in at most nine columns.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(super) fn count(value: u64) -> String {
    let units = [
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
    ];
    let unit = units.into_iter().find(|(unit, _)| value as f64 >= *unit);
    match unit {
        Some((unit, name)) if value >= 10_000_000 => format!("{:.1} {name}", value as f64 / unit),
        _ => plain(&format::count(value)),
    }
}

/// Renders a count of things. `noun` is one of them.
pub(super) fn counted(value: u64, noun: &str) -> String {
    format!("{} {}", count(value), format::number_of(value, noun))
}

/// Renders a size.
pub(super) fn bytes(value: u64) -> String {
    plain(&format::bytes(value))
}

/// Renders bytes a second.
pub(super) fn throughput(value: f64) -> String {
    plain(&format::size(value)) + "/s"
}

/// Renders calls a second.
pub(super) fn rate(value: f64) -> String {
    plain(&format::rate(value)) + "/s"
}

/// Renders a share from 0 to 1.
pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_owned(), |share| plain(&format::percent(share)))
}

/// Returns the share of hits of the lookups, if there were any.
pub(super) fn hit_rate(total: &Tally) -> Option<f64> {
    let lookups = Lookups {
        hits: total.hits,
        misses: total.misses,
        incomplete: total.incomplete,
        ..Lookups::default()
    };
    lookups.hit_rate()
}

/// Renders a duration.
pub(super) fn seconds(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(0.0) => "0 s".to_owned(),
        Some(value) => plain(&format::seconds(value)),
    }
}

/// Renders the time from one moment to another, in milliseconds since the Unix epoch.
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
pub(super) fn span(from_ms: u64, to_ms: u64) -> String {
    let passed = to_ms.saturating_sub(from_ms) / 1000;
    seconds(Some(passed as f64))
}

/// Rows in aligned columns. The first row is the header.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// The number of columns at the left that hold text. The others hold numbers.
    pub(super) texts: usize,
    /// Set if the last column holds text, too.
    pub(super) last_is_text: bool,
    pub(super) rows: Vec<Vec<String>>,
}

impl Table {
    /// Returns a table without rows.
    pub(super) fn new<const N: usize>(texts: usize, header: [&str; N]) -> Self {
        Self {
            texts,
            last_is_text: false,
            rows: vec![header.map(str::to_owned).to_vec()],
        }
    }

    /// Returns whether the table has no rows below its header.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// Renders the rows, two columns apart.
    pub(super) fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let widest = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| width(cell)).max().unwrap_or_default()
        };
        let widths: Vec<_> = (0..columns).map(widest).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate();
            let cells = cells.map(|(column, (cell, widest))| {
                let padding = " ".repeat(widest.saturating_sub(width(cell)));
                let is_last = self.last_is_text && column + 1 == columns;
                if column < self.texts || is_last {
                    format!("{cell}{padding}")
                } else {
                    format!("{padding}{cell}")
                }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            line.trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_cannot_drive_the_terminal() {
        let hostile = "a\u{1b}[2J\u{9b}b\r\n\u{7}\u{202e}\u{2066}\tä日";
        let cleaned = clean(hostile);
        assert!(!cleaned.chars().any(char::is_control), "{cleaned:?}");
        assert!(!cleaned.contains(['\u{202e}', '\u{2066}']), "{cleaned:?}");
        assert_eq!(clean("-O2 ä日"), "-O2 ä日");
        assert_eq!(clean("one\ntwo"), "one\\ntwo");
    }

    #[test]
    fn text_is_cut_at_a_character() {
        assert_eq!(fit("short", 5), "short");
        assert_eq!(fit("longer", 5), "long…");
        assert_eq!(fit("日本語", 4), "日…");
    }

    #[test]
    fn sentences_are_broken_between_words() {
        let text = wrap("  ", &"word ".repeat(40));
        assert!(text.lines().all(|line| width(line) <= COLUMNS));
        assert!(text.lines().all(|line| line.starts_with("  word")));
        assert_eq!(text.split_whitespace().count(), 40);
        let long = "x".repeat(100);
        assert_eq!(wrap("", &long), format!("{long}\n"));
    }

    #[test]
    fn counts_have_at_most_nine_columns() {
        for (value, text) in [
            (0, "0"),
            (9_999_999, "9 999 999"),
            (12_345_678, "12.3 M"),
            (2_000_000_000, "2.0 G"),
            (u64::MAX, "18.4 E"),
        ] {
            assert_eq!(count(value), text);
        }
    }

    #[test]
    fn columns_are_aligned_by_what_the_terminal_shows() {
        let mut table = Table::new(1, ["Tier", "Hits"]);
        table
            .rows
            .push(vec!["日本".to_owned(), "12 345".to_owned()]);
        assert_eq!(table.lines(), ["Tier    Hits", "日本  12 345"]);
    }
}
