//! YAML texts to trees, typed as PyYAML types them (`scalar`), on saphyr-parser's events. Merge keys and aliases are expanded here, within
//! limits, and every text that PyYAML would read otherwise than meant becomes a warning.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    ops::Range,
};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};

use super::{
    node::{Entries, Entry, MAX_ALIASED, MAX_DEPTH, MAX_NODES, MAX_TEXT, Node, Value},
    scalar::{self, Trap},
    syntax,
};
use crate::{
    diagnostic::{Diagnostic, Location, Places, Source},
    text::short,
};

/// Parses one YAML document. An empty one is an empty mapping, as OmegaConf has it.
///
/// # Errors
/// What makes the text no YAML document, or one beyond the limits. What it can go on after goes to `findings`: warnings, and keys that occur
/// twice, of which the first counts.
pub fn parse(source: &Source, findings: &mut Vec<Diagnostic>) -> Result<Node, Diagnostic> {
    let node = parse_value(source, findings)?;
    Ok(if node.is_null() { Node::map(Vec::new(), node.at) } else { node })
}

/// As [`parse`], but of keys that occur twice the later one counts, as PyYAML has it, which does not mind them.
///
/// # Errors
/// As there.
#[doc(hidden)]
pub fn parse_later(source: &Source, findings: &mut Vec<Diagnostic>) -> Result<Node, Diagnostic> {
    read(source, findings, true)
}

/// As [`parse`], but the empty document is null.
///
/// # Errors
/// As there.
#[doc(hidden)]
pub fn parse_value(source: &Source, findings: &mut Vec<Diagnostic>) -> Result<Node, Diagnostic> {
    read(source, findings, false)
}

/// What PyYAML reads at all, in comments too.
fn is_printable(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{fffd}' | '\u{10000}'..)
}

fn read(source: &Source, findings: &mut Vec<Diagnostic>, later_counts: bool) -> Result<Node, Diagnostic> {
    let whole = source.at(0..0);
    if source.text.len() > MAX_TEXT {
        let message = format!("the file has {} bytes, expected at most {MAX_TEXT}", source.text.len());
        return Err(Diagnostic::error("yaml-too-large", message).at(whole));
    }
    if let Some((at, c)) = source.text.char_indices().find(|(_, c)| !is_printable(*c)) {
        let message = format!("not valid YAML: the character U+{:04X} is not printable", u32::from(c));
        return Err(Diagnostic::error("yaml-syntax", message).at(source.at(at..at + c.len_utf8())).help("leave it out"));
    }
    let skip = if source.text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut text = line_breaks(&source.text[skip..]);
    syntax::directives(source, &text, skip)?;
    let before = findings.len();
    let mut tabs_left = MOST_TABS;
    loop {
        let mut reader = Reader {
            source,
            places: Places::new(source),
            offsets: Offsets::new(&text, skip),
            parser: Parser::new_from_str(&text),
            anchors: HashMap::new(),
            names: HashSet::new(),
            scalars: Vec::new(),
            flows: Vec::new(),
            nodes: 0,
            aliased: 0,
            later_counts,
            findings,
        };
        match reader.document() {
            Ok(node) => {
                let (scalars, flows) = (reader.scalars, reader.flows);
                syntax::tabs(source, &scalars, &flows, findings)?;
                return Ok(node.unwrap_or_else(|| Node::new(Value::Null, whole)));
            }
            Err(error) => {
                let tab = syntax::tab_after_colon(&error, &text, skip).filter(|_| tabs_left > 0);
                let Some(tab) = tab else { return Err(error) };
                tabs_left -= 1;
                text.to_mut().replace_range(tab..=tab, " ");
                findings.truncate(before);
            }
        }
    }
}

/// The text with YAML 1.1's further line breaks as line feeds. Every byte keeps its place.
fn line_breaks(text: &str) -> Cow<'_, str> {
    const BREAKS: [(char, &str); 3] = [('\u{85}', " \n"), ('\u{2028}', "  \n"), ('\u{2029}', "  \n")];
    let mut text = Cow::Borrowed(text);
    for (c, feed) in BREAKS {
        if !text.is_ascii() && text.contains(c) {
            text = Cow::Owned(text.replace(c, feed));
        }
    }
    text
}

/// Tabs after colons that are read as spaces, each at the cost of reading the text once more.
const MOST_TABS: usize = 64;

/// Byte offsets of character indices, which is what the parser counts in.
struct Offsets {
    /// Empty where every character is one byte.
    table: Vec<usize>,
    skip: usize,
    len: usize,
}

impl Offsets {
    fn new(text: &str, skip: usize) -> Self {
        let table = if text.is_ascii() { Vec::new() } else { text.char_indices().map(|(at, _)| at).collect() };
        Self { table, skip, len: text.len() }
    }

    fn byte(&self, index: usize) -> usize {
        let at = if self.table.is_empty() { index.min(self.len) } else { self.table.get(index).copied().unwrap_or(self.len) };
        self.skip + at
    }
}

struct Anchor {
    node: Node,
    count: usize,
}

struct Reader<'a> {
    source: &'a Source,
    places: Places<'a>,
    offsets: Offsets,
    parser: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, Anchor>,
    /// Names of anchors.
    names: HashSet<String>,
    /// Where scalars stand, in bytes, in order.
    scalars: Vec<Range<usize>>,
    /// Where collections in brackets stand.
    flows: Vec<Range<usize>>,
    nodes: usize,
    /// Values that aliases stand for.
    aliased: usize,
    /// Whether the later of two equal keys counts.
    later_counts: bool,
    findings: &'a mut Vec<Diagnostic>,
}

/// More findings than this, and a key that occurs twice is the end.
const MOST_FINDINGS: usize = 100;

type Next<'a> = (Event<'a>, Span);

impl<'a> Reader<'a> {
    fn document(&mut self) -> Result<Option<Node>, Diagnostic> {
        let mut found = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(found),
                Event::DocumentStart(_) if found.is_some() => {
                    let message = "a second document starts here, expected one document a file";
                    return Err(Diagnostic::error("yaml-many-documents", message).at(self.at(span)));
                }
                Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..) | Event::Alias(_) => {
                    found = Some(self.node((event, span), 0)?);
                }
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Result<Next<'a>, Diagnostic> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => Err(self.syntax(&error)),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn syntax(&self, error: &ScanError) -> Diagnostic {
        let at = self.offsets.byte(error.marker().index());
        Diagnostic::error("yaml-syntax", format!("not valid YAML: {}", error.info())).at(self.places.at(at..at))
    }

    fn at(&self, span: Span) -> Location {
        let start = self.offsets.byte(span.start.index());
        let end = self.offsets.byte(span.end.index()).max(start);
        let trimmed = self.source.text[start..end].trim_end().len();
        self.places.at(start..start + trimmed)
    }

    fn node(&mut self, (event, span): Next<'a>, depth: usize) -> Result<Node, Diagnostic> {
        if depth > MAX_DEPTH {
            let message = format!("collections nest deeper than {MAX_DEPTH} here");
            return Err(Diagnostic::error("yaml-too-deep", message).at(self.at(span)));
        }
        self.charge(1, span)?;
        let (start, end) = (self.offsets.byte(span.start.index()), self.offsets.byte(span.end.index()));
        let (node, anchor) = match event {
            Event::Alias(anchor) => return self.alias(anchor, span),
            Event::Scalar(text, style, anchor, tag) => {
                self.scalars.push(start..end);
                (self.scalar(&text, style, tag.as_deref(), span)?, anchor)
            }
            Event::SequenceStart(anchor, tag) => (self.sequence(tag, span, depth)?, anchor),
            Event::MappingStart(anchor, tag) => (self.mapping(tag, span, depth)?, anchor),
            _ => (Node::new(Value::Null, self.at(span)), 0),
        };
        if matches!(node.value, Value::Seq(_) | Value::Map(_)) && self.source.text[..end].ends_with(['[', '{']) {
            self.flows.push(start..node.at.span.end);
        }
        if anchor > 0 {
            self.name(start, span)?;
            self.anchors.insert(anchor, Anchor { count: node.count(), node: node.clone() });
        }
        Ok(node)
    }

    /// Notes the name of an anchor: PyYAML lets a document have each once, of letters, digits, `_` and `-`.
    fn name(&mut self, start: usize, span: Span) -> Result<(), Diagnostic> {
        let mut words = self.source.text[start..].split_whitespace().take(2);
        let Some(name) = words.find_map(|word| word.strip_prefix('&')) else { return Ok(()) };
        let message = if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')) {
            format!("the anchor '{}' is not of letters, digits, '_' and '-', and PyYAML refuses it", short(name))
        } else if self.names.insert(name.to_owned()) {
            return Ok(());
        } else {
            format!("the anchor '{}' occurs twice, and PyYAML refuses the second", short(name))
        };
        Err(Diagnostic::error("yaml-syntax", message).at(self.at(span)).help("give it another name"))
    }

    fn charge(&mut self, nodes: usize, span: Span) -> Result<(), Diagnostic> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes <= MAX_NODES {
            return Ok(());
        }
        let message = format!("the document has more than {MAX_NODES} values, aliases expanded");
        Err(Diagnostic::error("yaml-too-many-values", message).at(self.at(span)))
    }

    fn alias(&mut self, anchor: usize, span: Span) -> Result<Node, Diagnostic> {
        let Some(count) = self.anchors.get(&anchor).map(|a| a.count) else {
            return Err(Diagnostic::error("yaml-recursive-alias", "this alias stands inside of its own anchor").at(self.at(span)));
        };
        self.charge(count, span)?;
        self.aliased = self.aliased.saturating_add(count);
        if self.aliased > MAX_ALIASED {
            let message = format!("aliases stand for more than {MAX_ALIASED} values");
            return Err(Diagnostic::error("yaml-too-many-values", message).at(self.at(span)).help("write them out"));
        }
        Ok(self.anchors[&anchor].node.clone())
    }

    fn sequence(&mut self, tag: Option<Cow<'a, Tag>>, span: Span, depth: usize) -> Result<Node, Diagnostic> {
        self.expect_tag(tag.as_deref(), "seq", span)?;
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd | Event::StreamEnd, end) => return Ok(Node::new(Value::Seq(items), self.upto(span, end))),
                next => items.push(self.node(next, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, tag: Option<Cow<'a, Tag>>, span: Span, depth: usize) -> Result<Node, Diagnostic> {
        self.expect_tag(tag.as_deref(), "map", span)?;
        let (mut own, mut merged): (Entries, Vec<Entry>) = Default::default();
        loop {
            let (event, key_span) = match self.next()? {
                (Event::MappingEnd | Event::StreamEnd, end) => {
                    merged.retain(|e| own.find(&e.key).is_none());
                    merged.append(&mut own.into_list());
                    return Ok(Node::map(merged, self.upto(span, end)));
                }
                next => next,
            };
            let at = self.at(key_span);
            let is_merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<");
            let key_node = if is_merge { Node::new(Value::Null, at.clone()) } else { self.node((event, key_span), depth + 1)? };
            let next = self.next()?;
            let value = self.node(next, depth + 1)?;
            if is_merge {
                merge(&mut merged, value, &at)?;
                continue;
            }
            let key = self.key(key_node, &at)?;
            match own.find(&key) {
                Some(first) => {
                    let twice = duplicate("yaml-duplicate-key", &key, at, first.at.clone());
                    if self.findings.len() >= MOST_FINDINGS {
                        return Err(twice);
                    }
                    self.findings.push(twice);
                    if self.later_counts {
                        own.replace(&key, value);
                    }
                }
                None => own.push(Entry { key, at, value }),
            }
        }
    }

    fn upto(&self, start: Span, end: Span) -> Location {
        self.at(Span::new(start.start, if end.end.index() >= start.start.index() { end.end } else { start.end }))
    }

    fn key(&mut self, node: Node, at: &Location) -> Result<String, Diagnostic> {
        let written = self.source.text[at.span.clone()].to_owned();
        let what = match node.value {
            Value::Text { text, .. } => return Ok(text),
            Value::Seq(_) | Value::Map(_) => {
                return Err(Diagnostic::error("yaml-key", format!("a key must be a string, found {}", node.describe())).at(at.clone()));
            }
            Value::Bool(b) => format!("the boolean {b}"),
            Value::Null => "null".into(),
            Value::Int(i) => format!("the integer {i}"),
            Value::Float(f) => format!("the number {f}"),
        };
        let message = format!("PyYAML reads the key {written} as {what}; it is taken as the string '{written}' here");
        self.findings.push(Diagnostic::warning("yaml-key-type", message).at(at.clone()).help("put it in quotes"));
        Ok(written)
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, span: Span) -> Result<Node, Diagnostic> {
        let at = self.at(span);
        let is_plain = style == ScalarStyle::Plain;
        let node = match tag {
            // PyYAML's `!!merge` and `!!value`, which nothing makes a value of. A merge key does not come here.
            None if is_plain && matches!(text, "<<" | "=") => {
                let message = format!("PyYAML does not read '{text}' as a string, and fails");
                return Err(Diagnostic::error("yaml-syntax", message).at(at).help("put it in quotes"));
            }
            None if is_plain => return Ok(self.plain(text, at)),
            None => Node::text(text, at),
            Some(tag) if is_bare(tag) => Node::text(text, at),
            Some(tag) => tagged(text, tag, at)?,
        };
        Ok(node)
    }

    fn plain(&mut self, text: &str, at: Location) -> Node {
        let scalar = scalar::plain(text);
        if let Some(trap) = scalar.trap {
            self.findings.push(warning(trap, text, &scalar.value, &at));
        }
        let mut node = Node::new(scalar.value, at);
        node.written = match &node.value {
            Value::Text { .. } => None,
            Value::Bool(b) if text == b.to_string() => None,
            Value::Int(i) if text == i.to_string() => None,
            _ => Some(text.into()),
        };
        node
    }

    fn expect_tag(&self, tag: Option<&Tag>, kind: &str, span: Span) -> Result<(), Diagnostic> {
        match tag {
            Some(tag) if !(is_core(tag) && tag.suffix == kind || is_bare(tag)) => Err(unknown_tag(tag, self.at(span))),
            _ => Ok(()),
        }
    }
}

/// `!` alone, which makes a string of a scalar and nothing of a collection.
fn is_bare(tag: &Tag) -> bool {
    !is_core(tag) && (tag.suffix.is_empty() || (tag.handle.is_empty() && tag.suffix == "!"))
}

fn is_core(tag: &Tag) -> bool {
    tag.is_yaml_core_schema()
}

fn unknown_tag(tag: &Tag, at: Location) -> Diagnostic {
    let message = format!("the tag '{}{}' is not read; expected plain values", short(&tag.handle), short(&tag.suffix));
    Diagnostic::error("yaml-tag", message).at(at)
}

fn tagged(text: &str, tag: &Tag, at: Location) -> Result<Node, Diagnostic> {
    if !is_core(tag) {
        return Err(unknown_tag(tag, at));
    }
    let value = scalar::plain(text).value;
    let fits = match (tag.suffix.as_str(), &value) {
        ("str", _) => return Ok(Node::text(text, at)),
        ("null", Value::Null) | ("bool", Value::Bool(_)) | ("int", Value::Int(_)) | ("float", Value::Float(_)) => Some(value),
        #[expect(clippy::cast_precision_loss, reason = "the user asked for a float")]
        ("float", Value::Int(i)) => Some(Value::Float(*i as f64)),
        ("float", Value::Text { number: Some(f), .. }) => Some(Value::Float(*f)),
        ("null" | "bool" | "int" | "float", _) => None,
        _ => return Err(unknown_tag(tag, at)),
    };
    fits.map(|value| Node::new(value, at.clone()))
        .ok_or_else(|| Diagnostic::error("yaml-tag", format!("'{}' is not a !!{}", short(text), tag.suffix)).at(at))
}

fn merge(into: &mut Vec<Entry>, value: Node, at: &Location) -> Result<(), Diagnostic> {
    let sources = match value.value {
        Value::Seq(items) => items,
        _ => vec![value],
    };
    for source in sources {
        let Value::Map(entries) = source.value else {
            let message = format!("a merge key takes a mapping or a list of mappings, found {}", source.describe());
            return Err(Diagnostic::error("yaml-merge", message).at(at.clone()));
        };
        for entry in entries {
            if into.iter().all(|e| e.key != entry.key) {
                into.push(entry);
            }
        }
    }
    Ok(())
}

/// The error for a key that a mapping has twice.
fn duplicate(code: &'static str, key: &str, at: Location, first: Location) -> Diagnostic {
    Diagnostic::error(code, format!("the key '{}' occurs twice", short(key))).at(at).and(first, "first here")
}

fn warning(trap: Trap, text: &str, value: &Value, at: &Location) -> Diagnostic {
    let (code, message, help) = match trap {
        Trap::Exponent(number) => (
            "yaml-exponent",
            format!("PyYAML reads {text} as the string '{text}', OmegaConf as a number; it is taken as {number} where a number is due"),
            format!("write {}, which every reader takes for the number", with_dot(text)),
        ),
        Trap::NewOctal(number) => (
            "yaml-octal",
            format!("PyYAML reads {text} as the string '{text}', and so it is taken here; YAML 1.2 reads it as {number}"),
            format!("write {number}"),
        ),
        Trap::OldOctal { there, meant } => (
            "yaml-octal",
            format!("PyYAML reads {text} as octal, which is {there}; so it is taken here, and not as {meant}"),
            format!("write {there} or {meant}, whichever is meant"),
        ),
        Trap::Sexagesimal => {
            let number = match value {
                Value::Int(i) => i.to_string(),
                Value::Float(f) => f.to_string(),
                _ => String::new(),
            };
            (
                "yaml-sexagesimal",
                format!("PyYAML reads {text} in base 60, which is {number}; so it is taken here, and not as the text '{text}'"),
                "put it in quotes if the text is meant".to_owned(),
            )
        }
    };
    Diagnostic::warning(code, message).at(at.clone()).help(help)
}

/// The spelling of an exponent that YAML 1.1 takes for a float: a dot and a sign.
fn with_dot(text: &str) -> String {
    let Some(at) = text.find(['e', 'E']) else { return text.to_owned() };
    let (mantissa, exponent) = (&text[..at], &text[at + 1..]);
    let dot = if mantissa.contains('.') { "" } else { ".0" };
    let sign = if exponent.starts_with(['-', '+']) { "" } else { "+" };
    format!("{mantissa}{dot}e{sign}{exponent}")
}
