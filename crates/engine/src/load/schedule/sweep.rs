//! Strided parts of a source tensor: cut into tiles that are one stretch of the file each, and scattered from there.

mod alone;
mod shared;

use std::ops::Range;

use shardwright_core::{Loop, Piece};

use self::{alone::Alone, shared::Shared};
use super::scatter::{side_by_side, span};

/// Strided boxes between a file and ranks' parts of a parameter.
#[derive(Debug)]
pub(crate) struct Sweep(Kind);

#[derive(Debug)]
enum Kind {
    /// Of one rank.
    Alone(Alone),
    /// Of several, which need elements of the same lines.
    Shared(Shared),
}

/// Where a source tensor lies and how it is read: its first byte in the file, bytes of an element in the file and in memory, and those of a tile
/// at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) start: u64,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) block: u64,
}

/// What a tile has for one rank.
#[derive(Debug)]
pub(crate) struct TilePart {
    /// Of the group.
    pub(super) member: u32,
    /// First element in the tile.
    pub(crate) from: u64,
    /// First byte in the rank's part.
    pub(crate) to: u64,
    /// From there to there; the loop with the shortest steps in the part comes last.
    pub(crate) loops: Vec<Loop>,
}

impl TilePart {
    fn new(member: u32, from: u64, to: u64, mut loops: Vec<Loop>) -> Self {
        loops.retain(|l| l.size != 1);
        loops.sort_by_key(|l| std::cmp::Reverse(l.target_stride));
        Self { member, from, to, loops }
    }

    /// Elements.
    pub(crate) fn numel(&self) -> u64 {
        self.loops.iter().map(|l| l.size).product()
    }
}

impl Sweep {
    /// The parts, by member, of a piece that starts at element `first` of its source tensor: one sweep for all where they share lines, else one each.
    pub(super) fn all(parts: &[(u32, Piece)], first: u64, source: Source) -> Vec<Self> {
        match Shared::new(parts, first, source) {
            Some(shared) => vec![Self(Kind::Shared(shared))],
            None => parts.iter().map(|part| Self(Kind::Alone(Alone::new(part, source)))).collect(),
        }
    }

    /// The first member that gets something.
    pub(super) fn member(&self) -> u32 {
        match &self.0 {
            Kind::Alone(sweep) => sweep.member,
            Kind::Shared(sweep) => sweep.member(),
        }
    }

    /// Number of tiles.
    pub(super) fn tiles(&self) -> u64 {
        match &self.0 {
            Kind::Alone(sweep) => sweep.tiles(),
            Kind::Shared(sweep) => sweep.tiles(),
        }
    }

    /// First byte in the file, number of bytes, and number of elements that are needed.
    pub(super) fn tile(&self, number: u64) -> (u64, u64, u64) {
        match &self.0 {
            Kind::Alone(sweep) => sweep.tile(number),
            Kind::Shared(sweep) => sweep.tile(number),
        }
    }

    /// Bytes of this tile and all that follow.
    pub(super) fn bytes_from(&self, number: u64) -> u64 {
        match &self.0 {
            Kind::Alone(sweep) => sweep.bytes_from(number),
            Kind::Shared(sweep) => sweep.bytes_from(number),
        }
    }

    /// What a tile has for each rank.
    pub(crate) fn parts(&self, number: u64) -> impl Iterator<Item = TilePart> + '_ {
        let (alone, shared) = match &self.0 {
            Kind::Alone(sweep) => (Some(sweep.part(number)), None),
            Kind::Shared(sweep) => (None, Some(sweep.parts(number))),
        };
        alone.into_iter().chain(shared.into_iter().flatten())
    }
}

/// Lines of a tile that has to end somewhere: so many that the next one starts with a cache line of the target, where that is transposed.
fn even_lines(lines: u64) -> u64 {
    const EVEN: u64 = 32;
    if lines > EVEN { lines / EVEN * EVEN } else { lines }
}

/// Converted elements of a tile that are scattered while they are in a core's cache.
const STRIP: u64 = 128 << 10;

/// Cuts what a tile of `elements` has for each rank into strips of whole lines, which are converted and scattered one after the other: the elements of
/// the tile that a strip takes, and its parts. A tile that does not consist of lines is one strip.
pub(crate) fn strips(parts: Vec<TilePart>, elements: u64, size: usize) -> Vec<(Range<u64>, Vec<TilePart>)> {
    strips_of(STRIP, parts, elements, size)
}

fn strips_of(strip: u64, parts: Vec<TilePart>, elements: u64, size: usize) -> Vec<(Range<u64>, Vec<TilePart>)> {
    let line = parts.iter().flat_map(|p| p.loops.iter().map(|l| l.source_stride)).max().unwrap_or(1);
    let least = side_by_side(size) as u64;
    let lines = (strip / line).max(least) / least * least;
    // Which loop of a part goes from line to line, if what it has of each stays inside of it.
    let along = |part: &TilePart| {
        let along = part.loops.iter().position(|l| l.source_stride == line)?;
        let within: Vec<Loop> = part.loops.iter().enumerate().filter(|&(i, _)| i != along).map(|(_, l)| *l).collect();
        (part.from % line + span(&within) <= line).then_some(along)
    };
    let along: Option<Vec<usize>> = parts.iter().map(along).collect();
    let Some(along) = along.filter(|_| line > 1 && lines * line < elements) else { return vec![(0..elements, parts)] };
    let count = elements.div_ceil(line);
    let strip = |first: u64| {
        let last = (first + lines).min(count);
        let cut = parts.iter().zip(&along).filter_map(|(part, &along)| {
            let of = part.from / line;
            let (begin, end) = (of.max(first), (of + part.loops[along].size).min(last));
            let mut loops = part.loops.clone();
            loops[along].size = end.checked_sub(begin).filter(|&n| n > 0)?;
            let to = part.to + (begin - of) * part.loops[along].target_stride * size as u64;
            Some(TilePart { member: part.member, from: part.from + (begin - of) * line, to, loops })
        });
        (first * line..(last * line).min(elements), cut.collect())
    };
    (0..count).step_by(usize::try_from(lines).unwrap_or(usize::MAX)).map(strip).collect()
}

#[cfg(test)]
mod tests {
    use shardwright_core::{Assembly, Region, local};

    use super::{super::scatter::scatter, *};

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
        let mut cut = 0;
        for (loops, source, target) in cases {
            for size in [1u64, 2, 4, 8] {
                for block in [64, 256, 4096, 1 << 20] {
                    let piece = Piece { source: 0, source_offset: 7, target_offset: 5, loops: loops.clone() };
                    let source_of = Source { start: 100, from: size, to: size, block };
                    let sweep = Sweep::all(&[(3, piece)], 7, source_of).remove(0);
                    let file: Vec<u8> = (0..(source + 7) * size).map(|i| (i * 37 % 251) as u8).collect();
                    let mut part = vec![0u8; ((target + 5) * size) as usize];
                    let mut bytes = 0;
                    for n in 0..sweep.tiles() {
                        let (offset, length, _) = sweep.tile(n);
                        assert!(length <= block.max(size), "{length} of {block}");
                        assert_eq!(sweep.bytes_from(0) - sweep.bytes_from(n), bytes);
                        bytes += length;
                        let tile = &file[(offset - 100) as usize..][..length as usize];
                        let strips = strips_of(block / 4, sweep.parts(n).collect(), length / size, size as usize);
                        cut += u32::from(strips.len() > 1);
                        for (elements, parts) in strips {
                            let strip = &tile[(elements.start * size) as usize..(elements.end * size) as usize];
                            for TilePart { member, from, to, loops } in parts {
                                assert_eq!(member, 3);
                                let from = &strip[((from - elements.start) * size) as usize..];
                                assert!(span(&loops) * size <= from.len() as u64);
                                // SAFETY: the strip holds what its loops reach, and so does the part.
                                unsafe { scatter(from, part.as_mut_ptr().add(to as usize), size as usize, &loops) };
                            }
                        }
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
        assert!(cut > 0, "no tile was cut into strips");
    }

    /// Matrices, some of them side by side in lines of a larger tensor, some in a stack, transposed and cut among ranks in several ways: all ranks' parts
    /// equal a walk element by element, and lines are read once.
    #[test]
    #[expect(clippy::cast_possible_truncation, reason = "small numbers")]
    fn ranks_share_the_lines_that_they_need() {
        // Rows and columns of the source, elements from one line to the next.
        for (rows, columns, pitch, stack) in [(40u64, 24u64, 24u64, 1u64), (33, 50, 61, 1), (9, 31, 31, 3)] {
            let shape = [stack, columns, rows];
            let loops = vec![lp(stack, rows * pitch, rows * columns), lp(columns, 1, rows), lp(rows, pitch, 1)];
            let piece = Piece { source: 0, source_offset: 5, target_offset: 0, loops };
            let whole = stack * rows * columns;
            let element = |n: u64| 5 + n / (rows * columns) * rows * pitch + n % rows * pitch + n / rows % columns;
            let by_dim = |dim: usize, range| Region::Dim { dim, range };
            let halves = |n: u64| [0..n / 2, n / 2..n];
            let cuts: [Vec<Region>; 4] = [
                halves(columns).map(|range| by_dim(1, range)).into(),
                halves(rows).map(|range| by_dim(2, range)).into(),
                (0..3).map(|r| Region::Flat { range: whole * r / 3..whole * (r + 1) / 3 }).collect(),
                vec![by_dim(1, 0..1), by_dim(1, 1..2), by_dim(1, 2..columns)],
            ];
            for (number, regions) in cuts.iter().enumerate() {
                for (size, block) in [(2u64, 1 << 20), (4, 1024), (1, 200)] {
                    let assembly = Assembly::Pieces(vec![piece.clone()]);
                    let mut parts = Vec::new();
                    for (m, region) in (0u32..).zip(regions) {
                        parts.extend(local::local_pieces(&assembly, &shape, region).unwrap().into_iter().map(|part| (m, part)));
                    }
                    let sweeps = Sweep::all(&parts, 5, Source { start: 11, from: size, to: size, block });
                    let file: Vec<u8> = (0..(5 + stack * rows * pitch) * size).map(|i| (i * 37 % 251) as u8).collect();
                    let mut buffers: Vec<Vec<u8>> = regions.iter().map(|r| vec![0xEE; (r.numel(&shape) * size) as usize]).collect();
                    let (mut read, mut needed, mut placed) = (0, 0, 0);
                    for sweep in &sweeps {
                        for n in 0..sweep.tiles() {
                            let (offset, length, elements) = sweep.tile(n);
                            assert!(length <= block);
                            assert_eq!(sweep.bytes_from(n) - sweep.bytes_from(n + 1), length);
                            let tile = &file[(offset - 11) as usize..][..length as usize];
                            (read, needed) = (read + length, needed + elements);
                            for (elements, parts) in strips_of(block / 64, sweep.parts(n).collect(), length / size, size as usize) {
                                let strip = &tile[(elements.start * size) as usize..(elements.end * size) as usize];
                                for part in parts {
                                    placed += part.numel();
                                    let to = &mut buffers[part.member as usize][part.to as usize..];
                                    let from = &strip[((part.from - elements.start) * size) as usize..];
                                    assert!(span(&part.loops) * size <= from.len() as u64);
                                    // SAFETY: the strip holds what its loops reach; that the part does is compared below.
                                    unsafe { scatter(from, to.as_mut_ptr(), size as usize, &part.loops) };
                                }
                            }
                        }
                    }
                    assert_eq!((needed, placed), (whole, whole));
                    let shared = matches!(sweeps[0].0, Kind::Shared(_));
                    // What several lines apart from each other fill, or whole matrices of a stack, needs no sharing.
                    let apart = if stack == 1 { number == 1 } else { number == 2 };
                    assert!(shared != apart || stack > 1 && number == 1, "{rows}×{columns}, cut {number}");
                    if shared {
                        assert!(read <= stack * rows * pitch * size, "{read} bytes of {rows}×{columns}, cut {number}");
                    }
                    for (region, buffer) in regions.iter().zip(&buffers) {
                        let elements: Vec<u64> = match region {
                            Region::Flat { range } => range.clone().collect(),
                            Region::Dim { dim, range } => {
                                (0..whole).filter(|n| range.contains(&if *dim == 1 { n / rows % columns } else { n % rows })).collect()
                            }
                            _ => unreachable!(),
                        };
                        let expected: Vec<u8> =
                            elements.iter().flat_map(|&n| file[(element(n) * size) as usize..][..size as usize].to_vec()).collect();
                        assert_eq!(
                            buffer, &expected,
                            "{rows}×{columns} in lines of {pitch}, cut {number}, {size} bytes, blocks of {block}"
                        );
                    }
                }
            }
        }
    }
}
