//! Shows that a saved directory is whole and right, independent of how it was loaded and written.
//!
//! First every file against the manifest (`files`). Then, given the source, every element (`gather`, `compare`): headers are read by the
//! `safetensors` crate, the shards are put together by what *they* say of their place, and the source's bytes are cast by the scalar
//! reference, block by block. Neither the load pipeline nor its kernels are used, nor is anything written.

mod assembled;
mod compare;
mod element;
mod files;
mod gather;
mod shard;

use std::path::{Path, PathBuf};

use crate::{
    checkpoint::Checkpoint,
    error::{EngineError, ErrorKind, Result},
    file::list,
    filenames::{MANIFEST, RANK_MANIFEST_SUFFIX, is_rank_file},
    load::CancelToken,
    parallel,
    saved::{Manifest, unfinished},
};

/// Problems reported one by one; the others are counted.
const REPORTED: usize = 20;

/// Verifies one directory.
pub struct Verifier<'a> {
    dir: PathBuf,
    manifest: Manifest,
    against: Option<&'a Checkpoint>,
    progress: &'a (dyn Fn(u64) + Sync),
    cancel: CancelToken,
}

/// What was found.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Verified {
    /// Files whose digest was taken.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
    /// Elements that were compared with the source.
    pub elements: u64,
    /// What is wrong, in the order of ranks, then of tensors; empty where all is right. At most 20.
    pub problems: Vec<EngineError>,
    /// How many more problems there are.
    pub more_problems: u64,
    /// Other files in the directory, which torch's reader ignores.
    pub unexpected: Vec<String>,
}

/// True for a directory that `load --save` has written or begun to write: it is whole only with its manifest, which [`Verifier`] checks. What else
/// there is, [`convert::verify`](crate::convert::verify) checks.
pub fn is_save(dir: &Path) -> bool {
    let of_rank = |name: &str| is_rank_file(name) && (name.ends_with(RANK_MANIFEST_SUFFIX) || name.starts_with("partition-"));
    list(dir).unwrap_or_default().iter().any(|name| name == MANIFEST || of_rank(name))
}

impl<'a> Verifier<'a> {
    /// Reads the manifest of a saved directory.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`] where there is no complete save, or its manifest is torn or contradicts itself.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        let meta = std::fs::metadata(&dir).map_err(|e| {
            let kind = if e.kind() == std::io::ErrorKind::NotFound { ErrorKind::Checkpoint } else { ErrorKind::Io };
            EngineError::new(kind, "cannot open the directory").file(&dir).cause(e)
        })?;
        if !meta.is_dir() {
            return Err(EngineError::new(ErrorKind::Checkpoint, "not a directory of shards").file(dir));
        }
        if !dir.join(MANIFEST).exists() {
            return Err(EngineError::new(ErrorKind::Checkpoint, unfinished(&dir)).file(dir));
        }
        let manifest = Manifest::read(&dir)?;
        Ok(Self { dir, manifest, against: None, progress: &|_| {}, cancel: CancelToken::new() })
    }

    /// Compares every element with this checkpoint too.
    #[must_use]
    pub fn against(mut self, checkpoint: &'a Checkpoint) -> Self {
        self.against = Some(checkpoint);
        self
    }

    /// Called for every block: how many bytes more of the saved files were read.
    #[must_use]
    pub fn progress(mut self, progress: &'a (dyn Fn(u64) + Sync)) -> Self {
        self.progress = progress;
        self
    }

    /// Stops it, at the next block, when that token is cancelled.
    #[must_use]
    pub fn cancel(mut self, cancel: &CancelToken) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// What the directory says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How many bytes [`Verifier::progress`] will be called with.
    pub fn bytes(&self) -> u64 {
        let shards = self.manifest.ranks.iter().fold(0u64, |n, r| n.saturating_add(r.shard.bytes));
        shards.saturating_mul(if self.against.is_some() { 2 } else { 1 })
    }

    /// Verifies, and reports everything that is wrong: files first, and where those are right, elements.
    ///
    /// # Errors
    /// Where verification itself fails: [`ErrorKind::Io`], [`ErrorKind::Cancelled`], a source that is no checkpoint.
    pub fn run(&self) -> Result<Verified> {
        let mut found = Verified::default();
        self.check_names(&mut found)?;
        let digests = parallel::map(&self.manifest.ranks, |files| self.check_digests(files))?;
        // Headers one rank at a time, and on this thread: comparing one takes memory for every tensor, and an allocator keeps it a thread.
        for (files, (mut rank, shard)) in self.manifest.ranks.iter().zip(digests) {
            self.check_header_of(files, shard, &mut rank)?;
            found.add(rank);
        }
        for copy in &self.manifest.copied {
            found.add(self.check_copy(copy)?);
        }
        if let Some(checkpoint) = self.against.filter(|_| found.problems.is_empty()) {
            self.compare_all(checkpoint, &mut found)?;
        }
        Ok(found)
    }

    fn watch(&self, bytes: u64) -> Result<()> {
        (self.progress)(bytes);
        match self.cancel.is_cancelled() {
            true => Err(EngineError::new(ErrorKind::Cancelled, "the verification was stopped").file(&self.dir)),
            false => Ok(()),
        }
    }
}

impl Verified {
    fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.elements += other.elements;
        self.more_problems += other.more_problems;
        other.problems.into_iter().for_each(|p| self.problem(p));
    }

    fn problem(&mut self, problem: EngineError) {
        if self.problems.len() < REPORTED {
            self.problems.push(problem);
        } else {
            self.more_problems += 1;
        }
    }
}

/// Something that is not as the manifest or the source says.
fn mismatch(path: &Path, what: impl Into<String>) -> EngineError {
    EngineError::new(ErrorKind::Mismatch, what).file(path)
}

impl std::fmt::Debug for Verifier<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("dir", &self.dir).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
