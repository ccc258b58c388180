//! Elements of a tile, copied to their places in a rank's part.

use std::array::from_fn;

use shardwright_core::Loop;

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

/// Rows of the target that are columns of the source: block by block, each of whole cache lines of the target. A row's lines are written one after the
/// other, past the caches where they are aligned, so that none is fetched before; those of the source are read from a cache.
///
/// # Safety
/// As [`walk`].
unsafe fn transpose<T: Copy>(from: *const T, to: *mut T, rows: Loop, columns: Loop) {
    // SAFETY: as the caller promises.
    unsafe { transpose_with(Width::of_processor(), from, to, rows, columns) }
}

/// # Safety
/// As [`walk`], on a processor that has vectors of this width.
#[expect(clippy::cast_possible_truncation, reason = "distances inside of one block and one shard, both of which are in memory")]
unsafe fn transpose_with<T: Copy>(vectors: Width, from: *const T, to: *mut T, rows: Loop, columns: Loop) {
    let wide = const { side_by_side(size_of::<T>()) };
    let (height, width) = (rows.size as usize, columns.size as usize);
    let (source, target) = (columns.source_stride as usize, rows.target_stride as usize);
    let aligned = to.addr().is_multiple_of(CACHE_LINE) && (target * size_of::<T>()).is_multiple_of(CACHE_LINE);
    let Blocks { tall, transpose, end } = Blocks::of::<T>(vectors, aligned);
    let (even_height, even_width) = (height / tall * tall, width / wide * wide);
    // SAFETY: row `r` and column `c` stay below the loops' sizes in all of it, so that the caller's promise covers every element; blocks are for
    // elements of this size and this processor.
    unsafe {
        for r in (0..even_height).step_by(tall) {
            for c in (0..even_width).step_by(wide) {
                transpose(from.add(r + c * source).cast(), source * size_of::<T>(), to.add(r * target + c).cast(), target * size_of::<T>());
            }
        }
        end();
        for r in 0..height {
            let done = if r < even_height { even_width } else { 0 };
            for c in done..width {
                to.add(r * target + c).write_unaligned(from.add(r + c * source).read_unaligned());
            }
        }
    }
}

/// Vectors that a processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    /// What every processor of its kind has.
    Base,
    /// AVX-512.
    Line,
}

impl Width {
    fn of_processor() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            return Self::Line;
        }
        Self::Base
    }
}

type Transpose = unsafe fn(*const u8, usize, *mut u8, usize);

/// How blocks of a matrix are transposed.
#[derive(Clone, Copy)]
struct Blocks {
    /// Rows of the target in a block; each has a cache line of it.
    tall: usize,
    /// # Safety
    /// From the first address, `tall` elements may be read at each of as many places as a cache line has elements, which are the first number of bytes
    /// apart; to the second, a cache line may be written at each of `tall` places, which are the second number of bytes apart.
    transpose: Transpose,
    /// Called behind the last block: makes what was written past the caches visible to other threads.
    end: fn(),
}

impl Blocks {
    /// For elements of type `T` by vectors of this width; `aligned` says that all lines of the target are cache lines.
    fn of<T: Copy>(vectors: Width, aligned: bool) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let end: fn() = if aligned { x86::fence } else { || {} };
            let found: Option<(usize, Transpose)> = match (size_of::<T>(), vectors, aligned) {
                (2, Width::Line, true) => Some((32, x86::wide_of_2::<true>)),
                (2, Width::Line, false) => Some((32, x86::wide_of_2::<false>)),
                (4, Width::Line, true) => Some((16, x86::wide_of_4::<true>)),
                (4, Width::Line, false) => Some((16, x86::wide_of_4::<false>)),
                (2, Width::Base, true) => Some((8, x86::of_2::<true>)),
                (2, Width::Base, false) => Some((8, x86::of_2::<false>)),
                (4, Width::Base, true) => Some((4, x86::of_4::<true>)),
                (4, Width::Base, false) => Some((4, x86::of_4::<false>)),
                _ => None,
            };
            if let Some((tall, transpose)) = found {
                return Self { tall, transpose, end };
            }
        }
        Self { tall: SQUARE, transpose: squares::<T>, end: || {} }
    }
}

/// Elements of a square that the compiler keeps in registers.
const SQUARE: usize = 8;

/// # Safety
/// As [`Blocks::transpose`].
unsafe fn squares<T: Copy>(from: *const u8, source: usize, to: *mut u8, target: usize) {
    for c in (0..side_by_side(size_of::<T>())).step_by(SQUARE) {
        // SAFETY: as the caller promises; arrays are read and written without an alignment.
        unsafe {
            let lines: [[T; SQUARE]; SQUARE] = from_fn(|i| from.add((c + i) * source).cast::<[T; SQUARE]>().read_unaligned());
            #[expect(clippy::needless_range_loop, reason = "a column of all lines, not one of them")]
            for j in 0..SQUARE {
                let line: [T; SQUARE] = from_fn(|i| lines[i][j]);
                to.add(j * target + c * size_of::<T>()).cast::<[T; SQUARE]>().write_unaligned(line);
            }
        }
    }
}

/// What the compiler does not find by itself. `STREAMED` writes past the caches, for which lines of the target have to be cache lines.
///
/// All interleave the lines of the first half with those of the second, as often as it takes: each time one bit of a line's number changes places with
/// one of a column's.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{CACHE_LINE, from_fn};

    /// Orders writes past the caches before what follows.
    pub(super) fn fence() {
        // SAFETY: every x86-64 has it.
        unsafe { _mm_sfence() };
    }

    /// Squares of `$side` elements a side, each line of them 16 bytes.
    macro_rules! narrow {
        ($name:ident, $side:literal, $low:ident, $high:ident) => {
            /// # Safety
            /// As [`super::Blocks::transpose`], for `$side` rows.
            pub(super) unsafe fn $name<const STREAMED: bool>(from: *const u8, source: usize, to: *mut u8, target: usize) {
                for square in 0..4 {
                    // SAFETY: as the caller promises; loads need no alignment.
                    unsafe {
                        let mut lines: [__m128i; $side] = from_fn(|i| _mm_loadu_si128(from.add((square * $side + i) * source).cast()));
                        for _ in 0..usize::ilog2($side) {
                            lines = from_fn(|i| match i % 2 {
                                0 => $low(lines[i / 2], lines[i / 2 + $side / 2]),
                                _ => $high(lines[i / 2], lines[i / 2 + $side / 2]),
                            });
                        }
                        for (j, line) in lines.into_iter().enumerate() {
                            quarter::<STREAMED>(to.add(j * target + square * 16), line);
                        }
                    }
                }
            }
        };
    }

    narrow!(of_2, 8, _mm_unpacklo_epi16, _mm_unpackhi_epi16);
    narrow!(of_4, 4, _mm_unpacklo_epi32, _mm_unpackhi_epi32);

    /// # Safety
    /// 16 bytes may be written there, which are aligned if they are streamed.
    #[inline(always)]
    unsafe fn quarter<const STREAMED: bool>(to: *mut u8, bytes: __m128i) {
        // SAFETY: as the caller promises.
        unsafe { if STREAMED { _mm_stream_si128(to.cast(), bytes) } else { _mm_storeu_si128(to.cast(), bytes) } }
    }

    /// One square of `$side` elements a side, each line of it a cache line.
    macro_rules! wide {
        ($name:ident, $element:ty, $side:literal, $interleave:ident) => {
            /// # Safety
            /// As [`super::Blocks::transpose`], for `$side` rows.
            #[target_feature(enable = "avx512f,avx512bw")]
            pub(super) unsafe fn $name<const STREAMED: bool>(from: *const u8, source: usize, to: *mut u8, target: usize) {
                /// Of two lines, the elements of the interleaved first halves, and those of the second ones.
                const HALVES: [[$element; $side]; 2] = {
                    let mut halves = [[0; $side]; 2];
                    let (mut i, mut from) = (0, 0);
                    while i < 2 * $side {
                        (halves[i / $side][i % $side], halves[i / $side][i % $side + 1]) = (from, from + $side);
                        (i, from) = (i + 2, from + 1);
                    }
                    halves
                };
                // SAFETY: as the caller promises; loads need no alignment.
                unsafe {
                    let (low, high) = (_mm512_loadu_si512(HALVES[0].as_ptr().cast()), _mm512_loadu_si512(HALVES[1].as_ptr().cast()));
                    let mut lines = [_mm512_setzero_si512(); $side];
                    for (i, line) in lines.iter_mut().enumerate() {
                        *line = _mm512_loadu_si512(from.add(i * source).cast());
                    }
                    for _ in 0..usize::ilog2($side) {
                        let old = lines;
                        for i in 0..$side / 2 {
                            lines[2 * i] = $interleave(old[i], low, old[i + $side / 2]);
                            lines[2 * i + 1] = $interleave(old[i], high, old[i + $side / 2]);
                        }
                    }
                    for (j, line) in lines.into_iter().enumerate() {
                        whole::<STREAMED>(to.add(j * target), line);
                    }
                }
            }
        };
    }

    wide!(wide_of_2, u16, 32, _mm512_permutex2var_epi16);
    wide!(wide_of_4, u32, 16, _mm512_permutex2var_epi32);

    /// # Safety
    /// A cache line's bytes may be written there, which are a cache line if they are streamed.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn whole<const STREAMED: bool>(to: *mut u8, line: __m512i) {
        const { assert!(size_of::<__m512i>() == CACHE_LINE) };
        // SAFETY: as the caller promises.
        unsafe { if STREAMED { _mm512_stream_si512(to.cast(), line) } else { _mm512_storeu_si512(to.cast(), line) } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Transposes `height` by `width` elements of the bytes of `T`, into rows that start so many bytes behind a cache line and are `stride` elements apart.
    fn check<T: Copy>(vectors: Width, (height, width): (usize, usize), behind: usize, stride: usize) {
        let size = size_of::<T>();
        let source = height + 3;
        let from: Vec<u8> = (0..source * width * size).map(|i| ((i * 31 + i / 251) % 256).to_le_bytes()[0]).collect();
        let mut memory = vec![0xA5_u8; height * stride * size + 2 * CACHE_LINE + behind];
        let first = memory.as_ptr().align_offset(CACHE_LINE) + behind;
        let mut want = memory.clone();
        for (r, c) in (0..height).flat_map(|r| (0..width).map(move |c| (r, c))) {
            want[first + (r * stride + c) * size..][..size].copy_from_slice(&from[(r + c * source) * size..][..size]);
        }
        let rows = Loop { size: height as u64, source_stride: 1, target_stride: stride as u64 };
        let columns = Loop { size: width as u64, source_stride: source as u64, target_stride: 1 };
        // SAFETY: both memories hold what the loops reach, and the processor was asked for its vectors.
        unsafe { transpose_with(vectors, from.as_ptr().cast::<T>(), memory.as_mut_ptr().add(first).cast::<T>(), rows, columns) };
        assert!(memory == want, "{height} x {width} elements of {size} bytes, {behind} bytes behind a line, {stride} apart, {vectors:?}");
    }

    #[test]
    fn matrices_are_transposed_by_all_vectors_wherever_they_lie() {
        let widths = [Width::Base, Width::of_processor()];
        for vectors in &widths[..1 + usize::from(widths[1] != widths[0])] {
            for shape in [(1_usize, 1_usize), (7, 70), (8, 64), (33, 65), (64, 32), (67, 131)] {
                // Rows of whole lines that start one, rows that do not, and rows that are not of whole lines.
                for (behind, padding) in [(0, 0), (1, 0), (8, 0), (0, 5)] {
                    let stride = |size: usize| shape.1.next_multiple_of(CACHE_LINE / size) + padding;
                    check::<u8>(*vectors, shape, behind, stride(1));
                    check::<u16>(*vectors, shape, behind, stride(2));
                    check::<u32>(*vectors, shape, behind, stride(4));
                    check::<u64>(*vectors, shape, behind, stride(8));
                }
            }
        }
    }
}
