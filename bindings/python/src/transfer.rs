//! From byte runs of files to memory of the caller's: proves that pieces fit and tile, cuts them to the rank's region, reads in blocks on
//! several threads, casts on the way. Nothing outside the region is read.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use shardwright::{
    cast,
    core::{DType, model::numel},
    engine::{CancelToken, Checkpoint, EngineError, ErrorKind, IoOptions},
};

use crate::wait::Progress;

/// Bytes that are read in one go.
const BLOCK: u64 = 1 << 20;
/// Elements of a tensor whose pieces interleave, at most: they are checked with one bit each.
const MOST_MARKED: u64 = 1 << 32;

/// One loop of a strided box: size, source stride, target stride, in elements.
pub type Loop = (u64, u64, u64);

/// Elements of one source, and where they go in the flattened parameter.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Index of the tensor in the checkpoint's model.
    pub source: usize,
    /// First element of the source.
    pub from: u64,
    /// First element of the parameter.
    pub to: u64,
    /// Outermost first; target strides nest.
    pub loops: Vec<Loop>,
}

/// The part of a parameter that is wanted: a box of index ranges, or a range of the flattened parameter.
#[derive(Debug)]
pub enum Region {
    /// A range for each dim.
    Box(Vec<Range<u64>>),
    /// Elements.
    Flat(Range<u64>),
}

/// One parameter.
#[derive(Debug)]
pub struct Item {
    /// Its name.
    pub name: String,
    /// Of all ranks.
    pub shape: Vec<u64>,
    /// What it is made of.
    pub pieces: Vec<Piece>,
    /// A dtype that values are rounded through.
    pub rounded: Option<DType>,
    /// This rank's part.
    pub region: Region,
    /// The memory for it, contiguous.
    pub address: usize,
    /// Its size; what the part does not fill is zeroed.
    pub bytes: u64,
    /// The element type there.
    pub dtype: DType,
}

/// What a fill took.
#[derive(Debug)]
pub struct Stats {
    pub bytes_read: u64,
    pub bytes_needed: u64,
    pub threads: usize,
    pub seconds: f64,
}

type Result<T, E = EngineError> = std::result::Result<T, E>;

/// A read and what becomes of it.
#[derive(Debug)]
struct Task {
    item: usize,
    file: usize,
    /// In the file.
    offset: u64,
    /// Elements to read.
    count: u64,
    /// First target element, and the loops from the start of what is read.
    to: u64,
    loops: Vec<Loop>,
}

/// Fills every item's memory.
///
/// # Safety
/// Each item's `address` must be valid for writes of `bytes` bytes, and nothing else may touch that memory meanwhile; items may not overlap.
///
/// # Errors
/// [`ErrorKind::Plan`] for pieces that do not fit or do not tile, [`ErrorKind::Io`], [`ErrorKind::Checkpoint`], [`ErrorKind::Cancelled`].
pub unsafe fn fill(checkpoint: &Checkpoint, items: &[Item], io: &IoOptions, progress: &Progress, cancel: &CancelToken) -> Result<Stats> {
    let started = Instant::now();
    let mut tasks = Vec::new();
    for (index, item) in items.iter().enumerate() {
        prove(checkpoint, item)?;
        plan(checkpoint, index, item, &mut tasks)?;
    }
    tasks.sort_by_key(|t| (t.file, t.offset));
    let needed: u64 = items.iter().map(|item| region_numel(item) * item.source_size(checkpoint)).sum();
    let total: u64 = tasks.iter().map(|t| t.count * items[t.item].source_size(checkpoint)).sum();
    let threads = io.choose()?.threads.min(tasks.len().max(1));
    let shared = Shared {
        checkpoint,
        items,
        tasks: &tasks,
        next: AtomicUsize::new(0),
        read: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        failure: Mutex::new(None),
        cancel,
        progress,
        total,
    };
    for item in items {
        // SAFETY: the caller vouches for `bytes` at `address`; `prove` saw that the region fits.
        unsafe { zero_padding(item) };
    }
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| shared.work());
        }
        shared.work();
    });
    if let Some(error) = shared.failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(error);
    }
    if cancel.is_cancelled() {
        return Err(EngineError::new(ErrorKind::Cancelled, "cancelled"));
    }
    for file in tasks.iter().map(|t| t.file).collect::<BTreeSet<_>>() {
        checkpoint.check_unchanged(file)?;
    }
    Ok(Stats { bytes_read: shared.read.into_inner(), bytes_needed: needed, threads, seconds: started.elapsed().as_secs_f64() })
}

impl Item {
    fn refuse(&self, what: impl Into<String>) -> EngineError {
        EngineError::new(ErrorKind::Plan, what).tensor(&self.name)
    }

    /// Bytes of a source element; all sources have one dtype.
    fn source_size(&self, checkpoint: &Checkpoint) -> u64 {
        self.pieces.first().map_or(0, |p| checkpoint.model().tensors[p.source].dtype.bits() / 8)
    }
}

fn region_numel(item: &Item) -> u64 {
    match &item.region {
        Region::Box(ranges) => ranges.iter().map(|r| r.end - r.start).product(),
        Region::Flat(range) => range.end - range.start,
    }
}

/// Elements between the first and the last that the loops reach, both included.
fn extent(loops: &[Loop], stride: impl Fn(&Loop) -> u64) -> Option<u64> {
    loops.iter().try_fold(1_u64, |sum, l| sum.checked_add(l.0.checked_sub(1)?.checked_mul(stride(l))?))
}

/// Proves that an item can be filled: pieces inside of source and target, each target element exactly once, region and memory large enough.
fn prove(checkpoint: &Checkpoint, item: &Item) -> Result<()> {
    let whole = numel(&item.shape).ok_or_else(|| item.refuse("its shape overflows"))?;
    let tensors = &checkpoint.model().tensors;
    let mut covered = 0_u64;
    let mut hulls = Vec::with_capacity(item.pieces.len());
    for piece in &item.pieces {
        let source = tensors.get(piece.source).ok_or_else(|| item.refuse("a piece of a tensor that the checkpoint does not have"))?;
        if source.dtype != tensors[item.pieces[0].source].dtype || !source.dtype.bits().is_multiple_of(8) {
            return Err(item.refuse("its sources are of different dtypes, or of one smaller than a byte"));
        }
        let reach = |stride: fn(&Loop) -> u64, first: u64| extent(&piece.loops, stride).and_then(|e| e.checked_add(first));
        let (from, to) = (reach(|l| l.1, piece.from), reach(|l| l.2, piece.to));
        if from.is_none_or(|end| end > source.numel().unwrap_or(0)) || to.is_none_or(|end| end > whole) {
            let what = format!("a piece of '{}' reaches beyond its source or the parameter", source.name);
            return Err(item.refuse(what).expected(format_args!("{:?} from {:?}", item.shape, source.shape)));
        }
        for (depth, l) in piece.loops.iter().enumerate() {
            if l.0 > 1 && extent(&piece.loops[depth + 1..], |l| l.2).is_none_or(|inner| l.2 < inner) {
                return Err(item.refuse("the loops of a piece overlap"));
            }
        }
        covered = piece.loops.iter().try_fold(1_u64, |n, l| n.checked_mul(l.0)).and_then(|n| n.checked_add(covered)).unwrap_or(u64::MAX);
        hulls.push(piece.to..to.unwrap_or(whole));
    }
    if covered != whole {
        return Err(item.refuse("its pieces do not fill it").expected(format_args!("{whole} elements")).found(covered));
    }
    // Pieces that fill as many elements as there are, and are disjoint, tile.
    let mut order: Vec<usize> = (0..hulls.len()).collect();
    order.sort_by_key(|&i| hulls[i].start);
    if order.windows(2).any(|w| hulls[w[0]].end > hulls[w[1]].start) {
        mark(item, whole)?;
    }
    let fits = match &item.region {
        Region::Box(ranges) => {
            ranges.len() == item.shape.len() && ranges.iter().zip(&item.shape).all(|(r, &n)| r.start <= r.end && r.end <= n)
        }
        Region::Flat(range) => range.start <= range.end && range.end <= whole,
    };
    if !fits {
        return Err(item
            .refuse("its region is not inside its shape")
            .expected(format_args!("{:?}", item.shape))
            .found(format_args!("{:?}", item.region)));
    }
    let bytes = item.dtype.bytes(region_numel(item)).unwrap_or(u64::MAX);
    if bytes > item.bytes || item.bytes > 0 && item.address == 0 {
        return Err(item.refuse("its memory is too small").expected(format_args!("{bytes} bytes")).found(item.bytes));
    }
    if let Some(first) = item.pieces.first() {
        let from = tensors[first.source].dtype;
        for (a, b) in [(from, item.rounded.unwrap_or(item.dtype)), (item.rounded.unwrap_or(from), item.dtype)] {
            if cast::caster(a, b).is_none() {
                return Err(item.refuse(format!("{} cannot be cast to {}", a.torch_name(), b.torch_name())));
            }
        }
    }
    Ok(())
}

/// Checks element by element that interleaved pieces do not overlap.
fn mark(item: &Item, whole: u64) -> Result<()> {
    let words = usize::try_from(whole.div_ceil(64)).ok().filter(|_| whole <= MOST_MARKED);
    let mut marks = vec![0_u64; words.ok_or_else(|| item.refuse("interleaved pieces of so large a tensor are not supported"))?];
    for piece in &item.pieces {
        let mut twice = false;
        runs(&piece.loops, piece.from, piece.to, &mut |_, to, n, _, step| {
            for i in 0..n {
                let at = to + i * step;
                let (word, bit) = (usize::try_from(at / 64).unwrap_or(usize::MAX), 1 << (at % 64));
                twice |= marks[word] & bit != 0;
                marks[word] |= bit;
            }
        });
        if twice {
            return Err(item.refuse("two of its pieces overlap"));
        }
    }
    Ok(())
}

/// Calls `each(source, target, count, source stride, target stride)` for the innermost loops.
fn runs(loops: &[Loop], from: u64, to: u64, each: &mut impl FnMut(u64, u64, u64, u64, u64)) {
    match loops {
        [] => each(from, to, 1, 1, 1),
        [(n, s, t)] => each(from, to, *n, *s, *t),
        [(n, s, t), rest @ ..] => (0..*n).for_each(|i| runs(rest, from + i * s, to + i * t, each)),
    }
}

/// The reads of one item.
fn plan(checkpoint: &Checkpoint, index: usize, item: &Item, tasks: &mut Vec<Task>) -> Result<()> {
    if region_numel(item) == 0 {
        return Ok(());
    }
    let strides: Vec<u64> = {
        let mut strides = vec![1; item.shape.len()];
        for d in (1..item.shape.len()).rev() {
            strides[d - 1] = strides[d] * item.shape[d];
        }
        strides
    };
    let size = item.source_size(checkpoint);
    for piece in &item.pieces {
        let place = checkpoint.location(piece.source);
        let mut cut = Vec::new();
        match &item.region {
            Region::Flat(range) => clip(piece, range, &mut cut),
            Region::Box(ranges) => {
                // The whole tensor is a box of its dims, whose loops can be cut one by one.
                let whole = piece.from == 0 && piece.to == 0 && contiguous(&piece.loops) == numel(&item.shape);
                if whole {
                    let loops = ranges.iter().zip(&strides).map(|(r, &s)| (r.end - r.start, s, s)).collect();
                    let first = ranges.iter().zip(&strides).map(|(r, s)| r.start * s).sum();
                    cut.push(Piece { source: piece.source, from: first, to: first, loops });
                } else {
                    let first: u64 = ranges.iter().zip(&strides).map(|(r, s)| r.start * s).sum();
                    let last: u64 = ranges.iter().zip(&strides).map(|(r, s)| (r.end - 1) * s).sum();
                    let mut hull = Vec::new();
                    clip(piece, &(first..last + 1), &mut hull);
                    let inner = ranges.iter().zip(&item.shape).rposition(|(r, &n)| r.end - r.start < n).unwrap_or(0);
                    if inner == 0 {
                        cut = hull;
                    } else {
                        hull.iter().for_each(|p| rows(p, ranges, &item.shape, &strides, inner, &mut cut));
                    }
                }
            }
        }
        for piece in cut {
            let mut loops = merged(&piece.loops);
            // Read in the order of the file.
            loops.sort_by_key(|l| std::cmp::Reverse(l.1));
            blocks(&loops, piece.from, piece.to, BLOCK / size.max(1), &mut |from, count, to, loops| {
                tasks.push(Task { item: index, file: place.file, offset: place.offset + from * size, count, to, loops: loops.to_vec() });
            });
        }
    }
    Ok(())
}

/// The number of elements, if the loops run over them one after another on both sides.
fn contiguous(loops: &[Loop]) -> Option<u64> {
    let mut step = 1;
    for &(n, s, t) in loops.iter().rev() {
        if n != 1 && (s != step || t != step) {
            return None;
        }
        step *= n;
    }
    Some(step)
}

/// Without loops of one, and with neighbours joined where both sides allow it.
fn merged(loops: &[Loop]) -> Vec<Loop> {
    let mut out: Vec<Loop> = Vec::with_capacity(loops.len());
    for &(n, s, t) in loops.iter().filter(|l| l.0 != 1) {
        match out.last_mut() {
            Some(last) if last.1 == n * s && last.2 == n * t => *last = (last.0 * n, s, t),
            _ => out.push((n, s, t)),
        }
    }
    out
}

/// The part of a piece inside a range of target elements: whole iterations, and what is left at both ends, loop by loop.
fn clip(piece: &Piece, range: &Range<u64>, out: &mut Vec<Piece>) {
    let end = piece.to + extent(&piece.loops, |l| l.2).unwrap_or(0);
    if piece.to >= range.start && end <= range.end {
        out.push(piece.clone());
        return;
    }
    if piece.to >= range.end || end <= range.start {
        return;
    }
    let Some((&(n, s, t), rest)) = piece.loops.split_first() else { return };
    let inner = extent(rest, |l| l.2).unwrap_or(0);
    // Iterations that lie inside from end to end.
    let first = range.start.saturating_sub(piece.to).div_ceil(t).min(n);
    let stop = range.end.saturating_sub(piece.to).checked_sub(inner).map_or(0, |room| room / t + 1).min(n);
    let at = |i: u64, loops: Vec<Loop>| Piece { source: piece.source, from: piece.from + i * s, to: piece.to + i * t, loops };
    let touching =
        range.start.saturating_sub(piece.to + inner - 1).div_ceil(t).min(n)..range.end.saturating_sub(piece.to).div_ceil(t).min(n);
    if first < stop {
        (touching.start..first).for_each(|i| clip(&at(i, rest.to_vec()), range, out));
        let mut loops = vec![(stop - first, s, t)];
        loops.extend_from_slice(rest);
        out.push(at(first, loops));
        (stop..touching.end).for_each(|i| clip(&at(i, rest.to_vec()), range, out));
    } else {
        touching.for_each(|i| clip(&at(i, rest.to_vec()), range, out));
    }
}

/// The part of a piece inside a box that is cut along an inner dim: innermost loops are cut at the borders of its rows.
fn rows(piece: &Piece, ranges: &[Range<u64>], shape: &[u64], strides: &[u64], inner: usize, out: &mut Vec<Piece>) {
    let source = piece.source;
    runs(&piece.loops, piece.from, piece.to, &mut |from, to, n, s, t| {
        let mut push = |from: u64, to: u64, n: u64| {
            // Neighbouring rows become one loop.
            out.push(Piece { source, from, to, loops: vec![(n, s, t)] });
        };
        if t != 1 {
            (0..n).filter(|i| inside(to + i * t, ranges, shape, strides)).for_each(|i| push(from + i * s, to + i * t, 1));
            return;
        }
        let (mut at, end) = (to, to + n);
        while at < end {
            let row = at / strides[inner] / shape[inner] * shape[inner] * strides[inner];
            let (first, stop) = (row + ranges[inner].start * strides[inner], row + ranges[inner].end * strides[inner]);
            let (a, b) = (at.max(first), end.min(stop));
            if a < b && ranges[..inner].iter().enumerate().all(|(d, r)| r.contains(&(a / strides[d] % shape[d]))) {
                push(from + (a - to) * s, a, b - a);
            }
            at = row + shape[inner] * strides[inner];
        }
    });
}

fn inside(at: u64, ranges: &[Range<u64>], shape: &[u64], strides: &[u64]) -> bool {
    ranges.iter().enumerate().all(|(d, r)| r.contains(&(at / strides[d] % shape[d])))
}

/// Cuts loops, sorted by source stride, into reads of at most `most` elements with no gaps in them.
fn blocks(loops: &[Loop], from: u64, to: u64, most: u64, each: &mut impl FnMut(u64, u64, u64, &[Loop])) {
    let count: u64 = loops.iter().map(|l| l.0).product();
    let span = extent(loops, |l| l.1).unwrap_or(u64::MAX);
    if span == count && count <= most {
        each(from, count, to, loops);
        return;
    }
    let Some((&(n, s, t), rest)) = loops.split_first() else { return };
    // As many iterations as make a dense block of a good size.
    let inner = extent(rest, |l| l.1).unwrap_or(u64::MAX);
    let dense = inner == s && rest.iter().map(|l| l.0).product::<u64>() == inner;
    let step = if dense { (most / s).clamp(1, n) } else { 1 };
    let mut i = 0;
    while i < n {
        let k = step.min(n - i);
        if k == 1 {
            blocks(rest, from + i * s, to + i * t, most, each);
        } else {
            let mut part = vec![(k, s, t)];
            part.extend_from_slice(rest);
            blocks(&part, from + i * s, to + i * t, most, each);
        }
        i += k;
    }
}

/// What all workers share.
struct Shared<'a> {
    checkpoint: &'a Checkpoint,
    items: &'a [Item],
    tasks: &'a [Task],
    next: AtomicUsize,
    read: AtomicU64,
    failed: AtomicBool,
    failure: Mutex<Option<EngineError>>,
    cancel: &'a CancelToken,
    progress: &'a Progress,
    total: u64,
}

impl Shared<'_> {
    fn work(&self) {
        let mut buffers = Buffers::default();
        let mut open: Option<(usize, File)> = None;
        loop {
            if self.cancel.is_cancelled() || self.failed.load(Ordering::Relaxed) {
                return;
            }
            let Some(task) = self.tasks.get(self.next.fetch_add(1, Ordering::Relaxed)) else { return };
            if let Err(error) = self.run(task, &mut buffers, &mut open) {
                if !self.failed.swap(true, Ordering::Relaxed) {
                    *self.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                }
                return;
            }
        }
    }

    fn run(&self, task: &Task, buffers: &mut Buffers, open: &mut Option<(usize, File)>) -> Result<()> {
        let item = &self.items[task.item];
        let path = &self.checkpoint.files()[task.file].path;
        if open.as_ref().is_none_or(|(index, _)| *index != task.file) {
            let file = File::open(path).map_err(|e| EngineError::io("cannot open the file", path, e).tensor(&item.name))?;
            *open = Some((task.file, file));
        }
        let Some((_, file)) = open else { return Ok(()) };
        let from = self.checkpoint.model().tensors[item.pieces[0].source].dtype;
        let bytes = index(from.bytes(task.count).unwrap_or(u64::MAX))?;
        let straight = task.loops.len() <= 1 && task.loops.first().is_none_or(|l| l.1 == 1 && l.2 == 1);
        if straight && from == item.dtype && item.rounded.is_none() {
            // SAFETY: `destination` lies inside the item's memory, which the caller vouches for; no other task has this range, as pieces tile.
            let place = unsafe { std::slice::from_raw_parts_mut(destination(item, task.to)?, bytes) };
            read(file, path, place, task.offset).map_err(|e| e.tensor(&item.name))?;
        } else {
            let values = buffers.load(file, path, task.offset, from, item, task.count)?;
            let size = index(item.dtype.bits() / 8)?;
            let mut failed = None;
            let mut loops = task.loops.clone();
            // Along the target, so that runs are as long as they can be.
            loops.sort_by_key(|l| std::cmp::Reverse(l.2));
            runs(&loops, 0, task.to, &mut |at, to, n, s, t| {
                if let Err(error) = scatter(item, values, size, at, to, n, s, t) {
                    failed.get_or_insert(error);
                }
            });
            if let Some(error) = failed {
                return Err(error);
            }
        }
        let done = self.read.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        self.progress.note(done, self.total);
        Ok(())
    }
}

/// A thread's memory: what was read, and what it was cast to.
#[derive(Default)]
struct Buffers {
    source: Vec<u8>,
    rounded: Vec<u8>,
    cast: Vec<u8>,
}

impl Buffers {
    /// Reads elements and casts them to the item's dtype.
    fn load(&mut self, file: &File, path: &Path, offset: u64, from: DType, item: &Item, count: u64) -> Result<&[u8]> {
        let bytes = |dtype: DType| index(dtype.bytes(count).unwrap_or(u64::MAX));
        self.source.resize(bytes(from)?, 0);
        read(file, path, &mut self.source, offset).map_err(|e| e.tensor(&item.name))?;
        let cannot = |e: cast::CastError| item.refuse(e.to_string());
        let (mut values, mut dtype) = (&self.source, from);
        if let Some(rounded) = item.rounded {
            self.rounded.resize(bytes(rounded)?, 0);
            cast::cast(dtype, rounded, values, &mut self.rounded).map_err(cannot)?;
            (values, dtype) = (&self.rounded, rounded);
        }
        if dtype == item.dtype {
            return Ok(values);
        }
        self.cast.resize(bytes(item.dtype)?, 0);
        cast::cast(dtype, item.dtype, values, &mut self.cast).map_err(cannot)?;
        Ok(&self.cast)
    }
}

/// Copies `n` elements to their places.
#[expect(clippy::too_many_arguments, reason = "the innermost loop")]
fn scatter(item: &Item, values: &[u8], size: usize, at: u64, to: u64, n: u64, s: u64, t: u64) -> Result<()> {
    let last = index(at + (n - 1) * s)?;
    let first = destination(item, to)?;
    destination(item, to + (n - 1) * t)?;
    let (at, n, s, t) = (index(at)?, index(n)?, index(s)?, index(t)?);
    let values = values.get(at * size..(last + 1) * size).ok_or_else(|| item.refuse("a piece reaches beyond what was read"))?;
    // SAFETY: the first and the last element lie inside the item's memory (`destination`), with the others between them, since a run has one
    // target stride and stays in one row of the region; no other task writes these elements, as pieces tile. `values` was bounded above.
    unsafe {
        if s == 1 && t == 1 {
            std::ptr::copy_nonoverlapping(values.as_ptr(), first, n * size);
        } else {
            for i in 0..n {
                std::ptr::copy_nonoverlapping(values.as_ptr().add(i * s * size), first.add(i * t * size), size);
            }
        }
    }
    Ok(())
}

/// The address of a parameter's element in the item's memory.
fn destination(item: &Item, at: u64) -> Result<*mut u8> {
    let local = match &item.region {
        Region::Flat(range) => at.checked_sub(range.start),
        Region::Box(ranges) => {
            let (mut rest, mut local, mut step) = (at, 0_u64, 1_u64);
            let mut inside = true;
            for (r, &n) in ranges.iter().zip(&item.shape).rev() {
                let i = rest % n;
                rest /= n;
                inside &= r.contains(&i);
                local += i.saturating_sub(r.start) * step;
                step *= r.end - r.start;
            }
            inside.then_some(local)
        }
    };
    let byte = local.and_then(|l| item.dtype.bytes(l)).filter(|b| *b < item.bytes);
    let byte = byte.ok_or_else(|| item.refuse("an element outside its region"))?;
    Ok(std::ptr::with_exposed_provenance_mut::<u8>(item.address).wrapping_add(index(byte)?))
}

/// Zeroes what lies beyond the region.
///
/// # Safety
/// As [`fill`].
unsafe fn zero_padding(item: &Item) {
    let used = item.dtype.bytes(region_numel(item)).unwrap_or(item.bytes).min(item.bytes);
    if let (Ok(used), Ok(all)) = (usize::try_from(used), usize::try_from(item.bytes))
        && used < all
    {
        // SAFETY: `used` and `all` are inside the memory that the caller vouches for.
        unsafe { std::ptr::with_exposed_provenance_mut::<u8>(item.address).add(used).write_bytes(0, all - used) };
    }
}

fn index(n: u64) -> Result<usize> {
    usize::try_from(n).map_err(|_| EngineError::new(ErrorKind::Memory, "more bytes than this machine can address"))
}

/// Reads all bytes, over interruptions.
fn read(file: &File, path: &Path, buffer: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(buffer, offset).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => EngineError::new(ErrorKind::Checkpoint, "the file ended early").file(path).offset(offset),
        _ => EngineError::io("cannot read", path, e).offset(offset),
    })
}
