//! Output files as plans, and the loop that writes them: block by block, read, cast, checksum, write, on a few threads with fixed buffers.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write as _},
    ops::Range,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use shardwright_core::DType;
use shardwright_formats::{torch_file, zip};

use super::stage::Stage;
use crate::{
    contents::data::{Data, Files},
    digest::{Hasher, Sha256},
    error::{EngineError, ErrorKind, Result},
    load::CancelToken,
};

/// Bytes of a block, on either side of a cast.
const BLOCK: u64 = 1 << 20;
/// Bytes of a payload that is written with what stands around it, at most.
const SMALL: u64 = 64 << 10;
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

/// A run of a payload.
#[derive(Clone, Debug)]
pub(super) enum Part<'a> {
    /// Elements of a tensor, in row-major order.
    Elements(&'a Data, Range<u64>),
    /// Zeros.
    Zeros(u64),
    /// One float32.
    Number(f32),
}

impl Part<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Elements(_, range) => range.end - range.start,
            Self::Zeros(count) => *count,
            Self::Number(_) => 1,
        }
    }
}

/// Contiguous elements of a file.
#[derive(Clone, Debug)]
struct Payload<'a> {
    offset: u64,
    dtype: DType,
    /// Each with its first element in the payload.
    parts: Vec<(u64, Part<'a>)>,
    len: u64,
    /// What needs their checksum.
    sum: Option<Sum>,
}

#[derive(Clone, Copy, Debug)]
enum Sum {
    /// A zip's member.
    Member(usize, usize),
    /// A tensor that is a file of `torch.save` by itself.
    Single(usize),
}

#[derive(Clone, Debug)]
struct Zip {
    base: u64,
    layout: zip::Layout,
    crcs: Vec<u32>,
}

/// A file of `torch.save` that holds one tensor. Checkpoints have hundreds of thousands, of a few shapes: what stands around the tensor is made when it
/// is written.
#[derive(Clone, Debug)]
struct Single {
    base: u64,
    form: Arc<Form>,
    crc: u32,
}

/// What files of one tensor share: its dtype and shape, and what follows from them.
struct Form {
    dtype: DType,
    shape: Vec<u64>,
    planned: torch_file::Planned,
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape)
    }
}

/// The forms that were asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Forms(HashMap<(DType, Vec<u64>), Arc<Form>>);

impl Forms {
    fn get(&mut self, dtype: DType, shape: &[u64]) -> Result<Arc<Form>> {
        let key = (dtype, shape.to_vec());
        if let Some(form) = self.0.get(&key) {
            return Ok(Arc::clone(form));
        }
        let mut writer = torch_file::Writer::default();
        let (_, value) = writer.tensor(dtype, shape).ok_or_else(overflow)?;
        let form = Arc::new(Form { dtype, shape: shape.to_vec(), planned: writer.finish(&value).ok_or_else(overflow)? });
        self.0.insert(key, Arc::clone(&form));
        Ok(form)
    }

    /// Bytes of a file of `torch.save` that holds one tensor.
    pub(super) fn size(&mut self, dtype: DType, shape: &[u64]) -> Result<u64> {
        Ok(self.get(dtype, shape)?.planned.layout.size())
    }
}

impl Single {
    /// What stands before the tensor, which has that checksum, and behind it, each with its offset.
    fn around(&self, crc: u32) -> [(u64, Vec<u8>); 2] {
        let torch_file::Planned { pickle, layout } = &self.form.planned;
        let crcs = [crc32fast::hash(pickle), crc, crc32fast::hash(torch_file::VERSION)];
        let before = [&layout.local_header(0, crcs[0])[..], pickle, &layout.local_header(1, crcs[1])].concat();
        let behind = [&layout.local_header(2, crcs[2])[..], torch_file::VERSION, &layout.directory(&crcs)].concat();
        [(self.base, before), (self.base + layout.header(2), behind)]
    }
}

/// A file that will be written, and how it comes to its content.
pub(super) struct FilePlan<'a> {
    /// Relative to the target.
    pub(super) name: String,
    pub(super) size: u64,
    /// Bytes that are read from the source for it.
    pub(super) source_bytes: u64,
    payloads: usize,
    content: Content<'a>,
}

type Plan<'a> = Box<dyn Fn() -> Result<OutFile<'a>> + Send + Sync + 'a>;

enum Content<'a> {
    Ready(OutFile<'a>),
    /// Planned anew when it is written, because the plans of all files together may take more memory than a batch of them; with the plan's digest.
    Deferred(Plan<'a>, Sha256),
}

impl<'a> From<OutFile<'a>> for FilePlan<'a> {
    fn from(file: OutFile<'a>) -> Self {
        let (name, size, source_bytes, payloads) = (file.name.clone(), file.size, file.source_bytes(), file.payloads.len());
        Self { name, size, source_bytes, payloads, content: Content::Ready(file) }
    }
}

impl std::fmt::Debug for FilePlan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FilePlan").field("name", &self.name).field("size", &self.size).finish_non_exhaustive()
    }
}

impl<'a> FilePlan<'a> {
    /// A file whose plan is made now, for its size and digest, and again when it is written; it must be the same both times.
    pub(super) fn deferred(plan: impl Fn() -> Result<OutFile<'a>> + Send + Sync + 'a) -> Result<Self> {
        let file = plan()?;
        let (source_bytes, payloads, digest) = (file.source_bytes(), file.payloads.len(), file.digest()?);
        Ok(Self { name: file.name, size: file.size, source_bytes, payloads, content: Content::Deferred(Box::new(plan), digest) })
    }

    /// Digest of the plan: of the place of every byte.
    pub(super) fn digest(&self) -> Result<Sha256> {
        match &self.content {
            Content::Ready(file) => file.digest(),
            Content::Deferred(_, digest) => Ok(*digest),
        }
    }

    fn planned(self) -> Result<OutFile<'a>> {
        match self.content {
            Content::Ready(file) => Ok(file),
            Content::Deferred(plan, _) => {
                let file = plan()?;
                debug_assert_eq!((&file.name, file.size), (&self.name, self.size), "a plan must be the same each time");
                Ok(file)
            }
        }
    }
}

/// A file's content.
#[derive(Clone, Debug)]
pub(super) struct OutFile<'a> {
    /// Relative to the target.
    pub(super) name: String,
    pub(super) size: u64,
    literals: Vec<(u64, Vec<u8>)>,
    payloads: Vec<Payload<'a>>,
    zips: Vec<Zip>,
    singles: Vec<Single>,
    forms: Forms,
}

fn overflow() -> EngineError {
    EngineError::new(ErrorKind::Checkpoint, "the size of a file to be written overflows")
}

impl<'a> OutFile<'a> {
    pub(super) fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            size: 0,
            literals: Vec::new(),
            payloads: Vec::new(),
            zips: Vec::new(),
            singles: Vec::new(),
            forms: Forms::default(),
        }
    }

    /// A file of these bytes.
    pub(super) fn literal(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        let mut file = Self::new(name);
        file.append(bytes);
        file
    }

    /// Bytes at the end.
    pub(super) fn append(&mut self, bytes: Vec<u8>) {
        let at = self.size;
        self.size += bytes.len() as u64;
        self.literals.push((at, bytes));
    }

    /// Elements at the end.
    pub(super) fn elements(&mut self, dtype: DType, parts: Vec<Part<'a>>) -> Result<()> {
        let at = self.size;
        self.size = at.checked_add(self.payload(at, dtype, parts, None)?).ok_or_else(overflow)?;
        Ok(())
    }

    fn payload(&mut self, offset: u64, dtype: DType, parts: Vec<Part<'a>>, sum: Option<Sum>) -> Result<u64> {
        let mut len = 0u64;
        let mut placed = Vec::with_capacity(parts.len());
        for part in parts {
            if let Part::Elements(data, _) = &part
                && !data.dtype.casts_to(dtype)
            {
                return Err(EngineError::new(ErrorKind::Config, format!("{} cannot be cast to {dtype}", data.dtype)));
            }
            let start = len;
            len = len.checked_add(part.len()).ok_or_else(overflow)?;
            placed.push((start, part));
        }
        self.payloads.push(Payload { offset, dtype, parts: placed, len, sum });
        dtype.bytes(len).ok_or_else(overflow)
    }

    /// A file of `torch.save` at the end; its size.
    pub(super) fn torch(&mut self, built: Torch<'a>, root: &shardwright_formats::build::Value) -> Result<u64> {
        let Torch { writer, storages } = built;
        let torch_file::Planned { pickle, layout } = writer.finish(root).ok_or_else(overflow)?;
        let (base, zip) = (self.size, self.zips.len());
        let mut crcs = vec![0; layout.len()];
        let last = layout.len() - 1;
        (crcs[0], crcs[last]) = (crc32fast::hash(&pickle), crc32fast::hash(torch_file::VERSION));
        let at = |member| base.checked_add(layout.payload(member)).ok_or_else(overflow);
        self.literals.push((at(0)?, pickle));
        self.literals.push((at(last)?, torch_file::VERSION.to_vec()));
        for (number, storage) in storages.into_iter().enumerate() {
            match storage {
                Storage::Bytes(bytes) => {
                    crcs[number + 1] = crc32fast::hash(&bytes);
                    self.literals.push((at(number + 1)?, bytes));
                }
                Storage::Parts(dtype, parts) => drop(self.payload(at(number + 1)?, dtype, parts, Some(Sum::Member(zip, number + 1)))?),
            }
        }
        let size = layout.size();
        self.size = base.checked_add(size).ok_or_else(overflow)?;
        self.zips.push(Zip { base, layout, crcs });
        Ok(size)
    }

    /// A file of `torch.save` that is one tensor, at the end; its size.
    pub(super) fn tensor(&mut self, dtype: DType, shape: &[u64], parts: Vec<Part<'a>>) -> Result<u64> {
        let (base, number) = (self.size, self.singles.len());
        let form = self.forms.get(dtype, shape)?;
        let layout = &form.planned.layout;
        let at = base.checked_add(layout.payload(1)).ok_or_else(overflow)?;
        let size = layout.size();
        self.payload(at, dtype, parts, Some(Sum::Single(number)))?;
        self.singles.push(Single { base, form, crc: 0 });
        self.size = base.checked_add(size).ok_or_else(overflow)?;
        Ok(size)
    }

    fn digest(&self) -> Result<Sha256> {
        let mut hasher = Hasher::default();
        let mut out = io::BufWriter::new(&mut hasher);
        let Self { name, size, literals, payloads, zips, singles, forms: _ } = self;
        let written = (|| {
            write!(out, "{name:?} {size} {payloads:?} {zips:?} {singles:?}")?;
            for (offset, bytes) in literals {
                write!(out, " {offset} {} ", bytes.len())?;
                out.write_all(bytes)?;
            }
            out.flush()
        })();
        drop(out);
        written.map_err(|e| EngineError::io("cannot compare the plan of", &self.name, e))?;
        Ok(hasher.finish())
    }

    /// Bytes that are read from the source for it.
    fn source_bytes(&self) -> u64 {
        let parts = self.payloads.iter().flat_map(|p| &p.parts);
        let bytes = parts.map(|(_, part)| match part {
            Part::Elements(data, range) => data.dtype.bytes(range.end - range.start).unwrap_or(0),
            Part::Zeros(_) | Part::Number(_) => 0,
        });
        bytes.fold(0, u64::saturating_add)
    }
}

#[derive(Clone, Debug)]
enum Storage<'a> {
    Bytes(Vec<u8>),
    Parts(DType, Vec<Part<'a>>),
}

/// A file of `torch.save` that is being put together.
#[derive(Clone, Debug, Default)]
pub(super) struct Torch<'a> {
    writer: torch_file::Writer,
    storages: Vec<Storage<'a>>,
}

impl<'a> Torch<'a> {
    /// A tensor of these parts; its value for the pickle.
    pub(super) fn tensor(&mut self, dtype: DType, shape: &[u64], parts: Vec<Part<'a>>) -> Result<shardwright_formats::build::Value> {
        let (_, value) = self.writer.tensor(dtype, shape).ok_or_else(overflow)?;
        self.storages.push(Storage::Parts(dtype, parts));
        Ok(value)
    }

    /// A 0-d float32 tensor.
    pub(super) fn scalar(&mut self, number: f32) -> Result<shardwright_formats::build::Value> {
        let (_, value) = self.writer.tensor(DType::F32, &[]).ok_or_else(overflow)?;
        self.storages.push(Storage::Bytes(number.to_le_bytes().to_vec()));
        Ok(value)
    }
}

impl Payload<'_> {
    fn bytes(&self) -> u64 {
        self.dtype.bytes(self.len).unwrap_or(u64::MAX)
    }

    /// The file of `torch.save` that is written with it, at once: where the payload is small, that saves two writes of three.
    fn at_once(&self) -> Option<usize> {
        match self.sum {
            Some(Sum::Single(single)) if (1..=SMALL).contains(&self.bytes()) => Some(single),
            _ => None,
        }
    }
}

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
