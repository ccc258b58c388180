//! The part of a parameter's assembly that a region holds, as strided boxes between source tensors and the region's own buffer.
//!
//! All offsets and strides count elements. The assembly was validated; a piece that is not a strided box of the parameter's dims is an error.

use std::{borrow::Cow, ops::Range};

use crate::{
    model::numel,
    piece::{Assembly, Loop, Piece},
    region::Region,
};

/// The same elements with as few loops as possible, by descending target stride.
pub fn normalized(mut piece: Piece) -> Piece {
    if piece.loops.iter().any(|l| l.size == 0) {
        piece.loops = vec![lp(0, 1, 1)];
        return piece;
    }
    piece.loops.retain(|l| l.size != 1);
    piece.loops.sort_by_key(|l| std::cmp::Reverse((l.target_stride, l.source_stride)));
    let mut merged: Vec<Loop> = Vec::with_capacity(piece.loops.len());
    for inner in piece.loops {
        let joins = |outer: &Loop| {
            Some(outer.source_stride) == inner.source_stride.checked_mul(inner.size)
                && Some(outer.target_stride) == inner.target_stride.checked_mul(inner.size)
        };
        match merged.last_mut() {
            Some(outer) if joins(outer) => *outer = Loop { size: outer.size.saturating_mul(inner.size), ..inner },
            _ => merged.push(inner),
        }
    }
    piece.loops = merged;
    piece
}

/// The length of a normalized piece that is one run of consecutive elements on both sides.
pub fn run_length(piece: &Piece) -> Option<u64> {
    match piece.loops.as_slice() {
        [] => Some(1),
        [only] if only.size == 0 || (only.source_stride == 1 && only.target_stride == 1) => Some(only.size),
        _ => None,
    }
}

/// The piece of a parameter of `numel` elements that is one source tensor.
pub fn whole(source: u32, numel: u64) -> Piece {
    Piece { source, source_offset: 0, target_offset: 0, loops: vec![lp(numel, 1, 1)] }
}

fn lp(size: u64, source_stride: u64, target_stride: u64) -> Loop {
    Loop { size, source_stride, target_stride }
}

/// A step along one dim of the parameter: number of steps, distance in the source, distance in the dim's indices.
#[derive(Clone, Copy, Debug)]
struct Step {
    size: u64,
    source: u64,
    index: u64,
}

/// A strided set of indices of one dim, nested: sorted by descending distance, each at least as long as all inner ones together.
#[derive(Clone, Debug)]
struct Along {
    start: u64,
    steps: Vec<Step>,
}

impl Along {
    fn last(&self) -> u64 {
        self.start + reach(&self.steps)
    }
}

/// The distance from the first to the last index of nested steps.
fn reach(steps: &[Step]) -> u64 {
    steps.iter().map(|s| (s.size - 1) * s.index).sum()
}

/// A piece seen along the dims of its parameter: the product of one set of indices per dim.
#[derive(Clone, Debug)]
struct Dims {
    source: u32,
    source_offset: u64,
    dims: Vec<Along>,
}

impl Dims {
    /// A piece that is not empty, as boxes: one where it is a box, a few for a run that starts or ends inside of a row.
    fn of(piece: &Piece, shape: &[u64]) -> Result<Vec<Self>, String> {
        let piece = normalized(piece.clone());
        if let Some(count) = run_length(&piece)
            && (shape.len() > 1 || count != 1)
        {
            let mut boxes = Vec::new();
            runs_to_boxes(&piece, shape, (piece.target_offset, piece.target_offset + count), &mut boxes);
            return Ok(boxes);
        }
        Self::strided(&piece, shape).map(|one| vec![one])
    }

    fn strided(piece: &Piece, shape: &[u64]) -> Result<Self, String> {
        let inner = inners(shape);
        let mut rest = piece.target_offset;
        let mut dims: Vec<Along> = Vec::with_capacity(shape.len());
        for &inner in &inner {
            dims.push(Along { start: rest / inner, steps: Vec::new() });
            rest %= inner;
        }
        for l in &piece.loops {
            split(*l, shape, &inner, &mut dims)?;
        }
        for (dim, along) in dims.iter_mut().enumerate() {
            along.steps.sort_by_key(|s| std::cmp::Reverse(s.index));
            let nested = (0..along.steps.len()).all(|i| along.steps[i].index > reach(&along.steps[i + 1..]));
            if !nested {
                return Err(format!("a piece fills indices of dim {dim} twice, or in an order that is not a strided box"));
            }
            if along.last() >= shape[dim] {
                return Err(format!("a piece wraps around dim {dim} of size {}, so it is not a strided box", shape[dim]));
            }
        }
        Ok(Self { source: piece.source, source_offset: piece.source_offset, dims })
    }

    /// The parts of it inside a range of one dim.
    fn within(&self, dim: usize, range: &Range<u64>) -> Vec<Self> {
        let mut parts = Vec::new();
        let along = &self.dims[dim];
        clip(&along.steps, along.start, 0, range, &mut |start, source, steps| {
            let mut part = self.clone();
            part.source_offset += source;
            part.dims[dim] = Along { start, steps };
            parts.push(part);
        });
        parts
    }

    /// As a piece of the box of these ranges.
    fn local(&self, ranges: &[Range<u64>]) -> Piece {
        let local: Vec<u64> = ranges.iter().map(|r| r.end - r.start).collect();
        let inner = inners(&local);
        let mut piece = Piece { source: self.source, source_offset: self.source_offset, target_offset: 0, loops: Vec::new() };
        for (dim, along) in self.dims.iter().enumerate() {
            piece.target_offset += (along.start - ranges[dim].start) * inner[dim];
            piece.loops.extend(along.steps.iter().map(|s| lp(s.size, s.source, s.index * inner[dim])));
        }
        normalized(piece)
    }
}

/// Elements under one index of each dim, at least 1.
fn inners(shape: &[u64]) -> Vec<u64> {
    let mut inner = vec![1u64; shape.len()];
    for d in (0..shape.len().saturating_sub(1)).rev() {
        inner[d] = inner[d + 1].saturating_mul(shape[d + 1].max(1));
    }
    inner
}

/// Gives a loop to the dims that it runs along, splitting it where it crosses from one dim into the next.
fn split(l: Loop, shape: &[u64], inner: &[u64], dims: &mut [Along]) -> Result<(), String> {
    let crooked = || format!("a piece steps by {} elements in shape {shape:?}, which is not along its dims", l.target_stride);
    let mut dim = inner.iter().position(|&i| l.target_stride >= i && l.target_stride.is_multiple_of(i)).ok_or_else(crooked)?;
    let mut left = l.size;
    let mut source = l.source_stride;
    let mut index = l.target_stride / inner[dim];
    loop {
        let size = shape[dim];
        // How many steps fit before this dim is full, seen from its start.
        let fit = size.div_ceil(index.max(1));
        if left <= fit || dim == 0 {
            dims[dim].steps.push(Step { size: left, source, index });
            return Ok(());
        }
        if !size.is_multiple_of(index) || !left.is_multiple_of(fit) || dims[dim].start >= index {
            return Err(crooked());
        }
        dims[dim].steps.push(Step { size: fit, source, index });
        source = source.checked_mul(fit).ok_or_else(crooked)?;
        left /= fit;
        dim -= 1;
        index = 1;
    }
}

/// A run of consecutive elements as boxes: the end of a first row, whole rows, the start of a last row, along each dim.
fn runs_to_boxes(piece: &Piece, shape: &[u64], (from, to): (u64, u64), boxes: &mut Vec<Dims>) {
    let inner = inners(shape);
    let mut at = from;
    while at < to {
        // The largest whole number of indices of the outermost dim that starts here.
        let fits = |d: usize| at.is_multiple_of(inner[d]) && at + inner[d] <= to;
        let dim = (0..shape.len()).find(|&d| fits(d)).unwrap_or(shape.len().saturating_sub(1));
        let row_end = if dim == 0 { u64::MAX } else { (at / inner[dim - 1] + 1) * inner[dim - 1] };
        let unit = inner.get(dim).copied().unwrap_or(1);
        let count = (to.min(row_end) - at) / unit;
        let mut rest = at;
        let mut dims = Vec::with_capacity(shape.len());
        for (d, &unit) in inner.iter().enumerate() {
            let start = rest / unit;
            rest %= unit;
            let size = match d.cmp(&dim) {
                std::cmp::Ordering::Less => 1,
                std::cmp::Ordering::Equal => count,
                std::cmp::Ordering::Greater => shape[d],
            };
            let steps = if size > 1 { vec![Step { size, source: unit, index: 1 }] } else { Vec::new() };
            dims.push(Along { start, steps });
        }
        let source_offset = piece.source_offset + (at - piece.target_offset);
        boxes.push(Dims { source: piece.source, source_offset, dims });
        at += count * unit;
    }
}

/// The parts of nested steps whose indices lie inside a range: at most one whole middle part and, per level, one at each end.
fn clip(steps: &[Step], start: u64, source: u64, range: &Range<u64>, emit: &mut impl FnMut(u64, u64, Vec<Step>)) {
    let last = start + reach(steps);
    if start >= range.end || last < range.start {
        return;
    }
    if start >= range.start && last < range.end {
        return emit(start, source, steps.to_vec());
    }
    let Some((outer, inner)) = steps.split_first() else { return };
    let extent = reach(inner);
    // Steps that lie inside as a whole: first index at or behind the range's start, last index before its end.
    let lo = range.start.saturating_sub(start).div_ceil(outer.index).min(outer.size);
    let hi = match range.end.checked_sub(start.saturating_add(extent)) {
        Some(room) => room.div_ceil(outer.index).min(outer.size),
        None => 0,
    };
    let step = |i: u64| (start + i * outer.index, source + i * outer.source);
    if lo > 0 {
        let (start, source) = step(lo - 1);
        clip(inner, start, source, range, emit);
    }
    if lo < hi {
        let (start, source) = step(lo);
        let mut part = vec![Step { size: hi - lo, ..*outer }];
        part.extend_from_slice(inner);
        emit(start, source, part);
    }
    if hi >= lo && hi < outer.size {
        let (start, source) = step(hi);
        clip(inner, start, source, range, emit);
    }
}

/// The elements of a parameter that a region holds, as pieces whose `target_offset` and target strides are those of the region's own
/// row-major buffer. The assembly was validated.
///
/// # Errors
/// A piece that is not a strided box of this shape.
pub fn local_pieces(assembly: &Assembly, shape: &[u64], region: &Region) -> Result<Vec<Piece>, String> {
    if region.numel(shape) == 0 {
        return Ok(Vec::new());
    }
    match region {
        Region::Whole => Ok(pieces(assembly, shape)?.iter().cloned().map(normalized).collect()),
        Region::Box { ranges } => pieces_in_box(assembly, shape, ranges),
        _ => match (region.as_run(shape), region) {
            (Some(run), _) => Ok(pieces(assembly, shape)?.iter().flat_map(|p| within_flat(p, &run)).collect()),
            (None, Region::Dim { dim, range }) => {
                let mut ranges: Vec<Range<u64>> = shape.iter().map(|&d| 0..d).collect();
                ranges[*dim] = range.clone();
                pieces_in_box(assembly, shape, &ranges)
            }
            (None, _) => Err("its number of elements overflows".into()),
        },
    }
}

/// As [`local_pieces`], of a box with a range of indices for each dim.
///
/// # Errors
/// Ranges that do not lie inside the shape; a piece that is not a strided box of it.
pub fn pieces_in_box(assembly: &Assembly, shape: &[u64], ranges: &[Range<u64>]) -> Result<Vec<Piece>, String> {
    if ranges.len() != shape.len() || ranges.iter().zip(shape).any(|(r, &d)| r.start > r.end || r.end > d) {
        return Err(format!("the box {ranges:?} does not lie inside the shape {shape:?}"));
    }
    if ranges.iter().any(Range::is_empty) {
        return Ok(Vec::new());
    }
    let mut local = Vec::new();
    for piece in pieces(assembly, shape)?.iter() {
        let mut parts = Dims::of(piece, shape)?;
        for (dim, range) in ranges.iter().enumerate().filter(|(d, r)| r.end - r.start != shape[*d]) {
            parts = parts.iter().flat_map(|p| p.within(dim, range)).collect();
        }
        local.extend(parts.iter().map(|p| p.local(ranges)));
    }
    Ok(local)
}

/// The pieces of a parameter that have elements; one for a parameter that is one source tensor.
fn pieces<'a>(assembly: &'a Assembly, shape: &[u64]) -> Result<Cow<'a, [Piece]>, String> {
    let size = numel(shape).ok_or("its number of elements overflows")?;
    Ok(match assembly {
        _ if size == 0 => Cow::Borrowed(&[]),
        Assembly::Whole(source) => Cow::Owned(vec![whole(*source, size)]),
        Assembly::Pieces(pieces) if pieces.iter().all(|p| p.numel() != Some(0)) => Cow::Borrowed(pieces),
        Assembly::Pieces(pieces) => Cow::Owned(pieces.iter().filter(|p| p.numel() != Some(0)).cloned().collect()),
    })
}

/// The parts of a piece inside a flat range, with offsets from the range's start.
fn within_flat(piece: &Piece, range: &Range<u64>) -> Vec<Piece> {
    let piece = normalized(piece.clone());
    let steps: Vec<Step> =
        piece.loops.iter().map(|l| Step { size: l.size, source: l.source_stride, index: l.target_stride.max(1) }).collect();
    let mut parts = Vec::new();
    clip(&steps, piece.target_offset, piece.source_offset, range, &mut |start, source_offset, steps| {
        let loops = steps.into_iter().map(|s| lp(s.size, s.source, s.index)).collect();
        parts.push(normalized(Piece { source: piece.source, source_offset, target_offset: start - range.start, loops }));
    });
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::elements;

    /// Fills a buffer by walking the pieces one element at a time.
    fn filled(pieces: &[Piece], size: usize) -> Vec<Option<(u32, u64)>> {
        let mut buffer = vec![None; size];
        for piece in pieces {
            let count: u64 = piece.loops.iter().map(|l| l.size).product();
            for mut n in 0..count {
                let (mut from, mut to) = (piece.source_offset, piece.target_offset);
                for l in piece.loops.iter().rev() {
                    from += n % l.size * l.source_stride;
                    to += n % l.size * l.target_stride;
                    n /= l.size;
                }
                let place = &mut buffer[usize::try_from(to).unwrap()];
                assert_eq!(*place, None, "element {to} is filled twice");
                *place = Some((piece.source, from));
            }
        }
        buffer
    }

    fn piece(source: u64, source_offset: u64, target_offset: u64, loops: &[(u64, u64, u64)]) -> Piece {
        Piece {
            source: u32::try_from(source).unwrap(),
            source_offset,
            target_offset,
            loops: loops.iter().map(|&(n, s, t)| lp(n, s, t)).collect(),
        }
    }

    /// Shapes with assemblies that tile them: stacked, concatenated along each dim, transposed, interleaved, flat partitions, permuted rows.
    fn cases() -> Vec<(Vec<u64>, Assembly)> {
        let pieces = Assembly::Pieces;
        vec![
            (vec![7, 5], Assembly::Whole(3)),
            (vec![3, 4, 5], pieces((0..3).map(|e| piece(e, 0, e * 20, &[(20, 1, 1)])).collect())),
            (vec![3, 4, 5], pieces((0..6).map(|i| piece(i, 0, i / 2 * 20 + i % 2 * 10, &[(2, 5, 5), (5, 1, 1)])).collect())),
            (vec![4, 6], pieces(vec![piece(0, 0, 0, &[(4, 2, 6), (2, 1, 1)]), piece(1, 8, 2, &[(4, 4, 6), (4, 1, 1)])])),
            (vec![3, 4, 6], pieces(vec![piece(0, 0, 0, &[(3, 24, 24), (4, 1, 6), (6, 4, 1)])])),
            (vec![5, 8], pieces(vec![piece(0, 0, 0, &[(5, 8, 8), (2, 1, 4), (4, 2, 1)])])),
            (vec![12, 3], pieces(vec![piece(0, 0, 0, &[(2, 18, 18), (3, 6, 3), (2, 3, 9), (3, 1, 1)])])),
            (vec![5, 7], pieces((0..4).map(|r| piece(r, 0, r * 9, &[(9.min(35 - r * 9), 1, 1)])).collect())),
            (vec![4, 6], pieces(vec![piece(0, 0, 0, &[(12, 2, 1)]), piece(0, 1, 12, &[(12, 2, 1)])])),
            (vec![1, 1, 9], pieces(vec![piece(0, 0, 0, &[(3, 3, 1), (3, 1, 3)])])),
            (vec![0, 4], pieces(vec![])),
        ]
    }

    /// Every region of every case holds what walking the whole parameter says it holds.
    #[test]
    fn a_region_holds_its_elements_of_the_whole() {
        for (shape, assembly) in cases() {
            let size = numel(&shape).unwrap();
            let whole = local_pieces(&assembly, &shape, &Region::Whole).unwrap();
            let whole = filled(&whole, usize::try_from(size).unwrap());
            assert!(whole.iter().all(Option::is_some), "{shape:?}");
            let mut regions = Vec::new();
            for (dim, &d) in shape.iter().enumerate() {
                regions.extend((0..=d).flat_map(|a| (a..=d).map(move |b| Region::Dim { dim, range: a..b })));
            }
            regions.extend((0..=size).flat_map(|a| (a..=size).map(move |b| Region::Flat { range: a..b })));
            for region in regions {
                let local = local_pieces(&assembly, &shape, &region).unwrap();
                let expected: Vec<_> = elements(&region, &shape).iter().map(|&flat| whole[usize::try_from(flat).unwrap()]).collect();
                assert_eq!(filled(&local, expected.len()), expected, "{shape:?} {assembly:?} {region:?}");
            }
        }
    }

    #[test]
    fn a_box_holds_its_elements_of_the_whole() {
        for (shape, assembly) in cases() {
            let whole = filled(&local_pieces(&assembly, &shape, &Region::Whole).unwrap(), usize::try_from(numel(&shape).unwrap()).unwrap());
            let inner = inners(&shape);
            for seed in 0..200u64 {
                let pick = |d: usize, n: u64| (seed * 7 + seed / 3 + d as u64 * 5) % (n + 1);
                let ranges: Vec<Range<u64>> =
                    shape.iter().enumerate().map(|(d, &n)| (pick(d, n).min(pick(d + 3, n)))..(pick(d, n).max(pick(d + 3, n)))).collect();
                let mut expected: Vec<u64> = vec![0];
                for (range, inner) in ranges.iter().zip(&inner) {
                    expected = expected.iter().flat_map(|at| range.clone().map(move |i| at + i * inner)).collect();
                }
                let expected: Vec<_> = expected.iter().map(|&at| whole[usize::try_from(at).unwrap()]).collect();
                let local = pieces_in_box(&assembly, &shape, &ranges).unwrap();
                assert_eq!(filled(&local, expected.len()), expected, "{shape:?} {assembly:?} {ranges:?}");
                assert_eq!(local_pieces(&assembly, &shape, &Region::Box { ranges }), Ok(local));
            }
        }
        assert!(pieces_in_box(&Assembly::Whole(0), &[4], std::slice::from_ref(&(0..5))).is_err());
        assert!(pieces_in_box(&Assembly::Whole(0), &[4], &[]).is_err());
    }

    #[test]
    fn a_piece_that_is_not_a_box_of_the_dims_is_an_error() {
        let crooked = Assembly::Pieces(vec![piece(0, 0, 0, &[(5, 1, 4)]), piece(0, 5, 1, &[(15, 1, 1)])]);
        let region = Region::Dim { dim: 1, range: 0..2 };
        assert!(local_pieces(&crooked, &[4, 5], &region).is_err());
    }
}
