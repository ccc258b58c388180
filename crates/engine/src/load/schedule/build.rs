//! Makes the list: every rank's part of every tensor, by the files' order.

use std::sync::Mutex;

use shardwright_core::{Assembly, Region, ShardPlan, TensorPlan, local};

use super::{
    group::{Group, GroupKey},
    list::{Piece, Schedule},
    read::{Rows, TensorRead},
    sweep::{Source, Sweep},
};
use crate::{
    checkpoint::Checkpoint,
    error::{EngineError, ErrorKind, Result},
};

/// The plan's tensors as they lie in the files: by the first of their sources.
pub(crate) fn file_order(checkpoint: &Checkpoint) -> Vec<u32> {
    order_of(&checkpoint.assembled().assemblies, checkpoint)
}

/// As [`file_order`], of other parameters of the same files.
pub(crate) fn order_of(assemblies: &[Assembly], checkpoint: &Checkpoint) -> Vec<u32> {
    let count = u32::try_from(assemblies.len()).unwrap_or(u32::MAX);
    let first = |t: u32| {
        let places = sources(&assemblies[t as usize]).map(|source| {
            let at = checkpoint.location(source as usize);
            (at.file, at.offset, at.bytes)
        });
        places.min()
    };
    let mut order: Vec<u32> = (0..count).collect();
    order.sort_by_cached_key(|&t| first(t));
    order
}

/// The source tensors of a parameter.
fn sources(assembly: &Assembly) -> impl Iterator<Item = u32> + '_ {
    let (one, pieces) = match assembly {
        Assembly::Whole(source) => (Some(*source), [].as_slice()),
        Assembly::Pieces(pieces) => (None, pieces.as_slice()),
    };
    one.into_iter().chain(pieces.iter().map(|p| p.source))
}

impl Schedule {
    /// What `ranks` need, in blocks of at most `block` bytes.
    pub(crate) fn new(plan: &ShardPlan, checkpoint: &Checkpoint, ranks: &[u32], order: &[u32], block: usize) -> Result<Self> {
        Self::of(plan, &checkpoint.assembled().assemblies, checkpoint, ranks, order, block)
    }

    /// As [`Schedule::new`], of other parameters of the same files: `assemblies` are those of the plan's tensors.
    pub(crate) fn of(
        plan: &ShardPlan,
        assemblies: &[Assembly],
        checkpoint: &Checkpoint,
        ranks: &[u32],
        order: &[u32],
        block: usize,
    ) -> Result<Self> {
        let mut schedule = Self {
            tensors: Vec::with_capacity(order.len()),
            groups: Vec::new(),
            pieces: Vec::with_capacity(order.len()),
            sweeps: Vec::new(),
            queue: Mutex::default(),
            file_bytes: vec![0; checkpoint.files().len()],
        };
        let mut assembled = false;
        for &t in order {
            let tensor = &plan.tensors[t as usize];
            let group = schedule.group(GroupKey::of(tensor), ranks);
            match &assemblies[t as usize] {
                Assembly::Whole(source) if Rows::of(tensor) == Rows::Boxes => {
                    assembled = true;
                    let at = checkpoint.location(*source as usize);
                    let members = &schedule.groups[group as usize].members;
                    match TensorRead::boxes(tensor, t, (number(at.file)?, at.offset), (group, members))? {
                        Some(reads) => reads.into_iter().for_each(|read| {
                            schedule.tensors.push(read);
                            schedule.add_pieces(at.file);
                        }),
                        None => schedule.add_assembled(tensor, t, &local::whole(*source, tensor.numel()), (checkpoint, group, block))?,
                    }
                }
                Assembly::Whole(source) => {
                    let at = checkpoint.location(*source as usize);
                    let members = &schedule.groups[group as usize].members;
                    schedule.tensors.push(TensorRead::new(tensor, t, number(at.file)?, at.offset, (group, members))?);
                    schedule.add_pieces(at.file);
                }
                Assembly::Pieces(pieces) => {
                    assembled = true;
                    for piece in pieces {
                        schedule.add_assembled(tensor, t, piece, (checkpoint, group, block))?;
                    }
                }
            }
        }
        if assembled {
            schedule.sort_by_place();
        }
        Ok(schedule)
    }

    /// One piece of an assembled parameter: a run where it and every rank's part are runs, else sweeps.
    fn add_assembled(
        &mut self,
        tensor: &TensorPlan,
        number_in_plan: u32,
        piece: &shardwright_core::Piece,
        (checkpoint, group, block): (&Checkpoint, u32, usize),
    ) -> Result<()> {
        let at = checkpoint.location(piece.source as usize);
        let file = number(at.file)?;
        let size = (tensor.source.bits() / 8).max(1);
        let piece = local::normalized(piece.clone());
        let members = &self.groups[group as usize].members;
        if let (Some(length), Rows::Runs) = (local::run_length(&piece), Rows::of(tensor)) {
            if length > 0 {
                let start = at.offset + piece.source_offset * size;
                let read = TensorRead::run(tensor, number_in_plan, (file, start), (piece.target_offset, length), (group, members))?;
                let pieces = self.pieces.len();
                self.tensors.push(read);
                self.add_pieces(at.file);
                if self.pieces.len() == pieces {
                    self.tensors.pop(); // nothing of it is for a rank that is loaded
                }
            }
            return Ok(());
        }
        let wrong = |what: String| EngineError::new(ErrorKind::Plan, what).tensor(&tensor.name);
        if tensor.source.bits() < 8 {
            return Err(wrong(format!("elements of {} bits cannot be rearranged", tensor.source.bits())));
        }
        let read = number(self.tensors.len())?;
        self.tensors.push(TensorRead::swept(tensor, number_in_plan, file, at.offset, group)?);
        let first = piece.source_offset;
        let assembly = Assembly::Pieces(vec![piece]);
        let mut parts = Vec::new();
        for (m, member) in (0u32..).zip(&self.groups[group as usize].members) {
            let region: Region = tensor.placement.region_at(&tensor.shape, member.coordinate);
            parts.extend(local::local_pieces(&assembly, &tensor.shape, &region).map_err(wrong)?.into_iter().map(|part| (m, part)));
        }
        if parts.is_empty() {
            return Ok(());
        }
        let to = (tensor.precision.storage.bits() / 8).max(1);
        for sweep in Sweep::all(&parts, first, Source { start: at.offset, from: size, to, block: block as u64 }) {
            self.file_bytes[at.file] += sweep.bytes_from(0);
            let (member, sweep_number) = (sweep.member(), number(self.sweeps.len())?);
            self.sweeps.push(sweep);
            self.pieces.push(Piece { tensor: read, first: member, end: member + 1, lo: 0, hi: 0, sweep: Some(sweep_number) });
        }
        Ok(())
    }

    /// Pieces of several parameters may lie in one file in any order; tasks want them in the file's.
    fn sort_by_place(&mut self) {
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.sort_by_cached_key(|piece| {
            let tensor = &self.tensors[piece.tensor as usize];
            let offset = piece.sweep.map_or(tensor.at + piece.lo * tensor.from, |s| self.sweeps[s as usize].tile(0).0);
            (tensor.file, offset)
        });
        self.pieces = pieces;
    }

    /// The number of the group, made at first sight.
    fn group(&mut self, key: GroupKey, ranks: &[u32]) -> u32 {
        let at = self.groups.iter().position(|g| g.key == key).unwrap_or_else(|| {
            self.groups.push(Group::new(key, ranks));
            self.groups.len() - 1
        });
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    /// The pieces of the tensor that was added last.
    fn add_pieces(&mut self, file: usize) {
        let number = u32::try_from(self.tensors.len() - 1).unwrap_or(u32::MAX);
        let Some(tensor) = self.tensors.last() else { return };
        let first_new = self.pieces.len();
        for (m, member) in (0u32..).zip(&self.groups[tensor.group as usize].members) {
            let (lo, hi) = tensor.cut(member.coordinate);
            if lo == hi || tensor.rows == 0 {
                continue;
            }
            match self.pieces[first_new..].last_mut() {
                Some(piece) if piece.hi == lo => (piece.hi, piece.end) = (hi, m + 1),
                _ => self.pieces.push(Piece { tensor: number, first: m, end: m + 1, lo, hi, sweep: None }),
            }
        }
        let added: u64 = self.pieces[first_new..].iter().map(|p| p.numel(tensor) * tensor.from).sum();
        self.file_bytes[file] += added;
    }
}

fn number(index: usize) -> Result<u32> {
    u32::try_from(index).map_err(|_| EngineError::new(ErrorKind::Checkpoint, "too many files or tensors"))
}
