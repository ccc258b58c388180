//! A strided part of a source tensor: cut into tiles that are one stretch of the file each, and scattered from there.

use shardwright_core::{Loop, Piece};

/// Between two parts of a tile at most so many bytes are read for nothing; where there are more, each part is read by itself.
const GAP: u64 = 4096;

/// Elements of a square that is transposed in registers.
const SQUARE: usize = 8;

/// Squares side by side in the target: what is written of a row of two-byte elements is a cache line then.
const SIDE_BY_SIDE: usize = 4;

/// A strided box between a file and a rank's part of a parameter.
#[derive(Debug)]
pub(crate) struct Sweep {
    /// First byte in the file.
    at: u64,
    /// Bytes of an element in the file and in memory.
    from: u64,
    to: u64,
    /// First element in the rank's part.
    local: u64,
    /// Walked one tile after the other; outermost first, by descending source stride.
    outer: Vec<Loop>,
    /// The loop that is cut into tiles, if one is: itself, and its steps in a tile.
    cut: Option<(Loop, u64)>,
    /// What every tile holds.
    inner: Vec<Loop>,
}

impl Sweep {
    /// A piece of the source tensor that starts at byte `start` of the file, in tiles of at most `block` bytes.
    pub(super) fn new(piece: &Piece, start: u64, from: u64, to: u64, block: u64) -> Self {
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
            cut = Some((next, steps));
            break;
        }
        Self { at: start + piece.source_offset * from, from, to, local: piece.target_offset, outer: loops, cut, inner }
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

    /// Where the tile's first element goes in the part, in bytes, and the loops from the tile's own bytes to there; the loop with the shortest steps
    /// in the part comes last.
    pub(crate) fn loops(&self, number: u64) -> (u64, Vec<Loop>) {
        let (_, target, steps) = self.place(number);
        let mut loops = self.inner.clone();
        loops.extend(self.cut.map(|(l, _)| Loop { size: steps, ..l }));
        loops.retain(|l| l.size != 1);
        loops.sort_by_key(|l| std::cmp::Reverse(l.target_stride));
        ((self.local + target) * self.to, loops)
    }
}

/// Elements from the first to the last one of nested loops, both included.
fn span(loops: &[Loop]) -> u64 {
    1 + loops.iter().map(|l| (l.size - 1) * l.source_stride).sum::<u64>()
}

/// Copies elements of `size` bytes from the tile to their places.
///
/// # Safety
/// Every element that the loops reach lies inside `from`, and inside the memory behind `to`, which nothing else accesses meanwhile.
pub(crate) unsafe fn scatter(from: &[u8], to: *mut u8, size: usize, loops: &[Loop]) {
    debug_assert!(span(loops) * size as u64 <= from.len() as u64);
    // SAFETY: as the caller promises.
    unsafe {
        match size {
            1 => walk(from.as_ptr(), to, loops),
            2 => walk(from.as_ptr().cast::<u16>(), to.cast::<u16>(), loops),
            4 => walk(from.as_ptr().cast::<u32>(), to.cast::<u32>(), loops),
            _ => walk(from.as_ptr().cast::<u64>(), to.cast::<u64>(), loops),
        }
    }
}

/// # Safety
/// As [`scatter`], of elements of type `T`; neither side needs to be aligned.
#[expect(clippy::cast_possible_truncation, reason = "distances inside of one block and one shard, both of which are in memory")]
unsafe fn walk<T: Copy>(from: *const T, to: *mut T, loops: &[Loop]) {
    // SAFETY: the loops stay inside both sides, as the caller promises; elements are copied as bytes, so nothing needs an alignment.
    unsafe {
        match loops {
            [] => to.write_unaligned(from.read_unaligned()),
            [run] if run.source_stride == 1 && run.target_stride == 1 => {
                to.cast::<u8>().copy_from_nonoverlapping(from.cast(), run.size as usize * size_of::<T>());
            }
            [rows, columns] if rows.source_stride == 1 && columns.target_stride == 1 => transpose(from, to, *rows, *columns),
            [outer, inner @ ..] => {
                for i in 0..outer.size {
                    walk(from.add((i * outer.source_stride) as usize), to.add((i * outer.target_stride) as usize), inner);
                }
            }
        }
    }
}

/// Rows of the target that are columns of the source. Squares are read by lines of the source and written by lines of the target, so that no
/// line of either side is fetched twice, whatever the strides; those are often powers of two, whose lines all fall into a few sets of a cache.
///
/// # Safety
/// As [`walk`].
#[expect(clippy::cast_possible_truncation, reason = "distances inside of one block and one shard, both of which are in memory")]
unsafe fn transpose<T: Copy>(from: *const T, to: *mut T, rows: Loop, columns: Loop) {
    const WIDE: usize = SQUARE * SIDE_BY_SIDE;
    let (height, width) = (rows.size as usize, columns.size as usize);
    let (source, target) = (columns.source_stride as usize, rows.target_stride as usize);
    let (even_height, even_width) = (height / SQUARE * SQUARE, width / WIDE * WIDE);
    // SAFETY: row `r` and column `c` stay below the loops' sizes in all of it, so that the caller's promise covers every element.
    unsafe {
        let element = |r: usize, c: usize| to.add(r * target + c).write_unaligned(from.add(r + c * source).read_unaligned());
        for c in (0..even_width).step_by(WIDE) {
            for r in (0..even_height).step_by(SQUARE) {
                for c in (c..c + WIDE).step_by(SQUARE) {
                    square(from.add(r + c * source), source, to.add(r * target + c), target);
                }
            }
        }
        for r in 0..height {
            let done = if r < even_height { even_width } else { 0 };
            for c in done..width {
                element(r, c);
            }
        }
    }
}

/// One square, through registers.
///
/// # Safety
/// `SQUARE` elements may be read at each of `SQUARE` places that are `source` elements apart, and written likewise.
#[inline(always)]
unsafe fn square<T: Copy>(from: *const T, source: usize, to: *mut T, target: usize) {
    // SAFETY: as the caller promises; arrays are read and written without an alignment.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        match size_of::<T>() {
            2 => return sse2::square_of_2(from.cast(), source, to.cast(), target),
            4 => {
                for (row, column) in [(0, 0), (0, 4), (4, 0), (4, 4)] {
                    sse2::quarter_of_4(from.add(column * source + row).cast(), source, to.add(row * target + column).cast(), target);
                }
                return;
            }
            _ => {}
        }
        let lines: [[T; SQUARE]; SQUARE] = std::array::from_fn(|i| from.add(i * source).cast::<[T; SQUARE]>().read_unaligned());
        #[expect(clippy::needless_range_loop, reason = "a column of all lines, not one of them")]
        for j in 0..SQUARE {
            let line: [T; SQUARE] = std::array::from_fn(|i| lines[i][j]);
            to.add(j * target).cast::<[T; SQUARE]>().write_unaligned(line);
        }
    }
}

/// What the compiler does not find by itself; every x86-64 has these instructions.
#[cfg(target_arch = "x86_64")]
mod sse2 {
    use std::{arch::x86_64::*, array::from_fn};

    /// # Safety
    /// As [`super::square`], of elements of 2 bytes.
    #[inline(always)]
    pub(super) unsafe fn square_of_2(from: *const u16, source: usize, to: *mut u16, target: usize) {
        // SAFETY: as the caller promises; loads and stores need no alignment.
        unsafe {
            let mut lines: [__m128i; 8] = from_fn(|i| _mm_loadu_si128(from.add(i * source).cast()));
            // Three times, lines 0 to 3 are interleaved with 4 to 7: each time one bit of a line's number changes places with one of a column's.
            for _ in 0..3 {
                lines = from_fn(|i| match i % 2 {
                    0 => _mm_unpacklo_epi16(lines[i / 2], lines[i / 2 + 4]),
                    _ => _mm_unpackhi_epi16(lines[i / 2], lines[i / 2 + 4]),
                });
            }
            for (j, line) in lines.into_iter().enumerate() {
                _mm_storeu_si128(to.add(j * target).cast(), line);
            }
        }
    }

    /// # Safety
    /// As [`super::square`], of 4 by 4 elements of 4 bytes.
    #[inline(always)]
    pub(super) unsafe fn quarter_of_4(from: *const u32, source: usize, to: *mut u32, target: usize) {
        // SAFETY: as the caller promises; loads and stores need no alignment.
        unsafe {
            let mut lines: [__m128i; 4] = from_fn(|i| _mm_loadu_si128(from.add(i * source).cast()));
            for _ in 0..2 {
                lines = from_fn(|i| match i % 2 {
                    0 => _mm_unpacklo_epi32(lines[i / 2], lines[i / 2 + 2]),
                    _ => _mm_unpackhi_epi32(lines[i / 2], lines[i / 2 + 2]),
                });
            }
            for (j, line) in lines.into_iter().enumerate() {
                _mm_storeu_si128(to.add(j * target).cast(), line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lp(size: u64, source_stride: u64, target_stride: u64) -> Loop {
        Loop { size, source_stride, target_stride }
    }

    /// Walks all tiles of several shapes at several block sizes, against a walk element by element.
    #[test]
    #[expect(clippy::cast_possible_truncation, reason = "small numbers")]
    fn tiles_scatter_every_element_once() {
        let cases = [
            (vec![lp(40, 1, 70), lp(70, 40, 1)], 2800, 2800),
            (vec![lp(67, 1, 133), lp(133, 70, 1)], 133 * 70, 67 * 133),
            (vec![lp(6, 2, 9), lp(3, 12, 54), lp(9, 40, 1)], 355, 162),
            (vec![lp(5, 100, 10), lp(10, 1, 1)], 410, 50),
            (vec![lp(4, 10_000, 3), lp(3, 1, 1)], 30_003, 12),
            (vec![], 1, 1),
            (vec![lp(50, 3, 1)], 148, 50),
        ];
        for (loops, source, target) in cases {
            for size in [1u64, 2, 4, 8] {
                for block in [64, 256, 4096, 1 << 20] {
                    let piece = Piece { source: 0, source_offset: 7, target_offset: 5, loops: loops.clone() };
                    let sweep = Sweep::new(&piece, 100, size, size, block);
                    let file: Vec<u8> = (0..(source + 7) * size).map(|i| (i * 37 % 251) as u8).collect();
                    let mut part = vec![0u8; ((target + 5) * size) as usize];
                    let mut bytes = 0;
                    for n in 0..sweep.tiles() {
                        let (offset, length, _) = sweep.tile(n);
                        assert!(length <= block.max(size), "{length} of {block}");
                        assert_eq!(sweep.bytes_from(0) - sweep.bytes_from(n), bytes);
                        bytes += length;
                        let tile = &file[(offset - 100) as usize..][..length as usize];
                        let (to, loops) = sweep.loops(n);
                        // SAFETY: the tile holds what its loops reach, and so does the part.
                        unsafe { scatter(tile, part.as_mut_ptr().add(to as usize), size as usize, &loops) };
                    }
                    let mut expected = vec![0u8; part.len()];
                    let count: u64 = loops.iter().map(|l| l.size).product();
                    for mut n in 0..count {
                        let (mut from, mut to) = (7, 5);
                        for l in loops.iter().rev() {
                            from += n % l.size * l.source_stride;
                            to += n % l.size * l.target_stride;
                            n /= l.size;
                        }
                        let (from, to, size) = ((from * size) as usize, (to * size) as usize, size as usize);
                        expected[to..to + size].copy_from_slice(&file[from..from + size]);
                    }
                    assert_eq!(part, expected, "{loops:?} of {size} bytes in blocks of {block}");
                }
            }
        }
    }
}
