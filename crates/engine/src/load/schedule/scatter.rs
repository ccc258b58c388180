//! Elements of a tile, copied to their places in a rank's part.

use shardwright_core::Loop;

/// Elements of a square that is transposed in registers.
const SQUARE: usize = 8;

/// Bytes that are written of a row of the target before the next row's turn: a cache line.
const CACHE_LINE: usize = 64;

/// Elements of `size` bytes in a cache line.
pub(super) const fn side_by_side(size: usize) -> usize {
    CACHE_LINE / size
}

/// Elements from the first to the last one of nested loops, both included.
pub(super) fn span(loops: &[Loop]) -> u64 {
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
    let wide = const { side_by_side(size_of::<T>()) };
    // Rows that a square has: of four-byte elements half of them, so that each line of the target is written at once.
    let tall = const { if size_of::<T>() == 4 && cfg!(target_arch = "x86_64") { SQUARE / 2 } else { SQUARE } };
    let (height, width) = (rows.size as usize, columns.size as usize);
    let (source, target) = (columns.source_stride as usize, rows.target_stride as usize);
    let (even_height, even_width) = (height / tall * tall, width / wide * wide);
    // SAFETY: row `r` and column `c` stay below the loops' sizes in all of it, so that the caller's promise covers every element.
    unsafe {
        let element = |r: usize, c: usize| to.add(r * target + c).write_unaligned(from.add(r + c * source).read_unaligned());
        for c in (0..even_width).step_by(wide) {
            for r in (0..even_height).step_by(tall) {
                for c in (c..c + wide).step_by(tall) {
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
/// `SQUARE` elements may be read at each of `SQUARE` places that are `source` elements apart, and written likewise; of four-byte elements on x86-64
/// half as many at half as many.
#[inline(always)]
unsafe fn square<T: Copy>(from: *const T, source: usize, to: *mut T, target: usize) {
    // SAFETY: as the caller promises; arrays are read and written without an alignment.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        match size_of::<T>() {
            2 => return sse2::square_of_2(from.cast(), source, to.cast(), target),
            4 => return sse2::square_of_4(from.cast(), source, to.cast(), target),
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
    pub(super) unsafe fn square_of_4(from: *const u32, source: usize, to: *mut u32, target: usize) {
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
