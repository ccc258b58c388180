//! How a parameter is made from a checkpoint's tensors: pieces, each a strided box of one source and of the parameter.

use crate::{
    dtype::DType,
    model::{ModelMeta, TensorMeta, numel},
    name::Name,
    text::shown,
};

/// One loop of a strided box; strides in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loop {
    /// How often it runs.
    pub size: u64,
    /// What a step is in the source.
    pub source_stride: u64,
    /// What a step is in the parameter.
    pub target_stride: u64,
}

/// Fills elements of one parameter, counted row-major, from one source tensor, likewise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index into the list of source tensors.
    pub source: u32,
    /// The first element in the source.
    pub source_offset: u64,
    /// The first element in the parameter.
    pub target_offset: u64,
    /// Outermost first; none is one element.
    pub loops: Vec<Loop>,
}

/// How a parameter is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assembly {
    /// Exactly that source tensor, element for element.
    Whole(u32),
    /// Pieces that tile it.
    Pieces(Vec<Piece>),
}

/// A source tensor that fills nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unused {
    /// Index into the list of source tensors.
    pub source: u32,
    /// Why.
    pub reason: String,
}

/// A parameter that nothing fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its name in the model.
    pub name: Name,
    /// Its shape, where it is known.
    pub shape: Option<Vec<u64>>,
    /// Why.
    pub reason: String,
}

/// The model as its class has it, made from a checkpoint's tensors.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Parameters and buffers of the model, sorted by name: what strategies plan over.
    pub meta: ModelMeta,
    /// Parallel to `meta.tensors`.
    pub assemblies: Vec<Assembly>,
    /// Source tensors that fill nothing.
    pub unused: Vec<Unused>,
    /// Parameters that nothing fills.
    pub missing: Vec<Missing>,
    /// Other names of a tied parameter, each with its own.
    pub aliases: Vec<(Name, Name)>,
}

/// What an assembly violates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parameter '{}': {what}", shown(tensor))]
pub struct AssemblyError {
    /// The parameter.
    pub tensor: Name,
    /// What is wrong.
    pub what: String,
}

impl Model {
    /// A model whose parameters are the checkpoint's tensors.
    pub fn identity(meta: ModelMeta) -> Self {
        let count = u32::try_from(meta.tensors.len()).unwrap_or(u32::MAX);
        Self { meta, assemblies: (0..count).map(Assembly::Whole).collect(), ..Self::default() }
    }

    /// Proves that every piece is in bounds on both sides, and that the pieces of each parameter fill each element once.
    ///
    /// # Errors
    /// The first violation, in the order of the names.
    pub fn check(&self, sources: &[TensorMeta]) -> Result<(), AssemblyError> {
        if self.assemblies.len() != self.meta.tensors.len() {
            let what = format!("{} assemblies for {} tensors", self.assemblies.len(), self.meta.tensors.len());
            return Err(AssemblyError { tensor: Name::from(""), what });
        }
        for (meta, assembly) in self.meta.tensors.iter().zip(&self.assemblies) {
            assembly.check(meta, sources).map_err(|what| AssemblyError { tensor: meta.name.clone(), what })?;
        }
        Ok(())
    }
}

impl Assembly {
    /// A source tensor that it reads; `None` of a parameter without elements.
    pub fn first(&self) -> Option<u32> {
        match self {
            Self::Whole(source) => Some(*source),
            Self::Pieces(pieces) => pieces.first().map(|p| p.source),
        }
    }

    fn check(&self, meta: &TensorMeta, sources: &[TensorMeta]) -> Result<(), String> {
        let source = |index: u32| {
            let found = sources.get(index as usize).ok_or_else(|| format!("source {index} of {}", sources.len()))?;
            if found.dtype == meta.dtype { Ok(found) } else { Err(format!("'{}' is {}, expected {}", found.name, found.dtype, meta.dtype)) }
        };
        let total = meta.numel().ok_or("its number of elements overflows")?;
        match self {
            Self::Whole(index) => {
                let found = source(*index)?;
                if found.numel() == Some(total) {
                    Ok(())
                } else {
                    Err(format!("'{}' is {:?}, expected {:?}", found.name, found.shape, meta.shape))
                }
            }
            Self::Pieces(pieces) => {
                for piece in pieces {
                    let found = source(piece.source)?;
                    let (from, to) = piece.last().ok_or("a piece's size overflows")?;
                    if found.dtype.bits() % 8 != 0 {
                        return Err(format!("elements of {} bits cannot be taken apart", found.dtype.bits()));
                    }
                    if numel(&found.shape).is_none_or(|n| from >= n) || to >= total {
                        return Err(format!(
                            "a piece of '{}' reaches element {from} of {:?} and element {to} of {total}",
                            found.name, found.shape
                        ));
                    }
                }
                tiles(pieces, total)
            }
        }
    }
}

impl Piece {
    /// Number of elements; `None` on overflow.
    pub fn numel(&self) -> Option<u64> {
        self.loops.iter().try_fold(1u64, |n, l| n.checked_mul(l.size))
    }

    /// The last elements that it touches, in the source and in the parameter.
    fn last(&self) -> Option<(u64, u64)> {
        let reach = |start: u64, stride: fn(&Loop) -> u64| {
            self.loops.iter().try_fold(start, |at, l| at.checked_add(l.size.checked_sub(1)?.checked_mul(stride(l))?))
        };
        Some((reach(self.source_offset, |l| l.source_stride)?, reach(self.target_offset, |l| l.target_stride)?))
    }

    /// Elements from the piece's first that are neighbours in the source and in the parameter, and the loops around them.
    pub fn contiguous(&self) -> (u64, &[Loop]) {
        match self.loops.split_last() {
            Some((last, outer)) if last.source_stride == 1 && last.target_stride == 1 => (last.size, outer),
            _ => (1, &self.loops),
        }
    }
}

/// Whether pieces fill `[0, total)` once each. Boxes over the same element are found by splitting until pieces are runs or the same box of a
/// lattice; counted elements have to add up as well.
fn tiles(pieces: &[Piece], total: u64) -> Result<(), String> {
    let mut count = 0u64;
    for piece in pieces {
        count = piece.numel().and_then(|n| count.checked_add(n)).ok_or("its pieces overflow")?;
    }
    if count != total {
        return Err(format!("its pieces have {count} elements, expected {total}"));
    }
    // Sorted by extent, pieces that do not interleave need no more than a look at their neighbours.
    let mut extents = Vec::with_capacity(pieces.len());
    for piece in pieces {
        is_injective(piece).ok_or("a piece fills an element twice")?;
        let end = piece.last().map_or(u64::MAX, |(_, to)| to);
        extents.push((piece.target_offset, end, piece));
    }
    extents.sort_by_key(|e| (e.0, e.1));
    let mut open: Vec<(u64, &Piece)> = Vec::new();
    for (start, end, piece) in extents {
        open.retain(|(last, _)| *last >= start);
        if let Some((_, other)) = open.iter().find(|(_, other)| meet(piece, other)) {
            return Err(format!("pieces from elements {} and {start} overlap", other.target_offset));
        }
        open.push((end, piece));
    }
    Ok(())
}

/// `None` where two iterations of the piece hit one element of the parameter: sorted by stride, each loop has to step over all inside it.
fn is_injective(piece: &Piece) -> Option<()> {
    let mut loops: Vec<&Loop> = piece.loops.iter().filter(|l| l.size > 1).collect();
    loops.sort_by_key(|l| l.target_stride);
    let mut span = 0u64;
    for l in loops {
        if l.target_stride <= span {
            return None;
        }
        span = span.checked_add((l.size - 1).checked_mul(l.target_stride)?)?;
    }
    Some(())
}

/// Whether two pieces of interleaved extents share an element: walked down the larger strides, with a bound on the steps beyond which they count
/// as sharing one.
fn meet(a: &Piece, b: &Piece) -> bool {
    fn sorted(p: &Piece) -> Vec<(u64, u64)> {
        let mut loops: Vec<_> = p.loops.iter().filter(|l| l.size > 1).map(|l| (l.target_stride, l.size)).collect();
        loops.sort_unstable_by(|x, y| y.cmp(x));
        loops
    }
    fn span(loops: &[(u64, u64)]) -> u64 {
        loops.iter().map(|(t, n)| t * (n - 1)).sum()
    }
    /// Do boxes at `x` and `y` share an element?
    fn shared(x: u64, a: &[(u64, u64)], y: u64, b: &[(u64, u64)], steps: &mut u32) -> bool {
        *steps += 1;
        if *steps > 1 << 16 {
            return true;
        }
        if x > y {
            return shared(y, b, x, a, steps);
        }
        if x + span(a) < y {
            return false;
        }
        match (a.first(), b.first()) {
            // The same outer loop, and parts that stay within one step of it: one step stands for all.
            (Some(&(t, n)), Some(&(u, m))) if t == u && n == m && (y - x) + span(&b[1..]) < t && span(&a[1..]) < t => {
                shared(x, &a[1..], y, &b[1..], steps)
            }
            (Some(&(1, _)) | None, Some(&(1, _)) | None) if a.len() <= 1 && b.len() <= 1 => true,
            (Some(&(t, n)), first) if first.is_none_or(|&(u, _)| t >= u) => {
                let low = (y.saturating_sub(x + span(&a[1..]))).div_ceil(t).min(n);
                let high = ((y + span(b) - x) / t).min(n - 1);
                (low..=high).any(|i| shared(x + i * t, &a[1..], y, b, steps))
            }
            (_, Some(&(u, m))) => (0..m).any(|j| shared(x, a, y + j * u, &b[1..], steps)),
            (Some(_) | None, None) => x == y,
        }
    }
    shared(a.target_offset, &sorted(a), b.target_offset, &sorted(b), &mut 0)
}

/// The dtype that a value is rounded through before it is cast to storage, if any: transformers' `dtype="auto"`.
pub fn rounding(meta: &TensorMeta, model: Option<DType>) -> Option<DType> {
    let model = model.filter(|d| d.is_float() && meta.dtype.is_float() && *d != meta.dtype)?;
    (!meta.keep_fp32 && !meta.made_fp32 && meta.dtype.bits() > model.bits()).then_some(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(source_offset: u64, target_offset: u64, loops: &[(u64, u64, u64)]) -> Piece {
        let loops = loops.iter().map(|&(size, source_stride, target_stride)| Loop { size, source_stride, target_stride }).collect();
        Piece { source: 0, source_offset, target_offset, loops }
    }

    fn check(shape: &[u64], pieces: Vec<Piece>) -> Result<(), String> {
        let source = TensorMeta::new("s", DType::F32, [100]);
        Assembly::Pieces(pieces).check(&TensorMeta::new("p", DType::F32, shape), &[source])
    }

    #[test]
    fn pieces_that_tile_hold() {
        check(&[2, 4], vec![piece(0, 0, &[(8, 1, 1)])]).unwrap();
        check(&[3, 4], vec![piece(0, 0, &[(3, 1, 4), (4, 3, 1)])]).unwrap();
        // even and odd columns
        check(&[3, 4], vec![piece(0, 0, &[(3, 2, 4), (2, 1, 2)]), piece(6, 1, &[(3, 2, 4), (2, 1, 2)])]).unwrap();
        // left and right half of each row
        check(&[3, 4], vec![piece(0, 0, &[(3, 2, 4), (2, 1, 1)]), piece(6, 2, &[(3, 2, 4), (2, 1, 1)])]).unwrap();
        check(&[0, 4], vec![]).unwrap();
    }

    #[test]
    fn pieces_that_do_not_tile_are_refused() {
        for (pieces, why) in [
            (vec![piece(0, 0, &[(7, 1, 1)])], "7 elements"),
            (vec![piece(0, 0, &[(4, 1, 1)]), piece(0, 3, &[(4, 1, 1)])], "overlap"),
            (vec![piece(0, 0, &[(2, 1, 4), (2, 1, 1)]), piece(0, 1, &[(2, 1, 4), (2, 1, 1)])], "overlap"),
            (vec![piece(0, 0, &[(2, 1, 1), (4, 1, 1)])], "twice"),
            (vec![piece(0, 1, &[(8, 1, 1)])], "reaches"),
            (vec![piece(95, 0, &[(8, 1, 1)])], "reaches"),
            (vec![piece(0, u64::MAX, &[(8, 1, 1)])], "overflows"),
        ] {
            let found = check(&[2, 4], pieces).unwrap_err();
            assert!(found.contains(why), "{found}");
        }
    }
}
