//! Texts of others in messages: names out of checkpoints and configs, which must neither steer a terminal nor flood it.

#![doc(hidden)]

use std::borrow::Cow;

/// Characters of one text that [`shown`] leaves at most, escapes counted as one.
const MOST: usize = 1000;

/// True for characters that a terminal acts upon instead of showing them, or that change how their neighbours are shown.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    let steers = |c: char| steers(c) && !keep(c);
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' if steers(c) => out.push_str("\\n"),
            '\t' if steers(c) => out.push_str("\\t"),
            // In UTF-16, as JSON has it.
            c if steers(c) => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// A name or value on one line: what would steer a terminal is escaped as in JSON, the middle of what is very long left out.
pub fn shown(text: &str) -> Cow<'_, str> {
    match text.len() > MOST && text.chars().nth(MOST).is_some() {
        true => Cow::Owned(escape(&shortened(text), |_| false).into_owned()),
        false => escape(text, |_| false),
    }
}

fn shortened(text: &str) -> String {
    let start = text.char_indices().nth(MOST * 3 / 4).map_or(text.len(), |(at, _)| at);
    let end = text.char_indices().rev().nth(MOST / 4 - 1).map_or(0, |(at, _)| at);
    format!("{}… ({} bytes left out) …{}", &text[..start], end.saturating_sub(start), &text[end.max(start)..])
}

/// A text short enough for a message, on one line.
pub fn short(text: &str) -> String {
    const MOST: usize = 60;
    let one_line = text.replace(['\n', '\r', '\t'], " ");
    if one_line.chars().count() <= MOST { one_line } else { one_line.chars().take(MOST).chain(['…']).collect() }
}

/// A whole output of many lines, JSON too: as [`shown`], but line ends stay, and all of it.
pub fn harmless(text: &str) -> Cow<'_, str> {
    escape(text, |c| c == '\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_name_reaches_a_terminal_raw() {
        assert_eq!(shown("model.layers.0"), "model.layers.0");
        assert_eq!(shown("\u{1b}[31mred\u{7}\0\r\n\t\u{7f}"), "\\u001b[31mred\\u0007\\u0000\\u000d\\n\\t\\u007f");
        assert_eq!(shown("\u{9b}31m \u{202e}evil\u{2066}\u{2028}"), "\\u009b31m \\u202eevil\\u2066\\u2028");
        assert_eq!(shown("née 名 🜚"), "née 名 🜚");
        assert_eq!(shown("soft\u{ad}hyphen \u{e0041}\u{e007f}"), "soft\\u00adhyphen \\udb40\\udc41\\udb40\\udc7f", "invisible characters");
    }

    #[test]
    fn long_names_keep_both_ends() {
        let name = format!("start{}end", "é".repeat(1_000_000));
        let text = shown(&name);
        assert!(text.starts_with("start") && text.ends_with("end") && text.contains("bytes left out"), "{text}");
        assert!(text.chars().count() < MOST + 40);
        assert_eq!(shown(&"é".repeat(MOST)), "é".repeat(MOST));
        assert!(shown(&"é".repeat(MOST + 1)).contains("(2 bytes left out)"));
    }

    /// Escapes are JSON's own, so that a JSON text means the same afterwards.
    #[test]
    fn lines_stay_and_json_keeps_its_meaning() {
        let value = serde_json::json!({"a\u{9b}\u{202e}\u{7f}": ["b\u{1b}\n"]});
        let text = serde_json::to_string_pretty(&value).unwrap();
        let safe = harmless(&text);
        assert_eq!(safe.lines().count(), text.lines().count());
        assert!(!safe.contains(|c| steers(c) && c != '\n'));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
    }
}
