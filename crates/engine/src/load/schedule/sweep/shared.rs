//! Strided boxes of several ranks that need elements of the same lines of a source tensor: a line is read once, for all of them.

use std::ops::Range;

use shardwright_core::{Loop, Piece};

use super::{Source, TilePart, even_lines};
use crate::load::schedule::scatter::span;

/// With more parts than these the ranks read for themselves: each tile looks at all of them.
const MOST_PARTS: usize = 1 << 12;

/// Lines of a source tensor, all equally long and equally far from each other; a tile is a few of them.
#[derive(Debug)]
pub(super) struct Shared {
    /// First byte in the file.
    at: u64,
    /// Bytes of an element in the file and in memory.
    from: u64,
    to: u64,
    /// Elements from one line to the next, and how many of them are read of the last line of a tile.
    stride: u64,
    width: u64,
    lines: u64,
    /// Elements up to the last one of all; the last line may be needed less far than others.
    end: u64,
    /// Lines of a tile.
    step: u64,
    parts: Vec<Part>,
}

/// What a member needs of some lines: the same elements of each.
#[derive(Debug)]
struct Part {
    member: u32,
    lines: Range<u64>,
    /// First element of a line.
    column: u64,
    /// First element in the rank's part, and the distance there from one line's to the next one's.
    local: u64,
    line_stride: u64,
    /// Within a line.
    loops: Vec<Loop>,
}

impl Shared {
    /// `None` where lines are longer than a block, or where little of what is read for one part is needed for another.
    pub(super) fn new(parts: &[(u32, Piece)], first: u64, source: Source) -> Option<Self> {
        if parts.iter().all(|(member, _)| *member == parts[0].0) {
            return None;
        }
        let mut strides: Vec<u64> = parts.iter().flat_map(|(_, p)| p.loops.iter().map(|l| l.source_stride)).collect();
        strides.sort_unstable_by(|a, b| b.cmp(a));
        strides.dedup();
        strides
            .into_iter()
            .filter(|&s| s > 1 && s <= source.block / source.from)
            .find_map(|stride| Self::in_lines(parts, (first, stride), source))
    }

    /// As [`Shared::new`], of lines that are `stride` elements apart.
    fn in_lines(parts: &[(u32, Piece)], (first, stride): (u64, u64), Source { start, from, to, block }: Source) -> Option<Self> {
        let mut of_lines = Vec::new();
        for (member, piece) in parts {
            Part::add(*member, piece, first, stride, &mut of_lines)?;
        }
        let mut parts = of_lines;
        let (low, high) = (parts.iter().map(|p| p.column).min()?, parts.iter().map(|p| p.column + span(&p.loops)).max()?);
        let (top, bottom) = (parts.iter().map(|p| p.lines.start).min()?, parts.iter().map(|p| p.lines.end).max()?);
        let (width, lines) = (high - low, bottom - top);
        let apart: u64 = parts.iter().map(|p| p.lines.end - p.lines.start).sum();
        let needed: u64 = parts.iter().map(Part::numel).sum();
        if apart < lines + lines / 2 || needed < width * lines / 2 {
            return None;
        }
        for part in &mut parts {
            part.column -= low;
            part.lines = part.lines.start - top..part.lines.end - top;
        }
        let end = parts.iter().map(|p| p.end(stride)).max()?;
        let room = (block / from).checked_sub(width)? / stride + 1;
        let step = if room < lines { even_lines(room) } else { lines };
        Some(Self { at: start + (first + top * stride + low) * from, from, to, stride, width, lines, end, step, parts })
    }

    pub(super) fn member(&self) -> u32 {
        self.parts[0].member
    }

    pub(super) fn tiles(&self) -> u64 {
        self.lines.div_ceil(self.step)
    }

    pub(super) fn tile(&self, number: u64) -> (u64, u64, u64) {
        let lines = self.lines_of(number);
        let needed = self.parts.iter().map(|p| p.numel() / (p.lines.end - p.lines.start) * common(&p.lines, &lines)).sum();
        (self.at + lines.start * self.stride * self.from, self.bytes(&lines), needed)
    }

    pub(super) fn bytes_from(&self, number: u64) -> u64 {
        let last = self.tiles() - 1;
        if number > last {
            return 0;
        }
        (last - number) * self.bytes(&(0..self.step)) + self.bytes(&self.lines_of(last))
    }

    pub(super) fn parts(&self, number: u64) -> impl Iterator<Item = TilePart> + '_ {
        let lines = self.lines_of(number);
        self.parts.iter().filter(move |p| common(&p.lines, &lines) > 0).map({
            let lines = self.lines_of(number);
            move |p| {
                let first = p.lines.start.max(lines.start);
                let mut loops = p.loops.clone();
                loops.push(Loop { size: common(&p.lines, &lines), source_stride: self.stride, target_stride: p.line_stride });
                let local = p.local + (first - p.lines.start) * p.line_stride;
                TilePart::new(p.member, (first - lines.start) * self.stride + p.column, local * self.to, loops)
            }
        })
    }

    fn lines_of(&self, number: u64) -> Range<u64> {
        let first = number * self.step;
        first..(first + self.step).min(self.lines)
    }

    /// Bytes of a tile.
    fn bytes(&self, lines: &Range<u64>) -> u64 {
        let elements = match lines.end == self.lines {
            true => self.end - lines.start * self.stride,
            false => (lines.end - lines.start - 1) * self.stride + self.width,
        };
        elements * self.from
    }
}

impl Part {
    /// A piece as parts of lines that are `stride` elements apart, the first of them at element `first` of the source tensor. `None` where it is not.
    fn add(member: u32, piece: &Piece, first: u64, stride: u64, parts: &mut Vec<Self>) -> Option<()> {
        let mut loops = piece.loops.clone();
        loops.sort_by_key(|l| l.source_stride);
        let within = loops.partition_point(|l| l.source_stride < stride);
        let mut above = loops.split_off(within);
        let along = match above.first() {
            Some(l) if l.source_stride == stride => above.remove(0),
            _ => Loop { size: 1, source_stride: stride, target_stride: 0 },
        };
        let count = above
            .iter()
            .try_fold(1usize, |n, l| n.checked_mul(usize::try_from(l.size).ok()?))
            .filter(|&n| n <= MOST_PARTS - parts.len())?;
        if above.iter().any(|l| l.source_stride % stride != 0) {
            return None;
        }
        for mut number in 0..count as u64 {
            let (mut source, mut local) = (piece.source_offset.checked_sub(first)?, piece.target_offset);
            for l in &above {
                source += number % l.size * l.source_stride;
                local += number % l.size * l.target_stride;
                number /= l.size;
            }
            let (line, column) = (source / stride, source % stride);
            if column + span(&loops) > stride {
                return None;
            }
            let lines = line..line + along.size;
            parts.push(Self { member, lines, column, local, line_stride: along.target_stride, loops: loops.clone() });
        }
        Some(())
    }

    /// Behind its last element.
    fn end(&self, stride: u64) -> u64 {
        (self.lines.end - 1) * stride + self.column + span(&self.loops)
    }

    fn numel(&self) -> u64 {
        (self.lines.end - self.lines.start) * self.loops.iter().map(|l| l.size).product::<u64>()
    }
}

/// How many numbers are in both.
fn common(a: &Range<u64>, b: &Range<u64>) -> u64 {
    a.end.min(b.end).saturating_sub(a.start.max(b.start))
}
