//! The values of a pickle: an arena of nodes that refer to each other by number, so that a hostile cycle is only a cycle of numbers.

use std::{num::NonZeroU32, ops::Range};

use crate::globals::Global;

/// The first number that is not a node's: there are fewer bytes in a pickle.
const FOLDED: u32 = 1 << 31;

/// A value's number among the [`Values`] of its pickle; from `FOLDED` on the number of an object that left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(NonZeroU32);

impl Id {
    /// The number of the node at that place; the place 0 is nobody's. `None` where there are more than can be numbered.
    pub(super) fn new(index: usize) -> Option<Self> {
        u32::try_from(index).ok().filter(|number| *number < FOLDED).and_then(NonZeroU32::new).map(Self)
    }

    /// The object of that number, which [`Fold`](super::fold::Fold) has taken.
    pub(super) fn folded(number: u32) -> Option<Self> {
        number.checked_add(FOLDED).and_then(NonZeroU32::new).map(Self)
    }

    fn as_folded(self) -> Option<u32> {
        self.0.get().checked_sub(FOLDED)
    }

    fn index(self) -> usize {
        self.0.get() as usize
    }
}

/// Where parts of a value stand among the [`Values`] of its pickle, which give them out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    len: u32,
}

impl Span {
    /// The start of those that stand alone, each in a vector of its own, because they were added to.
    const GROWN: u32 = u32::MAX;

    /// A pickle is shorter than [`MAX_PICKLE`](super::MAX_PICKLE), and so is what it is made of.
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
    /// A string: [`Values::str`].
    Str(Span),
    /// Bytes, which nothing that is read needs.
    Bytes,
    /// A tuple: [`Values::items`].
    Tuple(Span),
    /// A list, or a set: [`Values::items`].
    List(Span),
    /// A mapping, in its order: [`Values::dict`].
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
    /// An object that [`Fold`](super::fold::Fold) has taken, by the number it gave.
    Folded(u32),
}

const _: () = assert!(size_of::<Node>() == 16);

/// A pickle's values.
#[derive(Clone, Debug)]
pub struct Values {
    nodes: Vec<Node>,
    texts: String,
    pub(super) items: Parts<Id>,
    pub(super) pairs: Parts<(Id, Id)>,
}

impl Default for Values {
    fn default() -> Self {
        // The first node is nobody's, so that no value has the number 0.
        Self { nodes: vec![Node::None], texts: String::new(), items: Parts::default(), pairs: Parts::default() }
    }
}

impl Values {
    /// A value.
    pub fn node(&self, id: Id) -> Node {
        match id.as_folded() {
            Some(number) => Node::Folded(number),
            None => self.nodes[id.index()],
        }
    }

    /// The string that it is, if it is one.
    pub fn str(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Str(text) => self.texts.get(text.range()),
            _ => None,
        }
    }

    /// The integer that it is; a bool is none.
    pub fn int(&self, id: Id) -> Option<i64> {
        match self.node(id) {
            Node::Int(n) => Some(n),
            _ => None,
        }
    }

    /// The entries of a mapping.
    pub fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(entries) => Some(self.entries(entries)),
            _ => None,
        }
    }

    /// The items of a list or a tuple.
    pub fn items(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::List(items) | Node::Tuple(items) => Some(self.list(items)),
            _ => None,
        }
    }

    /// What a mapping has under a string; the last of several.
    pub fn get(&self, id: Id, key: &str) -> Option<Id> {
        self.dict(id)?.iter().rev().find(|(k, _)| self.str(*k) == Some(key)).map(|(_, value)| *value)
    }

    /// The arguments and the state of an object of `global`.
    pub fn call(&self, id: Id, global: Global) -> Option<(&[Id], Option<Id>)> {
        match self.node(id) {
            Node::Call { global: g, args, state } if g == global => Some((self.items(args)?, state)),
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

    pub(super) fn list(&self, items: Span) -> &[Id] {
        self.items.get(items)
    }

    pub(super) fn entries(&self, pairs: Span) -> &[(Id, Id)] {
        self.pairs.get(pairs)
    }

    /// What a sweep goes through: nodes, parts of theirs, and texts, of as many bytes as a node has.
    pub(super) fn weight(&self) -> usize {
        self.nodes.len() + self.items.count + self.pairs.count + self.texts.len() / size_of::<Node>()
    }

    /// A value more; `None` where there are too many.
    pub(super) fn push(&mut self, node: Node) -> Option<Id> {
        let id = Id::new(self.nodes.len())?;
        self.nodes.push(node);
        Some(id)
    }

    pub(super) fn text(&mut self, text: &str) -> Node {
        let start = self.texts.len();
        self.texts.push_str(text);
        Node::Str(Span::new(start, self.texts.len()))
    }

    pub(super) fn set(&mut self, id: Id, node: Node) {
        self.nodes[id.index()] = node;
    }

    /// Keeps what `roots` lead to, which get their new numbers, and drops all else.
    pub(super) fn sweep<'i>(&mut self, roots: impl Iterator<Item = &'i mut Id>) {
        let Self { nodes, texts, mut items, mut pairs } = std::mem::take(self);
        let mut moves = Moves { places: vec![0; nodes.len()], old: nodes, new: std::mem::take(&mut self.nodes) };
        roots.for_each(|id| *id = moves.to(*id));
        let mut at = 1;
        while let Some(node) = moves.new.get(at).copied() {
            moves.new[at] = match node {
                Node::Str(span) => self.text(&texts[span.range()]),
                Node::Tuple(span) => Node::Tuple(self.items.move_in(&mut items, span, |id| moves.to(id))),
                Node::List(span) => Node::List(self.items.move_in(&mut items, span, |id| moves.to(id))),
                Node::Dict(span) => Node::Dict(self.pairs.move_in(&mut pairs, span, |(key, value)| (moves.to(key), moves.to(value)))),
                Node::Call { global, args, state } => Node::Call { global, args: moves.to(args), state: state.map(|id| moves.to(id)) },
                Node::Persistent(id) => Node::Persistent(moves.to(id)),
                Node::None | Node::Bool(_) | Node::Int(_) | Node::Float(_) | Node::Bytes | Node::Global(_) | Node::Folded(_) => node,
            };
            at += 1;
        }
        self.nodes = moves.new;
    }
}

/// Nodes on their way from one arena to another.
struct Moves {
    old: Vec<Node>,
    new: Vec<Node>,
    /// For each old node where it is now; 0 where it was not moved.
    places: Vec<u32>,
}

impl Moves {
    fn to(&mut self, id: Id) -> Id {
        if id.as_folded().is_some() {
            return id;
        }
        if let Node::Folded(number) = self.old[id.index()] {
            return Id::folded(number).unwrap_or(id);
        }
        let place = &mut self.places[id.index()];
        if let Some(known) = NonZeroU32::new(*place) {
            return Id(known);
        }
        // A copy has no more values than the original, so the number always fits.
        let Some(new) = Id::new(self.new.len()) else { return id };
        *place = new.0.get();
        self.new.push(self.old[id.index()]);
        new
    }
}

/// What lists or mappings hold: those that are filled at once side by side, others by themselves.
#[derive(Clone, Debug)]
pub(super) struct Parts<T> {
    together: Vec<T>,
    grown: Vec<Vec<T>>,
    /// How many there are.
    count: usize,
}

impl<T> Default for Parts<T> {
    fn default() -> Self {
        Self { together: Vec::new(), grown: Vec::new(), count: 0 }
    }
}

impl<T: Copy> Parts<T> {
    pub(super) fn get(&self, span: Span) -> &[T] {
        if span.start == Span::GROWN { &self.grown[span.len as usize] } else { &self.together[span.range()] }
    }

    pub(super) fn put(&mut self, parts: impl IntoIterator<Item = T>) -> Span {
        let start = self.together.len();
        self.together.extend(parts);
        self.count += self.together.len() - start;
        Span::new(start, self.together.len())
    }

    /// Adds to what stands at `span`; where it stands then.
    pub(super) fn add(&mut self, span: Span, parts: impl IntoIterator<Item = T>) -> Span {
        if span.start == Span::GROWN {
            let alone = &mut self.grown[span.len as usize];
            let before = alone.len();
            alone.extend(parts);
            self.count += alone.len() - before;
            return span;
        }
        if span.len == 0 {
            return self.put(parts);
        }
        let mut alone = self.together[span.range()].to_vec();
        alone.extend(parts);
        self.push_grown(alone)
    }

    /// A copy that can be added to by itself, and its length.
    pub(super) fn copy(&mut self, span: Span) -> (Span, usize) {
        let len = self.get(span).len();
        if span.start == Span::GROWN {
            return (self.push_grown(self.grown[span.len as usize].clone()), len);
        }
        (span, len)
    }

    /// What stands at `span` in another's parts, each replaced, is put here.
    fn move_in(&mut self, from: &mut Self, span: Span, mut replaced: impl FnMut(T) -> T) -> Span {
        if span.start != Span::GROWN {
            return self.put(from.together[span.range()].iter().map(|part| replaced(*part)));
        }
        // One value alone has it.
        let mut alone = std::mem::take(&mut from.grown[span.len as usize]);
        alone.iter_mut().for_each(|part| *part = replaced(*part));
        self.push_grown(alone)
    }

    fn push_grown(&mut self, alone: Vec<T>) -> Span {
        self.count += alone.len();
        self.grown.push(alone);
        Span::grown(self.grown.len() - 1)
    }
}
