//! Which bytes of which file go where: the needed parts of all tensors in file order, cut into tasks, and tasks into blocks.
//!
//! A part that several ranks hold is scheduled once with several destinations. Nothing is expanded per rank or per row: a schedule is
//! about as large as the list of tensors.

use std::sync::Mutex;

use shardwright_core::{DType, GroupAxis, Layout, ShardPlan, TensorPlan};
use shardwright_precision::cast::{Caster, caster};

use super::pipeline::{BlockLimits, lock};
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

/// How to read one tensor, seen as `rows` rows of `row` elements each, cut alike.
#[derive(Debug)]
pub(crate) struct TensorRead {
    /// Index in the plan.
    pub(crate) tensor: u32,
    pub(crate) file: u32,
    /// First byte in the file.
    at: u64,
    /// Bytes of an element in the file and in memory.
    from: u64,
    to: u64,
    /// `None` where the bytes stay as they are.
    pub(crate) cast: Option<Caster>,
    rows: u64,
    row: u64,
    cut: Cut,
    group: u32,
}

/// The part of a row that a coordinate holds, in elements.
#[derive(Debug)]
enum Cut {
    Whole,
    Step(u64),
    Bounds(Box<[u64]>),
}

/// The loaded ranks by their coordinate along an axis, ascending.
#[derive(Debug)]
struct Group {
    key: GroupKey,
    members: Vec<Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GroupKey {
    /// All ranks hold the same.
    All,
    Axis(GroupAxis),
    Owner(GroupAxis, u32),
}

/// Ranks that hold the same part.
#[derive(Debug)]
struct Member {
    coordinate: u32,
    /// Indices into the loaded ranks.
    ranks: Vec<u32>,
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

/// A place in the list of pieces; `pos` counts elements of the piece.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    piece: usize,
    pos: u64,
}

/// What was handed out to be read, and what to be announced, which is `lead` tasks further.
#[derive(Debug, Default)]
struct Queue {
    read: Cursor,
    announced: Cursor,
    lead: usize,
}

/// Some bytes of one file, for one worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    at: Cursor,
    pub(crate) bytes: u64,
    pub(crate) file: u32,
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
    /// Index into [`Schedule::tensors`].
    pub(crate) tensor: u32,
    member: u32,
    /// First byte in the block, and number of bytes.
    pub(crate) from: usize,
    pub(crate) bytes: usize,
    /// First byte in the rank's own part, and number of bytes there.
    pub(crate) to: usize,
    pub(crate) stored: usize,
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

    /// The next bytes of one file to read, about `limit` of them; `None` at the end.
    pub(crate) fn next_task(&self, limit: u64) -> Option<Task> {
        let mut queue = lock(&self.queue);
        let task = self.take(&mut queue.read, limit)?;
        match queue.lead.checked_sub(1) {
            Some(lead) => queue.lead = lead,
            None => (queue.announced, queue.lead) = (queue.read, 0),
        }
        Some(task)
    }

    /// The next task to announce, while fewer than `lead` are announced and not yet handed out. `limit` is that of the tasks.
    pub(crate) fn next_announcement(&self, limit: u64, lead: usize) -> Option<Task> {
        let mut queue = lock(&self.queue);
        let task = if queue.lead < lead { self.take(&mut queue.announced, limit)? } else { return None };
        queue.lead += 1;
        Some(task)
    }

    fn take(&self, cursor: &mut Cursor, limit: u64) -> Option<Task> {
        let at = *cursor;
        let file = self.tensors[self.pieces.get(at.piece)?.tensor as usize].file;
        let mut bytes = 0;
        while let Some(piece) = self.pieces.get(cursor.piece) {
            let tensor = &self.tensors[piece.tensor as usize];
            let left = (piece.numel(tensor) - cursor.pos) * tensor.from;
            if tensor.file != file || (bytes > 0 && bytes + left > limit) {
                break;
            }
            if left > limit {
                let taken = limit.next_multiple_of(tensor.from).min(left);
                cursor.pos += taken / tensor.from;
                bytes = taken;
                break;
            }
            bytes += left;
            *cursor = Cursor { piece: cursor.piece + 1, pos: 0 };
        }
        Some(Task { at, bytes, file })
    }

    /// The blocks of a task, one after the other.
    pub(crate) fn blocks(&self, task: Task) -> Blocks<'_> {
        Blocks { schedule: self, at: task.at, left: task.bytes }
    }

    /// The loaded ranks that get a run, as indices.
    pub(crate) fn destinations(&self, run: &Run) -> &[u32] {
        let group = &self.groups[self.tensors[run.tensor as usize].group as usize];
        &group.members[run.member as usize].ranks
    }

    /// The longest run at a place: where it lies in the file, and to whose part it goes.
    fn run_at(&self, at: Cursor) -> (u64, Run) {
        let piece = &self.pieces[at.piece];
        let tensor = &self.tensors[piece.tensor as usize];
        let width = piece.hi - piece.lo;
        let (row, x) = (at.pos / width, piece.lo + at.pos % width);
        let members = &self.groups[tensor.group as usize].members;
        let candidates = &members[piece.first as usize..piece.end as usize];
        let member = piece.first as usize + candidates.partition_point(|m| tensor.cut(m.coordinate).1 <= x);
        let (lo, hi) = tensor.cut(members[member].coordinate);
        let (elements, local) = (hi - x, row * (hi - lo) + (x - lo));
        let offset = tensor.at + (row * tensor.row + x) * tensor.from;
        (offset, Run::new(piece.tensor, member, tensor, elements, local))
    }
}

impl Run {
    #[expect(clippy::cast_possible_truncation, reason = "parts of a shard, whose arena is mapped and so has a size in usize")]
    fn new(number: u32, member: usize, tensor: &TensorRead, elements: u64, local: u64) -> Self {
        Self {
            tensor: number,
            member: member as u32,
            from: 0,
            bytes: (elements * tensor.from) as usize,
            to: (local * tensor.to) as usize,
            stored: (elements * tensor.to) as usize,
        }
    }

    /// Keeps the first `bytes`, a whole number of elements.
    #[expect(clippy::cast_possible_truncation, reason = "an element has a few bytes")]
    fn cut_to(mut self, bytes: usize, tensor: &TensorRead) -> Self {
        let (from, to) = (tensor.from as usize, tensor.to as usize);
        self.bytes = bytes / from * from;
        self.stored = bytes / from * to;
        self
    }
}

impl Piece {
    fn numel(&self, tensor: &TensorRead) -> u64 {
        tensor.rows * (self.hi - self.lo)
    }
}

impl TensorRead {
    fn new(plan: &TensorPlan, tensor: u32, file: u32, at: u64, group: u32) -> Result<Self> {
        let shape = &plan.shape;
        let (from, to) = (plan.source, plan.precision.storage);
        let cast = if from == to { None } else { Some(caster(from, to).ok_or_else(|| no_cast(plan))?) };
        // Elements below a byte are never cut: they go as the bytes that they fill.
        let numel = if from.bits() < 8 { from.bytes(plan.numel()).unwrap_or(0) } else { plan.numel() };
        let inner = |dim: usize| shape[dim + 1..].iter().product::<u64>();
        let outer = |dim: usize| shape[..dim].iter().product::<u64>();
        let (rows, row, cut) = match &plan.placement.layout {
            Layout::Dim { dim, chunk } => (outer(*dim), shape[*dim] * inner(*dim), Cut::Step(chunk.saturating_mul(inner(*dim)))),
            Layout::Bounds { dim, bounds } => {
                (outer(*dim), shape[*dim] * inner(*dim), Cut::Bounds(bounds.iter().map(|b| b * inner(*dim)).collect()))
            }
            Layout::Flat { partition } => (1, numel, Cut::Step(*partition)),
            Layout::Replicated | Layout::Owner { .. } => (1, numel, Cut::Whole),
            other => {
                return Err(EngineError::new(ErrorKind::Plan, format!("the engine knows no layout {other:?}")).tensor(&plan.name));
            }
        };
        let size = |d: DType| (d.bits() / 8).max(1);
        Ok(Self { tensor, file, at, from: size(from), to: size(to), cast, rows, row, cut, group })
    }

    /// The part of each row that a coordinate holds.
    fn cut(&self, coordinate: u32) -> (u64, u64) {
        match &self.cut {
            Cut::Whole => (0, self.row),
            Cut::Step(step) => {
                let start = u64::from(coordinate).saturating_mul(*step).min(self.row);
                (start, start.saturating_add(*step).min(self.row))
            }
            Cut::Bounds(bounds) => (bounds[coordinate as usize], bounds[coordinate as usize + 1]),
        }
    }
}

fn no_cast(plan: &TensorPlan) -> EngineError {
    EngineError::new(ErrorKind::Plan, format!("there is no cast from {} to {}", plan.source, plan.precision.storage)).tensor(&plan.name)
}

impl GroupKey {
    fn of(tensor: &TensorPlan) -> Self {
        match &tensor.placement.layout {
            Layout::Replicated => Self::All,
            Layout::Owner { coordinate } => Self::Owner(tensor.placement.axis, *coordinate),
            _ => Self::Axis(tensor.placement.axis),
        }
    }
}

impl Group {
    fn new(key: GroupKey, ranks: &[u32]) -> Self {
        let coordinate = |rank: u32| match key {
            GroupKey::All => Some(0),
            GroupKey::Axis(axis) => Some(axis.coordinate(rank)),
            GroupKey::Owner(axis, owner) => (axis.coordinate(rank) == owner).then_some(owner),
        };
        let mut by_coordinate: Vec<(u32, u32)> = (0..).zip(ranks).filter_map(|(i, &r)| Some((coordinate(r)?, i))).collect();
        by_coordinate.sort_unstable();
        let members = by_coordinate
            .chunk_by(|a, b| a.0 == b.0)
            .map(|same| Member { coordinate: same[0].0, ranks: same.iter().map(|s| s.1).collect() })
            .collect();
        Self { key, members }
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
            let alone = tensor.cast.is_none() && run.bytes >= limits.in_place;
            if !runs.is_empty() && (alone || offset != block.offset + block.bytes) {
                break;
            }
            let room = if alone { u64::MAX } else { limits.block - block.bytes };
            let run = run.cut_to(usize::try_from(room.min(self.left)).unwrap_or(usize::MAX).min(run.bytes), tensor);
            if run.bytes == 0 {
                break;
            }
            if runs.is_empty() {
                block.offset = offset;
            }
            #[expect(clippy::cast_possible_truncation, reason = "a block is at most a few MiB")]
            runs.push(Run { from: block.bytes as usize, ..run });
            block.bytes += run.bytes as u64;
            self.advance(run.bytes as u64);
            if alone {
                break;
            }
        }
        (!runs.is_empty()).then_some(block)
    }

    fn advance(&mut self, bytes: u64) {
        self.left -= bytes;
        let piece = &self.schedule.pieces[self.at.piece];
        let tensor = &self.schedule.tensors[piece.tensor as usize];
        self.at.pos += bytes / tensor.from;
        if self.at.pos == piece.numel(tensor) {
            self.at = Cursor { piece: self.at.piece + 1, pos: 0 };
        }
    }
}
