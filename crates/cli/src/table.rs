//! Numbers and tables for people. No decisions, no I/O.

use shardwright_core::text::shown;

/// Bytes in decimal units with three significant digits: `0 B`, `43.1 kB`, `1.19 GB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match (unit, value) {
        (0, _) => format!("{n} B"),
        (_, v) if v < 9.995 => format!("{v:.2} {}", UNITS[unit]),
        (_, v) if v < 99.95 => format!("{v:.1} {}", UNITS[unit]),
        (_, v) => format!("{v:.0} {}", UNITS[unit]),
    }
}

/// `1 rank`, `8 ranks`.
pub fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// How a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A longer cell does not widen its column: one absurd name must not pad a million rows.
const MOST_WIDTH: usize = 120;

/// Lines of a table under its header, two spaces between columns, no trailing blanks.
pub fn render(header: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    // Names are untrusted, and a terminal obeys control characters.
    let rows: Vec<Vec<_>> = rows.iter().map(|row| row.iter().map(|cell| shown(cell)).collect()).collect();
    let width = |s: &str| s.chars().count();
    let widths: Vec<usize> = header
        .iter()
        .enumerate()
        .map(|(c, (title, _))| rows.iter().map(|row| width(&row[c]).min(MOST_WIDTH)).chain([width(title)]).max().unwrap_or(0))
        .collect();
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (c, cell) in cells.into_iter().enumerate() {
            let blanks = " ".repeat(widths[c].saturating_sub(width(cell)));
            let (before, after) = if header[c].1 == Align::Right { (blanks.as_str(), "") } else { ("", blanks.as_str()) };
            text.push_str(if c == 0 { "" } else { "  " });
            text.push_str(before);
            text.push_str(cell);
            text.push_str(after);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    };
    let mut out = line(header.iter().map(|(title, _)| *title).collect());
    out.extend(rows.iter().map(|row| line(row.iter().map(AsRef::as_ref).collect())));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_three_digits() {
        let shown: Vec<String> =
            [0, 999, 1000, 9_995, 43_100, 99_950, 999_400, 999_500, 1_190_000_000, u64::MAX].into_iter().map(bytes).collect();
        assert_eq!(shown, ["0 B", "999 B", "1.00 kB", "10.0 kB", "43.1 kB", "100 kB", "999 kB", "1.00 MB", "1.19 GB", "18447 PB"]);
    }

    #[test]
    fn no_name_speaks_to_the_terminal() {
        assert_eq!(render(&[("name", Align::Left)], &[vec!["w\u{1b}[31m\n".into()]]), "name\nw\\u001b[31m\\n\n");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["0".into(), "a".into()], vec!["10".into(), "bcd".into()]];
        assert_eq!(render(&[("rank", Align::Right), ("name", Align::Left)], &rows), "rank  name\n   0  a\n  10  bcd\n");
    }
}
