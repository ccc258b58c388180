//! Shards put together again by what they say of their own place: every tensor's chunks, and the proof that they tile it exactly once.

use shardwright_core::DType;

use super::shard::Safetensors;
use crate::{
    error::Result as EngineResult,
    save::{entries::Part, header},
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
    let parts = match header::parts(&file.metadata) {
        Ok(parts) => parts,
        Err(what) => return wrong(format!("rank {index}: {what}")),
    };
    for stored in &file.tensors {
        let mut gather = || {
            let (tensor, shape) = find(&stored.name).ok_or("the model has no such tensor")?;
            let part = parts.get(&stored.name).ok_or("its place is not told")?;
            let (runs, padding) = place(shape, &stored.shape, part).ok_or("its place is outside of the tensor")?;
            let all = &mut gathered[tensor];
            if all.dtype.is_some_and(|d| d != stored.dtype) {
                return Err("it has another dtype than on lower ranks");
            }
            all.dtype = Some(stored.dtype);
            all.chunks.push(Chunk { file: index, start: stored.start, runs, padding });
            Ok(())
        };
        if let Err(what) = gather() {
            wrong(format!("tensor '{}': rank {index}: {what}", stored.name));
        }
    }
}

/// The runs of a part of a tensor; `None` where it does not lie inside, or is cut along more than one dim.
fn place(shape: &[u64], local: &[u64], part: &Part) -> Option<(Runs, u64)> {
    let numel = |dims: &[u64]| shardwright_core::model::numel(dims);
    match part {
        Part::Flat { start, valid, padding } => {
            let inside = start.checked_add(*valid)? <= numel(shape)? && [valid.checked_add(*padding)?] == *local;
            inside.then_some((Runs { first: *start, step: 0, length: *valid, count: 1 }, *padding))
        }
        Part::SavedOffsets(offsets) => {
            if offsets.len() != shape.len() || local.len() != shape.len() {
                return None;
            }
            let mut cut = (0..shape.len()).filter(|&d| local[d] != shape[d]);
            let dim = match (cut.next(), cut.next()) {
                (None, _) => return offsets.iter().all(|&o| o == 0).then_some((whole(numel(shape)?), 0)),
                (Some(dim), None) => dim,
                _ => return None,
            };
            let elsewhere = offsets.iter().enumerate().any(|(d, &o)| d != dim && o != 0);
            if elsewhere || offsets[dim].checked_add(local[dim])? > shape[dim] {
                return None;
            }
            let inner = numel(&shape[dim + 1..])?;
            let runs = Runs {
                first: offsets[dim].checked_mul(inner)?,
                step: shape[dim].checked_mul(inner)?,
                length: local[dim].checked_mul(inner)?,
                count: numel(&shape[..dim])?,
            };
            Some((runs, 0))
        }
    }
}

fn whole(numel: u64) -> Runs {
    Runs { first: 0, step: 0, length: numel, count: 1 }
}

impl Gathered {
    /// Proves that the chunks hold each of `numel` elements exactly once.
    pub(super) fn tiles(&self, numel: u64) -> Result<(), String> {
        let mut runs: Vec<Runs> = self.chunks.iter().map(|c| c.runs).filter(|r| r.numel() > 0).collect();
        runs.sort_by_key(|r| r.first);
        // Either one run each, end to end, or all with the same step and count, and the first runs fill a step.
        let (step, count) = runs.first().map_or((numel, 1), |r| (if r.count == 1 { numel } else { r.step }, r.count));
        let mut next = 0;
        for run in &runs {
            if run.count != count || (count > 1 && run.step != step) {
                return Err("its shards are cut along different dims".into());
            }
            if run.first != next {
                let what = if run.first > next { "in no shard" } else { "in two shards" };
                return Err(format!("elements from {} are {what}", next.min(run.first)));
            }
            next += run.length;
        }
        match next == step && step.checked_mul(count) == Some(numel) {
            true => Ok(()),
            false if numel == 0 => Ok(()),
            false => Err(format!("elements from {next} are in no shard")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(parts: &[(&[u64], Part)], shape: &[u64]) -> Gathered {
        let chunk = |(local, part): &(&[u64], Part)| {
            let (runs, padding) = place(shape, local, part).unwrap();
            Chunk { file: 0, start: 0, runs, padding }
        };
        Gathered { dtype: None, chunks: parts.iter().map(chunk).collect() }
    }

    fn at(offsets: &[u64]) -> Part {
        Part::SavedOffsets(offsets.to_vec())
    }

    #[test]
    fn tiles_are_told_from_holes_and_overlaps() {
        let shape = [4, 6];
        let tiles = |parts: &[(&[u64], Part)]| gathered(parts, &shape).tiles(24);
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
        assert_eq!(gathered(&[(&[0, 6], at(&[0, 0]))], &[0, 6]).tiles(0), Ok(()));
        assert_eq!(gathered(&[(&[], at(&[]))], &[]).tiles(1), Ok(()));
    }

    #[test]
    fn what_lies_outside_is_refused() {
        let shape = [4, 6];
        let huge = Part::Flat { start: u64::MAX, valid: 2, padding: 0 };
        let bad: [(&[u64], Part); 7] = [
            (&[2, 6], at(&[3, 0])),
            (&[2, 6], at(&[0])),
            (&[2, 3], at(&[0, 0])),
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
