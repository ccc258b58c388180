//! Writes planned files: block by block, read, cast, checksum, write, on a few threads with fixed buffers.

use std::{
    fs::{self, File},
    ops::Range,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use super::{
    files::{FilePlan, OutFile, Part, Payload, Single, Sum, Zip, overflow},
    stage::Stage,
};
use crate::{
    contents::data::Files,
    error::{EngineError, ErrorKind, Result},
    load::CancelToken,
};

/// Bytes of a block, on either side of a cast.
const BLOCK: u64 = 1 << 20;
/// Bytes whose way to the disk starts at once.
const LEAST_WRITEBACK: u64 = 64 << 10;
/// Bytes of one thread's piece of work, and pieces that are planned at a time.
const TASK: u64 = 16 << 20;
const TASKS: usize = 1 << 14;
/// Files that are open for writing at the same time, their bytes and their payloads, at most, unless one has more: what a killed conversion loses, and
/// what is held of their plans.
const OPEN: usize = 64;
const BATCH: u64 = 1 << 30;
const PAYLOADS: usize = 1 << 15;
const THREADS: usize = 2;

/// A piece of a payload.
struct Task {
    file: usize,
    payload: usize,
    range: Range<u64>,
}

/// Sees how many source bytes more were done.
pub(super) type Watch<'a> = &'a (dyn Fn(u64) + Sync);

/// Writes the files that a stage lacks, and brings them to the disk.
pub(super) fn write(stage: &mut Stage, outputs: Vec<FilePlan<'_>>, files: &Files, watch: Watch<'_>, cancel: &CancelToken) -> Result<()> {
    let (kept, rest): (Vec<_>, Vec<_>) = outputs.into_iter().partition(|output| stage.has(&output.name));
    watch(kept.iter().map(|output| output.source_bytes).fold(0, u64::saturating_add));
    let mut rest = rest.into_iter().peekable();
    while rest.peek().is_some() {
        let (mut batch, mut size, mut payloads) = (Vec::new(), 0u64, 0usize);
        while let Some(next) = rest.next_if(|next| {
            size = size.saturating_add(next.size);
            payloads = payloads.saturating_add(next.payloads);
            batch.is_empty() || batch.len() < OPEN && size <= BATCH && payloads <= PAYLOADS
        }) {
            batch.push(next.planned()?);
        }
        write_batch(&stage.path, &mut batch, files, watch, cancel)?;
        stage.keep(batch.iter().map(|output| output.name.as_str()))?;
    }
    Ok(())
}

fn create(dir: &Path, output: &OutFile<'_>) -> Result<File> {
    let path = dir.join(&output.name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|e| EngineError::io("cannot make the directory", parent, e))?;
    }
    let file = File::create_new(&path).map_err(|e| EngineError::io("cannot create the file", &path, e))?;
    if output.size > 0 {
        let size = libc::off_t::try_from(output.size).map_err(|_| overflow())?;
        // SAFETY: an open descriptor of our own; nothing of this process's memory is touched.
        let code = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, size) };
        match code {
            0 => {}
            libc::EOPNOTSUPP | libc::EINVAL => {
                file.set_len(output.size).map_err(|e| EngineError::io("cannot set the file's size", &path, e))?;
            }
            code => return Err(EngineError::io("there is no room for the file", &path, std::io::Error::from_raw_os_error(code))),
        }
    }
    Ok(file)
}

fn write_batch(dir: &Path, outputs: &mut [OutFile<'_>], files: &Files, watch: Watch<'_>, cancel: &CancelToken) -> Result<()> {
    let open = outputs.iter().map(|output| create(dir, output)).collect::<Result<Vec<_>>>()?;
    for (file, output) in outputs.iter().enumerate() {
        for (offset, bytes) in &output.literals {
            put(dir, output, &open[file], bytes, *offset)?;
        }
    }
    let payloads: Vec<usize> = outputs.iter().map(|output| output.payloads.len()).collect();
    let mut rest = payloads.iter().enumerate().flat_map(|(file, &count)| (0..count).map(move |payload| (file, payload))).peekable();
    while rest.peek().is_some() {
        let mut tasks = Vec::new();
        while let Some((file, payload)) = rest.next_if(|_| tasks.len() < TASKS) {
            let plan = &outputs[file].payloads[payload];
            let step = TASK / (plan.dtype.bits() / 8).max(1);
            let mut start = 0;
            while start < plan.len {
                let end = (start + step).min(plan.len);
                tasks.push(Task { file, payload, range: start..end });
                start = end;
            }
        }
        let sums = run(dir, outputs, &open, files, &tasks, watch, cancel)?;
        combine(outputs, &tasks, sums);
    }
    for (output, file) in outputs.iter().zip(&open) {
        for Zip { base, layout, crcs } in &output.zips {
            for (member, crc) in crcs.iter().enumerate() {
                put(dir, output, file, &layout.local_header(member, *crc), base + layout.header(member))?;
            }
            put(dir, output, file, &layout.directory(crcs), base + layout.directory_offset())?;
        }
        for payload in output.payloads.iter().filter(|p| p.at_once().is_none()) {
            let Some(Sum::Single(single)) = payload.sum else { continue };
            for (offset, bytes) in output.singles[single].around(output.singles[single].crc) {
                put(dir, output, file, &bytes, offset)?;
            }
        }
        writeback(file, 0..output.size, false);
    }
    // Once all data are on the disk, the first sync commits what the file system notes of every file, and the others find that done.
    for (output, file) in outputs.iter().zip(&open) {
        writeback(file, 0..output.size, true);
    }
    for (output, file) in outputs.iter().zip(&open) {
        file.sync_all().map_err(|e| EngineError::io("cannot bring the file to the disk", dir.join(&output.name), e))?;
    }
    Ok(())
}

/// Checksums of a payload's tasks, in order, are combined to its own.
fn combine(outputs: &mut [OutFile<'_>], tasks: &[Task], sums: Vec<u32>) {
    let mut rest = tasks.iter().zip(sums).peekable();
    while let Some((Task { file, payload, .. }, _)) = rest.peek() {
        let (file, payload) = (*file, *payload);
        let (dtype, sum) = (outputs[file].payloads[payload].dtype, outputs[file].payloads[payload].sum);
        let mut hasher = crc32fast::Hasher::new();
        while let Some((task, crc)) = rest.next_if(|(task, _)| (task.file, task.payload) == (file, payload)) {
            let bytes = dtype.bytes(task.range.end - task.range.start).unwrap_or(0);
            hasher.combine(&crc32fast::Hasher::new_with_initial_len(crc, bytes));
        }
        match sum {
            Some(Sum::Member(zip, member)) => outputs[file].zips[zip].crcs[member] = hasher.finalize(),
            Some(Sum::Single(single)) => outputs[file].singles[single].crc = hasher.finalize(),
            None => {}
        }
    }
}

/// Starts to bring written bytes to the disk, and with `wait` waits until they are there. A hint: failures show in the sync that follows.
fn writeback(file: &File, range: Range<u64>, wait: bool) {
    #[cfg(target_os = "linux")]
    if let (Ok(start), Ok(len)) = (libc::off64_t::try_from(range.start), libc::off64_t::try_from(range.end - range.start)) {
        let before_and_after = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        let flags = libc::SYNC_FILE_RANGE_WRITE | if wait { before_and_after } else { 0 };
        // SAFETY: an open descriptor of our own; nothing of this process's memory is touched.
        unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, flags) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, range, wait);
}

fn put(dir: &Path, output: &OutFile<'_>, file: &File, bytes: &[u8], offset: u64) -> Result<()> {
    file.write_all_at(bytes, offset).map_err(|e| EngineError::io("cannot write the file", dir.join(&output.name), e).offset(offset))
}

fn run(
    dir: &Path,
    outputs: &[OutFile<'_>],
    open: &[File],
    files: &Files,
    tasks: &[Task],
    watch: Watch<'_>,
    cancel: &CancelToken,
) -> Result<Vec<u32>> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sums, error) = (Mutex::new(vec![0u32; tasks.len()]), Mutex::new(None));
    let work = || {
        let mut buffers = Buffers::default();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(task) = tasks.get(number) else { return };
            if failed.load(Ordering::Relaxed) {
                return;
            }
            let output = &outputs[task.file];
            match copy(dir, output, &open[task.file], files, task, &mut buffers, watch, cancel) {
                Ok(crc) => sums.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[number] = crc,
                Err(e) => {
                    failed.store(true, Ordering::Relaxed);
                    error.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(e);
                    return;
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..THREADS.min(tasks.len()) {
            if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break; // the threads there are do the work
            }
        }
        work();
    });
    match error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(sums.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)),
    }
}

#[derive(Default)]
struct Buffers {
    source: Vec<u8>,
    target: Vec<u8>,
    whole: Vec<u8>,
}

#[expect(clippy::too_many_arguments, reason = "one call, in one place")]
fn copy(
    dir: &Path,
    output: &OutFile<'_>,
    file: &File,
    files: &Files,
    task: &Task,
    buffers: &mut Buffers,
    watch: Watch<'_>,
    cancel: &CancelToken,
) -> Result<u32> {
    let payload = &output.payloads[task.payload];
    let size = payload.dtype.bits() / 8;
    let mut hasher = crc32fast::Hasher::new();
    if let Some(single) = payload.at_once().map(|number| &output.singles[number]) {
        return copy_at_once(dir, output, file, files, (payload, single), buffers, watch, cancel);
    }
    let mut at = task.range.start;
    while at < task.range.end {
        go_on(cancel)?;
        let end = (at + BLOCK / 8).min(task.range.end);
        let bytes = usize::try_from((end - at) * size).unwrap_or(0);
        buffers.target.resize(bytes, 0);
        let read = fill(files, payload, at..end, size, buffers)?;
        if payload.sum.is_some() {
            hasher.update(&buffers.target);
        }
        let place = payload.offset + at * size;
        put(dir, output, file, &buffers.target, place)?;
        // The disk works while the next block is read; of small ones it would be asked too often.
        if bytes as u64 >= LEAST_WRITEBACK {
            writeback(file, place..place + bytes as u64, false);
        }
        watch(read);
        at = end;
    }
    Ok(hasher.finalize())
}

/// A small payload with what stands around it.
#[expect(clippy::too_many_arguments, reason = "one call, in one place")]
fn copy_at_once(
    dir: &Path,
    output: &OutFile<'_>,
    file: &File,
    files: &Files,
    (payload, single): (&Payload<'_>, &Single),
    buffers: &mut Buffers,
    watch: Watch<'_>,
    cancel: &CancelToken,
) -> Result<u32> {
    go_on(cancel)?;
    let size = payload.dtype.bits() / 8;
    buffers.target.resize(usize::try_from(payload.bytes()).unwrap_or(0), 0);
    let read = fill(files, payload, 0..payload.len, size, buffers)?;
    let crc = crc32fast::hash(&buffers.target);
    // What is between them is alignment, which reads as zeros.
    let [(start, before), (behind, after)] = single.around(crc);
    let at = |offset: u64| usize::try_from(offset - start).unwrap_or(0);
    buffers.whole.clear();
    for (offset, bytes) in [(start, &before), (payload.offset, &buffers.target), (behind, &after)] {
        buffers.whole.resize(at(offset), 0);
        buffers.whole.extend_from_slice(bytes);
    }
    put(dir, output, file, &buffers.whole, start)?;
    watch(read);
    Ok(crc)
}

fn go_on(cancel: &CancelToken) -> Result<()> {
    match cancel.is_cancelled() {
        true => Err(EngineError::new(ErrorKind::Cancelled, "stopped; the unfinished target is removed")),
        false => Ok(()),
    }
}

/// Fills the target buffer with the payload's elements of `range`; the source bytes that were read.
fn fill(files: &Files, payload: &Payload<'_>, range: Range<u64>, size: u64, buffers: &mut Buffers) -> Result<u64> {
    let first = payload.parts.partition_point(|(start, part)| start + part.len() <= range.start);
    let mut read = 0;
    for (start, part) in payload.parts[first..].iter().take_while(|(start, _)| *start < range.end) {
        let (from, to) = (range.start.max(*start), range.end.min(start + part.len()));
        let index = |element: u64| usize::try_from((element - range.start) * size).unwrap_or(0);
        let target = &mut buffers.target[index(from)..index(to)];
        match part {
            Part::Zeros(_) => target.fill(0),
            Part::Number(number) => target.copy_from_slice(&number.to_le_bytes()),
            Part::Elements(data, elements) => {
                let wanted = elements.start + (from - start)..elements.start + (to - start);
                read += data.dtype.bytes(to - from).unwrap_or(0);
                if data.dtype == payload.dtype {
                    data.read(files, wanted, target)?;
                } else {
                    buffers.source.resize(usize::try_from((to - from) * (data.dtype.bits() / 8)).unwrap_or(0), 0);
                    data.read(files, wanted, &mut buffers.source)?;
                    shardwright_cast::cast(data.dtype, payload.dtype, &buffers.source, target)
                        .map_err(|e| EngineError::new(ErrorKind::Config, e.to_string()))?;
                }
            }
        }
    }
    Ok(read)
}
