//! Tasks in the order of the files: handed out to be read, and announced ahead.

use super::{
    list::Schedule,
    queue::{Cursor, Task},
};
use crate::parallel::lock;

impl Schedule {
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
            let sweep = piece.sweep.map(|s| &self.sweeps[s as usize]);
            let left = match sweep {
                Some(sweep) => sweep.bytes_from(cursor.pos),
                None => (piece.numel(tensor) - cursor.pos) * tensor.from,
            };
            if tensor.file != file || (bytes > 0 && bytes + left > limit) {
                break;
            }
            if left > limit
                && let Some(sweep) = sweep
            {
                let before = cursor.pos;
                while bytes < limit && cursor.pos < sweep.tiles() {
                    bytes += sweep.bytes_from(cursor.pos) - sweep.bytes_from(cursor.pos + 1);
                    cursor.pos += 1;
                }
                debug_assert!(cursor.pos > before);
                if cursor.pos == sweep.tiles() {
                    *cursor = Cursor { piece: cursor.piece + 1, pos: 0 };
                }
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
}
