//! The checkpoint's files while they are read: opened at the first task, announced ahead, closed after the last byte.

use std::sync::{Arc, atomic::Ordering};

use super::{
    fault::{Fault, FaultKind, Place},
    shared::{MAX_RUNS, Shared},
};
use crate::{
    error::EngineError,
    file::unchanged,
    load::schedule::{BlockLimits, Run, Task},
    parallel::lock,
    source::{ByteSource, ReadAt},
};

impl Shared {
    /// The open file; opens it, and checks that it is still the one whose header was read.
    pub(super) fn open(&self, file: u32) -> Result<Arc<ByteSource>, Fault> {
        let state = &self.files[file as usize];
        let mut open = lock(&state.open);
        if let Some(source) = &*open {
            return Ok(Arc::clone(source));
        }
        let path = &state.file.path;
        let source = self.opener.open(path).and_then(|s| Ok((s.stamp()?, s)));
        let checked = source
            .map_err(|e| EngineError::io("cannot open the file", path, e))
            .and_then(|(stamp, source)| unchanged(path, state.file.stamp, stamp).map(|()| source));
        let source = Arc::new(checked.map_err(|e| Fault { at: Place::of_file(file), error: FaultKind::Other(e) })?);
        *open = Some(Arc::clone(&source));
        Ok(source)
    }

    /// Tells the system what comes next, unless it has that already. Only a hint: what fails here fails again when it is read.
    pub(super) fn announce(&self, runs: &mut Vec<Run>) {
        if !self.choice.readahead {
            return;
        }
        let limits = BlockLimits { block: self.task_size, in_place: usize::MAX, runs: MAX_RUNS };
        let lead = self.choice.queue_depth * self.choice.threads;
        while let Some(task) = self.schedule.next_announcement(self.task_size, lead) {
            let Ok(source) = self.open(task.file) else { return };
            // One byte tells for all of a task: asking for each block would cost more than a hot load may.
            let mut blocks = self.schedule.blocks(task);
            let Some(first) = blocks.next(&limits, runs) else { continue };
            if source.is_cached(first.offset + first.bytes - 1) {
                continue;
            }
            source.announce(first.offset, first.bytes);
            while let Some(block) = blocks.next(&limits, runs) {
                source.announce(block.offset, block.bytes);
            }
        }
    }

    /// Counts a task as done; the file's last one closes it.
    pub(super) fn finish(&self, task: Task, source: &ByteSource) {
        let state = &self.files[task.file as usize];
        if state.left.fetch_sub(task.bytes, Ordering::AcqRel) == task.bytes {
            *lock(&state.open) = None;
            if self.choice.drop_cache {
                source.forget(0, 0); // to the end
            }
        }
    }
}
