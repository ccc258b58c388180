//! The machine that opcodes run on: a stack, marks, the memo, and the values that they build.

use super::{
    fold::Fold,
    memo::Memo,
    opcodes::{Op, Opcodes, malformed},
    values::{Id, Node, Span, Values},
};
use crate::{FormatError, ReadAt, Result, globals::Global};

/// Values that are left between two sweeps at least, so that small pickles are swept too: what is rare would not be tested.
const FULL: usize = 1 << 6;

pub(super) struct Machine {
    values: Values,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: Memo,
    next_memo: u32,
    /// Values that were copied, and how many may be.
    copied: usize,
    most: usize,
    /// Values at which the next sweep is due.
    full: usize,
    /// Where in the pickle it is.
    at: u64,
}

impl Machine {
    /// The values of a pickle, and the one that it is of.
    pub(super) fn run(source: &(impl ReadAt + ?Sized), fold: &mut impl Fold) -> Result<(Values, Id)> {
        let mut opcodes = Opcodes::new(source);
        opcodes.protocol()?;
        let memo = Memo::new(&mut opcodes)?;
        opcodes.rewind();
        opcodes.protocol()?;
        let mut machine = Self {
            values: Values::default(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo,
            next_memo: 0,
            copied: 0,
            most: usize::try_from(opcodes.size()).unwrap_or(usize::MAX),
            full: FULL,
            at: 0,
        };
        loop {
            let (at, op) = opcodes.next()?;
            machine.at = at;
            if let Some(root) = machine.step(op, fold)? {
                return Ok((machine.values, root));
            }
        }
    }

    /// The root, once the pickle has ended.
    fn step(&mut self, op: Op<'_>, fold: &mut impl Fold) -> Result<Option<Id>> {
        match op {
            Op::Stop => return self.end().map(Some),
            Op::Frame => {}
            Op::Mark => self.marks.push(self.stack.len()),
            Op::Pop => drop(self.pop()?),
            Op::Global(module, name) => self.global(module, name)?,
            Op::StackGlobal => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |id| self.values.str(id).map(str::to_owned).ok_or_else(|| self.error("a name that is not a string"));
                let (module, name) = (text(module)?, text(name)?);
                self.global(&module, &name)?;
            }
            Op::Str(text) => {
                let node = self.values.text(text);
                self.push(node)?;
            }
            Op::Bytes => self.push(Node::Bytes)?,
            Op::Int(value) => self.push(Node::Int(value))?,
            Op::Float(value) => self.push(Node::Float(value))?,
            Op::None => self.push(Node::None)?,
            Op::Bool(value) => self.push(Node::Bool(value))?,
            Op::TupleOf(count) => {
                self.mark_below(count)?;
                self.tuple()?;
            }
            Op::Tuple => self.tuple()?,
            Op::EmptyList => self.push(Node::List(Span::default()))?,
            Op::List => {
                let items = self.items_since_mark()?;
                self.push(Node::List(items))?;
            }
            Op::Append => {
                self.mark_below(1)?;
                self.append_since_mark()?;
            }
            Op::Appends => self.append_since_mark()?,
            Op::EmptyDict => self.push(Node::Dict(Span::default()))?,
            Op::Dict => {
                let mark = self.mark()?;
                self.check_pairs(mark)?;
                let entries = self.values.pairs.put(pairs(&self.stack[mark..]));
                self.stack.truncate(mark);
                self.push(Node::Dict(entries))?;
            }
            Op::SetItem => {
                self.mark_below(2)?;
                self.set_since_mark()?;
            }
            Op::SetItems => self.set_since_mark()?,
            Op::Put(number) => self.remember(number)?,
            Op::Memoize => {
                self.remember(self.next_memo)?;
                self.next_memo = self.next_memo.checked_add(1).ok_or_else(|| self.error("too many values"))?;
            }
            Op::Get(number) => self.recall(number)?,
            Op::Reduce => self.reduce()?,
            Op::Build => self.build(fold)?,
            Op::Persistent => {
                let id = self.pop()?;
                self.push(Node::Persistent(id))?;
            }
        }
        Ok(None)
    }

    fn error(&self, what: impl std::fmt::Display) -> FormatError {
        malformed(what, self.at)
    }

    /// What is left on the stack in the end.
    fn end(&mut self) -> Result<Id> {
        let root = self.pop()?;
        match (self.stack.is_empty(), self.marks.is_empty()) {
            (true, true) => Ok(root),
            _ => Err(self.error("values are left over")),
        }
    }

    fn tuple(&mut self) -> Result<()> {
        let items = self.items_since_mark()?;
        self.push(Node::Tuple(items))
    }

    fn push(&mut self, node: Node) -> Result<()> {
        let id = self.values.push(node).ok_or_else(|| self.error("too many values"))?;
        self.stack.push(id);
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
        match self.values.node(target) {
            Node::List(list) => {
                let list = self.values.items.add(list, self.stack.drain(mark..));
                self.values.set(target, Node::List(list));
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
        match self.values.node(target) {
            Node::Dict(entries) => {
                let entries = self.values.pairs.add(entries, pairs(&self.stack[mark..]));
                self.values.set(target, Node::Dict(entries));
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
        self.memo.put(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        let id = self.memo.get(key).ok_or_else(|| self.error(format_args!("memo {key} was never set")))?;
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
        let Node::Global(global) = self.values.node(function) else {
            return Err(self.error("a call of something that is not a name"));
        };
        let Node::Tuple(items) = self.values.node(args) else { return Err(self.error("arguments that are not a tuple")) };
        let first = self.values.list(items).first().map(|id| self.values.node(*id));
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
                let entries: Option<Vec<(Id, Id)>> = self.values.list(list).iter().map(pair).collect();
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
        if self.copied > self.most {
            return Err(self.error("too many copies of values"));
        }
        self.push(node)
    }

    fn build(&mut self, fold: &mut impl Fold) -> Result<()> {
        let (state, target) = (self.pop()?, self.top()?);
        match self.values.node(target) {
            Node::Call { global, args, .. } => match fold.object(&self.values, global, state).map_err(|e| self.under_key(e))? {
                Some(number) => {
                    let folded = Id::folded(number).ok_or_else(|| self.error("too many objects"))?;
                    // For whoever has it from the memo.
                    self.values.set(target, Node::Folded(number));
                    self.stack.pop();
                    self.stack.push(folded);
                    self.sweep();
                }
                None => self.values.set(target, Node::Call { global, args, state: Some(state) }),
            },
            // `module` of a state dict carries `_metadata` as an attribute.
            Node::Dict(_) => {}
            _ => return Err(self.error("a state for something that is not an object")),
        }
        Ok(())
    }

    /// Names the key that the topmost value is for, where it is a mapping's.
    fn under_key(&self, error: FormatError) -> FormatError {
        match self.below(self.stack.len().saturating_sub(1)).ok().and_then(|key| self.values.str(key)) {
            Some(key) => error.within(format_args!("under '{key}'")),
            None => error,
        }
    }

    /// Drops what objects that were taken leave behind, once there may be much of it.
    fn sweep(&mut self) {
        if self.values.weight() >= self.full {
            self.values.sweep(self.stack.iter_mut().chain(self.memo.values()));
            // A quarter of what was gone through, so that sweeping what stays takes but a few times as long as making it.
            let weight = self.values.weight();
            self.full = weight + FULL.max((weight + self.memo.len() + self.stack.len()) / 4);
        }
    }
}

fn pairs(items: &[Id]) -> impl Iterator<Item = (Id, Id)> + '_ {
    items.chunks_exact(2).map(|pair| (pair[0], pair[1]))
}
