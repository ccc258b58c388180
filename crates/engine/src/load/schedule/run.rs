//! Blocks of a file, and the runs in them that go to one place each.

use super::read::TensorRead;

/// How long a block and its list of runs may become.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockLimits {
    /// Bytes that go through the staging buffer at once.
    pub(crate) block: u64,
    /// From this many bytes on, what is not cast is read straight into place.
    pub(crate) in_place: usize,
    /// Runs.
    pub(crate) runs: usize,
}

/// Neighbouring bytes of one file, read at once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Block {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// A part of a block that goes to one place in each rank's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Index into [`Schedule::tensors`](super::Schedule::tensors).
    pub(crate) tensor: u32,
    pub(super) member: u32,
    /// First byte in the block, and number of bytes.
    pub(crate) from: usize,
    pub(crate) bytes: usize,
    /// First byte in the rank's own part, and number of bytes there.
    pub(crate) to: usize,
    pub(crate) stored: usize,
    /// Where the bytes do not stay in one run: the sweep and the number of its tile; `to` is 0 then, and `stored` the size of what is needed.
    pub(crate) tile: Option<(u32, u64)>,
}

impl Run {
    #[expect(clippy::cast_possible_truncation, reason = "parts of a shard, whose arena is mapped and so has a size in usize")]
    pub(super) fn new(number: u32, member: usize, tensor: &TensorRead, elements: u64, local: u64) -> Self {
        Self {
            tensor: number,
            member: member as u32,
            from: 0,
            bytes: (elements * tensor.from) as usize,
            to: (local * tensor.to) as usize,
            stored: (elements * tensor.to) as usize,
            tile: None,
        }
    }

    /// Keeps the first `bytes`, a whole number of elements.
    #[expect(clippy::cast_possible_truncation, reason = "an element has a few bytes")]
    pub(super) fn cut_to(mut self, bytes: usize, tensor: &TensorRead) -> Self {
        let (from, to) = (tensor.from as usize, tensor.to as usize);
        self.bytes = bytes / from * from;
        self.stored = bytes / from * to;
        self
    }
}
