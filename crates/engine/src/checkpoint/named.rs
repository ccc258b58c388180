//! Tensors that lie in parts, by their names.

use std::ops::Range;

use shardwright_core::{Assembly, Piece, TensorMeta, local, piece::Loop};

/// The tensors that a checkpoint in parts has, and how each is made of what the files hold.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) tensors: Vec<TensorMeta>,
    pub(super) places: Places,
}

/// How tensors are made of parts. A tensor's parts follow each other, and are mostly runs that do so in the tensor as well: there may be millions, so
/// that nothing is noted of these, and assemblies are made when they are asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// For each tensor the number of the part behind its last one.
    ends: Vec<u32>,
    /// Parts of tensors of which one is a box, sorted by number.
    boxes: Vec<InBoxes>,
}

#[derive(Clone, Debug)]
struct InBoxes {
    part: u32,
    /// Its first element in the tensor.
    start: u64,
    loops: Vec<Loop>,
}

impl Places {
    pub(crate) fn with_capacity(tensors: usize) -> Self {
        Self { ends: Vec::with_capacity(tensors), boxes: Vec::new() }
    }

    fn parts(&self) -> u32 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// A tensor of so many parts, each a run behind the other. `None` where there are more than can be numbered.
    pub(crate) fn add_runs(&mut self, count: usize) -> Option<()> {
        self.ends.push(self.parts().checked_add(u32::try_from(count).ok()?)?);
        Some(())
    }

    /// A tensor of these parts, each with its first element there and its loops.
    pub(crate) fn add_boxes(&mut self, parts: impl ExactSizeIterator<Item = (u64, Vec<Loop>)>) -> Option<()> {
        let first = self.parts();
        self.add_runs(parts.len())?;
        self.boxes.extend((first..).zip(parts).map(|(part, (start, loops))| InBoxes { part, start, loops }));
        Some(())
    }

    /// The parts of a tensor.
    fn of(&self, tensor: usize) -> Option<Range<u32>> {
        let start = tensor.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        Some(start..*self.ends.get(tensor)?)
    }

    /// The first part of a tensor that has some.
    pub(super) fn first(&self, tensor: u32) -> Option<u32> {
        self.of(tensor as usize).filter(|parts| !parts.is_empty()).map(|parts| parts.start)
    }

    /// How a tensor is made of its parts, which are among `sources`.
    pub(super) fn assembly(&self, tensor: usize, sources: &[TensorMeta]) -> Option<Assembly> {
        let parts = self.of(tensor)?;
        let at = self.boxes.partition_point(|known| known.part < parts.start);
        if self.boxes.get(at).is_some_and(|known| known.part == parts.start) {
            let boxes = self.boxes[at..].iter().take(parts.len());
            let piece =
                |known: &InBoxes| Piece { source: known.part, source_offset: 0, target_offset: known.start, loops: known.loops.clone() };
            return Some(Assembly::Pieces(boxes.map(piece).collect()));
        }
        if parts.len() == 1 {
            return Some(Assembly::Whole(parts.start));
        }
        let mut end = 0;
        let piece = |source: u32| {
            let size = sources.get(source as usize).and_then(TensorMeta::numel).unwrap_or(0);
            let loops = match size {
                1 => Vec::new(),
                _ => vec![Loop { size, source_stride: 1, target_stride: 1 }],
            };
            let target_offset = end;
            end += size;
            Piece { source, source_offset: 0, target_offset, loops }
        };
        Some(Assembly::Pieces(parts.map(piece).collect()))
    }
}

impl Named {
    /// The assembly over parts, which are `sources`, that an assembly over named tensors is.
    pub(super) fn compose(&self, assembly: &Assembly, sources: &[TensorMeta]) -> Result<Assembly, &'static str> {
        composed(assembly, |tensor| self.places.assembly(tensor as usize, sources))
    }
}

fn composed(assembly: &Assembly, of: impl Fn(u32) -> Option<Assembly>) -> Result<Assembly, &'static str> {
    let of = |source: u32| of(source).ok_or("a source is not there");
    let pieces = match assembly {
        Assembly::Whole(source) => return of(*source),
        Assembly::Pieces(pieces) => pieces,
    };
    let mut out = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match of(piece.source)? {
            Assembly::Whole(part) => out.push(Piece { source: part, ..piece.clone() }),
            Assembly::Pieces(parts) => within(piece, &parts, &mut out)?,
        }
    }
    Ok(Assembly::Pieces(out))
}

/// Pieces that one parameter may be composed of. Beyond, a load would take longer to plan than to read.
const MOST: usize = 1 << 16;

/// A piece of a tensor that lies in parts: what it takes of each. The piece's source is the parts' target.
///
/// Boxes that lie apart have nothing in common, a run takes over a box that it encloses, and whatever else overlaps is halved along its widest loop.
fn within(piece: &Piece, parts: &[Piece], out: &mut Vec<Piece>) -> Result<(), &'static str> {
    for part in parts {
        let mut todo = vec![(local::normalized(piece.clone()), local::normalized(part.clone()))];
        while let Some((piece, part)) = todo.pop() {
            let (Some(wanted), Some(held)) = (span(&piece, |l| l.source_stride), span(&part, |l| l.target_stride)) else { continue };
            // Elements of the tensor between the two.
            let (wanted, held) = (
                piece.source_offset..piece.source_offset.saturating_add(wanted),
                part.target_offset..part.target_offset.saturating_add(held),
            );
            let (start, end) = (wanted.start.max(held.start), wanted.end.min(held.end));
            if start >= end {
                continue;
            }
            if out.len() == MOST {
                return Err(
                    "it is put together from more strided parts of a tensor in parts than a load plans for; convert the checkpoint first",
                );
            }
            match (local::run_length(&piece).is_some(), local::run_length(&part).is_some()) {
                (true, true) => out.push(Piece {
                    source: part.source,
                    source_offset: part.source_offset + (start - held.start),
                    target_offset: piece.target_offset + (start - wanted.start),
                    loops: vec![Loop { size: end - start, source_stride: 1, target_stride: 1 }],
                }),
                (true, false) if (start, end) == (held.start, held.end) => {
                    out.push(Piece { target_offset: piece.target_offset + (start - wanted.start), ..part });
                }
                (false, true) if (start, end) == (wanted.start, wanted.end) => {
                    let source_offset = part.source_offset + (start - held.start);
                    out.push(Piece { source: part.source, source_offset, ..piece });
                }
                (true, false) => todo.extend(halves(&part, |l| l.target_stride).map(|part| (piece.clone(), part))),
                (false, _) => todo.extend(halves(&piece, |l| l.source_stride).map(|piece| (piece, part.clone()))),
            }
        }
    }
    Ok(())
}

/// Elements from the first that a piece touches to its last, on one side; `None` where it has none, or more than can be counted: such a piece tiles
/// nothing, and is refused for that.
fn span(piece: &Piece, stride: fn(&Loop) -> u64) -> Option<u64> {
    piece.loops.iter().try_fold(1, |n: u64, l| n.checked_add(l.size.checked_sub(1)?.checked_mul(stride(l))?))
}

/// A piece cut in two in the middle of the loop whose steps are the widest on one side.
fn halves(piece: &Piece, stride: fn(&Loop) -> u64) -> [Piece; 2] {
    let widest = (0..piece.loops.len()).max_by_key(|&l| stride(&piece.loops[l])).unwrap_or(0);
    let Loop { size, source_stride, target_stride } = piece.loops[widest];
    let (mut first, mut second) = (piece.clone(), piece.clone());
    first.loops[widest].size = size / 2;
    second.loops[widest].size = size - size / 2;
    second.source_offset += size / 2 * source_stride;
    second.target_offset += size / 2 * target_stride;
    [local::normalized(first), local::normalized(second)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn run(source: u32, source_offset: u64, target_offset: u64, size: u64) -> Piece {
        Piece { source, source_offset, target_offset, loops: vec![Loop { size, source_stride: 1, target_stride: 1 }] }
    }

    /// Over tensors that are made so.
    fn compose(named: &[Assembly], assembly: &Assembly) -> Result<Assembly, &'static str> {
        composed(assembly, |tensor| named.get(tensor as usize).cloned())
    }

    /// A tensor in one run, one without elements, one in runs of which one is an element, and one in columns.
    #[test]
    fn tensors_are_made_of_the_parts_that_were_added() {
        let sources: Vec<TensorMeta> = [6, 3, 1, 4, 7].map(|n| TensorMeta::new("t", shardwright_core::DType::F32, [n])).into();
        let loops = vec![Loop { size: 2, source_stride: 4, target_stride: 2 }, Loop { size: 2, source_stride: 1, target_stride: 1 }];
        let mut places = Places::default();
        places.add_runs(1).unwrap();
        places.add_boxes(std::iter::empty()).unwrap();
        places.add_runs(3).unwrap();
        places.add_boxes([(8, loops.clone())].into_iter()).unwrap();
        let one = Piece { loops: Vec::new(), ..run(2, 0, 3, 1) };
        let columns = Piece { loops, ..run(4, 0, 8, 0) };
        let expected = [
            Assembly::Whole(0),
            Assembly::Pieces(Vec::new()),
            Assembly::Pieces(vec![run(1, 0, 0, 3), one, run(3, 0, 4, 4)]),
            Assembly::Pieces(vec![columns]),
        ];
        assert_eq!((0..4).map(|tensor| places.assembly(tensor, &sources).unwrap()).collect::<Vec<_>>(), expected);
        assert_eq!([0, 1, 2, 3, 4].map(|tensor| places.first(tensor)), [Some(0), None, Some(1), Some(4), None]);
        assert_eq!(places.assembly(4, &sources), None);
    }

    #[test]
    fn runs_of_a_tensor_in_runs_are_split_at_its_parts() {
        let named = [Assembly::Pieces(vec![run(0, 0, 0, 4), run(1, 0, 4, 4)]), Assembly::Whole(7)];
        let both = Assembly::Pieces(vec![run(0, 2, 10, 4), run(1, 0, 0, 10)]);
        let expected = vec![run(0, 2, 10, 2), run(1, 0, 12, 2), run(7, 0, 0, 10)];
        assert_eq!(compose(&named, &both).unwrap(), Assembly::Pieces(expected));
    }

    /// Elements of a piece, as (source, source element, target element), sorted.
    fn elements(piece: &Piece) -> Vec<(u32, u64, u64)> {
        let mut all = vec![(piece.source, piece.source_offset, piece.target_offset)];
        for l in &piece.loops {
            let step = |i: u64| move |&(s, a, b): &(u32, u64, u64)| (s, a + i * l.source_stride, b + i * l.target_stride);
            all = (0..l.size).flat_map(|i| all.iter().map(step(i)).collect::<Vec<_>>()).collect();
        }
        all
    }

    /// Transposed, cut and whole, over a tensor that lies in rows, in columns or in flat parts: each element from where it lies.
    #[test]
    fn strided_pieces_of_a_tensor_in_strided_parts_are_composed() {
        let loops = |of: &[(u64, u64, u64)]| {
            of.iter().map(|&(size, source_stride, target_stride)| Loop { size, source_stride, target_stride }).collect::<Vec<_>>()
        };
        let (rows, columns) = (7u64, 12u64);
        let in_columns = |width: u64| -> Vec<Piece> {
            let part = |i: u64| {
                let own = width.min(columns - i * width);
                Piece { loops: loops(&[(rows, own, columns), (own, 1, 1)]), ..run(u32::try_from(i).unwrap(), 3, i * width, 0) }
            };
            (0..columns.div_ceil(width)).map(part).collect()
        };
        let in_runs = |length: u64| -> Vec<Piece> {
            let part = |i: u64| run(u32::try_from(i).unwrap(), 5, i * length, length.min(rows * columns - i * length));
            (0..(rows * columns).div_ceil(length)).map(part).collect()
        };
        let pieces = [
            run(0, 0, 100, rows * columns),
            run(0, 5, 0, 40),
            Piece { loops: loops(&[(columns, 1, rows), (rows, columns, 1)]), ..run(0, 0, 9, 0) },
            Piece { loops: loops(&[(rows, columns, 4), (4, 1, 1)]), ..run(0, 6, 0, 0) },
            Piece { loops: loops(&[(3, 2 * columns, 6), (6, 2, 1)]), ..run(0, columns + 1, 2, 0) },
        ];
        for parts in [in_columns(4), in_columns(5), in_columns(12), in_runs(84), in_runs(12), in_runs(17), in_runs(1)] {
            let lies: BTreeMap<u64, (u32, u64)> = parts.iter().flat_map(elements).map(|(s, a, b)| (b, (s, a))).collect();
            let named = [Assembly::Pieces(parts)];
            for piece in &pieces {
                let Assembly::Pieces(found) = compose(&named, &Assembly::Pieces(vec![piece.clone()])).unwrap() else {
                    panic!("not pieces")
                };
                let mut found: Vec<_> = found.iter().flat_map(elements).collect();
                let mut expected: Vec<_> = elements(piece).iter().map(|(_, a, b)| (lies[a].0, lies[a].1, *b)).collect();
                found.sort_unstable();
                expected.sort_unstable();
                assert_eq!(found, expected, "{piece:?}");
            }
        }
    }

    /// Python hands pieces over as they come: numbers beyond any tensor neither overflow nor take long.
    #[test]
    fn pieces_beyond_any_tensor_take_nothing() {
        let named = [Assembly::Pieces(vec![run(0, 0, 0, 4), run(0, 4, 4, 4)])];
        let endless = Piece { loops: vec![Loop { size: u64::MAX, source_stride: u64::MAX, target_stride: 1 }], ..run(0, 0, 0, 0) };
        for piece in [endless, run(0, u64::MAX, 0, 2)] {
            assert_eq!(compose(&named, &Assembly::Pieces(vec![piece])).unwrap(), Assembly::Pieces(Vec::new()));
        }
    }

    #[test]
    fn a_tensor_in_too_many_parts_for_a_strided_piece_is_refused() {
        let parts = (0..70_000).map(|i| run(0, i, i, 1)).collect();
        let named = [Assembly::Pieces(parts)];
        let every_second = Piece { loops: vec![Loop { size: 35_000, source_stride: 2, target_stride: 1 }], ..run(0, 0, 0, 0) };
        assert!(
            compose(&named, &Assembly::Pieces(vec![every_second, run(0, 0, 0, 70_000)]))
                .unwrap_err()
                .contains("convert the checkpoint first")
        );
    }
}
