//! The elements of a parameter that is assembled from source tensors, read piece by piece. The loader's schedule and core's clipping of pieces
//! are left aside on purpose: what they get wrong must show.

use std::{cell::RefCell, ops::Range, path::Path};

use shardwright_core::{Loop, Piece};

use super::shard::{Reader, StoredTensor};
use crate::error::Result;

/// A parameter's pieces with the tensors that they are cut from.
pub(super) struct Assembled<'a> {
    parts: Vec<Part<'a>>,
    /// The source of the strided piece that was read last, whole.
    strided: RefCell<Option<(u32, Vec<u8>)>>,
}

struct Part<'a> {
    path: &'a Path,
    stored: &'a StoredTensor,
    source: u32,
    source_offset: u64,
    target_offset: u64,
    /// By descending target stride.
    loops: Vec<Loop>,
}

impl<'a> Assembled<'a> {
    /// `find` gives a source's file and place there.
    pub(super) fn new(pieces: &[Piece], find: impl Fn(u32) -> (&'a Path, &'a StoredTensor)) -> Self {
        let part = |piece: &Piece| {
            let (path, stored) = find(piece.source);
            let mut loops: Vec<Loop> = piece.loops.iter().copied().filter(|l| l.size != 1).collect();
            loops.sort_by_key(|l| std::cmp::Reverse(l.target_stride));
            Part { path, stored, source: piece.source, source_offset: piece.source_offset, target_offset: piece.target_offset, loops }
        };
        Self { parts: pieces.iter().map(part).collect(), strided: RefCell::new(None) }
    }

    /// Fills `out` with the parameter's elements of that range, of `size` bytes each.
    pub(super) fn read(&self, out: &mut [u8], range: &Range<u64>, size: usize) -> Result<()> {
        for part in self.parts.iter().filter(|p| p.target_offset < range.end && p.last().is_some_and(|last| last >= range.start)) {
            let reader = Reader::open(part.path)?;
            let consecutive = part.loops.last().is_none_or(|l| l.source_stride == 1 && l.target_stride == 1 && l.size >= 64);
            let whole = if consecutive { None } else { Some(self.whole(part, &reader)?) };
            part.walk(&part.loops, (part.source_offset, part.target_offset), range, &mut |source, target, count| {
                let at = bytes(target - range.start, size);
                let out = &mut out[at..at + bytes(count, size)];
                match &whole {
                    None => reader.read(out, part.stored.start + source * size as u64),
                    Some(whole) => {
                        let at = bytes(source, size);
                        out.copy_from_slice(&whole[at..at + out.len()]);
                        Ok(())
                    }
                }
            })?;
            if let Some(whole) = whole {
                *self.strided.borrow_mut() = Some((part.source, whole));
            }
        }
        Ok(())
    }

    fn whole(&self, part: &Part<'_>, reader: &Reader<'_>) -> Result<Vec<u8>> {
        match self.strided.take() {
            Some((source, whole)) if source == part.source => Ok(whole),
            _ => {
                let mut whole = vec![0; usize::try_from(part.stored.bytes).unwrap_or(usize::MAX)];
                reader.read(&mut whole, part.stored.start)?;
                Ok(whole)
            }
        }
    }
}

impl Part<'_> {
    /// The last element that it fills; `None` for a piece without elements.
    fn last(&self) -> Option<u64> {
        self.loops.iter().try_fold(self.target_offset, |at, l| Some(at + l.size.checked_sub(1)? * l.target_stride))
    }

    /// Calls `emit(source element, target element, count)` for all runs inside the range, in the order of the parameter where loops are nested.
    fn walk(
        &self,
        loops: &[Loop],
        (source, target): (u64, u64),
        range: &Range<u64>,
        emit: &mut impl FnMut(u64, u64, u64) -> Result<()>,
    ) -> Result<()> {
        match loops {
            [] if range.contains(&target) => emit(source, target, 1),
            [] => Ok(()),
            [run] if run.source_stride == 1 && run.target_stride == 1 => {
                let (from, to) = (target.max(range.start), (target + run.size).min(range.end));
                if from < to { emit(source + (from - target), from, to - from) } else { Ok(()) }
            }
            [outer, inner @ ..] => {
                for i in 0..outer.size {
                    let at = (source + i * outer.source_stride, target + i * outer.target_stride);
                    let last: u64 = at.1 + inner.iter().map(|l| (l.size - 1) * l.target_stride).sum::<u64>();
                    if last >= range.start && at.1 < range.end {
                        self.walk(inner, at, range, emit)?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// A size in memory.
fn bytes(elements: u64, size: usize) -> usize {
    usize::try_from(elements).unwrap_or(usize::MAX).saturating_mul(size)
}
