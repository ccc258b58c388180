//! Files that appear whole or not at all: written into a hidden directory inside the target, synced, renamed into place by the commit.
//!
//! The hidden directory is locked while its process lives, so that the next save can tell one that a killed process left behind.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    digest::{Hasher, Sha256},
    error::{EngineError, Result},
    filenames::TEMPORARY_PREFIX,
};

/// Bytes that go to the operating system at once, between two looks at whether to stop.
const BLOCK: usize = 4 << 20;
/// Bytes of a text that are held before they are passed on.
const TEXT_BLOCK: usize = 1 << 16;

/// Sees the bytes of each block written, and may refuse to go on.
pub(super) type Watch<'a> = &'a (dyn Fn(u64) -> Result<()> + Sync);

/// A process's hidden directory. Dropped, it is removed with all that was not renamed out of it.
#[derive(Debug)]
pub(super) struct Stage {
    target: PathBuf,
    hidden: PathBuf,
    _lock: File,
}

impl Stage {
    /// A stage for files of `target`, which exists.
    pub(super) fn create(target: &Path) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let cannot = |e| EngineError::io("cannot make a directory in it", target, e);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let hidden = target.join(format!("{TEMPORARY_PREFIX}{}-{number}", std::process::id()));
            match fs::create_dir(&hidden) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue, // another host's process of the same number
                other => other.map_err(cannot)?,
            }
            let lock = match File::open(&hidden) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue, // taken for a leftover before it was locked
                other => other.map_err(cannot)?,
            };
            let _ = lock.lock(); // where locks are not supported, leftovers stay
            if hidden.exists() {
                return Ok(Self { target: target.to_owned(), hidden, _lock: lock });
            }
        }
    }

    /// Begins a file.
    pub(super) fn file(&self, name: &str) -> Result<StagedFile> {
        let (temporary, target) = (self.hidden.join(name), self.target.join(name));
        let file = File::create_new(&temporary).map_err(|e| EngineError::io("cannot create the file", &target, e))?;
        Ok(StagedFile { file, temporary, target, hasher: Hasher::default(), bytes: 0 })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.hidden);
    }
}

/// A file being written.
#[derive(Debug)]
pub(super) struct StagedFile {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    hasher: Hasher,
    bytes: u64,
}

impl StagedFile {
    /// Appends, in blocks.
    pub(super) fn write(&mut self, bytes: &[u8], watch: Watch<'_>) -> Result<()> {
        for block in bytes.chunks(BLOCK) {
            self.file.write_all(block).map_err(|e| EngineError::io("cannot write the file", &self.target, e).offset(self.bytes))?;
            self.hasher.update(block);
            self.bytes += block.len() as u64;
            watch(block.len() as u64)?;
        }
        Ok(())
    }

    /// Appends what `text` writes, collected into blocks.
    pub(super) fn write_all(&mut self, text: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> Result<()> {
        let mut failed = None;
        let mut blocks = io::BufWriter::with_capacity(TEXT_BLOCK, Appending { file: self, failed: &mut failed });
        let written = text(&mut blocks).and_then(|()| blocks.flush());
        drop(blocks);
        match (failed, written) {
            (Some(failed), _) => Err(failed),
            (None, written) => written.map_err(|e| EngineError::io("cannot write the file", &self.target, e).offset(self.bytes)),
        }
    }

    /// Brings everything written to the disk and closes the file; its digest and the number of its bytes come along.
    pub(super) fn sync(self) -> Result<(Staged, (Sha256, u64))> {
        self.file.sync_all().map_err(|e| EngineError::io("cannot bring the file to the disk", &self.target, e))?;
        let staged = Staged { temporary: self.temporary, target: self.target };
        Ok((staged, (self.hasher.finish(), self.bytes)))
    }
}

/// Appends to a file; why that failed is kept.
struct Appending<'a> {
    file: &'a mut StagedFile,
    failed: &'a mut Option<EngineError>,
}

impl io::Write for Appending<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.file.write(bytes, &|_| Ok(())) {
            Ok(()) => Ok(bytes.len()),
            Err(e) => {
                *self.failed = Some(e);
                Err(io::Error::other("the file cannot be written"))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A whole file that has not its name yet.
#[derive(Debug)]
pub(super) struct Staged {
    temporary: PathBuf,
    target: PathBuf,
}

impl Staged {
    /// Gives it its name.
    pub(super) fn rename(self) -> Result<()> {
        fs::rename(&self.temporary, &self.target).map_err(|e| EngineError::io("cannot give the file its name", &self.target, e))
    }
}

/// Makes renames and removals in `dir` last.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    let synced = File::open(dir).and_then(|d| d.sync_all());
    match synced {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()), // a file system without it
        other => other.map_err(|e| EngineError::io("cannot bring the directory to the disk", dir, e)),
    }
}

/// Removes a file that may not be there.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(EngineError::io("cannot remove the file", path, e)),
        _ => Ok(()),
    }
}

/// Removes the stages of processes that live no more. Trouble with one is none of the save's: it stays.
pub(super) fn remove_leftovers(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(TEMPORARY_PREFIX));
        let stage = ours && entry.file_type().is_ok_and(|t| t.is_dir());
        let Some(lock) = stage.then(|| File::open(entry.path()).ok()).flatten() else { continue };
        if lock.try_lock().is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_only_once_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let stage = Stage::create(dir.path()).unwrap();
        let mut file = stage.file("a").unwrap();
        file.write(b"abc", &|_| Ok(())).unwrap();
        let (staged, digest) = file.sync().unwrap();
        assert_eq!(digest, (crate::digest::sha256(b"abc"), 3));
        assert!(names(dir.path()).iter().all(|n| n.starts_with(TEMPORARY_PREFIX)));
        staged.rename().unwrap();
        drop(stage);
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn a_file_that_is_given_up_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let stage = Stage::create(dir.path()).unwrap();
        let stop = |_| Err(EngineError::new(ErrorKind::Cancelled, "stopped"));
        assert_eq!(stage.file("a").unwrap().write(b"abc", &stop).unwrap_err().kind(), ErrorKind::Cancelled);
        drop(stage);
        assert!(names(dir.path()).is_empty());
    }

    /// A living process's stage is locked, a dead one's is not.
    #[test]
    fn leftovers_go_and_living_stages_stay() {
        let dir = tempfile::tempdir().unwrap();
        let living = Stage::create(dir.path()).unwrap();
        let dead = dir.path().join(format!("{TEMPORARY_PREFIX}1-0"));
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("shard"), "x").unwrap();
        fs::write(dir.path().join("other"), "x").unwrap();
        remove_leftovers(dir.path());
        let left = [living.hidden.file_name().unwrap().to_str().unwrap(), "other"];
        assert_eq!(names(dir.path()), left);
    }

    /// A staged file whose bytes go to `device` instead.
    fn onto(stage: &Stage, device: &str) -> StagedFile {
        let file = stage.file("shard").unwrap();
        StagedFile { file: File::options().write(true).open(device).unwrap(), ..file }
    }

    /// The kernel's own full disk, and its own broken one: nothing is mapped at address 0.
    #[test]
    fn a_full_or_a_broken_disk_is_reported_with_file_place_and_cause() {
        let dir = tempfile::tempdir().unwrap();
        for (device, code) in [("/dev/full", libc::ENOSPC), ("/proc/self/mem", libc::EIO)] {
            let stage = Stage::create(dir.path()).unwrap();
            let error = onto(&stage, device).write(&[0; 64], &|_| Ok(())).unwrap_err();
            assert_eq!((error.kind(), error.io_error().and_then(io::Error::raw_os_error)), (ErrorKind::Io, Some(code)));
            assert!(error.to_string().contains("shard: cannot write the file at byte 0: "), "{error}");
            drop(stage);
            assert!(names(dir.path()).is_empty(), "nothing is left");
        }
    }

    /// What a device reports only when it is synced is reported too.
    #[test]
    fn a_failing_sync_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let stage = Stage::create(dir.path()).unwrap();
        let error = onto(&stage, "/dev/full").sync().unwrap_err();
        assert!(error.to_string().contains("shard: cannot bring the file to the disk"), "{error}");
    }
}
