//! JSON texts to trees: strict JSON, with the NaN and Infinity of Python's reader. Comments, which DeepSpeed's hjson reader takes, are passed over,
//! and the first is an error because Hugging Face reads strict JSON. What else hjson is laxer in is refused by name. Of keys that occur twice the
//! later counts, with a warning.

use super::node::{Entries, Entry, MAX_JSON_DEPTH, MAX_NODES, MAX_TEXT, Node, Value};
use crate::{
    diagnostic::{Diagnostic, Location, Places, Source},
    text::short,
};

/// Parses one JSON document.
///
/// # Errors
/// What makes the text no JSON document, or one beyond the limits. What it can go on after goes to `findings`: the first comment, keys
/// that occur twice, and numbers that only Python's reader takes.
pub fn parse(source: &Source, findings: &mut Vec<Diagnostic>) -> Result<Node, Diagnostic> {
    if source.text.len() > MAX_TEXT {
        let message = format!("the file has {} bytes, expected at most {MAX_TEXT}", source.text.len());
        return Err(Diagnostic::error("json-too-large", message).at(source.at(0..0)));
    }
    let at = if source.text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut reader = Reader { places: Places::new(source), text: &source.text, at, nodes: 0, comment: None, odd: Vec::new() };
    reader.space()?;
    if reader.starts_key() {
        return Err(reader.hjson("an object without braces"));
    }
    let node = reader.value(0)?;
    reader.space()?;
    if reader.at < reader.text.len() {
        return Err(reader.expected("the end of the file"));
    }
    findings.append(&mut reader.odd);
    if at > 0 {
        let message = "the file begins with a byte order mark, which Hugging Face's and LLaMA-Factory's strict JSON reader refuses";
        let help = "save it as UTF-8 without a byte order mark (BOM)";
        findings.push(Diagnostic::error("json-bom", message).at(source.at(0..at)).help(help));
    }
    if let Some(comment) = reader.comment {
        let message =
            "a comment: DeepSpeed alone reads them (hjson), accelerate and LLaMA-Factory read this file as strict JSON and fail here";
        findings.push(Diagnostic::error("json-comment", message).at(comment).help("write it as the value of a \"_comment\" key"));
    }
    Ok(node)
}

struct Reader<'a> {
    places: Places<'a>,
    text: &'a str,
    at: usize,
    nodes: usize,
    /// The first comment.
    comment: Option<Location>,
    /// Keys that occur twice, and numbers that are not JSON's.
    odd: Vec<Diagnostic>,
}

/// As Python's reader has it, by which Hugging Face and LLaMA-Factory read such a file and hand it to DeepSpeed.
fn twice(key: &str, at: Location, first: Location) -> Diagnostic {
    let message = format!("the key '{}' occurs twice, and the later one counts", short(key));
    let help = "leave out one of them: DeepSpeed's own reader refuses such a file";
    Diagnostic::warning("json-duplicate-key", message).at(at).and(first, "first here").help(help)
}

/// More findings than these are left out.
const MOST_FINDINGS: usize = 100;

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        self.at += if found { token.len() } else { 0 };
        found
    }

    fn expected(&self, what: &str) -> Diagnostic {
        let found = self.peek().map_or("the end of the file".into(), |c| format!("'{}'", c.escape_default()));
        let end = self.at + self.peek().map_or(0, char::len_utf8);
        Diagnostic::error("json-syntax", format!("expected {what}, found {found}")).at(self.places.at(self.at..end))
    }

    fn space(&mut self) -> Result<(), Diagnostic> {
        loop {
            let rest = self.rest();
            self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len();
            let start = self.at;
            if self.take("//") || self.take("#") {
                self.at += self.rest().find('\n').unwrap_or(self.rest().len());
            } else if self.take("/*") {
                self.at += self.rest().find("*/").ok_or_else(|| self.unclosed("comment", start))? + 2;
            } else {
                return Ok(());
            }
            self.comment.get_or_insert_with(|| self.places.at(start..self.at));
        }
    }

    /// What hjson reads here and JSON does not, where a key or a string is due.
    fn lax(&self, due: &str) -> Option<&'static str> {
        match (self.peek()?, due) {
            ('\'', _) if self.rest().starts_with("'''") => Some("a string in three quotes"),
            ('\'', _) => Some("a string in single quotes"),
            ('{' | '}' | '[' | ']' | ',' | ':' | '"', _) => None,
            (_, "a key") => Some("a key without quotes"),
            _ => Some("a string without quotes"),
        }
    }

    /// One located error for what only hjson reads: it is refused, because no other reader of such a file takes it.
    fn hjson(&self, what: &str) -> Diagnostic {
        let rest = self.rest();
        let len = rest.find(['\n', ',', ':', '}', ']']).unwrap_or(rest.len());
        let end = self.at + rest[..len].trim_end().len().max(rest.chars().next().map_or(0, char::len_utf8));
        let message = format!("{what} is hjson, which DeepSpeed would read, but Hugging Face and LLaMA-Factory read strict JSON");
        Diagnostic::error("json-hjson", message).at(self.places.at(self.at..end)).help("only comments are read here beside strict JSON")
    }

    /// True where the text goes on with a word and a colon: an object that hjson lets stand without its braces.
    fn starts_key(&self) -> bool {
        let rest = self.rest();
        let word = rest.len() - rest.trim_start_matches(|c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '"' | '\'')).len();
        word > 0 && rest[word..].trim_start().starts_with(':')
    }

    /// A word that no letter follows, as in `trueish`, which hjson reads as a string.
    fn word(&mut self, word: &str) -> bool {
        let next = self.rest().strip_prefix(word).map(|rest| rest.trim_start_matches([' ', '\t']).chars().next());
        let ends = matches!(next, Some(None | Some(',' | '}' | ']' | '\n' | '\r' | '#' | '/')));
        ends && self.take(word)
    }

    /// After a member: true at the end of an object or an array, false after a comma that another member follows.
    fn ends(&mut self, close: &str, due: &str) -> Result<bool, Diagnostic> {
        let line = self.rest().find('\n').map(|n| self.at + n);
        self.space()?;
        if self.take(close) {
            return Ok(true);
        }
        let comma = self.at;
        if !self.take(",") {
            let is_new_line = line.is_some_and(|n| n < self.at) && self.at < self.text.len();
            return Err(if is_new_line && !self.rest().starts_with(['}', ']', ':']) {
                self.hjson("a member without a comma before it")
            } else {
                self.expected(due)
            });
        }
        self.space()?;
        if self.rest().starts_with(close) {
            self.at = comma;
            return Err(self.hjson("a comma after the last member"));
        }
        Ok(false)
    }

    fn unclosed(&self, what: &str, start: usize) -> Diagnostic {
        Diagnostic::error("json-syntax", format!("this {what} has no end")).at(self.places.at(start..start + 1))
    }

    fn value(&mut self, depth: usize) -> Result<Node, Diagnostic> {
        self.space()?;
        let start = self.at;
        self.nodes += 1;
        if depth > MAX_JSON_DEPTH || self.nodes > MAX_NODES {
            let message = format!("more than {MAX_JSON_DEPTH} levels or {MAX_NODES} values");
            return Err(Diagnostic::error("json-too-deep", message).at(self.places.at(start..start)));
        }
        let value = match self.peek() {
            Some('{') => self.object(depth)?,
            Some('[') => self.array(depth)?,
            Some('"') => Value::Text { text: self.string()?, number: None },
            _ if self.word("NaN") => self.constant(f64::NAN, start),
            _ if self.word("Infinity") => self.constant(f64::INFINITY, start),
            _ if self.word("-Infinity") => self.constant(f64::NEG_INFINITY, start),
            Some('-' | '0'..='9') => self.number()?,
            _ if self.word("true") => Value::Bool(true),
            _ if self.word("false") => Value::Bool(false),
            _ if self.word("null") => Value::Null,
            _ => {
                return Err(match self.lax("a string") {
                    Some(what) => self.hjson(what),
                    None => self.expected("a value"),
                });
            }
        };
        Ok(Node::new(value, self.places.at(start..self.at)))
    }

    /// A number that JSON has no word for and Python's reader has.
    fn constant(&mut self, number: f64, start: usize) -> Value {
        let message = format!("{} is not JSON: Python's reader takes it, stricter ones refuse it", &self.text[start..self.at]);
        if self.odd.len() < MOST_FINDINGS {
            let at = self.places.at(start..self.at);
            self.odd.push(Diagnostic::warning("json-constant", message).at(at).help("write a number"));
        }
        Value::Float(number)
    }

    fn object(&mut self, depth: usize) -> Result<Value, Diagnostic> {
        self.take("{");
        let mut entries = Entries::default();
        self.space()?;
        if self.take("}") {
            return Ok(Value::Map(entries.into_list()));
        }
        loop {
            self.space()?;
            let start = self.at;
            if self.peek() != Some('"') {
                return Err(match self.lax("a key") {
                    Some(what) => self.hjson(what),
                    None => self.expected("a key in double quotes"),
                });
            }
            let key = self.string()?;
            let at = self.places.at(start..self.at);
            let twice = entries.find(&key).map(|first| twice(&key, at.clone(), first.at.clone()));
            self.space()?;
            if !self.take(":") {
                return Err(self.expected("':'"));
            }
            let value = self.value(depth + 1)?;
            match twice {
                Some(twice) => {
                    entries.replace(&key, value);
                    if self.odd.len() < MOST_FINDINGS {
                        self.odd.push(twice);
                    }
                }
                None => entries.push(Entry { key, at, value }),
            }
            if self.ends("}", "',' or '}'")? {
                return Ok(Value::Map(entries.into_list()));
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, Diagnostic> {
        self.take("[");
        let mut items = Vec::new();
        self.space()?;
        if self.take("]") {
            return Ok(Value::Seq(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.ends("]", "',' or ']'")? {
                return Ok(Value::Seq(items));
            }
        }
    }

    /// A string, its escapes resolved by serde_json.
    fn string(&mut self) -> Result<String, Diagnostic> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        let mut end = start + 1;
        while end < bytes.len() && bytes[end] != b'"' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        if end >= bytes.len() {
            return Err(self.unclosed("string", start));
        }
        self.at = end + 1;
        let written = &self.text[start..=end];
        let read = serde_json::from_str(written).or_else(|error| match without_surrogates(written) {
            Some(text) => {
                let message = "half of a character (a lone surrogate) in a string: Python's reader takes it, stricter ones refuse it";
                if self.odd.len() < MOST_FINDINGS {
                    let at = self.places.at(start..self.at);
                    self.odd.push(Diagnostic::warning("json-constant", message).at(at).help("leave it out"));
                }
                serde_json::from_str(&text)
            }
            None => Err(error),
        });
        read.map_err(|_| {
            let message = "this string has a raw control character or an escape that JSON does not know";
            Diagnostic::error("json-syntax", message).at(self.places.at(start..end + 1))
        })
    }

    fn number(&mut self) -> Result<Value, Diagnostic> {
        let start = self.at;
        let rest = self.rest();
        let len = rest.bytes().take_while(|b| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')).count();
        self.at += len;
        let text = &rest[..len];
        let number = serde_json::from_str::<serde_json::Number>(text).ok();
        let is_int = text.bytes().all(|b| b.is_ascii_digit() || b == b'-');
        let value = match number {
            Some(_) if is_int => text.parse().ok().map(Value::Int),
            Some(number) => number.as_f64().map(Value::Float),
            None => None,
        };
        value.ok_or_else(|| {
            Diagnostic::error("json-syntax", format!("'{}' is not a number that fits", short(text))).at(self.places.at(start..self.at))
        })
    }
}

/// A JSON string with U+FFFD for each `\uD800` to `\uDFFF` that has no other half; `None` where there is none.
fn without_surrogates(text: &str) -> Option<String> {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok().filter(|_| digits.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let (mut out, mut rest, mut at) = (String::new(), 0, 0);
    while let Some(next) = text[at..].find('\\') {
        at += next;
        at += match (unit(at), unit(at + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                out.push_str(&text[rest..at]);
                out.push_str("\\ufffd");
                rest = at + 6;
                6
            }
            _ => 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        };
    }
    (rest > 0).then(|| out + &text[rest..])
}
