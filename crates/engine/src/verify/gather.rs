//! Shards put together again by what they say of their own place: every tensor's chunks, and the check that they tile it exactly once.

use std::ops::Range;

use shardwright_core::{DType, model::numel};

use super::shard::{Safetensors, StoredTensor};
use crate::{
    error::Result as EngineResult,
    saved::{entries::Part, header},
};

/// A part of a tensor in a shard file, as runs of row-major elements of the whole tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Index of the file, which is the rank.
    pub(super) file: usize,
    /// Its first byte there.
    pub(super) start: u64,
    pub(super) runs: Runs,
    /// Zeros behind it, in elements.
    pub(super) padding: u64,
}

/// `count` runs of `length` elements, the first at `first`, one every `step`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Runs {
    pub(super) first: u64,
    pub(super) step: u64,
    pub(super) length: u64,
    pub(super) count: u64,
}

impl Runs {
    pub(super) fn numel(self) -> u64 {
        self.length * self.count
    }
}

/// Chunks of a tensor up to which its list is grown by no more than it needs: most models have many more tensors than ranks.
const FEW: usize = 4;

/// All chunks of one tensor, and the dtype that they have in common.
#[derive(Clone, Debug, Default)]
pub(super) struct Gathered {
    pub(super) dtype: Option<DType>,
    pub(super) chunks: Vec<Chunk>,
}

/// What the shard files have of each of `count` tensors; files come one at a time, in the order of the ranks. `find` gives the index and the
/// whole shape of a name. `None` where something is wrong with them, such as a tensor that is nobody's or a chunk that does not fit:
/// `wrong` hears of each.
pub(super) fn gather<'a>(
    count: usize,
    files: impl Iterator<Item = EngineResult<Safetensors>>,
    find: impl Fn(&str) -> Option<(usize, &'a [u64])>,
    mut wrong: impl FnMut(String),
) -> EngineResult<Option<Vec<Gathered>>> {
    let (mut gathered, mut is_whole) = (vec![Gathered::default(); count], true);
    let mut refuse = |what| {
        is_whole = false;
        wrong(what);
    };
    for (index, file) in files.enumerate() {
        gather_file(&mut gathered, index, &file?, &find, &mut refuse);
    }
    Ok(is_whole.then_some(gathered))
}

fn gather_file<'a>(
    gathered: &mut [Gathered],
    index: usize,
    file: &Safetensors,
    find: impl Fn(&str) -> Option<(usize, &'a [u64])>,
    wrong: &mut impl FnMut(String),
) {
    let mut by_name: Vec<&StoredTensor> = file.tensors.iter().collect();
    by_name.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let mut stated = vec![false; by_name.len()];
    let mut refuse = |name: &str, what: &str| wrong(format!("tensor '{name}': rank {index}: {what}"));
    let read = header::each_part(&file.metadata, |name, part| {
        let Ok(at) = by_name.binary_search_by(|t| t.name.as_str().cmp(name)) else { return };
        stated[at] = true;
        if let Err(what) = gather_tensor(gathered, index, by_name[at], &part, &find) {
            refuse(name, what);
        }
    });
    if let Err(what) = read {
        return wrong(format!("rank {index}: {what}"));
    }
    by_name.iter().zip(stated).filter(|(_, stated)| !stated).for_each(|(stored, _)| refuse(&stored.name, "its place is not stated"));
}

fn gather_tensor<'a>(
    gathered: &mut [Gathered],
    index: usize,
    stored: &StoredTensor,
    part: &Part,
    find: impl Fn(&str) -> Option<(usize, &'a [u64])>,
) -> Result<(), &'static str> {
    let (tensor, shape) = find(&stored.name).ok_or("the model has no such tensor")?;
    let (runs, padding) = place(shape, &stored.shape, part).ok_or("its place is outside of the tensor")?;
    let size = stored.bytes.checked_div(numel(&stored.shape).unwrap_or(0)).unwrap_or(0);
    let all = &mut gathered[tensor];
    if all.dtype.is_some_and(|d| d != stored.dtype) {
        return Err("it has another dtype than on lower ranks");
    }
    all.dtype = Some(stored.dtype);
    if all.chunks.len() < FEW {
        all.chunks.reserve_exact(runs.len());
    }
    let mut start = stored.start;
    for runs in runs {
        all.chunks.push(Chunk { file: index, start, runs, padding });
        start = start.saturating_add(runs.numel().saturating_mul(size));
    }
    Ok(())
}

/// The runs of a part of a tensor, in the order of its elements; `None` where it does not lie inside. A box that is cut along several dims has
/// one of them for each index of what is outside of the two innermost that are cut.
fn place(shape: &[u64], local: &[u64], part: &Part) -> Option<(Vec<Runs>, u64)> {
    match part {
        Part::Flat { start, valid, padding } => {
            let inside = start.checked_add(*valid)? <= numel(shape)? && [valid.checked_add(*padding)?] == *local;
            inside.then_some((vec![Runs { first: *start, step: 0, length: *valid, count: 1 }], *padding))
        }
        Part::SavedOffsets(offsets) => {
            if offsets.len() != shape.len() || local.len() != shape.len() {
                return None;
            }
            let inside = |d: usize| offsets[d].checked_add(local[d]).is_some_and(|end| end <= shape[d]);
            if !(0..shape.len()).all(inside) {
                return None;
            }
            let total = numel(shape)?;
            if total == 0 || local.contains(&0) {
                return Some((vec![whole(0)], 0));
            }
            Some((box_runs(shape, local, offsets)?, 0))
        }
    }
}

/// The runs of a box that has elements and lies inside.
fn box_runs(shape: &[u64], local: &[u64], offsets: &[u64]) -> Option<Vec<Runs>> {
    let is_cut = |d: &usize| local[*d] != shape[*d];
    let Some(dim) = (0..shape.len()).rev().find(is_cut) else { return Some(vec![whole(numel(shape)?)]) };
    let under = numel(&shape[dim + 1..])?;
    // The dims between this one and the next one that is cut have all their indices, so their runs are evenly apart.
    let next = (0..dim).rev().find(is_cut);
    let step = shape[dim].checked_mul(under)?;
    let rows = Runs {
        first: offsets[dim].checked_mul(under)?,
        step,
        length: local[dim].checked_mul(under)?,
        count: numel(&local[next.unwrap_or(0)..dim])?,
    };
    let Some(next) = next else { return Some(vec![rows]) };
    if numel(&local[..next])? > MOST_CELLS {
        return None;
    }
    let inner = numel(&shape[next + 1..])?;
    let mut starts = vec![offsets[next].checked_mul(inner)?];
    let mut inner = inner.checked_mul(shape[next])?;
    for d in (0..next).rev() {
        starts = (0..local[d]).flat_map(|i| starts.iter().map(move |start| start + (offsets[d] + i) * inner)).collect();
        inner = inner.checked_mul(shape[d])?;
    }
    Some(starts.into_iter().map(|start| Runs { first: start + rows.first, ..rows }).collect())
}

fn whole(numel: u64) -> Runs {
    Runs { first: 0, step: 0, length: numel, count: 1 }
}

impl Gathered {
    /// Proves that the chunks hold each element of a tensor of that shape exactly once.
    pub(super) fn tiles(&self, shape: &[u64]) -> Result<(), String> {
        let numel = numel(shape).unwrap_or(u64::MAX);
        let mut runs: Vec<Runs> = self.chunks.iter().map(|c| c.runs).filter(|r| r.numel() > 0).collect();
        runs.sort_by_key(|r| r.first);
        // Either one run each, end to end, or all with the same step and count, and the first runs fill a step; else boxes.
        let (step, count) = runs.first().map_or((numel, 1), |r| (if r.count == 1 { numel } else { r.step }, r.count));
        let alike = runs.iter().all(|run| run.count == count && (count == 1 || run.step == step));
        if !alike || step.checked_mul(count) != Some(numel) {
            return boxes_tile(shape, &runs);
        }
        let mut next = 0;
        for run in &runs {
            if run.first != next {
                let what = if run.first > next { "in no shard" } else { "in two shards" };
                return Err(format!("elements from {} are {what}", next.min(run.first)));
            }
            next += run.length;
        }
        match next == step {
            true => Ok(()),
            false if numel == 0 => Ok(()),
            false => Err(format!("elements from {next} are in no shard")),
        }
    }
}

/// Cells of a grid beyond which boxes are not compared: far more than the shards of any mesh have.
const MOST_CELLS: u64 = 1 << 24;

/// Proves that boxes tile a tensor, on the grid of all their ends: each cell of it lies in one box.
fn boxes_tile(shape: &[u64], runs: &[Runs]) -> Result<(), String> {
    let boxes = runs.iter().map(|runs| as_box(shape, *runs)).collect::<Option<Vec<_>>>();
    let boxes = boxes.ok_or("its shards are neither all flat parts nor all boxes")?;
    let ends: Vec<Vec<u64>> = (0..shape.len())
        .map(|dim| {
            let mut ends: Vec<u64> = boxes.iter().flat_map(|ranges| [ranges[dim].start, ranges[dim].end]).chain([0, shape[dim]]).collect();
            ends.sort_unstable();
            ends.dedup();
            ends
        })
        .collect();
    let cells = ends.iter().try_fold(1u64, |n, ends| n.checked_mul(ends.len() as u64 - 1)).filter(|&n| n <= MOST_CELLS);
    let cells = cells.ok_or("its shards are cut at too many different indices")?;
    let mut held = vec![false; usize::try_from(cells).unwrap_or(usize::MAX)];
    for ranges in &boxes {
        let mut own = vec![0];
        for (range, ends) in ranges.iter().zip(&ends) {
            let at = |end: u64| ends.partition_point(|&e| e < end);
            let cells = at(range.start)..at(range.end);
            own = own.iter().flat_map(|outer| cells.clone().map(move |cell| outer * (ends.len() - 1) + cell)).collect();
        }
        for cell in own {
            if std::mem::replace(&mut held[cell], true) {
                return Err(format!("elements from {:?} are in two shards", corner(&ends, cell)));
            }
        }
    }
    match held.iter().position(|held| !held) {
        Some(cell) => Err(format!("elements from {:?} are in no shard", corner(&ends, cell))),
        None => Ok(()),
    }
}

/// The first indices of a cell of a grid.
fn corner(ends: &[Vec<u64>], mut cell: usize) -> Vec<u64> {
    let mut corner: Vec<u64> = Vec::with_capacity(ends.len());
    for ends in ends.iter().rev() {
        corner.push(ends[cell % (ends.len() - 1)]);
        cell /= ends.len() - 1;
    }
    corner.reverse();
    corner
}

/// Runs as the box that they fill; `None` where they fill none. Its first and last elements are its corners.
fn as_box(shape: &[u64], runs: Runs) -> Option<Vec<Range<u64>>> {
    let mut last = runs.first.checked_add((runs.count - 1).checked_mul(runs.step)?)?.checked_add(runs.length - 1)?;
    let mut first = runs.first;
    let mut ranges = Vec::with_capacity(shape.len());
    for &size in shape.iter().rev() {
        ranges.push(first.checked_rem(size)?..last.checked_rem(size)? + 1);
        (first, last) = (first / size, last / size);
    }
    ranges.reverse();
    let sizes = ranges.iter().map(|range| range.end.checked_sub(range.start)).collect::<Option<Vec<u64>>>()?;
    (numel(&sizes) == Some(runs.numel())).then_some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(parts: &[(&[u64], Part)], shape: &[u64]) -> Gathered {
        let chunks = |(local, part): &(&[u64], Part)| {
            let (runs, padding) = place(shape, local, part).unwrap();
            runs.into_iter().map(move |runs| Chunk { file: 0, start: 0, runs, padding })
        };
        Gathered { dtype: None, chunks: parts.iter().flat_map(chunks).collect() }
    }

    fn at(offsets: &[u64]) -> Part {
        Part::SavedOffsets(offsets.to_vec())
    }

    #[test]
    fn tiles_are_distinguished_from_holes_and_overlaps() {
        let shape = [4, 6];
        let tiles = |parts: &[(&[u64], Part)]| gathered(parts, &shape).tiles(&shape);
        assert_eq!(tiles(&[(&[4, 6], at(&[0, 0]))]), Ok(()));
        assert_eq!(tiles(&[(&[3, 6], at(&[0, 0])), (&[1, 6], at(&[3, 0])), (&[0, 6], at(&[4, 0]))]), Ok(()));
        assert_eq!(tiles(&[(&[4, 2], at(&[0, 4])), (&[4, 4], at(&[0, 0]))]), Ok(()));
        let flat = |start, valid, padding| Part::Flat { start, valid, padding };
        assert_eq!(tiles(&[(&[16], flat(0, 16, 0)), (&[16], flat(16, 8, 8)), (&[16], flat(24, 0, 16))]), Ok(()));
        assert!(tiles(&[(&[3, 6], at(&[0, 0]))]).unwrap_err().contains("elements from 18 are in no shard"));
        assert!(tiles(&[(&[3, 6], at(&[0, 0])), (&[2, 6], at(&[2, 0]))]).unwrap_err().contains("elements from 12 are in two shards"));
        assert!(tiles(&[(&[4, 2], at(&[0, 0])), (&[4, 2], at(&[0, 4]))]).unwrap_err().contains("elements from 2 are in no shard"));
        assert!(tiles(&[(&[4, 3], at(&[0, 0])), (&[2, 6], at(&[2, 0]))]).is_err());
        assert!(tiles(&[(&[4, 4], at(&[0, 0]))]).is_err());
        assert!(tiles(&[]).is_err());
        assert_eq!(gathered(&[(&[0, 6], at(&[0, 0]))], &[0, 6]).tiles(&[0, 6]), Ok(()));
        assert_eq!(gathered(&[(&[], at(&[]))], &[]).tiles(&[]), Ok(()));
    }

    /// The elements of a box, counted, are those of its runs; and a grid of boxes is a tiling where nothing is missing or twice.
    #[test]
    fn boxes_cut_along_several_dims_tile() {
        let shape = [3u64, 4, 5, 2];
        for seed in 0..500u64 {
            let pick = |d: usize| (seed * 31 + seed / 7 * (d as u64 + 3) + 5 * d as u64) % (shape[d] + 1);
            let ranges: Vec<(u64, u64)> = (0..4).map(|d| (pick(d).min(pick((d + 1) % 4) % (shape[d] + 1)), pick(d))).collect();
            let (offsets, local): (Vec<u64>, Vec<u64>) = ranges.iter().map(|&(a, b)| (a, b - a)).unzip();
            let (runs, _) = place(&shape, &local, &at(&offsets)).unwrap();
            let elements = |runs: Runs| (0..runs.count).flat_map(move |r| (0..runs.length).map(move |i| runs.first + r * runs.step + i));
            let mut expected = vec![0];
            for (d, (from, to)) in ranges.iter().enumerate() {
                expected = expected.iter().flat_map(|outer| (*from..*to).map(move |i| outer * shape[d] + i)).collect();
            }
            assert_eq!(runs.into_iter().flat_map(elements).collect::<Vec<u64>>(), expected, "{ranges:?}");
        }
        let shape = [4, 6];
        let tiles = |parts: &[(&[u64], Part)]| gathered(parts, &shape).tiles(&shape);
        let grid: [(&[u64], Part); 4] = [(&[3, 4], at(&[0, 0])), (&[3, 2], at(&[0, 4])), (&[1, 4], at(&[3, 0])), (&[1, 2], at(&[3, 4]))];
        assert_eq!(tiles(&grid), Ok(()));
        assert!(tiles(&grid[1..]).unwrap_err().contains("elements from [0, 0] are in no shard"));
        assert!(tiles(&grid[..3]).unwrap_err().contains("elements from [3, 4] are in no shard"));
        let twice = [grid[0].clone(), grid[1].clone(), grid[2].clone(), grid[3].clone(), (&[1, 1], at(&[2, 5]))];
        assert!(tiles(&twice).unwrap_err().contains("elements from [2, 5] are in two shards"));
        let staggered: [(&[u64], Part); 3] = [(&[2, 6], at(&[0, 0])), (&[2, 1], at(&[2, 0])), (&[2, 5], at(&[2, 1]))];
        assert_eq!(tiles(&staggered), Ok(()));
    }

    #[test]
    fn what_lies_outside_is_refused() {
        let shape = [4, 6];
        let huge = Part::Flat { start: u64::MAX, valid: 2, padding: 0 };
        let bad: [(&[u64], Part); 6] = [
            (&[2, 6], at(&[3, 0])),
            (&[2, 6], at(&[0])),
            (&[4, 6], at(&[1, 0])),
            (&[2, 6], at(&[1, 1])),
            (&[2, 6], at(&[u64::MAX, 0])),
            (&[2], huge),
        ];
        for (local, part) in bad {
            assert_eq!(place(&shape, local, &part), None, "{local:?} {part:?}");
        }
    }
}
