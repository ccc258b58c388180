//! JSON texts to trees: strict JSON, plus the comments that DeepSpeed's hjson reader takes, each of which is a warning because Hugging
//! Face reads strict JSON. Keys that occur twice are an error, as in DeepSpeed.

use super::{
    node::{Entry, MAX_DEPTH, MAX_NODES, MAX_TEXT, Node, Value},
    yaml::duplicate,
};
use crate::diagnostic::{Diagnostic, Location, Places, Source};

/// Parses one JSON document.
///
/// # Errors
/// What makes the text no JSON document, or one beyond the limits. Warnings go to `warnings`.
pub fn parse(source: &Source, warnings: &mut Vec<Diagnostic>) -> Result<Node, Diagnostic> {
    if source.text.len() > MAX_TEXT {
        let message = format!("the file has {} bytes, expected at most {MAX_TEXT}", source.text.len());
        return Err(Diagnostic::error("json-too-large", message).at(source.at(0..0)));
    }
    let at = if source.text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut reader = Reader { places: Places::new(source), text: &source.text, at, nodes: 0, comment: None };
    let node = reader.value(0)?;
    reader.space()?;
    if reader.at < reader.text.len() {
        return Err(reader.expected("the end of the file"));
    }
    if let Some(comment) = reader.comment {
        let message = "DeepSpeed reads comments (hjson), but Hugging Face and LLaMA-Factory read this file as strict JSON and fail here";
        warnings.push(Diagnostic::warning("json-comment", message).at(comment).help("say it in a \"_comment\" key"));
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
}

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

    fn unclosed(&self, what: &str, start: usize) -> Diagnostic {
        Diagnostic::error("json-syntax", format!("this {what} has no end")).at(self.places.at(start..start + 1))
    }

    fn value(&mut self, depth: usize) -> Result<Node, Diagnostic> {
        self.space()?;
        let start = self.at;
        self.nodes += 1;
        if depth > MAX_DEPTH || self.nodes > MAX_NODES {
            let message = format!("more than {MAX_DEPTH} levels or {MAX_NODES} values");
            return Err(Diagnostic::error("json-too-deep", message).at(self.places.at(start..start)));
        }
        let value = match self.peek() {
            Some('{') => self.object(depth)?,
            Some('[') => self.array(depth)?,
            Some('"') => Value::Text { text: self.string()?, number: None },
            Some('-' | '0'..='9') => self.number()?,
            _ if self.take("true") => Value::Bool(true),
            _ if self.take("false") => Value::Bool(false),
            _ if self.take("null") => Value::Null,
            _ => return Err(self.expected("a value")),
        };
        Ok(Node::new(value, self.places.at(start..self.at)))
    }

    fn object(&mut self, depth: usize) -> Result<Value, Diagnostic> {
        self.take("{");
        let mut entries: Vec<Entry> = Vec::new();
        self.space()?;
        if self.take("}") {
            return Ok(Value::Map(entries));
        }
        loop {
            self.space()?;
            let start = self.at;
            if self.peek() != Some('"') {
                return Err(self.expected("a key in double quotes"));
            }
            let key = self.string()?;
            let at = self.places.at(start..self.at);
            if let Some(first) = entries.iter().find(|e| e.key == key) {
                return Err(duplicate("json-duplicate-key", &key, at, first.at.clone()));
            }
            self.space()?;
            if !self.take(":") {
                return Err(self.expected("':'"));
            }
            let value = self.value(depth + 1)?;
            entries.push(Entry { key, at, value });
            self.space()?;
            if self.take("}") {
                return Ok(Value::Map(entries));
            }
            if !self.take(",") {
                return Err(self.expected("',' or '}'"));
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
            self.space()?;
            if self.take("]") {
                return Ok(Value::Seq(items));
            }
            if !self.take(",") {
                return Err(self.expected("',' or ']'"));
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
        serde_json::from_str(&self.text[start..=end]).map_err(|_| {
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
            Diagnostic::error("json-syntax", format!("'{}' is no number that fits", crate::text::short(text)))
                .at(self.places.at(start..self.at))
        })
    }
}
