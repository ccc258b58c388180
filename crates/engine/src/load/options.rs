//! How to read: what the user may set, what is chosen where nothing is set, and why.

use std::{fmt, time::Duration};

use shardwright_cast as cast;

use super::machine::{FileSystem, Machine};
use crate::{
    error::{EngineError, ErrorKind, Result},
    source::ReadMethod,
};

/// What a user may set about reading; unset means chosen for this machine. See [`IoOptions::choose`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoOptions {
    /// Threads that read and cast.
    pub threads: Option<usize>,
    /// Reads under way per thread where the page cache does not have the bytes.
    pub queue_depth: Option<usize>,
    /// Bytes that are read and cast in one go, in bytes.
    pub block_size: Option<usize>,
    /// How files are read.
    pub method: Option<ReadMethod>,
    /// Announce what comes next to the system, so that a disk is never idle.
    pub readahead: Option<bool>,
    /// Let go of cached file pages once they were read.
    pub drop_cache: bool,
    /// Load even where memory seems not to suffice.
    pub force: bool,
    /// Give up when no byte arrives for so long.
    pub stall_timeout: Option<Duration>,
    /// Processes that load on this machine at the same time, this one included; the cores are shared among them.
    pub local_processes: Option<u32>,
}

/// What a load does, and why. `Display` explains it, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IoChoice {
    /// Threads that read and cast.
    pub threads: usize,
    /// Reads announced ahead of each thread.
    pub queue_depth: usize,
    /// Bytes that are read and cast in one go.
    pub block_size: usize,
    /// Bytes that a thread takes at a time.
    pub task_size: usize,
    /// How files are read.
    pub method: ReadMethod,
    /// Announce what comes next.
    pub readahead: bool,
    /// Let go of cached file pages.
    pub drop_cache: bool,
    /// Give up when no byte arrives for so long.
    pub stall_timeout: Duration,
    /// Processes of this machine that load at the same time, this one included.
    pub local_processes: usize,
    /// Why, setting by setting.
    pub reasons: Vec<(&'static str, String)>,
}

/// A block must stay in a core's L2 cache between read and cast.
const BLOCK_SIZE: usize = 512 << 10;
const TASK_SIZE: usize = 8 << 20;
const QUEUE_DEPTH: usize = 8;
const MAX_THREADS: usize = 16;
/// However many reads are asked for.
const MAX_WORKERS: usize = 1024;
const STALL_TIMEOUT: Duration = Duration::from_secs(120);

impl IoOptions {
    /// The choice for this machine.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a value out of range, by name.
    pub fn choose(&self) -> Result<IoChoice> {
        self.choose_on(&Machine::here(None))
    }

    /// As [`IoOptions::choose`], on a machine whose file system is known too.
    pub(super) fn choose_on(&self, machine: &Machine) -> Result<IoChoice> {
        let cores = machine.cores;
        let local = self.local_processes.unwrap_or(1).max(1) as usize;
        let given = "as set".to_owned();
        let mut reasons = Vec::new();
        let mut pick = |name, set: Option<usize>, range: (usize, usize), default: usize, why: String| {
            let (value, reason) = set.map_or((default, why), |v| (v, given.clone()));
            if !(range.0..=range.1).contains(&value) {
                let error = EngineError::new(ErrorKind::Config, format!("io option '{name}' is out of range"));
                return Err(error.expected(format_args!("{} to {}", range.0, range.1)).found(value));
            }
            reasons.push((name, reason));
            Ok(value)
        };
        let block_size = pick("block_size", self.block_size, (4096, 256 << 20), BLOCK_SIZE, "fits a core's L2 cache".into())?;
        // Buffers take a small part of the memory at most, however many cores there are.
        let by_memory = machine.memory.map_or(MAX_THREADS, |m| usize::try_from(m / 16).unwrap_or(usize::MAX) / block_size);
        let shared = (cores / local).min(by_memory).clamp(1, MAX_THREADS);
        let why =
            format!("cores that this process may use: {cores}, shared with processes of this machine: {local}, at most {MAX_THREADS}");
        let threads = pick("threads", self.threads, (1, 1024), shared, why)?;
        // What was announced and not yet read lies in the page cache, which is a small part of the memory too.
        let (most, why) = match machine.file_system {
            FileSystem::Remote => (2 * QUEUE_DEPTH, "keeps a remote file system busy"),
            FileSystem::Disk | FileSystem::Memory => (QUEUE_DEPTH, "keeps a disk busy"),
        };
        let by_memory = machine.memory.map_or(most, |m| usize::try_from(m / 16).unwrap_or(usize::MAX) / TASK_SIZE / threads);
        let queue_depth = pick("queue_depth", self.queue_depth, (1, 1024), by_memory.clamp(1, most), why.into())?;
        let method = self.method.unwrap_or_default();
        let why = if self.method.is_some() { given } else { "safe on every file system, and as fast when cached".into() };
        reasons.push(("method", why));
        let readahead = self.readahead.unwrap_or(machine.file_system != FileSystem::Memory);
        let why = match (self.readahead, machine.file_system) {
            (Some(_), _) => "as set",
            (None, FileSystem::Memory) => "this file system is in memory: there is nothing to wait for",
            (None, _) => "a disk is busy while cores cast; what is cached is not announced",
        };
        reasons.push(("readahead", why.into()));
        reasons.push(("drop_cache", if self.drop_cache { "as set" } else { "others may read the same files" }.into()));
        reasons.push(("task_size", "what a thread takes at a time; less where there is little to read".into()));
        let set = self.stall_timeout.is_some();
        reasons.push(("stall_timeout", if set { "as set" } else { "seconds without a byte after which a load gives up" }.into()));
        reasons.push(("casts", "the widest instructions of this processor".into()));
        Ok(IoChoice {
            threads,
            queue_depth,
            block_size,
            task_size: TASK_SIZE.max(block_size),
            method,
            readahead,
            drop_cache: self.drop_cache,
            stall_timeout: self.stall_timeout.unwrap_or(STALL_TIMEOUT),
            local_processes: local,
            reasons,
        })
    }
}

impl IoChoice {
    /// Threads to start. Past the page cache nothing is read ahead: more threads keep more reads under way.
    pub(crate) fn workers(&self) -> usize {
        match self.method {
            ReadMethod::Direct => self.threads.saturating_mul(self.queue_depth).min(MAX_WORKERS),
            ReadMethod::Pread | ReadMethod::Mmap => self.threads,
        }
    }

    /// Memory of one thread's buffers.
    pub(crate) fn staging_bytes(&self) -> usize {
        self.block_size + 2 * crate::source::DIRECT_ALIGNMENT
    }
}

impl fmt::Display for IoChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, why) in &self.reasons {
            let value = match *name {
                "threads" => self.threads.to_string(),
                "queue_depth" => self.queue_depth.to_string(),
                "block_size" => self.block_size.to_string(),
                "readahead" => self.readahead.to_string(),
                "drop_cache" => self.drop_cache.to_string(),
                "task_size" => self.task_size.to_string(),
                "stall_timeout" => self.stall_timeout.as_secs_f64().to_string(),
                "casts" => format!("{:?}", cast::level()).to_lowercase(),
                _ => format!("{:?}", self.method).to_lowercase(),
            };
            writeln!(f, "{name} = {value}: {why}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(cores: usize, memory: Option<u64>) -> Machine {
        Machine { cores, memory, file_system: FileSystem::Disk }
    }

    #[test]
    fn cores_are_shared_among_local_processes() {
        let threads = |cores, local| {
            let options = IoOptions { local_processes: Some(local), ..IoOptions::default() };
            options.choose_on(&machine(cores, None)).unwrap().threads
        };
        assert_eq!((threads(8, 1), threads(8, 4), threads(8, 64), threads(192, 1)), (8, 2, 1, MAX_THREADS));
    }

    #[test]
    fn little_memory_means_few_buffers() {
        let threads = |memory| IoOptions::default().choose_on(&machine(16, Some(memory))).unwrap().threads;
        assert_eq!((threads(1 << 30), threads(32 << 20), threads(1 << 20)), (16, 4, 1));
    }

    #[test]
    fn reads_are_announced_ahead_as_far_as_memory_allows() {
        let choice = |memory| IoOptions::default().choose_on(&machine(2, memory)).unwrap();
        assert!(choice(None).readahead);
        let depths = [None, Some(64 << 30), Some(1 << 30), Some(32 << 20)].map(|m| choice(m).queue_depth);
        assert_eq!(depths, [QUEUE_DEPTH, QUEUE_DEPTH, 4, 1]);
        let on = |file_system| IoOptions::default().choose_on(&Machine { file_system, ..machine(2, None) }).unwrap();
        assert!(!on(FileSystem::Memory).readahead && on(FileSystem::Remote).queue_depth == 2 * QUEUE_DEPTH);
        let set = IoOptions { readahead: Some(false), ..IoOptions::default() };
        assert!(!set.choose_on(&machine(2, None)).unwrap().readahead);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let error = IoOptions { threads: Some(0), ..IoOptions::default() }.choose().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("'threads'") && error.to_string().contains("found 0"), "{error}");
        assert!(IoOptions { block_size: Some(100), ..IoOptions::default() }.choose().is_err());
    }

    #[test]
    fn a_choice_explains_itself() {
        let text = IoOptions { threads: Some(3), ..IoOptions::default() }.choose().unwrap().to_string();
        assert!(text.contains("threads = 3: as set") && text.contains("method = pread: safe"), "{text}");
    }
}
