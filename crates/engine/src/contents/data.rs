//! Where a tensor's elements lie: pieces of it in files, under any layout, read by ranges of its row-major elements.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use shardwright_core::{DType, model::numel};
use shardwright_formats::{ReadAt, torch_file};

use super::checksums::{Seen, Stated};
use crate::{
    error::{EngineError, ErrorKind, Result},
    file::{Stamp, open_regular, unchanged},
};

/// The files of a checkpoint, opened when they are first read.
#[derive(Debug, Default)]
pub(crate) struct Files {
    files: Vec<(PathBuf, OnceLock<File>, Option<Stamp>)>,
    kept: AtomicUsize,
    stated: Vec<Stated>,
    seen: OnceLock<Seen>,
}

/// Files that stay open once they were read; others are opened for each block.
const MOST_OPEN: usize = 256;

impl Files {
    /// Adds a file whose header is being read; its number.
    pub(crate) fn add(&mut self, path: PathBuf) -> usize {
        let stamp = fs::metadata(&path).ok().map(|meta| Stamp::of(&meta));
        self.files.push((path, OnceLock::new(), stamp));
        self.files.len() - 1
    }

    pub(crate) fn path(&self, file: usize) -> &PathBuf {
        &self.files[file].0
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.iter().map(|(path, ..)| path)
    }

    /// Notes the storage that a tensor of a file of `torch.save` lies in; `from` is where the zip starts in the file.
    pub(super) fn expect(&mut self, file: usize, from: u64, tensor: &torch_file::Tensor) {
        // Tensors of one storage mostly follow each other.
        self.stated.extend(Stated::new(file, from, tensor.storage).filter(|new| self.stated.last() != Some(new)));
    }

    /// From now on what is read is hashed, where files state checksums.
    pub(crate) fn watch_sums(&self) {
        if !self.stated.is_empty() {
            self.seen.get_or_init(|| Seen::new(self.files.len()));
        }
    }

    /// Compares what was read since [`Files::watch_sums`] with the checksums that the files state; with `all`, everything, whether it was read or not.
    pub(crate) fn check_sums(&self, all: bool) -> Result<()> {
        let mut stated = self.stated.clone();
        stated.sort_unstable();
        stated.dedup();
        let read = |file: usize, buffer: &mut [u8], at: u64| self.read_unseen(file, buffer, at);
        self.seen.get().map_or(Ok(()), |seen| seen.check(&stated, &read, |file| self.path(file), all))
    }

    /// Checks that no file was changed or replaced since it was added.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        self.files.iter().filter_map(|(path, _, stamp)| Some((path, (*stamp)?))).try_for_each(|(path, stamp)| {
            let meta = fs::metadata(path).map_err(|e| EngineError::io("cannot look at the file again", path, e))?;
            unchanged(path, stamp, Stamp::of(&meta))
        })
    }

    /// Fills `buffer` from `offset` on.
    pub(crate) fn read(&self, file: usize, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.read_unseen(file, buffer, offset)?;
        if let Some(seen) = self.seen.get() {
            seen.note(file, offset, buffer);
        }
        Ok(())
    }

    /// As [`Files::read`], without hashing.
    fn read_unseen(&self, file: usize, buffer: &mut [u8], offset: u64) -> Result<()> {
        let (path, slot, _) = &self.files[file];
        let cannot = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => EngineError::new(ErrorKind::Checkpoint, "the file is cut off").file(path).offset(offset),
            _ => EngineError::io("cannot read the file", path, e).offset(offset),
        };
        if let Some(open) = slot.get() {
            return open.read_exact_at(buffer, offset).map_err(cannot);
        }
        let open = open(path)?;
        open.read_exact_at(buffer, offset).map_err(cannot)?;
        if self.kept.fetch_add(1, Ordering::Relaxed) < MOST_OPEN {
            let _ = slot.set(open); // another thread was faster
        }
        Ok(())
    }
}

/// Opens a regular file.
pub(crate) fn open(path: &Path) -> Result<File> {
    open_regular(path).map(|(file, _)| file)
}

/// A file for the readers of headers.
#[derive(Debug)]
pub(crate) struct Bytes {
    file: File,
    size: u64,
}

impl Bytes {
    pub(crate) fn open(path: &PathBuf) -> Result<Self> {
        let file = open(path)?;
        let size = file.metadata().map_err(|e| EngineError::io("cannot look at the file", path, e))?.len();
        Ok(Self { file, size })
    }
}

impl ReadAt for Bytes {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

/// One loop around an extent's contiguous runs; strides in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loop {
    pub(crate) size: u64,
    /// In the file.
    pub(crate) source: u64,
    /// In the tensor.
    pub(crate) target: u64,
}

/// Elements of a tensor that lie in one file: runs of `run` elements, contiguous on both sides, inside `loops`, outermost first. The loops
/// ascend in the tensor: each covers less than one step of the loop around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) file: usize,
    /// First byte.
    pub(crate) offset: u64,
    /// First element of the tensor.
    pub(crate) start: u64,
    pub(crate) loops: Vec<Loop>,
    pub(crate) run: u64,
}

impl Extent {
    /// Contiguous elements.
    pub(crate) fn flat(file: usize, offset: u64, start: u64, run: u64) -> Self {
        Self { file, offset, start, loops: Vec::new(), run }
    }

    /// A box of a tensor of that shape, from elements with these strides in the file.
    pub(crate) fn boxed(file: usize, offset: u64, shape: &[u64], at: &[u64], sizes: &[u64], strides: &[u64]) -> Self {
        let mut steps = vec![1u64; shape.len()];
        for dim in (1..shape.len()).rev() {
            steps[dim - 1] = steps[dim] * shape[dim];
        }
        let start = at.iter().zip(&steps).map(|(a, s)| a * s).sum();
        let mut loops: Vec<Loop> = Vec::new();
        for dim in 0..shape.len() {
            let this = Loop { size: sizes[dim], source: strides[dim], target: steps[dim] };
            match loops.last_mut() {
                _ if this.size == 1 => {}
                // Two loops that are one.
                Some(last) if last.source == this.size * this.source && last.target == this.size * this.target => {
                    *last = Loop { size: last.size * this.size, ..this };
                }
                _ => loops.push(this),
            }
        }
        let run = match loops.last() {
            Some(Loop { size, source: 1, target: 1 }) => {
                let run = *size;
                loops.pop();
                run
            }
            _ => 1,
        };
        // There are millions, most of them without a loop.
        loops.shrink_to_fit();
        Self { file, offset, start, loops, run }
    }

    /// Elements.
    fn numel(&self) -> u64 {
        self.loops.iter().map(|l| l.size).product::<u64>() * self.run
    }

    /// One behind the last element of the tensor.
    fn end(&self) -> u64 {
        self.start + self.loops.iter().map(|l| (l.size - 1) * l.target).sum::<u64>() + self.run
    }
}

/// A tensor: what it is, and where its elements lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    pub(crate) extents: Vec<Extent>,
}

impl Data {
    /// A tensor whose extents tile it exactly once.
    pub(crate) fn new(dtype: DType, shape: Vec<u64>, mut extents: Vec<Extent>) -> Result<Self> {
        let error = |what: String| EngineError::new(ErrorKind::Checkpoint, what);
        let count = numel(&shape).filter(|n| dtype.bytes(*n).is_some()).ok_or_else(|| error("its size overflows".into()))?;
        extents.retain(|e| e.numel() > 0);
        extents.sort_by_key(|e| e.start);
        let found: u64 = extents.iter().map(Extent::numel).fold(0, u64::saturating_add);
        if found != count {
            let what = "its parts do not make it whole; files of a rank may be missing, or of another save";
            return Err(error(what.into()).expected(format_args!("{count} elements")).found(found));
        }
        if extents.iter().any(|e| e.end() > count) {
            return Err(error("a part reaches beyond it".into()));
        }
        // Flat parts in order tile it where none overlaps; boxes may interleave, and are distinguished by the boxes themselves.
        let overlap = extents.windows(2).any(|w| w[0].loops.is_empty() && w[0].end() > w[1].start);
        if overlap {
            return Err(error("two of its parts overlap".into()));
        }
        Ok(Self { dtype, shape, extents })
    }

    /// Elements.
    pub fn numel(&self) -> u64 {
        numel(&self.shape).unwrap_or(0)
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Shape.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Bytes, as it lies in its files.
    pub fn bytes(&self) -> u64 {
        self.dtype.bytes(self.numel()).unwrap_or(0)
    }

    /// Reads the elements of `range` into `buffer`, which has their size.
    pub(crate) fn read(&self, files: &Files, range: Range<u64>, buffer: &mut [u8]) -> Result<()> {
        let size = self.dtype.bits() / 8;
        let first = self.extents.partition_point(|e| e.loops.is_empty() && e.end() <= range.start);
        let mut scratch = Vec::new();
        for extent in self.extents[first..].iter().take_while(|e| e.start < range.end) {
            let mut reader = Gather { files, extent, size, range: range.clone(), buffer, scratch: &mut scratch };
            reader.walk(0, extent.start, 0)?;
        }
        Ok(())
    }
}

/// Reads the part of an extent that lies in a range.
struct Gather<'a> {
    files: &'a Files,
    extent: &'a Extent,
    size: u64,
    range: Range<u64>,
    buffer: &'a mut [u8],
    /// What the file holds from the first of several short runs to the last.
    scratch: &'a mut Vec<u8>,
}

/// Runs of fewer bytes are read together, where no more than [`MOST_GAPS`] of a run's length lies between two of them.
const SHORT: u64 = 64 << 10;
const MOST_GAPS: u64 = 3;
/// Bytes that are read together, at most.
const TOGETHER: u64 = 512 << 10;

impl Gather<'_> {
    fn walk(&mut self, depth: usize, target: u64, source: u64) -> Result<()> {
        let loops = &self.extent.loops[depth..];
        let Some((this, inner)) = loops.split_first() else { return self.run(target, source) };
        let span: u64 = inner.iter().map(|l| (l.size - 1) * l.target).sum::<u64>() + self.extent.run;
        // The first step whose span ends behind the range's start, and the first that starts behind its end.
        let from = (self.range.start + 1).saturating_sub(target + span).div_ceil(this.target);
        let to = self.range.end.saturating_sub(target).div_ceil(this.target).min(this.size);
        let run = self.extent.run;
        let dense = this.source >= run && this.source - run <= MOST_GAPS * run;
        if inner.is_empty() && dense && run * self.size < SHORT {
            let steps = (TOGETHER / (this.source * self.size)).max(1);
            let mut first = from;
            while first < to {
                let last = (first + steps).min(to);
                self.together(*this, first..last, target, source)?;
                first = last;
            }
            return Ok(());
        }
        for step in from..to {
            self.walk(depth + 1, target + step * this.target, source + step * this.source)?;
        }
        Ok(())
    }

    /// Short runs, such as a few columns of each row, with one read.
    fn together(&mut self, this: Loop, steps: Range<u64>, target: u64, source: u64) -> Result<()> {
        let (run, count) = (self.extent.run, steps.end - steps.start);
        // Where the range begins or ends within a run, so does what is read.
        let skipped = self.range.start.saturating_sub(target + steps.start * this.target);
        let left = (target + (steps.end - 1) * this.target + run).saturating_sub(self.range.end);
        let span = (count - 1) * this.source + run - skipped - left;
        let mut scratch = std::mem::take(self.scratch);
        scratch.resize(usize::try_from(span * self.size).unwrap_or(usize::MAX), 0);
        let first = source + steps.start * this.source + skipped;
        self.files.read(self.extent.file, &mut scratch, self.extent.offset + first * self.size)?;
        let bytes = |elements: u64| usize::try_from(elements * self.size).unwrap_or(usize::MAX);
        for step in steps {
            let at = target + step * this.target;
            let (start, end) = (at.max(self.range.start), (at + run).min(self.range.end));
            let from = bytes(source + step * this.source + (start - at) - first);
            let (to, length) = (bytes(start - self.range.start), bytes(end - start));
            self.buffer[to..to + length].copy_from_slice(&scratch[from..from + length]);
        }
        *self.scratch = scratch;
        Ok(())
    }

    fn run(&mut self, target: u64, source: u64) -> Result<()> {
        let (start, end) = (target.max(self.range.start), (target + self.extent.run).min(self.range.end));
        if start >= end {
            return Ok(());
        }
        let index = |element: u64| usize::try_from((element - self.range.start) * self.size).unwrap_or(usize::MAX);
        let place = self.extent.offset + (source + start - target) * self.size;
        let part = &mut self.buffer[index(start)..index(end)];
        self.files.read(self.extent.file, part, place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of the bytes 0, 1, 2, …
    fn files(dir: &std::path::Path, len: u8) -> Files {
        let path = dir.join("f");
        std::fs::write(&path, (0..len).collect::<Vec<_>>()).unwrap();
        let mut files = Files::default();
        files.add(path);
        files
    }

    #[test]
    fn boxes_of_every_range_are_gathered() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), 24);
        // A 4×6 tensor of two column chunks of 4×2 and 4×4, one behind the other in the file.
        let left = Extent::boxed(0, 0, &[4, 6], &[0, 0], &[4, 2], &[2, 1]);
        let right = Extent::boxed(0, 8, &[4, 6], &[0, 2], &[4, 4], &[4, 1]);
        let data = Data::new(DType::U8, vec![4, 6], vec![left, right]).unwrap();
        let whole: Vec<u8> = (0..4u8).flat_map(|r| [r * 2, r * 2 + 1, 8 + r * 4, 9 + r * 4, 10 + r * 4, 11 + r * 4]).collect();
        for start in 0..24 {
            for end in start + 1..=24 {
                let mut buffer = vec![0xff; end - start];
                data.read(&files, start as u64..end as u64, &mut buffer).unwrap();
                assert_eq!(buffer, whole[start..end], "{start}..{end}");
            }
        }
    }

    /// Short runs are read together, for every range that begins or ends within one.
    #[test]
    fn columns_with_gaps_between_them_are_gathered() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), 120);
        // 2-byte elements: the last two columns of a 5×3 tensor, each row eight elements behind the last one in the file.
        let columns = Extent::boxed(0, 4, &[5, 3], &[0, 1], &[5, 2], &[8, 1]);
        let rest = Extent::boxed(0, 90, &[5, 3], &[0, 0], &[5, 1], &[1, 1]);
        let data = Data::new(DType::U16, vec![5, 3], vec![columns, rest]).unwrap();
        let element = |at: u8| [at, at + 1];
        let whole: Vec<u8> = (0..5u8).flat_map(|r| [element(90 + 2 * r), element(4 + 16 * r), element(6 + 16 * r)]).flatten().collect();
        for start in 0..15 {
            for end in start + 1..=15 {
                let mut buffer = vec![0xff; 2 * (end - start)];
                data.read(&files, start as u64..end as u64, &mut buffer).unwrap();
                assert_eq!(buffer, whole[2 * start..2 * end], "{start}..{end}");
            }
        }
    }

    #[test]
    fn a_transposed_tensor_is_gathered() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), 6);
        let data = Data::new(DType::U8, vec![2, 3], vec![Extent::boxed(0, 0, &[2, 3], &[0, 0], &[2, 3], &[1, 2])]).unwrap();
        let mut buffer = vec![0; 6];
        data.read(&files, 0..6, &mut buffer).unwrap();
        assert_eq!(buffer, [0, 2, 4, 1, 3, 5]);
    }

    #[test]
    fn parts_that_do_not_tile_are_refused() {
        let flat = |start, run| Extent::flat(0, 0, start, run);
        let error = |extents| Data::new(DType::F32, vec![6], extents).unwrap_err().to_string();
        assert!(error(vec![flat(0, 4)]).contains("do not make it whole"));
        assert!(error(vec![flat(0, 4), flat(3, 2)]).contains("overlap"));
        assert!(error(vec![flat(0, 2), flat(4, 4)]).contains("beyond"));
    }
}
