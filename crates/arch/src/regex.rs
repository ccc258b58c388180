//! A backtracking matcher for the regular expressions in transformers' tables, which look ahead and behind.
//!
//! It knows what those tables use: literals, `.`, classes, `\d \w \s \b`, groups, alternation, greedy and lazy repetition, `^ $`, lookaround. A
//! search does a bounded number of steps, so that no pattern of a user's own can hang a load.

/// Steps of one search, after which it counts as no match.
const MOST_STEPS: u32 = 200_000;

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct Regex {
    root: Vec<Vec<Node>>,
    /// Names of groups, with their numbers.
    pub names: Vec<(String, usize)>,
    groups: usize,
    /// Text that every match has.
    literal: String,
}

#[derive(Clone, Debug)]
enum Node {
    Byte(u8),
    Class(Box<[bool; 256]>),
    Start,
    End,
    Border(bool),
    /// Its number, where it captures.
    Group(Option<usize>, Vec<Vec<Node>>),
    Repeat {
        node: Box<Node>,
        min: u32,
        max: u32,
        greedy: bool,
    },
    /// Behind, negative.
    Look(bool, bool, Vec<Vec<Node>>),
}

/// Start and end of each group, the whole match first.
pub type Captures = Vec<Option<(usize, usize)>>;

/// Why a pattern is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("regular expression '{pattern}': {what} at byte {at}")]
pub struct RegexError {
    pattern: String,
    what: &'static str,
    at: usize,
}

struct Parser<'p> {
    text: &'p [u8],
    at: usize,
    names: Vec<(String, usize)>,
    groups: usize,
}

type Parsed<T> = Result<T, &'static str>;

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn eat(&mut self, what: &str) -> bool {
        let found = self.text[self.at..].starts_with(what.as_bytes());
        if found {
            self.at += what.len();
        }
        found
    }

    fn alternatives(&mut self, depth: u32) -> Parsed<Vec<Vec<Node>>> {
        if depth > 50 {
            return Err("groups nest too deeply");
        }
        let mut out = vec![Vec::new()];
        while let Some(byte) = self.peek() {
            match byte {
                b')' => break,
                b'|' => {
                    self.at += 1;
                    out.push(Vec::new());
                }
                _ => {
                    let node = self.atom(depth)?;
                    let node = self.repeated(node)?;
                    if let Some(last) = out.last_mut() {
                        last.push(node);
                    }
                }
            }
        }
        Ok(out)
    }

    fn repeated(&mut self, node: Node) -> Parsed<Node> {
        let (min, max) = match self.peek() {
            Some(b'*') => (0, u32::MAX),
            Some(b'+') => (1, u32::MAX),
            Some(b'?') => (0, 1),
            Some(b'{') => match self.bounds() {
                Some(bounds) => bounds,
                None => return Ok(node),
            },
            _ => return Ok(node),
        };
        self.at += 1;
        let greedy = !self.eat("?");
        Ok(Node::Repeat { node: Box::new(node), min, max, greedy })
    }

    /// `{m}`, `{m,}`, `{m,n}`; leaves the position at the closing brace.
    fn bounds(&mut self) -> Option<(u32, u32)> {
        let rest = std::str::from_utf8(&self.text[self.at + 1..]).ok()?;
        let end = rest.find('}')?;
        let bounds = match rest[..end].split_once(',') {
            None => rest[..end].parse().ok().map(|n| (n, n)),
            Some((m, "")) => m.parse().ok().map(|m| (m, u32::MAX)),
            Some((m, n)) => m.parse().ok().zip(n.parse().ok()),
        }?;
        self.at += end + 1;
        Some(bounds)
    }

    fn atom(&mut self, depth: u32) -> Parsed<Node> {
        let Some(byte) = self.peek() else { return Err("it ends too early") };
        self.at += 1;
        Ok(match byte {
            b'^' => Node::Start,
            b'$' => Node::End,
            b'.' => {
                let mut class = [true; 256];
                class[usize::from(b'\n')] = false;
                Node::Class(Box::new(class))
            }
            b'[' => Node::Class(self.class()?),
            b'(' => self.group(depth)?,
            b'\\' => {
                let Some(escaped) = self.peek() else { return Err("it ends in a backslash") };
                self.at += 1;
                match escaped {
                    b'b' => Node::Border(true),
                    b'B' => Node::Border(false),
                    b'A' => Node::Start,
                    b'Z' => Node::End,
                    _ => match set(escaped) {
                        Some(class) => Node::Class(Box::new(class)),
                        None if escaped.is_ascii_alphanumeric() => return Err("an escape that is not supported"),
                        None => Node::Byte(escaped),
                    },
                }
            }
            b'*' | b'+' | b'?' => return Err("nothing to repeat"),
            _ => Node::Byte(byte),
        })
    }

    fn group(&mut self, depth: u32) -> Parsed<Node> {
        let look = [("?=", false, false), ("?!", false, true), ("?<=", true, false), ("?<!", true, true)];
        for (mark, behind, negative) in look {
            if self.eat(mark) {
                let inner = self.closed(depth)?;
                return Ok(Node::Look(behind, negative, inner));
            }
        }
        if self.eat("?:") {
            return Ok(Node::Group(None, self.closed(depth)?));
        }
        let number = self.groups + 1;
        if self.eat("?P<") {
            let rest = &self.text[self.at..];
            let end = rest.iter().position(|&b| b == b'>').ok_or("a group's name without an end")?;
            self.names.push((String::from_utf8_lossy(&rest[..end]).into_owned(), number));
            self.at += end + 1;
        } else if self.peek() == Some(b'?') {
            return Err("a group of a kind that is not supported");
        }
        self.groups = number;
        Ok(Node::Group(Some(number), self.closed(depth)?))
    }

    fn closed(&mut self, depth: u32) -> Parsed<Vec<Vec<Node>>> {
        let inner = self.alternatives(depth + 1)?;
        if self.eat(")") { Ok(inner) } else { Err("a group without an end") }
    }

    fn class(&mut self) -> Parsed<Box<[bool; 256]>> {
        let mut class = Box::new([false; 256]);
        let negative = self.eat("^");
        let mut first = true;
        loop {
            let Some(byte) = self.peek() else { return Err("a class without an end") };
            self.at += 1;
            if byte == b']' && !first {
                break;
            }
            first = false;
            let mut low = byte;
            if byte == b'\\' {
                low = self.peek().ok_or("a class without an end")?;
                self.at += 1;
                if let Some(named) = set(low) {
                    class.iter_mut().zip(named).for_each(|(c, n)| *c |= n);
                    continue;
                }
            }
            let high = match self.text.get(self.at..self.at + 2) {
                Some(&[b'-', high]) if high != b']' => {
                    self.at += 2;
                    high
                }
                _ => low,
            };
            (low..=high).for_each(|b| class[usize::from(b)] = true);
        }
        if negative {
            class.iter_mut().for_each(|c| *c = !*c);
        }
        Ok(class)
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// `\d`, `\w`, `\s` and their opposites.
fn set(letter: u8) -> Option<[bool; 256]> {
    let holds: fn(u8) -> bool = match letter.to_ascii_lowercase() {
        b'd' => |b| b.is_ascii_digit(),
        b'w' => is_word,
        b's' => |b| b.is_ascii_whitespace(),
        _ => return None,
    };
    let mut out = [false; 256];
    for b in 0..=255u8 {
        out[usize::from(b)] = holds(b) == letter.is_ascii_lowercase();
    }
    Some(out)
}

struct Search<'t> {
    text: &'t [u8],
    captures: Captures,
    steps: u32,
}

impl Regex {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// Where it is malformed or uses what is not supported.
    pub fn new(pattern: &str) -> Result<Self, RegexError> {
        let mut parser = Parser { text: pattern.as_bytes(), at: 0, names: Vec::new(), groups: 0 };
        let error = |what, at| RegexError { pattern: pattern.to_owned(), what, at };
        let root = parser.alternatives(0).map_err(|what| error(what, parser.at))?;
        if parser.at < pattern.len() {
            return Err(error("a closing parenthesis too many", parser.at));
        }
        let literal = if let [only] = root.as_slice() { longest_literal(only) } else { Vec::new() };
        // Cut within a character it is not UTF-8: then there is no literal to look for.
        let literal = String::from_utf8(literal).unwrap_or_default();
        Ok(Self { root, names: parser.names, groups: parser.groups, literal })
    }

    /// The leftmost match.
    pub fn search(&self, text: &str) -> Option<Captures> {
        let bytes = text.as_bytes();
        if !text.contains(&self.literal) {
            return None;
        }
        let mut search = Search { text: bytes, captures: vec![None; self.groups + 1], steps: 0 };
        for start in 0..=bytes.len() {
            let mut end = None;
            if search.alternatives(&self.root, start, &mut |_, at| {
                end = Some(at);
                true
            }) {
                search.captures[0] = Some((start, end?));
                return Some(search.captures);
            }
            if search.steps > MOST_STEPS {
                return None;
            }
            search.captures.fill(None);
        }
        None
    }
}

/// The longest run of bytes that every match of a sequence has.
fn longest_literal(nodes: &[Node]) -> Vec<u8> {
    let (mut best, mut run) = (Vec::new(), Vec::new());
    for node in nodes {
        match node {
            Node::Byte(b) => run.push(*b),
            Node::Start | Node::End | Node::Border(_) | Node::Look(..) => {}
            other => {
                if run.len() > best.len() {
                    best.clone_from(&run);
                }
                run.clear();
                if let Node::Group(_, alternatives) = other
                    && let [only] = alternatives.as_slice()
                {
                    let inner = longest_literal(only);
                    if inner.len() > best.len() {
                        best = inner;
                    }
                }
            }
        }
    }
    if run.len() > best.len() { run } else { best }
}

type Next<'n> = &'n mut dyn FnMut(&mut Search<'_>, usize) -> bool;

impl Search<'_> {
    fn alternatives(&mut self, of: &[Vec<Node>], at: usize, next: Next<'_>) -> bool {
        of.iter().any(|sequence| self.sequence(sequence, at, next))
    }

    fn sequence(&mut self, nodes: &[Node], at: usize, next: Next<'_>) -> bool {
        self.steps += 1;
        if self.steps > MOST_STEPS {
            return false;
        }
        let Some((node, rest)) = nodes.split_first() else { return next(self, at) };
        match node {
            Node::Byte(_) | Node::Class(_) => self.one(node, at) && self.sequence(rest, at + 1, next),
            Node::Start => at == 0 && self.sequence(rest, at, next),
            Node::End => at == self.text.len() && self.sequence(rest, at, next),
            Node::Border(want) => {
                let before = at > 0 && is_word(self.text[at - 1]);
                let after = self.text.get(at).is_some_and(|&b| is_word(b));
                ((before != after) == *want) && self.sequence(rest, at, next)
            }
            Node::Look(behind, negative, inner) => {
                let kept = self.captures.clone();
                let found = if *behind {
                    (0..=at).any(|start| self.alternatives(inner, start, &mut |_, end| end == at))
                } else {
                    self.alternatives(inner, at, &mut |_, _| true)
                };
                if *negative || !found {
                    self.captures = kept;
                }
                found != *negative && self.sequence(rest, at, next)
            }
            Node::Group(number, inner) => {
                let old = number.and_then(|n| self.captures[n]);
                let matched = self.alternatives(inner, at, &mut |search, end| {
                    let before = number.and_then(|n| search.captures[n].replace((at, end)));
                    if search.sequence(rest, end, next) {
                        return true;
                    }
                    if let Some(n) = number {
                        search.captures[*n] = before;
                    }
                    false
                });
                if !matched && let Some(n) = number {
                    self.captures[*n] = old;
                }
                matched
            }
            Node::Repeat { node, min, max, greedy } => {
                self.repeat(node, (*min, *max, *greedy), at, 0, &mut |search, end| search.sequence(rest, end, next))
            }
        }
    }

    /// Whether the byte at a place is one that the node stands for.
    fn one(&self, node: &Node, at: usize) -> bool {
        match (node, self.text.get(at)) {
            (Node::Byte(want), Some(b)) => want == b,
            (Node::Class(class), Some(&b)) => class[usize::from(b)],
            _ => false,
        }
    }

    fn repeat(&mut self, node: &Node, bounds: (u32, u32, bool), at: usize, done: u32, next: Next<'_>) -> bool {
        let (min, max, greedy) = bounds;
        // A loop over single bytes needs no recursion.
        if matches!(node, Node::Byte(_) | Node::Class(_)) {
            let most = (at..self.text.len()).take_while(|&i| self.one(node, i)).count().min(max as usize);
            let least = min as usize;
            if most < least {
                return false;
            }
            return if greedy { (least..=most).rev().any(|n| next(self, at + n)) } else { (least..=most).any(|n| next(self, at + n)) };
        }
        let more = |search: &mut Self, next: Next<'_>| {
            done < max
                && search.sequence(std::slice::from_ref(node), at, &mut |search, end| {
                    (end > at || done < min) && search.repeat(node, bounds, end, done + 1, next)
                })
        };
        if done < min {
            return more(self, next);
        }
        match greedy {
            true => more(self, next) || next(self, at),
            false => next(self, at) || more(self, next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole match and the groups, as Python's `re` has them.
    fn check(pattern: &str, text: &str, expect: Option<&[Option<&str>]>) {
        let found = Regex::new(pattern).unwrap().search(text);
        let found = found.map(|c| c.iter().map(|g| g.map(|(a, b)| &text[a..b])).collect::<Vec<_>>());
        assert_eq!(found.as_deref(), expect, "{pattern} on {text}");
    }

    #[test]
    fn patterns_of_the_tables_match_as_in_python() {
        check(r"(?P<g0>mlp.experts.down_proj(?!\w))", "l.mlp.experts.down_proj", Some(&[Some("mlp.experts.down_proj"); 2]));
        check(r"(?P<g0>mlp.experts.down_proj(?!\w))", "l.mlp.experts.down_proj_scales", None);
        check(
            r"(?P<g0>^model\.(?:(?!language_model\.))(.+))",
            "model.layers.0",
            Some(&[Some("model.layers.0"), Some("model.layers.0"), Some("layers.0")]),
        );
        check(r"(?P<g0>^model\.(?:(?!language_model\.))(.+))", "model.language_model.x", None);
        check(r"experts.*\.w1", "experts.10.w1", Some(&[Some("experts.10.w1")]));
        check(r"^(a|b)?c(\d+)$", "c12", Some(&[Some("c12"), None, Some("12")]));
        check(r"(?<!x)y{2,3}?", "xyyyy", Some(&[Some("yy")]));
        check(r"(?:ab)+?b", "ababb", Some(&[Some("ababb")]));
        check(r"layers\.([0-9]|1[0-1])\.", "layers.11.w", Some(&[Some("layers.11."), Some("11")]));
        check(r"[^.]+$", "a.b.c", Some(&[Some("c")]));
        check(r"\bnorm\b", "x.norm.y", Some(&[Some("norm")]));
        check("a|bc", "xbc", Some(&[Some("bc")]));
    }

    #[test]
    fn malformed_patterns_are_errors() {
        for pattern in ["(", "a)", "[a", "*", r"\", "(?Xa)", r"\q"] {
            assert!(Regex::new(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_that_explodes_ends() {
        let regex = Regex::new("(?:(?:a+)+)+b").unwrap();
        assert_eq!(regex.search(&"a".repeat(200)), None);
    }
}
