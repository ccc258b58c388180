//! What a load reads, as a list.

use std::{collections::BTreeSet, sync::Mutex};

use super::{
    convert::Conversion,
    group::Group,
    queue::Queue,
    read::TensorRead,
    run::Run,
    sweep::{Sweep, TilePart},
};

/// Everything that a load reads.
#[derive(Debug)]
pub(crate) struct Schedule {
    pub(crate) tensors: Vec<TensorRead>,
    pub(super) groups: Vec<Group>,
    pub(super) pieces: Vec<Piece>,
    pub(super) sweeps: Vec<Sweep>,
    pub(super) queue: Mutex<Queue>,
    /// Bytes to read from each file.
    pub(crate) file_bytes: Vec<u64>,
}

/// Neighbouring parts of one tensor: elements `lo..hi` of each row, held by members `first..` in turn; or a sweep.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) tensor: u32,
    pub(super) first: u32,
    pub(super) end: u32,
    pub(super) lo: u64,
    pub(super) hi: u64,
    pub(super) sweep: Option<u32>,
}

impl Schedule {
    /// Elements of a piece, or tiles of its sweep.
    pub(super) fn steps(&self, piece: &Piece) -> u64 {
        match piece.sweep {
            Some(sweep) => self.sweeps[sweep as usize].tiles(),
            None => piece.numel(&self.tensors[piece.tensor as usize]),
        }
    }

    /// A sweep by its number.
    pub(crate) fn sweep(&self, number: u32) -> &Sweep {
        &self.sweeps[number as usize]
    }

    /// What a block may grow to where its elements are cast before they are rearranged.
    pub(crate) fn spare_bytes(&self, block: usize) -> usize {
        let growth = |p: &Piece| {
            let (from, to) = self.tensors[p.tensor as usize].sizes();
            to.div_ceil(from)
        };
        self.pieces.iter().filter(|p| p.sweep.is_some()).map(growth).max().map_or(1, |n| block.saturating_mul(n))
    }

    /// The plan's tensors that only the host puts together: those whose elements are rearranged, and those that grow when they are rounded.
    pub(crate) fn needs_host(&self) -> BTreeSet<u32> {
        let grows = |t: &&TensorRead| matches!(t.cast, Some(Conversion::Rounded { sizes: (from, through, _), .. }) if through > from);
        let swept = self.pieces.iter().filter(|p| p.sweep.is_some()).map(|p| self.tensors[p.tensor as usize].tensor);
        swept.chain(self.tensors.iter().filter(grows).map(|t| t.tensor)).collect()
    }

    /// Bytes to read in all.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.file_bytes.iter().sum()
    }

    /// The loaded ranks that get a part of a tile, as indices.
    pub(crate) fn destinations_of(&self, run: &Run, part: &TilePart) -> &[u32] {
        let group = &self.groups[self.tensors[run.tensor as usize].group as usize];
        &group.members[part.member as usize].ranks
    }

    /// The loaded ranks that get a run, as indices; of a tile, the first of them.
    pub(crate) fn destinations(&self, run: &Run) -> &[u32] {
        let group = &self.groups[self.tensors[run.tensor as usize].group as usize];
        &group.members[run.member as usize].ranks
    }
}

impl Piece {
    pub(super) fn numel(&self, tensor: &TensorRead) -> u64 {
        tensor.rows * (self.hi - self.lo)
    }
}
