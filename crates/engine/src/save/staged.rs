//! Files that appear whole or not at all: written under a temporary name, synced, renamed into place by the caller's commit.
//!
//! A temporary file is locked while its writer lives, so that the next save can tell one that a killed process left behind.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::names::TEMPORARY_PREFIX;
use crate::{
    digest::{Hasher, Sha256},
    error::{EngineError, Result},
};

/// Bytes that go to the operating system at once, between two looks at whether to stop.
const BLOCK: usize = 4 << 20;

/// Sees the bytes of each block written, and may refuse to go on.
pub(super) type Watch<'a> = &'a (dyn Fn(u64) -> Result<()> + Sync);

/// A file being written. Dropped, it is removed again.
#[derive(Debug)]
pub(super) struct Staged {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    hasher: Hasher,
    bytes: u64,
    renamed: bool,
}

impl Staged {
    /// Begins `dir/name`.
    pub(super) fn create(dir: &Path, name: &str) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let temporary = dir.join(format!("{TEMPORARY_PREFIX}{}-{number}", std::process::id()));
            let file = match OpenOptions::new().write(true).create_new(true).open(&temporary) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue, // another host's process of the same number
                Err(e) => return Err(EngineError::io("cannot create the file", dir.join(name), e)),
            };
            let _ = file.lock(); // where locks are not supported, leftovers stay
            if fs::symlink_metadata(&temporary).is_ok() {
                let target = dir.join(name);
                return Ok(Self { file, temporary, target, hasher: Hasher::default(), bytes: 0, renamed: false });
            } // else it was taken for a leftover between creation and lock
        }
    }

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

    /// Brings everything written to the disk, and gives the digest and the number of its bytes. The name is still temporary.
    pub(super) fn sync(&mut self) -> Result<(Sha256, u64)> {
        self.file.sync_all().map_err(|e| EngineError::io("cannot bring the file to the disk", &self.target, e))?;
        Ok((std::mem::take(&mut self.hasher).finish(), self.bytes))
    }

    /// Gives the synced file its name.
    pub(super) fn rename(mut self) -> Result<()> {
        fs::rename(&self.temporary, &self.target).map_err(|e| EngineError::io("cannot give the file its name", &self.target, e))?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes a small file whole: [`Staged`] from begin to end.
pub(super) fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> Result<(Sha256, u64)> {
    let mut staged = Staged::create(dir, name)?;
    staged.write(bytes, &|_| Ok(()))?;
    let digest = staged.sync()?;
    staged.rename()?;
    Ok(digest)
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

/// Removes the temporary files of writers that live no more. Trouble with one is none of the save's: it stays.
pub(super) fn remove_leftovers(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(TEMPORARY_PREFIX));
        if ours && entry.file_type().is_ok_and(|t| t.is_file()) && File::open(entry.path()).is_ok_and(|f| f.try_lock().is_ok()) {
            let _ = fs::remove_file(entry.path());
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
        let mut staged = Staged::create(dir.path(), "a").unwrap();
        staged.write(b"abc", &|_| Ok(())).unwrap();
        assert!(names(dir.path())[0].starts_with(TEMPORARY_PREFIX));
        assert_eq!(staged.sync().unwrap(), (crate::digest::sha256(b"abc"), 3));
        staged.rename().unwrap();
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn a_file_that_is_given_up_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut staged = Staged::create(dir.path(), "a").unwrap();
        let stop = |_| Err(EngineError::new(ErrorKind::Cancelled, "stopped"));
        assert_eq!(staged.write(b"abc", &stop).unwrap_err().kind(), ErrorKind::Cancelled);
        drop(staged);
        assert!(names(dir.path()).is_empty());
    }

    /// A living writer's file is locked, a dead one's is not.
    #[test]
    fn leftovers_go_and_living_writers_stay() {
        let dir = tempfile::tempdir().unwrap();
        let living = Staged::create(dir.path(), "a").unwrap();
        fs::write(dir.path().join(format!("{TEMPORARY_PREFIX}1-0")), "x").unwrap();
        fs::write(dir.path().join("other"), "x").unwrap();
        remove_leftovers(dir.path());
        let left = [living.temporary.file_name().unwrap().to_str().unwrap(), "other"];
        assert_eq!(names(dir.path()), left);
    }

    /// A staged file whose bytes go to `device` instead.
    fn onto(dir: &Path, device: &str) -> Staged {
        let mut staged = Staged::create(dir, "shard").unwrap();
        staged.file = OpenOptions::new().write(true).open(device).unwrap();
        staged
    }

    /// The kernel's own full disk, and its own broken one: nothing is mapped at address 0.
    #[test]
    fn a_full_or_a_broken_disk_is_told_with_file_place_and_cause() {
        let dir = tempfile::tempdir().unwrap();
        for (device, code) in [("/dev/full", libc::ENOSPC), ("/proc/self/mem", libc::EIO)] {
            let error = onto(dir.path(), device).write(&[0; 64], &|_| Ok(())).unwrap_err();
            assert_eq!((error.kind(), error.io_error().and_then(io::Error::raw_os_error)), (ErrorKind::Io, Some(code)));
            assert!(error.to_string().contains("shard: cannot write the file at byte 0: "), "{error}");
            assert!(names(dir.path()).is_empty(), "nothing is left");
        }
    }

    /// What a device tells only when it is synced is told too.
    #[test]
    fn a_failing_sync_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let error = onto(dir.path(), "/dev/full").sync().unwrap_err();
        assert!(error.to_string().contains("shard: cannot bring the file to the disk"), "{error}");
    }
}
