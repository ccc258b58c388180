//! A strided box that one rank holds, cut into tiles.

use shardwright_core::{Loop, Piece};

use super::{Source, TilePart, even_lines};
use crate::load::schedule::scatter::span;

/// Between two parts of a tile at most so many bytes are read for nothing; where there are more, each part is read by itself.
const GAP: u64 = 4096;

/// A strided box between a file and one rank's part of a parameter.
#[derive(Debug)]
pub(super) struct Alone {
    /// First byte in the file.
    at: u64,
    /// Bytes of an element in the file and in memory.
    from: u64,
    to: u64,
    pub(super) member: u32,
    /// First element in the rank's part.
    local: u64,
    /// Walked one tile after the other; outermost first, by descending source stride.
    outer: Vec<Loop>,
    /// The loop that is cut into tiles, if one is: itself, and its steps in a tile.
    cut: Option<(Loop, u64)>,
    /// What every tile holds.
    inner: Vec<Loop>,
}

impl Alone {
    pub(super) fn new((member, piece): &(u32, Piece), Source { start, from, to, block }: Source) -> Self {
        let mut loops = piece.loops.clone();
        loops.sort_by_key(|l| std::cmp::Reverse(l.source_stride));
        let mut inner: Vec<Loop> = Vec::new();
        let mut cut = None;
        while let Some(next) = loops.pop() {
            let held = span(&inner);
            let gap = next.source_stride.saturating_sub(held).saturating_mul(from);
            // All of a column's neighbours are read with it: without any it would be a read for each element.
            let near = gap <= GAP || held * from < 64;
            let room = (block / from).saturating_sub(held) / next.source_stride.max(1) + 1;
            let steps = if near { room.min(next.size) } else { 1 };
            if steps == next.size {
                inner.insert(0, next);
                continue;
            }
            cut = Some((next, even_lines(steps)));
            break;
        }
        Self { at: start + piece.source_offset * from, from, to, member: *member, local: piece.target_offset, outer: loops, cut, inner }
    }

    /// Number of tiles.
    pub(super) fn tiles(&self) -> u64 {
        let outer: u64 = self.outer.iter().map(|l| l.size).product();
        outer * self.parts()
    }

    fn parts(&self) -> u64 {
        self.cut.map_or(1, |(l, steps)| l.size.div_ceil(steps))
    }

    /// First byte in the file, number of bytes, and number of elements that are needed.
    pub(super) fn tile(&self, number: u64) -> (u64, u64, u64) {
        let (source, _, steps) = self.place(number);
        let inner: u64 = self.inner.iter().map(|l| l.size).product();
        (self.at + source * self.from, self.tile_span(steps) * self.from, inner * steps)
    }

    fn tile_span(&self, steps: u64) -> u64 {
        span(&self.inner) + self.cut.map_or(0, |(l, _)| (steps - 1) * l.source_stride)
    }

    /// Bytes of this tile and all that follow.
    pub(super) fn bytes_from(&self, number: u64) -> u64 {
        let parts = self.parts();
        let all = |steps: u64| self.tile_span(steps) * self.from;
        let (full, last) = match self.cut {
            Some((l, steps)) => (all(steps), all(l.size - (parts - 1) * steps)),
            None => (0, all(1)),
        };
        let before = |n: u64| (n / parts) * ((parts - 1) * full + last) + (n % parts) * full;
        before(self.tiles()) - before(number)
    }

    /// Elements from the sweep's first to the tile's, in the source and in the part, and steps of the cut loop.
    fn place(&self, number: u64) -> (u64, u64, u64) {
        let (mut rest, part) = (number / self.parts(), number % self.parts());
        let (mut source, mut target) = (0, 0);
        for l in self.outer.iter().rev() {
            source += rest % l.size * l.source_stride;
            target += rest % l.size * l.target_stride;
            rest /= l.size;
        }
        match self.cut {
            Some((l, steps)) => {
                let first = part * steps;
                (source + first * l.source_stride, target + first * l.target_stride, steps.min(l.size - first))
            }
            None => (source, target, 1),
        }
    }

    /// What a tile has for the rank.
    pub(super) fn part(&self, number: u64) -> TilePart {
        let (_, target, steps) = self.place(number);
        let mut loops = self.inner.clone();
        loops.extend(self.cut.map(|(l, _)| Loop { size: steps, ..l }));
        TilePart::new(self.member, 0, (self.local + target) * self.to, loops)
    }
}
