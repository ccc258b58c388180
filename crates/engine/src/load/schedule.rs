//! Which bytes of which file go where: the needed parts of all tensors in file order, cut into tasks, and tasks into blocks.
//!
//! A part that several ranks hold is scheduled once with several destinations. Nothing is expanded per rank or per row: a schedule is
//! about as large as the list of tensors.

mod blocks;
mod group;
mod queue;
mod read;

use std::sync::Mutex;

use shardwright_core::ShardPlan;

pub(crate) use self::{
    blocks::{Block, Run},
    queue::Task,
};
use self::{
    group::{Group, GroupKey},
    queue::Queue,
    read::TensorRead,
};
use crate::{
    checkpoint::Checkpoint,
    error::{EngineError, ErrorKind, Result},
};

/// Everything that a load reads.
#[derive(Debug)]
pub(crate) struct Schedule {
    pub(crate) tensors: Vec<TensorRead>,
    groups: Vec<Group>,
    pieces: Vec<Piece>,
    queue: Mutex<Queue>,
    /// Bytes to read from each file.
    pub(crate) file_bytes: Vec<u64>,
}

/// Neighbouring parts of one tensor: elements `lo..hi` of each row, held by members `first..` in turn.
#[derive(Debug)]
struct Piece {
    tensor: u32,
    first: u32,
    end: u32,
    lo: u64,
    hi: u64,
}

/// The plan's tensors as they lie in the files.
pub(crate) fn file_order(checkpoint: &Checkpoint) -> Vec<u32> {
    let count = u32::try_from(checkpoint.model().tensors.len()).unwrap_or(u32::MAX);
    let mut order: Vec<u32> = (0..count).collect();
    order.sort_by_key(|&t| {
        let at = checkpoint.location(t as usize);
        (at.file, at.offset, at.bytes)
    });
    order
}

impl Schedule {
    /// What `ranks` need.
    pub(crate) fn new(plan: &ShardPlan, checkpoint: &Checkpoint, ranks: &[u32], order: &[u32]) -> Result<Self> {
        let mut schedule = Self {
            tensors: Vec::with_capacity(order.len()),
            groups: Vec::new(),
            pieces: Vec::with_capacity(order.len()),
            queue: Mutex::default(),
            file_bytes: vec![0; checkpoint.files().len()],
        };
        for &t in order {
            let (tensor, at) = (&plan.tensors[t as usize], checkpoint.location(t as usize));
            let file = u32::try_from(at.file).map_err(|_| EngineError::new(ErrorKind::Checkpoint, "too many files"))?;
            let group = schedule.group(GroupKey::of(tensor), ranks);
            schedule.tensors.push(TensorRead::new(tensor, t, file, at.offset, group)?);
            schedule.add_pieces(at.file);
        }
        Ok(schedule)
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
                _ => self.pieces.push(Piece { tensor: number, first: m, end: m + 1, lo, hi }),
            }
        }
        let added: u64 = self.pieces[first_new..].iter().map(|p| p.numel(tensor) * tensor.from).sum();
        self.file_bytes[file] += added;
    }

    /// Bytes to read in all.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.file_bytes.iter().sum()
    }

    /// The loaded ranks that get a run, as indices.
    pub(crate) fn destinations(&self, run: &Run) -> &[u32] {
        let group = &self.groups[self.tensors[run.tensor as usize].group as usize];
        &group.members[run.member as usize].ranks
    }
}

impl Piece {
    fn numel(&self, tensor: &TensorRead) -> u64 {
        tensor.rows * (self.hi - self.lo)
    }
}
