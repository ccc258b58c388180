//! The memo. Python's picklers number every value that they write and look few of them up again, so that a first pass over the opcodes finds
//! which: all others are forgotten at once. A small pickle is not worth that pass: of it, all values are remembered.

use super::{
    opcodes::{Op, Opcodes},
    values::Id,
};
use crate::{ReadAt, Result};

/// Numbers that are collected before the first time that those that occur twice are removed.
const FIRST: usize = 1 << 14;

/// Bytes of a pickle that is gone through once.
const SMALL: u64 = 64 << 10;
/// Values that a pickle of one tensor puts into its memo.
const FEW: usize = 32;
/// Numbers whose places are kept at hand.
const FOUND: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Memo {
    /// Numbers that are looked up, sorted; of a small pickle, those that were put so far.
    numbers: Vec<u32>,
    /// True where no number is added.
    known: bool,
    /// Parallel to them.
    values: Vec<Option<Id>>,
    /// Where the next number that is put is likely to stand: they mostly ascend.
    next: usize,
    /// Where numbers that were looked up stand, by their last bits: the same few are looked up over and over.
    found: Vec<usize>,
}

impl Memo {
    /// The memo for these opcodes, all of which are gone through unless they are few. It is as large as the numbers that they look up are many,
    /// whichever these are.
    pub(super) fn new<S: ReadAt + ?Sized>(opcodes: &mut Opcodes<'_, S>) -> Result<Self> {
        if opcodes.size() <= SMALL {
            return Ok(Self { numbers: Vec::with_capacity(FEW), values: Vec::with_capacity(FEW), ..Self::default() });
        }
        let (mut numbers, mut most) = (Vec::new(), FIRST);
        loop {
            match opcodes.next() {
                Ok((_, Op::Get(number))) => numbers.push(number),
                Ok((_, Op::Stop)) => break,
                Ok(_) => {}
                Err(error) if error.is_io() => return Err(error),
                // The next pass meets it too, and reports what comes before it.
                Err(_) => break,
            }
            if numbers.len() == most {
                numbers.sort_unstable();
                numbers.dedup();
                most = FIRST.max(2 * numbers.len());
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        numbers.shrink_to_fit();
        Ok(Self { values: vec![None; numbers.len()], numbers, known: true, next: 0, found: vec![0; FOUND] })
    }

    /// Remembers a value, if it is looked up.
    pub(super) fn put(&mut self, number: u32, value: Id) {
        if !self.known {
            match self.numbers.last().is_none_or(|last| *last < number) {
                true => self.insert(self.numbers.len(), number, value),
                false => match self.numbers.binary_search(&number) {
                    Ok(place) => self.values[place] = Some(value),
                    Err(place) => self.insert(place, number, value),
                },
            }
            return;
        }
        let below = self.next.checked_sub(1).is_none_or(|before| self.numbers[before] < number);
        let place = match self.numbers.get(self.next) {
            Some(next) if *next == number => Some(self.next),
            Some(next) if *next > number && below => None,
            None if below => None,
            _ => self.find(number),
        };
        if let Some(place) = place {
            self.values[place] = Some(value);
            self.next = place + 1;
        }
    }

    pub(super) fn get(&mut self, number: u32) -> Option<Id> {
        let Some(found) = self.found.get_mut(number as usize % FOUND) else { return self.values[self.find(number)?] };
        if self.numbers.get(*found) != Some(&number) {
            *found = self.numbers.binary_search(&number).ok()?;
        }
        self.values[*found]
    }

    /// How many values may be remembered.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// All that is remembered.
    pub(super) fn values(&mut self) -> impl Iterator<Item = &mut Id> {
        self.values.iter_mut().flatten()
    }

    fn insert(&mut self, place: usize, number: u32, value: Id) {
        self.numbers.insert(place, number);
        self.values.insert(place, Some(value));
    }

    fn find(&self, number: u32) -> Option<usize> {
        self.numbers.binary_search(&number).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the order, a number has the value that was last put under it, in a small pickle and in a large one.
    #[test]
    fn numbers_in_any_order_are_found() {
        for marks in [0, SMALL] {
            numbers_are_found(marks);
        }
    }

    fn numbers_are_found(marks: u64) {
        let looked_up = [5u8, 1, 9, 5, 200].iter().flat_map(|n| [b'h', *n]);
        let opcodes: Vec<u8> = (0..marks).map(|_| b'(').chain(looked_up).chain([b'.']).collect();
        let mut memo = Memo::new(&mut Opcodes::new(opcodes.as_slice())).unwrap();
        assert_eq!(memo.numbers, if marks > 0 { vec![1, 5, 9, 200] } else { Vec::new() });
        let id = |n: u32| Id::new(n as usize + 1).unwrap();
        for round in [0, 1000] {
            for number in [0, 1, 2, 9, 5, 5, 6, 200, 1, 201, 3] {
                memo.put(number, id(number + round));
            }
            for number in [1, 5, 9, 200] {
                assert_eq!(memo.get(number), Some(id(number + round)));
            }
            assert_eq!((memo.get(4), memo.get(300)), (None, None));
            // Remembered where it costs nothing.
            assert_eq!(memo.get(2).is_some(), marks == 0);
        }
    }
}
