//! A resolution as YAML that every reader takes for the same values: a string that YAML 1.1 reads as something else (`no`, `1:30`) is in quotes,
//! and a float has the dot that PyYAML wants. What is written is decided in `resolve`.

use serde_json::{Map, Value as Json};
use shardwright_core::{diagnostic::Source, tree::yaml};

/// The document in block style, two spaces a level.
pub fn render(document: &Json) -> String {
    let mut out = String::new();
    match document {
        Json::Object(map) if !map.is_empty() => mapping(map, 0, &mut out),
        Json::Array(items) if !items.is_empty() => list(items, 0, &mut out),
        other => out += &(scalar(other) + "\n"),
    }
    out
}

fn mapping(map: &Map<String, Json>, indent: usize, out: &mut String) {
    for (key, value) in map {
        *out += &format!("{:indent$}{}:", "", text(key));
        match value {
            Json::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                mapping(inner, indent + 2, out);
            }
            Json::Array(items) if !items.is_empty() => {
                out.push('\n');
                list(items, indent, out);
            }
            other => *out += &format!(" {}\n", scalar(other)),
        }
    }
}

fn list(items: &[Json], indent: usize, out: &mut String) {
    for item in items {
        let mut inner = String::new();
        match item {
            Json::Object(map) if !map.is_empty() => mapping(map, indent + 2, &mut inner),
            Json::Array(items) if !items.is_empty() => list(items, indent + 2, &mut inner),
            other => inner = format!("{:indent$}  {}\n", "", scalar(other)),
        }
        // The first line's indentation makes room for the dash.
        *out += &format!("{:indent$}- {}", "", inner.trim_start());
    }
}

fn scalar(value: &Json) -> String {
    match value {
        Json::String(string) => text(string),
        Json::Number(number) if number.is_f64() => float(&number.to_string()),
        other => other.to_string(),
    }
}

/// Plain where every reader sees this string in it, else in quotes: one line, as all of JSON's escapes are YAML's too.
fn text(string: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || "_./-+ ()".contains(c);
    let looks_plain = string.starts_with(|c: char| c.is_alphabetic() || matches!(c, '_' | '/')) && string.chars().all(is_word);
    if looks_plain && !string.ends_with(' ') && is_string(string) {
        string.to_owned()
    } else if string.chars().all(|c| !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')) {
        format!("'{}'", string.replace('\'', "''"))
    } else {
        quoted(string)
    }
}

fn is_string(plain: &str) -> bool {
    let mut traps = Vec::new();
    yaml::parse(&Source::new("", plain), &mut traps).is_ok_and(|node| node.as_str() == Some(plain)) && traps.is_empty()
}

/// Double quotes, with all that YAML does not print escaped.
fn quoted(string: &str) -> String {
    let escape = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        '\n' => "\\n".into(),
        '\t' => "\\t".into(),
        c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => format!("\\u{:04x}", u32::from(c)),
        c => c.into(),
    };
    format!("\"{}\"", string.chars().map(escape).collect::<String>())
}

/// PyYAML takes `1e-8` for a string, and wants `1.0e-8`; an exponent has its sign there.
fn float(digits: &str) -> String {
    let Some((mantissa, exponent)) = digits.split_once('e') else { return digits.to_owned() };
    let dot = if mantissa.contains('.') { "" } else { ".0" };
    let sign = if exponent.starts_with(['-', '+']) { "" } else { "+" };
    format!("{mantissa}{dot}e{sign}{exponent}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_rendered_is_read_as_the_same_values() {
        let words = [
            "no",
            "NO",
            "Yes",
            "on",
            "off",
            "true",
            "null",
            "~",
            "",
            "1:30",
            "010",
            "0o10",
            "5e8",
            "1.5",
            ".inf",
            "2001-12-14",
            "a: b",
            "a #b",
            "- a",
            "[",
            "{",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
            "`a",
            "|",
            ">",
            "'",
            "\"",
            "it's",
            " a",
            "a ",
            "a\nb",
            "a\tb",
            "a\\nb",
            "\u{1b}[31m",
            "\u{85}",
            "\u{2028}",
            "模型",
            "=",
            "<<",
            "---",
            "...",
            "? a",
            "a:",
            "y",
            "plain words (of prose)",
            "/a/b.json",
            "\u{feff}a",
        ];
        let numbers = json!([0, -1, 1.5, 1e-8, 1.5e-9, 1e300, 5e-324, 1e16, u64::MAX, i64::MIN]);
        let keyed: Map<String, Json> = words.iter().map(|w| ((*w).to_owned(), json!(w))).collect();
        let document = json!({"words": &words[..], "numbers": numbers, "keyed": keyed, "empty": [{}, [], null, true],
            "nested": [[1, [2, {"a": {"b": ["no"]}}]], {"no": "no", "b": [{"c": 1}, {}]}]});
        let rendered = render(&document);
        let mut traps = Vec::new();
        let read = yaml::parse(&Source::new("r", rendered.as_str()), &mut traps).expect(&rendered);
        assert_eq!(read.to_json(), document, "{rendered}");
        let traps: Vec<_> = traps.iter().filter(|t| t.code != "yaml-key-type").collect();
        assert!(traps.is_empty(), "{traps:?}");
    }
}
