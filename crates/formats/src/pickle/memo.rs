//! The memo. Python's picklers number every value that they write and look few of them up again, so that a first pass over the opcodes finds
//! which: all others are forgotten at once.

use super::{
    opcodes::{Op, Opcodes},
    values::Id,
};
use crate::{ReadAt, Result};

/// Numbers that are collected before the first time that those that occur twice are removed.
const FIRST: usize = 1 << 14;

/// Numbers whose places are kept at hand.
const FOUND: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Memo {
    /// Numbers that are looked up, sorted.
    numbers: Vec<u32>,
    /// Parallel to them.
    values: Vec<Option<Id>>,
    /// Where the next number that is put is likely to stand: they mostly ascend.
    next: usize,
    /// Where numbers that were looked up stand, by their last bits: the same few are looked up over and over.
    found: Vec<u32>,
}

impl Memo {
    /// The memo for these opcodes, all of which are gone through. It is as large as the numbers that they look up are many, whichever these are.
    pub(super) fn new<S: ReadAt + ?Sized>(opcodes: &mut Opcodes<'_, S>) -> Result<Self> {
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
        Ok(Self { values: vec![None; numbers.len()], numbers, next: 0, found: Vec::new() })
    }

    /// Remembers a value, if it is looked up.
    pub(super) fn put(&mut self, number: u32, value: Id) {
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
        let slot = number as usize % FOUND;
        if let Some(place) = self.found.get(slot).map(|place| *place as usize).filter(|place| self.numbers[*place] == number) {
            return self.values[place];
        }
        let place = self.find(number)?;
        self.found.resize(FOUND, 0);
        self.found[slot] = u32::try_from(place).unwrap_or(0);
        self.values[place]
    }

    /// All that is remembered.
    pub(super) fn values(&mut self) -> impl Iterator<Item = &mut Id> {
        self.values.iter_mut().flatten()
    }

    fn find(&self, number: u32) -> Option<usize> {
        self.numbers.binary_search(&number).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the order, a number has the value that was last put under it.
    #[test]
    fn numbers_in_any_order_are_found() {
        let opcodes: Vec<u8> = [5u8, 1, 9, 5, 200].iter().flat_map(|n| [b'h', *n]).chain([b'.']).collect();
        let mut memo = Memo::new(&mut Opcodes::new(opcodes.as_slice())).unwrap();
        assert_eq!(memo.numbers, [1, 5, 9, 200]);
        let id = |n: u32| Id::new(n as usize + 1).unwrap();
        for round in [0, 1000] {
            for number in [0, 1, 2, 9, 5, 5, 6, 200, 1, 201, 3] {
                memo.put(number, id(number + round));
            }
            for number in [1, 5, 9, 200] {
                assert_eq!(memo.get(number), Some(id(number + round)));
            }
            assert_eq!((memo.get(2), memo.get(201)), (None, None));
        }
    }
}
