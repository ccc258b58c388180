//! A tensor that has no data and knows from which elements of which checkpoint tensors it is made.

use smallvec::{SmallVec, smallvec};

use crate::contract::{Assembly, Loop, Piece};

/// What cannot be followed, or does not fit.
pub type Failure = String;

/// Size, stride in the source, stride along a dim; of a whole source's dim there is one, and a stack of experts has tens of thousands of those.
type Loops = SmallVec<[(u64, u64, u64); 1]>;

/// Along one dim of the tensor: where a box starts, and its loops, outermost first.
#[derive(Clone, Debug)]
struct Dim {
    at: u64,
    loops: Loops,
}

impl Dim {
    fn one() -> Self {
        Self { at: 0, loops: Loops::new() }
    }

    /// How far the last element is from the first.
    fn span(loops: &[(u64, u64, u64)]) -> u64 {
        loops.iter().map(|&(n, _, t)| (n - 1) * t).sum()
    }
}

type Dims = SmallVec<[Dim; 3]>;

/// Elements of one source, as a box of the tensor.
#[derive(Clone, Debug)]
struct Part {
    source: u32,
    offset: u64,
    dims: Dims,
}

/// A tensor as a list of boxes.
#[derive(Clone, Debug)]
pub struct Lazy {
    /// Its shape.
    pub shape: Vec<u64>,
    parts: Vec<Part>,
}

impl Lazy {
    /// All of a source.
    pub fn whole(source: u32, shape: &[u64]) -> Self {
        let mut stride = 1;
        let mut dims = Dims::new();
        for &n in shape.iter().rev() {
            dims.push(Dim { at: 0, loops: if n == 1 { Loops::new() } else { smallvec![(n, stride, 1)] } });
            stride *= n;
        }
        dims.reverse();
        let parts = if shape.contains(&0) { Vec::new() } else { vec![Part { source, offset: 0, dims }] };
        Self { shape: shape.to_vec(), parts }
    }

    fn numel(&self) -> u64 {
        self.shape.iter().product()
    }

    fn dim(&self, dim: usize) -> Result<u64, Failure> {
        self.shape.get(dim).copied().ok_or_else(|| format!("no dim {dim} in shape {:?}", self.shape))
    }

    /// The range `[start, start + size)` of a dim.
    pub fn narrow(&self, dim: usize, start: u64, size: u64) -> Result<Self, Failure> {
        if start + size > self.dim(dim)? {
            return Err(format!("[{start}, {}) of dim {dim} is not in shape {:?}", start + size, self.shape));
        }
        let mut shape = self.shape.clone();
        shape[dim] = size;
        let mut parts = Vec::new();
        for part in &self.parts {
            let Dim { at, loops } = &part.dims[dim];
            clip(part.offset, *at, loops, start, start + size, &mut |offset, at, loops| {
                let mut dims = part.dims.clone();
                dims[dim] = Dim { at: at - start, loops: loops.into() };
                parts.push(Part { source: part.source, offset, dims });
            });
        }
        Ok(Self { shape, parts })
    }

    /// `torch.cat`.
    pub fn cat(tensors: Vec<Self>, dim: usize) -> Result<Self, Failure> {
        let mut all = tensors.into_iter();
        let mut out = all.next().ok_or("nothing to concatenate")?;
        out.dim(dim)?;
        for tensor in all {
            let fits = tensor.shape.len() == out.shape.len() && (0..out.shape.len()).all(|d| d == dim || tensor.shape[d] == out.shape[d]);
            if !fits {
                return Err(format!("shapes {:?} and {:?} cannot be joined along dim {dim}", out.shape, tensor.shape));
            }
            let by = out.shape[dim];
            out.shape[dim] += tensor.shape[dim];
            out.parts.extend(tensor.parts.into_iter().map(|mut part| {
                part.dims[dim].at += by;
                part
            }));
        }
        Ok(out)
    }

    /// `torch.stack`.
    pub fn stack(tensors: Vec<Self>, dim: usize) -> Result<Self, Failure> {
        if let Some(pair) = tensors.windows(2).find(|w| w[0].shape != w[1].shape) {
            return Err(format!("shapes {:?} and {:?} cannot be stacked", pair[0].shape, pair[1].shape));
        }
        Self::cat(tensors.into_iter().map(|t| t.unsqueeze(dim)).collect::<Result<_, _>>()?, dim)
    }

    fn unsqueeze(mut self, dim: usize) -> Result<Self, Failure> {
        if dim > self.shape.len() {
            return Err(format!("no place for dim {dim} in shape {:?}", self.shape));
        }
        self.shape.insert(dim, 1);
        self.parts.iter_mut().for_each(|part| part.dims.insert(dim, Dim::one()));
        Ok(self)
    }

    /// Swaps two dims.
    pub fn transpose(mut self, a: usize, b: usize) -> Result<Self, Failure> {
        self.dim(a.max(b))?;
        self.shape.swap(a, b);
        self.parts.iter_mut().for_each(|part| part.dims.swap(a, b));
        Ok(self)
    }

    /// The same elements in row-major order under another shape.
    pub fn reshape(self, shape: &[u64]) -> Result<Self, Failure> {
        let numel: u64 = shape.iter().product();
        if numel != self.numel() {
            return Err(format!("shape {:?} cannot be viewed as {shape:?}", self.shape));
        }
        if numel == 0 {
            return Ok(Self { shape: shape.to_vec(), parts: Vec::new() });
        }
        let old = &self.shape;
        let mut parts = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let (mut dims, mut i, mut j) = (Dims::new(), 0, 0);
            while i < old.len() || j < shape.len() {
                let (first, from) = (i, j);
                let (mut a, mut b) = (1, 1);
                if i < old.len() {
                    a = old[i];
                    i += 1;
                }
                if j < shape.len() {
                    b = shape[j];
                    j += 1;
                }
                while a != b {
                    if a < b {
                        a *= old[i];
                        i += 1;
                    } else {
                        b *= shape[j];
                        j += 1;
                    }
                }
                let merged = merge(&part.dims[first..i], &old[first..i]);
                dims.extend(split(merged, &shape[from..j]).ok_or("a reshape across the borders of what was joined")?);
            }
            parts.push(Part { source: part.source, offset: part.offset, dims });
        }
        Ok(Self { shape: shape.to_vec(), parts })
    }

    /// How the tensor is made. `shape_of` says the shape of a source.
    pub fn assembly<'s>(&self, shape_of: impl Fn(u32) -> &'s [u64]) -> Assembly {
        let mut strides = vec![1u64; self.shape.len()];
        for d in (1..self.shape.len()).rev() {
            strides[d - 1] = strides[d] * self.shape[d];
        }
        let mut pieces: Vec<Piece> = self.parts.iter().map(|part| piece(part, &strides)).collect();
        pieces.sort_by_key(|p| p.target_offset);
        if let [only] = pieces.as_slice() {
            let numel = self.numel();
            let all = shape_of(only.source).iter().product::<u64>() == numel && only.source_offset == 0 && only.target_offset == 0;
            let straight = match only.loops.as_slice() {
                [] => numel == 1,
                [one] => one.size == numel && one.source_stride == 1 && one.target_stride == 1,
                _ => false,
            };
            if all && straight {
                return Assembly::Whole(only.source);
            }
        }
        Assembly::Pieces(pieces)
    }
}

/// A box as a piece of the flat tensor; loops that one loop can do are joined.
fn piece(part: &Part, strides: &[u64]) -> Piece {
    let mut target_offset = 0;
    let mut all: SmallVec<[(u64, u64, u64); 4]> = SmallVec::new();
    for (dim, stride) in part.dims.iter().zip(strides) {
        target_offset += dim.at * stride;
        all.extend(dim.loops.iter().filter(|l| l.0 != 1).map(|&(n, s, t)| (n, s, t * stride)));
    }
    all.sort_by_key(|l| std::cmp::Reverse(l.2));
    let mut loops: Vec<Loop> = Vec::with_capacity(all.len());
    for (n, s, t) in all {
        match loops.last_mut() {
            Some(last) if last.source_stride == n * s && last.target_stride == n * t => {
                *last = Loop { size: last.size * n, source_stride: s, target_stride: t };
            }
            _ => loops.push(Loop { size: n, source_stride: s, target_stride: t }),
        }
    }
    Piece { source: part.source, source_offset: part.offset, target_offset, loops }
}

/// Cuts loops along a dim to `[low, high)`, and hands what is left to `keep`: source offset, offset in the dim, loops.
#[expect(clippy::type_complexity, reason = "a callback with the function's own arguments")]
fn clip(offset: u64, at: u64, loops: &[(u64, u64, u64)], low: u64, high: u64, keep: &mut dyn FnMut(u64, u64, &[(u64, u64, u64)])) {
    let span = Dim::span(loops);
    if at >= high || at + span < low {
        return;
    }
    if at >= low && at + span < high {
        return keep(offset, at, loops);
    }
    let Some((&(n, s, t), inner)) = loops.split_first() else { return };
    let inner_span = Dim::span(inner);
    // Iterations that are inside as a whole stay one loop; the others are cut on their own.
    let first = if at >= low { 0 } else { (low - at).div_ceil(t) };
    let last = if high > at + inner_span { ((high - 1 - inner_span - at) / t).min(n - 1) + 1 } else { 0 };
    if first >= last {
        for i in 0..n {
            clip(offset + i * s, at + i * t, inner, low, high, keep);
        }
        return;
    }
    for i in 0..first {
        clip(offset + i * s, at + i * t, inner, low, high, keep);
    }
    let mut kept = inner.to_vec();
    if last - first > 1 {
        kept.insert(0, (last - first, s, t));
    }
    keep(offset + first * s, at + first * t, &kept);
    for i in last..n {
        clip(offset + i * s, at + i * t, inner, low, high, keep);
    }
}

fn merge(dims: &[Dim], sizes: &[u64]) -> Dim {
    let (mut out, mut n) = (Dim::one(), 1);
    for (dim, size) in dims.iter().zip(sizes).rev() {
        out.at += dim.at * n;
        let mut loops: Loops = dim.loops.iter().map(|&(k, s, t)| (k, s, t * n)).collect();
        loops.append(&mut out.loops);
        out.loops = loops;
        n *= size;
    }
    out
}

/// One dim as several; `None` where a loop straddles a border.
fn split(dim: Dim, sizes: &[u64]) -> Option<Vec<Dim>> {
    if sizes.is_empty() {
        return (dim.at == 0 && Dim::span(&dim.loops) == 0).then(Vec::new);
    }
    let (mut at, mut loops) = (dim.at, dim.loops);
    let mut out = Vec::with_capacity(sizes.len());
    for k in 0..sizes.len() {
        let inner: u64 = sizes[k + 1..].iter().product();
        let (mut mine, mut rest) = (Loops::new(), Loops::new());
        for (n, s, t) in loops {
            if t % inner == 0 {
                mine.push((n, s, t / inner));
            } else if t * n <= inner {
                rest.push((n, s, t));
            } else if inner.is_multiple_of(t) && n.is_multiple_of(inner / t) {
                let m = inner / t;
                mine.push((n / m, s * m, 1));
                rest.push((m, s, t));
            } else {
                return None;
            }
        }
        let here = at / inner;
        at %= inner;
        if at + Dim::span(&rest) >= inner {
            return None;
        }
        out.push(Dim { at: here, loops: mine });
        loops = rest;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The elements of the sources, as `1000 * source + element`, in the order of the flat tensor.
    fn elements(tensor: &Lazy) -> Vec<u64> {
        let mut out = vec![u64::MAX; usize::try_from(tensor.numel()).unwrap()];
        let Assembly::Pieces(pieces) = tensor.assembly(|_| &[]) else { unreachable!("no source has all") };
        for piece in pieces {
            let n: u64 = piece.loops.iter().map(|l| l.size).product();
            for i in 0..n {
                let (mut left, mut from, mut to) = (i, piece.source_offset, piece.target_offset);
                for l in piece.loops.iter().rev() {
                    let at = left % l.size;
                    left /= l.size;
                    (from, to) = (from + at * l.source_stride, to + at * l.target_stride);
                }
                let place = &mut out[usize::try_from(to).unwrap()];
                assert_eq!(*place, u64::MAX, "filled twice");
                *place = 1000 * u64::from(piece.source) + from;
            }
        }
        out
    }

    #[test]
    fn gate_and_up_of_each_expert_lie_side_by_side() {
        let stacked = |first: u32| Lazy::stack((0..2).map(|e| Lazy::whole(first + e, &[2, 3])).collect(), 0).unwrap();
        let fused = Lazy::cat(vec![stacked(0), stacked(10)], 1).unwrap();
        assert_eq!(fused.shape, [2, 4, 3]);
        let expect: Vec<u64> = [0, 10, 1, 11].iter().flat_map(|s| (0..6).map(move |i| s * 1000 + i)).collect();
        assert_eq!(elements(&fused), expect);
    }

    #[test]
    fn a_transpose_and_a_cut_pick_the_right_elements() {
        let t = Lazy::whole(0, &[2, 3]).transpose(0, 1).unwrap();
        assert_eq!(elements(&t), [0, 3, 1, 4, 2, 5]);
        assert_eq!(elements(&t.narrow(0, 1, 2).unwrap()), [1, 4, 2, 5]);
        let interleaved = Lazy::whole(0, &[6]).reshape(&[3, 2]).unwrap().transpose(0, 1).unwrap().reshape(&[6]).unwrap();
        assert_eq!(elements(&interleaved), [0, 2, 4, 1, 3, 5]);
        for (start, size) in [(0, 2), (1, 3), (2, 4), (4, 2)] {
            let expect = &[0, 2, 4, 1, 3, 5][start..start + size];
            assert_eq!(elements(&interleaved.narrow(0, start as u64, size as u64).unwrap()), expect);
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let a = || Lazy::whole(0, &[2, 3]);
        assert!(Lazy::cat(vec![a(), Lazy::whole(1, &[2, 4])], 0).is_err());
        assert!(Lazy::stack(vec![a(), Lazy::whole(1, &[3, 2])], 0).is_err());
        assert!(a().narrow(2, 0, 1).is_err() && a().narrow(0, 1, 2).is_err() && a().reshape(&[7]).is_err());
        assert!(matches!(a().assembly(|_| &[2, 3]), Assembly::Whole(0)));
        assert!(matches!(a().reshape(&[6]).unwrap().assembly(|_| &[2, 3]), Assembly::Whole(0)));
    }
}
