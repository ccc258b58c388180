//! Checksums of what is read. A zip states one for each storage, and a conversion reads each byte once: what goes by is hashed, and compared at
//! the end.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, PoisonError},
};

use shardwright_formats::torch_file::Storage;

use crate::error::{EngineError, ErrorKind, Result};

/// Bytes that are read only to complete a checksum: up to these, or an eighth of what was read of the storage, such as padding.
const MOST_GAPS: u64 = 64 << 10;
/// Bytes of a number, such as a step, which was read when the checkpoint was opened.
const SCALAR: u64 = 8;
const BLOCK: u64 = 1 << 20;

/// A storage, by its place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stated {
    file: u32,
    start: u64,
    size: u64,
    crc: u32,
}

impl Stated {
    /// `None` where the zip states no checksum, or there is nothing to sum.
    pub(super) fn new(file: usize, from: u64, storage: Storage) -> Option<Self> {
        let Storage { start, size, crc } = storage;
        let file = u32::try_from(file).ok()?;
        (crc != 0 && size > 0).then_some(Self { file, start: from + start, size, crc })
    }
}

/// Fills a buffer from a file, by its number and an offset.
type Read<'a> = &'a dyn Fn(usize, &mut [u8], u64) -> Result<()>;
/// Bytes, and their CRC-32.
type Run = (u64, u32);

fn joined((a, first): Run, (b, second): Run) -> Run {
    let mut hasher = crc32fast::Hasher::new_with_initial_len(first, a);
    hasher.combine(&crc32fast::Hasher::new_with_initial_len(second, b));
    (a + b, hasher.finalize())
}

/// What was read of each file: runs by their first byte, joined where they meet.
#[derive(Debug, Default)]
pub(super) struct Seen {
    files: Vec<Mutex<BTreeMap<u64, Run>>>,
}

impl Seen {
    pub(super) fn new(files: usize) -> Self {
        Self { files: (0..files).map(|_| Mutex::default()).collect() }
    }

    pub(super) fn note(&self, file: usize, start: u64, bytes: &[u8]) {
        let Some(runs) = self.files.get(file).filter(|_| !bytes.is_empty()) else { return };
        let mut run = (bytes.len() as u64, crc32fast::hash(bytes));
        let (mut at, end) = (start, start + run.0);
        let mut runs = runs.lock().unwrap_or_else(PoisonError::into_inner);
        let before = runs.range(..end).next_back().map(|(at, run)| (*at, *run));
        if before.is_some_and(|(at, (len, _))| at + len > start) {
            return; // some of it was read before
        }
        if let Some((first, before)) = before.filter(|(at, (len, _))| at + len == start) {
            runs.remove(&first);
            (at, run) = (first, joined(before, run));
        }
        if let Some(behind) = runs.remove(&end) {
            run = joined(run, behind);
        }
        runs.insert(at, run);
    }

    /// The storage's CRC-32; `None` where not enough of it was read, unless `all` of it shall be.
    fn sum(&self, stated: &Stated, read: Read<'_>, all: bool) -> Result<Option<u32>> {
        let (mut at, end) = (stated.start, stated.start + stated.size);
        let file = stated.file as usize;
        let runs: Vec<(u64, Run)> = match self.files.get(file) {
            Some(runs) => runs.lock().unwrap_or_else(PoisonError::into_inner).range(at..end).map(|(at, run)| (*at, *run)).collect(),
            None => Vec::new(),
        };
        let known: u64 = runs.iter().map(|(_, (len, _))| len).sum();
        if !all && stated.size > SCALAR && (known == 0 || stated.size - known.min(stated.size) > MOST_GAPS.max(known / 8)) {
            return Ok(None);
        }
        let (mut sum, mut buffer) = ((0, 0), Vec::new());
        for (next, run) in runs.into_iter().chain([(end, (0, 0))]) {
            while at < next {
                let len = (next - at).min(BLOCK);
                buffer.resize(usize::try_from(len).unwrap_or(0), 0);
                read(file, &mut buffer, at)?;
                sum = joined(sum, (len, crc32fast::hash(&buffer)));
                at += len;
            }
            sum = joined(sum, run);
            at += run.0;
        }
        Ok(Some(sum.1))
    }

    /// Compares the storages that were read with what their zips state.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`] where one differs.
    pub(super) fn check<'p>(&self, stated: &[Stated], read: Read<'_>, path: impl Fn(usize) -> &'p Path, all: bool) -> Result<()> {
        for storage in stated {
            let found = self.sum(storage, read, all)?;
            if let Some(found) = found.filter(|found| *found != storage.crc) {
                let error = EngineError::new(ErrorKind::Checkpoint, "a storage of the file is damaged: its CRC-32 differs");
                let error = error.file(path(storage.file as usize)).offset(storage.start);
                return Err(error.expected(format_args!("{:08x}", storage.crc)).found(format_args!("{found:08x}")));
            }
        }
        Ok(())
    }
}
