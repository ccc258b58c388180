//! The names that a checkpoint fills, and what the elements of its lists have in common.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
};

use crate::tree::Choices;

/// The variants that were chosen for an element and for the modules on the way to its part.
type Kinds = Vec<Option<usize>>;
type Counts = BTreeMap<Kinds, Count>;
/// The elements of a list, by their numbers.
type Elements = Rc<BTreeSet<u64>>;

/// The names that a checkpoint fills.
#[derive(Debug)]
pub struct Stored<'a> {
    names: BTreeSet<&'a str>,
    lists: RefCell<HashMap<String, Elements>>,
    /// By a list and a part of its elements. Each is counted once: a checkpoint may have any number of elements.
    parts: RefCell<HashMap<(String, String), Rc<Counts>>>,
    /// Of elements that are not stored, by their list and a path in them: the variant there, and the elements of the list there. Each is found once.
    variants: RefCell<HashMap<(String, String), Option<usize>>>,
    inner: RefCell<HashMap<(String, String), Elements>>,
}

/// Elements of a kind, and how many of them have a part.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    all: u64,
    having: u64,
}

impl<'a> Stored<'a> {
    /// Of those names.
    pub fn new(names: impl Iterator<Item = &'a String>) -> Self {
        Self {
            names: names.map(String::as_str).collect(),
            lists: RefCell::default(),
            parts: RefCell::default(),
            variants: RefCell::default(),
            inner: RefCell::default(),
        }
    }

    /// Whether there is a name, or one in a module of that name.
    pub fn has(&self, name: &str) -> bool {
        let prefix = format!("{name}.");
        self.names.contains(name) || self.names.range(prefix.as_str()..).next().is_some_and(|name| name.starts_with(&prefix))
    }

    /// The elements of a list that have something.
    pub fn elements(&self, list: &str) -> Elements {
        if let Some(known) = self.lists.borrow().get(list) {
            return Rc::clone(known);
        }
        let prefix = format!("{list}.");
        let (mut out, mut from) = (BTreeSet::new(), prefix.clone());
        while let Some(rest) = self.names.range(from.as_str()..).next().and_then(|name| name.strip_prefix(&prefix)) {
            let index = rest.split('.').next().unwrap_or(rest);
            out.extend(index.parse::<u64>());
            from = format!("{prefix}{index}/"); // what follows all of the element's names
        }
        let out = Rc::new(out);
        self.lists.borrow_mut().insert(list.to_owned(), Rc::clone(&out));
        out
    }

    /// Whether all other elements of a list, which are of the same kind, have the part that this one may have, two at least. Of the first and the last
    /// element, which are often unlike the others, and of lists in lists nothing is said.
    /// The choices must be the same each time.
    pub fn all_others_have(&self, part: &str, choices: &Choices) -> bool {
        let number = |segment: &str| !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_digit());
        let mut numbers = part.match_indices('.').map(|(at, _)| at + 1).filter(|&at| part[at..].split('.').next().is_some_and(number));
        let (Some(at), None) = (numbers.next(), numbers.next()) else { return false };
        let (list, rest) = (&part[..at - 1], &part[at..]);
        let Some((Ok(index), rest)) = rest.split_once('.').map(|(index, rest)| (index.parse::<u64>(), rest)) else { return false };
        let elements = self.elements(list);
        let inner = elements.first().is_some_and(|first| *first < index) && elements.last().is_some_and(|last| index < *last);
        if !inner {
            return false;
        }
        let Count { mut all, mut having } =
            self.counts(list, rest, choices).get(&kinds(list, index, rest, choices)).copied().unwrap_or_default();
        if elements.contains(&index) {
            all -= 1;
            having -= u64::from(self.has(part));
        }
        all > 1 && having == all
    }

    /// The variant at a path in an element of a list that is not stored, where those that are stored have the same one there. The choices must be the
    /// same each time.
    pub fn variant_of_others(&self, path: &str, choices: &Choices) -> Option<usize> {
        let (list, rest) = self.in_unstored(path)?;
        *self.variants.borrow_mut().entry((list.to_owned(), rest.to_owned())).or_insert_with(|| {
            let elements = self.elements(list);
            let mut found = elements.iter().filter_map(|i| choices.get(&format!("{list}.{i}.{rest}")).copied());
            let first = found.next()?;
            found.all(|other| other == first).then_some(first)
        })
    }

    /// The elements of a list in an element of another that is not stored: those that the list has in all that are.
    pub fn elements_of_others(&self, path: &str) -> Elements {
        let Some((list, rest)) = self.in_unstored(path) else { return Rc::default() };
        let key = (list.to_owned(), rest.to_owned());
        if let Some(known) = self.inner.borrow().get(&key) {
            return Rc::clone(known);
        }
        let lists = self.elements(list).iter().map(|i| self.elements(&format!("{list}.{i}.{rest}"))).collect::<Vec<_>>();
        let all = lists.iter().map(|elements| (**elements).clone()).reduce(|all, other| &all & &other);
        let all = Rc::new(all.unwrap_or_default());
        self.inner.borrow_mut().insert(key, Rc::clone(&all));
        all
    }

    /// The outermost list on a path of which the element there is not stored, and the path from that element on.
    fn in_unstored<'p>(&self, path: &'p str) -> Option<(&'p str, &'p str)> {
        path.match_indices('.').find_map(|(dot, _)| {
            let (index, rest) = path[dot + 1..].split_once('.')?;
            let unstored = index.parse::<u64>().is_ok() && !self.has(&path[..dot + 1 + index.len()]);
            unstored.then_some((&path[..dot], rest))
        })
    }

    /// How many elements of each kind have a part.
    fn counts(&self, list: &str, part: &str, choices: &Choices) -> Rc<Counts> {
        let key = (list.to_owned(), part.to_owned());
        if let Some(known) = self.parts.borrow().get(&key) {
            return Rc::clone(known);
        }
        let mut counts: Counts = BTreeMap::new();
        for &index in &*self.elements(list) {
            let count = counts.entry(kinds(list, index, part, choices)).or_default();
            count.all += 1;
            count.having += u64::from(self.has(&format!("{list}.{index}.{part}")));
        }
        let counts = Rc::new(counts);
        self.parts.borrow_mut().insert(key, Rc::clone(&counts));
        counts
    }
}

fn kinds(list: &str, index: u64, part: &str, choices: &Choices) -> Kinds {
    let element = format!("{list}.{index}");
    let inner = part.match_indices('.').map(|(end, _)| format!("{element}.{}", &part[..end]));
    std::iter::once(element.clone()).chain(inner).map(|path| choices.get(&path).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_all_other_inner_elements_have_is_expected() {
        let names: Vec<String> =
            (0..6).filter(|i| *i != 2).map(|i| format!("h.{i}.attn.bias")).chain(["h.2.attn.weight".to_owned()]).collect();
        let stored = Stored::new(names.iter());
        assert_eq!(*stored.elements("h"), (0..6).collect());
        let have = |part: &str, choices: &Choices| stored.all_others_have(part, choices);
        let alike = Choices::new();
        assert!(have("h.2.attn.bias", &alike) && !have("h.3.attn.weight", &alike));
        assert!(!have("h.0.attn.bias", &alike) && !have("h.5.attn.bias", &alike), "the first and the last may be unlike the others");
        assert!(!have("h.2.list.1.bias", &alike), "a list in a list");
        // What an element has that is not stored at all.
        let kind = |i: u64| (format!("h.{i}.attn"), 1);
        assert_eq!(stored.variant_of_others("h.9.attn", &(0..6).map(kind).collect()), Some(1));
        assert_eq!(stored.variant_of_others("h.2.attn", &(0..6).map(kind).collect()), None, "one that is stored");
        let unlike = (0..6).map(kind).chain([("h.3.attn".to_owned(), 0)]).collect();
        assert_eq!(Stored::new(names.iter()).variant_of_others("h.9.attn", &unlike), None);
        let names: Vec<String> = ["h.0.list.0", "h.0.list.1", "h.0.list.2", "h.1.list.0", "h.1.list.2"].map(str::to_owned).into();
        assert_eq!(*Stored::new(names.iter()).elements_of_others("h.7.list"), [0, 2].into());
        // No other element is of its kind.
        assert!(!Stored::new(names.iter()).all_others_have("h.2.attn.bias", &[("h.2.attn".to_owned(), 1)].into()));
    }
}
