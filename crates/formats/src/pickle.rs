//! A reader of pickles, protocols 2 to 5, that executes nothing: opcodes build a graph of plain values, and calls stay what they are, a name
//! of [`crate::globals`] with its arguments. Any other name, and any other opcode, is refused.
//!
//! The graph is an arena, so a hostile cycle is only a cycle of numbers. Its size is linear in the pickle's; what walks it must bound its
//! steps, as [`Pickle::plain`] does.

use std::{collections::HashMap, num::NonZeroU32, ops::Range};

use crate::{FormatError, Result, globals::Global};

/// Bytes that a pickle may have.
pub const MAX_PICKLE: u64 = 1 << 30;
/// How deep [`Pickle::plain`] follows values.
pub const MAX_DEPTH: u32 = 64;
/// How many values [`Pickle::plain`] makes of one.
const MAX_PLAIN: usize = 1 << 20;

/// A value's number in its [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(NonZeroU32);

impl Id {
    fn index(self) -> usize {
        self.0.get() as usize
    }
}

/// Where parts of a value stand in its [`Pickle`], which gives them out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    len: u32,
}

impl Span {
    /// The start of those that stand alone, each in a vector of its own, because they were added to.
    const GROWN: u32 = u32::MAX;

    /// A pickle is shorter than [`MAX_PICKLE`], and so is what it is made of.
    #[expect(clippy::cast_possible_truncation, reason = "bounded by the pickle's size")]
    fn new(start: usize, end: usize) -> Self {
        Self { start: start as u32, len: (end - start) as u32 }
    }

    #[expect(clippy::cast_possible_truncation, reason = "bounded by the pickle's size")]
    fn grown(number: usize) -> Self {
        Self { start: Self::GROWN, len: number as u32 }
    }

    fn range(self) -> Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

/// One value. Metadata has millions, of 16 bytes each: their parts are held by the pickle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Node {
    /// `None`.
    None,
    /// A bool.
    Bool(bool),
    /// An integer of at most 64 bits.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string: [`Pickle::str`].
    Str(Span),
    /// Bytes, which nothing that is read needs.
    Bytes,
    /// A tuple: [`Pickle::items`].
    Tuple(Span),
    /// A list, or a set: [`Pickle::items`].
    List(Span),
    /// A mapping, in its order: [`Pickle::dict`].
    Dict(Span),
    /// A name of the closed list.
    Global(Global),
    /// A call of such a name, or an object of such a class.
    Call {
        /// The name.
        global: Global,
        /// Its arguments: a tuple.
        args: Id,
        /// What BUILD gave it.
        state: Option<Id>,
    },
    /// A reference to a storage: what `persistent_id` was.
    Persistent(Id),
}

const _: () = assert!(size_of::<Node>() == 16);

/// A plain value, free of its pickle.
#[derive(Clone, Debug, PartialEq)]
pub enum Plain {
    /// `None`.
    None,
    /// A bool.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Str(String),
    /// A tuple.
    Tuple(Vec<Plain>),
    /// A list.
    List(Vec<Plain>),
    /// A mapping, in its order.
    Dict(Vec<(Plain, Plain)>),
}

impl Plain {
    /// The number, where it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            #[expect(clippy::cast_precision_loss, reason = "hyperparameters and steps are far below 2^53")]
            Self::Int(n) => Some(*n as f64),
            Self::Float(n) => Some(*n),
            _ => None,
        }
    }
}

/// A pickle's values.
#[derive(Clone, Debug)]
pub struct Pickle {
    values: Values,
    root: Id,
}

#[derive(Clone, Debug)]
struct Values {
    nodes: Vec<Node>,
    texts: String,
    items: Parts<Id>,
    pairs: Parts<(Id, Id)>,
}

/// What lists or mappings hold: those that are filled at once side by side, others by themselves.
#[derive(Clone, Debug)]
struct Parts<T> {
    together: Vec<T>,
    grown: Vec<Vec<T>>,
}

impl<T> Default for Parts<T> {
    fn default() -> Self {
        Self { together: Vec::new(), grown: Vec::new() }
    }
}

impl<T: Copy> Parts<T> {
    fn get(&self, span: Span) -> &[T] {
        if span.start == Span::GROWN { &self.grown[span.len as usize] } else { &self.together[span.range()] }
    }

    fn put(&mut self, parts: impl IntoIterator<Item = T>) -> Span {
        let start = self.together.len();
        self.together.extend(parts);
        Span::new(start, self.together.len())
    }

    /// Adds to what stands at `span`; where it stands then.
    fn add(&mut self, span: Span, parts: impl IntoIterator<Item = T>) -> Span {
        if span.start == Span::GROWN {
            self.grown[span.len as usize].extend(parts);
            return span;
        }
        if span.len == 0 {
            return self.put(parts);
        }
        let mut alone = self.together[span.range()].to_vec();
        alone.extend(parts);
        self.grown.push(alone);
        Span::grown(self.grown.len() - 1)
    }

    /// A copy that can be added to by itself, and its length.
    fn copy(&mut self, span: Span) -> (Span, usize) {
        let len = self.get(span).len();
        if span.start == Span::GROWN {
            self.grown.push(self.grown[span.len as usize].clone());
            return (Span::grown(self.grown.len() - 1), len);
        }
        (span, len)
    }
}

impl Values {
    fn node(&self, id: Id) -> &Node {
        &self.nodes[id.index()]
    }

    fn str(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Str(text) => self.texts.get(text.range()),
            _ => None,
        }
    }

    fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(entries) => Some(self.pairs.get(*entries)),
            _ => None,
        }
    }

    fn items(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::List(items) | Node::Tuple(items) => Some(self.items.get(*items)),
            _ => None,
        }
    }
}

impl Pickle {
    /// Reads a whole pickle.
    ///
    /// # Errors
    /// Names the opcode or the global that is refused, and what is malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() as u64 > MAX_PICKLE {
            return Err(FormatError::new("the pickle is too large")
                .expected(format_args!("at most {MAX_PICKLE} bytes"))
                .found(bytes.len()));
        }
        // The first node is nobody's, so that no value has the number 0.
        let values = Values { nodes: vec![Node::None], texts: String::new(), items: Parts::default(), pairs: Parts::default() };
        let mut machine =
            Machine { bytes, at: 0, values, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), next_memo: 0, copied: 0 };
        let root = machine.run()?;
        Ok(Self { values: machine.values, root })
    }

    /// The value that the pickle is of.
    pub fn root(&self) -> Id {
        self.root
    }

    /// A value.
    pub fn node(&self, id: Id) -> &Node {
        self.values.node(id)
    }

    /// The string that it is, if it is one.
    pub fn str(&self, id: Id) -> Option<&str> {
        self.values.str(id)
    }

    /// The integer that it is; a bool is none.
    pub fn int(&self, id: Id) -> Option<i64> {
        match self.node(id) {
            Node::Int(n) => Some(*n),
            _ => None,
        }
    }

    /// The entries of a mapping.
    pub fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        self.values.dict(id)
    }

    /// The items of a list or a tuple.
    pub fn items(&self, id: Id) -> Option<&[Id]> {
        self.values.items(id)
    }

    /// What a mapping has under a string; the last of several.
    pub fn get(&self, id: Id, key: &str) -> Option<Id> {
        self.dict(id)?.iter().rev().find(|(k, _)| self.str(*k) == Some(key)).map(|(_, value)| *value)
    }

    /// The arguments and the state of an object of `global`.
    pub fn call(&self, id: Id, global: Global) -> Option<(&[Id], Option<Id>)> {
        match self.node(id) {
            Node::Call { global: g, args, state } if *g == global => Some((self.items(*args)?, *state)),
            _ => None,
        }
    }

    /// A shape: a `torch.Size`, a tuple or a list of integers that are not negative.
    pub fn shape(&self, id: Id) -> Option<Vec<u64>> {
        let items = match self.call(id, Global::Size) {
            Some((args, None)) => self.items(*args.first()?)?,
            _ => self.items(id)?,
        };
        items.iter().map(|i| self.int(*i).and_then(|n| u64::try_from(n).ok())).collect()
    }

    /// The value without anything that only torch or DeepSpeed could make: `Err` names what is there instead.
    ///
    /// # Errors
    /// What is no plain value, or too deep or too large.
    pub fn plain(&self, id: Id) -> Result<Plain> {
        let mut left = MAX_PLAIN;
        self.plain_within(id, MAX_DEPTH, &mut left)
    }

    fn plain_within(&self, id: Id, depth: u32, left: &mut usize) -> Result<Plain> {
        let depth = depth.checked_sub(1).ok_or_else(|| FormatError::new("values are nested too deep"))?;
        *left = left.checked_sub(1).ok_or_else(|| FormatError::new("a value has too many parts"))?;
        let mut all = |ids: &[Id]| ids.iter().map(|id| self.plain_within(*id, depth, left)).collect::<Result<Vec<_>>>();
        Ok(match self.node(id) {
            Node::None => Plain::None,
            Node::Bool(value) => Plain::Bool(*value),
            Node::Int(value) => Plain::Int(*value),
            Node::Float(value) => Plain::Float(*value),
            Node::Str(_) => Plain::Str(self.str(id).unwrap_or_default().to_owned()),
            Node::Tuple(items) => Plain::Tuple(all(self.values.items.get(*items))?),
            Node::List(items) => Plain::List(all(self.values.items.get(*items))?),
            Node::Dict(entries) => {
                let entries = self.values.pairs.get(*entries);
                let keys: Vec<Id> = entries.iter().map(|e| e.0).collect();
                let values: Vec<Id> = entries.iter().map(|e| e.1).collect();
                let keys = all(&keys)?;
                Plain::Dict(keys.into_iter().zip(all(&values)?).collect())
            }
            Node::Bytes => return Err(FormatError::new("not a plain value: bytes")),
            Node::Global(global) | Node::Call { global, .. } => {
                return Err(FormatError::new(format_args!("not a plain value: {global:?}")));
            }
            Node::Persistent(_) => return Err(FormatError::new("not a plain value: a storage")),
        })
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Values,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    next_memo: u32,
    copied: usize,
}

impl<'a> Machine<'a> {
    fn error(&self, what: impl std::fmt::Display) -> FormatError {
        FormatError::new(format_args!("not a valid pickle: {what} at byte {}", self.at))
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8]> {
        let taken = usize::try_from(len).ok().and_then(|len| self.bytes.get(self.at..self.at.checked_add(len)?));
        let taken = taken.ok_or_else(|| self.error(format_args!("{len} bytes are announced and not there")))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let taken = self.take(N as u64)?;
        taken.try_into().map_err(|_| self.error("cut off"))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().take(1024).position(|b| *b == b'\n').ok_or_else(|| self.error("a name without an end"))?;
        self.at += len + 1;
        std::str::from_utf8(&rest[..len]).map_err(|_| self.error("a name that is not UTF-8"))
    }

    fn text(&mut self, len: u64) -> Result<Node> {
        let bytes = self.take(len)?;
        // Python writes lone surrogates too; a tensor of such a name is of no use.
        let text = std::str::from_utf8(bytes).map_err(|_| self.error("a string that is not UTF-8"))?;
        let texts = &mut self.values.texts;
        let start = texts.len();
        texts.push_str(text);
        Ok(Node::Str(Span::new(start, texts.len())))
    }

    fn push(&mut self, node: Node) -> Result<()> {
        let id = u32::try_from(self.values.nodes.len()).ok().and_then(NonZeroU32::new).ok_or_else(|| self.error("too many values"))?;
        self.values.nodes.push(node);
        self.stack.push(Id(id));
        Ok(())
    }

    /// What lies above the lowest place that the innermost mark allows.
    fn pop(&mut self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.error("the stack is empty"));
        }
        self.stack.pop().ok_or_else(|| self.error("the stack is empty"))
    }

    fn top(&self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.get(floor..).and_then(<[_]>::last).copied().ok_or_else(|| self.error("the stack is empty"))
    }

    /// A mark below the topmost values, for opcodes that take so many without one.
    fn mark_below(&mut self, count: usize) -> Result<()> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let mark = self.stack.len().checked_sub(count).filter(|mark| *mark >= floor).ok_or_else(|| self.error("the stack is empty"))?;
        self.marks.push(mark);
        Ok(())
    }

    fn mark(&mut self) -> Result<usize> {
        let mark = self.marks.pop().ok_or_else(|| self.error("a mark is missing"))?;
        // Nothing pops below a mark; what follows cuts the stack there.
        if mark > self.stack.len() { Err(self.error("the stack is empty")) } else { Ok(mark) }
    }

    /// What was pushed since the mark, as the items of a value.
    fn items_since_mark(&mut self) -> Result<Span> {
        let mark = self.mark()?;
        Ok(self.values.items.put(self.stack.drain(mark..)))
    }

    /// As [`Self::items_since_mark`], for the value that is below the mark.
    fn append_since_mark(&mut self) -> Result<()> {
        let mark = self.mark()?;
        let target = self.below(mark)?;
        match &mut self.values.nodes[target.index()] {
            Node::List(list) => {
                *list = self.values.items.add(*list, self.stack.drain(mark..));
                Ok(())
            }
            _ => Err(self.error("items for something that is not a list")),
        }
    }

    /// Keys and values since the mark, for the mapping that is below it.
    fn set_since_mark(&mut self) -> Result<()> {
        let mark = self.mark()?;
        let target = self.below(mark)?;
        self.check_pairs(mark)?;
        match &mut self.values.nodes[target.index()] {
            Node::Dict(entries) => {
                *entries = self.values.pairs.add(*entries, pairs(&self.stack[mark..]));
                self.stack.truncate(mark);
                Ok(())
            }
            _ => Err(self.error("keys for something that is not a mapping")),
        }
    }

    fn check_pairs(&self, mark: usize) -> Result<()> {
        match self.stack[mark..].len().is_multiple_of(2) {
            true => Ok(()),
            false => Err(self.error("a key without a value")),
        }
    }

    /// The value that is right below a mark.
    fn below(&self, mark: usize) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.get(floor..mark).and_then(<[_]>::last).copied().ok_or_else(|| self.error("the stack is empty"))
    }

    fn remember(&mut self, key: u32) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        let id = self.memo.get(&key).copied().ok_or_else(|| self.error(format_args!("memo {key} was never set")))?;
        self.stack.push(id);
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        match Global::find(module, name) {
            Some(global) => self.push(Node::Global(global)),
            None => Err(FormatError::new(format_args!("the pickle names '{module}.{name}', which is not among the names that are read"))),
        }
    }

    /// REDUCE and NEWOBJ: plain containers are made, all else is kept as a call.
    fn reduce(&mut self) -> Result<()> {
        let (args, function) = (self.pop()?, self.pop()?);
        let Node::Global(global) = *self.values.node(function) else {
            return Err(self.error("a call of something that is not a name"));
        };
        let Node::Tuple(items) = *self.values.node(args) else { return Err(self.error("arguments that are not a tuple")) };
        let first = self.values.items.get(items).first().map(|id| *self.values.node(*id));
        let (node, copied) = match (global, first) {
            (Global::DefaultDict, _) | (Global::Mapping, None) => (Node::Dict(Span::default()), 0),
            (Global::Mapping, Some(Node::Dict(entries))) => {
                let (copy, len) = self.values.pairs.copy(entries);
                (Node::Dict(copy), len)
            }
            (Global::Mapping, Some(Node::List(list))) => {
                // OrderedDict([[key, value], …]), as Python 2 wrote it.
                let pair = |id: &Id| match self.values.items(*id) {
                    Some(&[key, value]) => Some((key, value)),
                    _ => None,
                };
                let entries: Option<Vec<(Id, Id)>> = self.values.items.get(list).iter().map(pair).collect();
                let entries = entries.ok_or_else(|| self.error("a mapping of something else than pairs"))?;
                let len = entries.len();
                (Node::Dict(self.values.pairs.put(entries)), len)
            }
            (Global::Set, Some(Node::List(list))) => {
                let (copy, len) = self.values.items.copy(list);
                (Node::List(copy), len)
            }
            (Global::Set | Global::List, None) => (Node::List(Span::default()), 0),
            _ => (Node::Call { global, args, state: None }, 0),
        };
        // A container that is called over and over would be copied over and over.
        self.copied += copied;
        if self.copied > self.bytes.len() {
            return Err(self.error("too many copies of values"));
        }
        self.push(node)
    }

    fn build(&mut self) -> Result<()> {
        let (state, target) = (self.pop()?, self.top()?);
        match &mut self.values.nodes[target.index()] {
            Node::Call { state: slot, .. } => {
                *slot = Some(state);
                Ok(())
            }
            // `module` of a state dict carries `_metadata` as an attribute.
            Node::Dict(_) => Ok(()),
            _ => Err(self.error("a state for something that is not an object")),
        }
    }

    fn run(&mut self) -> Result<Id> {
        let protocol: [u8; 2] = self.array()?;
        if protocol[0] != 0x80 || !(2..=5).contains(&protocol[1]) {
            return Err(FormatError::new("not a pickle of protocol 2 to 5"));
        }
        loop {
            let [opcode] = self.array()?;
            match opcode {
                b'.' => {
                    let root = self.pop()?;
                    return match (self.stack.is_empty(), self.marks.is_empty()) {
                        (true, true) => Ok(root),
                        _ => Err(self.error("values are left over")),
                    };
                }
                0x95 => drop(self.array::<8>()?), // FRAME: its length is a hint
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let text = |id| self.values.str(id).map(str::to_owned).ok_or_else(|| self.error("a name that is not a string"));
                    let (module, name) = (text(module)?, text(name)?);
                    self.global(&module, &name)?;
                }
                b'X' => {
                    let len = u32::from_le_bytes(self.array()?);
                    let node = self.text(len.into())?;
                    self.push(node)?;
                }
                0x8c => {
                    let [len] = self.array()?;
                    let node = self.text(len.into())?;
                    self.push(node)?;
                }
                0x8d => {
                    let len = u64::from_le_bytes(self.array()?);
                    let node = self.text(len)?;
                    self.push(node)?;
                }
                b'B' | b'C' | 0x8e => {
                    let len = match opcode {
                        b'B' => u32::from_le_bytes(self.array()?).into(),
                        b'C' => u8::from_le_bytes(self.array()?).into(),
                        _ => u64::from_le_bytes(self.array()?),
                    };
                    self.take(len)?;
                    self.push(Node::Bytes)?;
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                b'K' => {
                    let [value] = self.array()?;
                    self.push(Node::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                0x8a => {
                    let [len] = self.array()?;
                    let bytes = self.take(len.into())?;
                    let value = long(bytes).ok_or_else(|| self.error("an integer of more than 64 bits"))?;
                    self.push(Node::Int(value))?;
                }
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Node::Float(value))?;
                }
                b'N' => self.push(Node::None)?,
                0x88 => self.push(Node::Bool(true))?,
                0x89 => self.push(Node::Bool(false))?,
                b')' => self.push(Node::Tuple(Span::default()))?,
                b't' => {
                    let items = self.items_since_mark()?;
                    self.push(Node::Tuple(items))?;
                }
                0x85..=0x87 => {
                    let mut items = (0..opcode - 0x84).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
                    items.reverse();
                    let items = self.values.items.put(items);
                    self.push(Node::Tuple(items))?;
                }
                b']' | 0x8f => self.push(Node::List(Span::default()))?,
                b'l' | 0x91 => {
                    let items = self.items_since_mark()?;
                    self.push(Node::List(items))?;
                }
                b'a' => {
                    self.mark_below(1)?;
                    self.append_since_mark()?;
                }
                b'e' | 0x90 => self.append_since_mark()?,
                b'}' => self.push(Node::Dict(Span::default()))?,
                b'd' => {
                    let mark = self.mark()?;
                    self.check_pairs(mark)?;
                    let entries = self.values.pairs.put(pairs(&self.stack[mark..]));
                    self.stack.truncate(mark);
                    self.push(Node::Dict(entries))?;
                }
                b's' => {
                    self.mark_below(2)?;
                    self.set_since_mark()?;
                }
                b'u' => self.set_since_mark()?,
                b'q' => {
                    let [key] = self.array()?;
                    self.remember(key.into())?;
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.remember(key)?;
                }
                0x94 => {
                    self.remember(self.next_memo)?;
                    self.next_memo = self.next_memo.checked_add(1).ok_or_else(|| self.error("too many values"))?;
                }
                b'h' => {
                    let [key] = self.array()?;
                    self.recall(key.into())?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.recall(key)?;
                }
                b'R' | 0x81 => self.reduce()?,
                b'b' => self.build()?,
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Node::Persistent(id))?;
                }
                other => return Err(self.error(format_args!("opcode 0x{other:02x} is not read"))),
            }
        }
    }
}

fn pairs(items: &[Id]) -> impl Iterator<Item = (Id, Id)> + '_ {
    items.chunks_exact(2).map(|pair| (pair[0], pair[1]))
}

/// A little-endian two's complement integer.
fn long(bytes: &[u8]) -> Option<i64> {
    if bytes.is_empty() {
        return Some(0);
    }
    let fill = if bytes[bytes.len() - 1] & 0x80 != 0 { 0xff } else { 0 };
    let mut wide = [fill; 8];
    let (low, high) = bytes.split_at(bytes.len().min(8));
    wide[..low.len()].copy_from_slice(low);
    let value = i64::from_le_bytes(wide);
    (high.iter().all(|b| *b == fill) && (value < 0) == (fill != 0)).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pickle(body: &[u8]) -> Result<Pickle> {
        Pickle::parse(&[b"\x80\x02", body, b"."].concat())
    }

    fn refused(body: &[u8], part: &str) {
        let error = pickle(body).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn values_of_every_kind_are_read() {
        let body = b"}q\x00(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00b](M\x00\x01J\xff\xff\xff\xff\x8a\x01\x80N\x88eX\x01\x00\x00\x00cG?\xf0\0\0\0\0\0\0u";
        let read = pickle(body).unwrap();
        let text = |t: &str| Plain::Str(t.into());
        let list = Plain::List(vec![Plain::Int(256), Plain::Int(-1), Plain::Int(-128), Plain::None, Plain::Bool(true)]);
        let expected = Plain::Dict(vec![(text("a"), Plain::Int(1)), (text("b"), list), (text("c"), Plain::Float(1.0))]);
        assert_eq!(read.plain(read.root()).unwrap(), expected);
    }

    /// A mapping, a copy of it, and a list, which are all added to more than once, in turn.
    #[test]
    fn what_is_added_later_is_in_no_copy() {
        let a = b"X\x01\0\0\0aK\x01s";
        let more = b"(X\x01\0\0\0bK\x02X\x01\0\0\0cK\x03u";
        let copy = b"ccollections\nOrderedDict\nh\x00\x85Rq\x01";
        let body = [b"(}q\x00", &a[..], copy, more, b"0h\x00X\x01\0\0\0dK\x04sh\x01]K\x05aK\x06a(K\x07K\x08eK\x09at"].concat();
        let read = pickle(&body).unwrap();
        let dict = |entries: &[(&str, i64)]| Plain::Dict(entries.iter().map(|(k, n)| (Plain::Str((*k).into()), Plain::Int(*n))).collect());
        let first = dict(&[("a", 1), ("d", 4)]);
        let copied = dict(&[("a", 1), ("b", 2), ("c", 3)]);
        let list = Plain::List((5..10).map(Plain::Int).collect());
        // The mapping was left on the stack when it was made.
        assert_eq!(read.plain(read.root()).unwrap(), Plain::Tuple(vec![first.clone(), first, copied, list]));
    }

    #[test]
    fn a_foreign_global_is_refused_by_name() {
        refused(b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R", "'os.system'");
        let four = b"\x8c\x05posix\x8c\x06system\x93";
        let error = Pickle::parse(&[b"\x80\x04", &four[..], b"."].concat()).unwrap_err().to_string();
        assert!(error.contains("'posix.system'"), "{error}");
        refused(b"c__builtin__\neval\n", "'__builtin__.eval'");
        refused(b"ctorch\nload\n", "'torch.load'");
    }

    #[test]
    fn opcodes_that_reach_outside_are_refused() {
        for opcode in [b"i" as &[u8], b"o", b"\x82\x01", b"P1\n", b"\x92", b"2"] {
            refused(&[b"N", opcode].concat(), "is not read");
        }
    }

    #[test]
    fn huge_lengths_are_refused_without_being_allocated() {
        refused(b"X\xff\xff\xff\xffab", "announced and not there");
        refused(b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab", "announced and not there");
        refused(b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00", "more than 64 bits");
    }

    #[test]
    fn a_memo_that_was_never_set_is_refused() {
        refused(b"h\x05", "memo 5 was never set");
    }

    #[test]
    fn a_cyclic_memo_is_read_and_following_it_ends() {
        let read = pickle(b"]q\x00h\x00a").unwrap();
        assert!(read.plain(read.root()).unwrap_err().to_string().contains("too deep"));
    }

    /// Each list holds the one before twice.
    #[test]
    fn a_billion_laughs_ends() {
        let mut body = b"]q\x00".to_vec();
        for level in 0..40u8 {
            body.extend([b'0', b']', b'q', level + 1, b'(', b'h', level, b'h', level, b'e']);
        }
        let read = pickle(&body).unwrap();
        assert!(read.plain(read.root()).unwrap_err().to_string().contains("too many parts"));
    }

    #[test]
    fn stack_and_marks_are_guarded() {
        refused(b"N(a", "the stack is empty");
        refused(b"t", "a mark is missing");
        refused(b"(K\x01d", "a key without a value");
        refused(b"NN", "left over");
        refused(b"K\x01)R", "not a name");
        assert!(Pickle::parse(b"\x80\x02N").unwrap_err().to_string().contains("not there"));
        assert!(Pickle::parse(b"\x80\x06N.").unwrap_err().to_string().contains("protocol 2 to 5"));
    }
}
