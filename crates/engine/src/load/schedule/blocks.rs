//! A task cut into blocks, and a block into the runs that go to one place each.

use super::{
    list::Schedule,
    queue::{Cursor, Task},
    run::{Block, BlockLimits, Run},
};

impl Schedule {
    /// The blocks of a task, one after the other.
    pub(crate) fn blocks(&self, task: Task) -> Blocks<'_> {
        Blocks { schedule: self, at: task.at, left: task.bytes }
    }

    /// The longest run at a place: where it lies in the file, and to whose part it goes.
    fn run_at(&self, at: Cursor) -> (u64, Run) {
        let piece = &self.pieces[at.piece];
        let tensor = &self.tensors[piece.tensor as usize];
        if let Some(number) = piece.sweep {
            let sweep = &self.sweeps[number as usize];
            let (offset, bytes, elements) = sweep.tile(at.pos);
            let run = Run::new(piece.tensor, piece.first as usize, tensor, elements, 0);
            #[expect(clippy::cast_possible_truncation, reason = "a tile is at most as large as a block")]
            return (offset, Run { bytes: bytes as usize, tile: Some((number, at.pos)), ..run });
        }
        let width = piece.hi - piece.lo;
        let (row, x) = (at.pos / width, piece.lo + at.pos % width);
        let members = &self.groups[tensor.group as usize].members;
        let candidates = &members[piece.first as usize..piece.end as usize];
        let member = piece.first as usize + candidates.partition_point(|m| tensor.cut(m.coordinate).1 <= x);
        let (lo, hi) = tensor.cut(members[member].coordinate);
        let (held, before) = tensor.local_row(members[member].coordinate);
        let (elements, local) = (hi - x, row * held + before + (x - lo));
        let offset = tensor.at + (row * tensor.row + x) * tensor.from;
        (offset, Run::new(piece.tensor, member, tensor, elements, local))
    }
}

/// Walks a task.
pub(crate) struct Blocks<'a> {
    schedule: &'a Schedule,
    at: Cursor,
    left: u64,
}

impl Blocks<'_> {
    /// The next block; its runs replace what `runs` held. A long run that is not cast is a block of its own, for it can be read straight
    /// into place; all else is gathered up to the limit, as long as it is one stretch of the file.
    pub(crate) fn next(&mut self, limits: &BlockLimits, runs: &mut Vec<Run>) -> Option<Block> {
        runs.clear();
        let mut block = Block::default();
        while self.left > 0 && runs.len() < limits.runs {
            let (offset, run) = self.schedule.run_at(self.at);
            let tensor = &self.schedule.tensors[run.tensor as usize];
            let tile = run.tile.is_some();
            // What is left of the task counts: the end of a long run may be too short to be read into place.
            let long = usize::try_from(self.left).unwrap_or(usize::MAX).min(run.bytes) >= limits.in_place;
            let alone = tile || (tensor.cast.is_none() && long);
            if !runs.is_empty() && (alone || offset != block.offset + block.bytes) {
                break;
            }
            let room = if alone { u64::MAX } else { limits.block - block.bytes };
            let run =
                if tile { run } else { run.cut_to(usize::try_from(room.min(self.left)).unwrap_or(usize::MAX).min(run.bytes), tensor) };
            if run.bytes == 0 {
                break;
            }
            if runs.is_empty() {
                block.offset = offset;
            }
            #[expect(clippy::cast_possible_truncation, reason = "a block is at most a few MiB")]
            runs.push(Run { from: block.bytes as usize, ..run });
            block.bytes += run.bytes as u64;
            self.advance(run.bytes as u64, tile);
            if alone {
                break;
            }
        }
        (!runs.is_empty()).then_some(block)
    }

    fn advance(&mut self, bytes: u64, tile: bool) {
        self.left = self.left.saturating_sub(bytes);
        let piece = &self.schedule.pieces[self.at.piece];
        let tensor = &self.schedule.tensors[piece.tensor as usize];
        self.at.pos += if tile { 1 } else { bytes / tensor.from };
        if self.at.pos == self.schedule.steps(piece) {
            self.at = Cursor { piece: self.at.piece + 1, pos: 0 };
        }
    }
}
