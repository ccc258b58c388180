//! The hidden directory that a target's files are written into, and its journal of those that are complete.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use crate::{
    digest::Sha256,
    error::{EngineError, ErrorKind, Result},
    filenames::JOURNAL,
};

/// A longer journal is not one of ours.
const MAX_JOURNAL: u64 = 1 << 30;

/// Dropped, it is removed: what stays is what a killed process has left.
pub(super) struct Stage {
    pub(super) path: PathBuf,
    complete: BTreeSet<String>,
    journal: fs::File,
    _lock: fs::File,
}

impl Stage {
    /// Makes it, or takes up the one that is there. `size_of` says how long a file of the target is.
    pub(super) fn create(parent: &Path, name: &OsStr, identity: Sha256, size_of: impl Fn(&str) -> Option<u64>) -> Result<Self> {
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(".shardwright-convert");
        let path = parent.join(hidden);
        let cannot = |e| EngineError::io("cannot make the directory", &path, e);
        if let Err(e) = fs::create_dir(&path)
            && e.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(cannot(e));
        }
        let lock = fs::File::open(&path).map_err(cannot)?;
        if let Err(fs::TryLockError::WouldBlock) = lock.try_lock() {
            return Err(EngineError::new(ErrorKind::Exists, "another process is converting to the same target").file(path));
        }
        let head = format!("{identity} {}\n", env!("CARGO_PKG_VERSION"));
        let mut complete = completed(&path, &head);
        complete.retain(|name| {
            let found = fs::symlink_metadata(path.join(name)).ok().filter(fs::Metadata::is_file);
            found.is_some_and(|found| size_of(name) == Some(found.len()))
        });
        remove_others(&path, &path, &complete)?;
        let place = path.join(JOURNAL);
        let made = fs::File::create_new(&place).and_then(|mut journal| {
            journal.write_all(head.as_bytes())?;
            Ok(journal)
        });
        let mut stage =
            Self { journal: made.map_err(|e| EngineError::io("cannot write the journal", &place, e))?, path, complete, _lock: lock };
        let names: Vec<String> = stage.complete.iter().cloned().collect();
        stage.write(names.iter().map(String::as_str))?;
        Ok(stage)
    }

    /// Whether a file is complete.
    pub(super) fn has(&self, name: &str) -> bool {
        self.complete.contains(name)
    }

    /// Notes that these files are complete, and on the disk.
    pub(super) fn keep<'n>(&mut self, names: impl Iterator<Item = &'n str> + Clone) -> Result<()> {
        let mut dirs: BTreeSet<PathBuf> = BTreeSet::new();
        for name in names.clone() {
            let file = self.path.join(name);
            dirs.extend(file.ancestors().skip(1).take_while(|dir| dir.starts_with(&self.path)).map(Path::to_owned));
        }
        dirs.iter().rev().try_for_each(|dir| sync(dir))?;
        self.write(names.clone())?;
        self.complete.extend(names.map(str::to_owned));
        Ok(())
    }

    fn write<'n>(&mut self, names: impl Iterator<Item = &'n str>) -> Result<()> {
        let lines: String = names.map(|name| format!("{}\n", serde_json::Value::from(name))).collect();
        let written = self.journal.write_all(lines.as_bytes()).and_then(|()| self.journal.sync_data());
        written.map_err(|e| EngineError::io("cannot write the journal", self.path.join(JOURNAL), e))
    }

    pub(super) fn commit(self, target: &Path, parent: &Path) -> Result<()> {
        let journal = self.path.join(JOURNAL);
        fs::remove_file(&journal).map_err(|e| EngineError::io("cannot remove the journal", &journal, e))?;
        sync_tree(&self.path)?;
        check_free(target)?;
        let _ = fs::remove_dir(target); // an empty directory
        fs::rename(&self.path, target).map_err(|e| EngineError::io("cannot give the directory its name", target, e))?;
        sync(parent)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Names in the journal, where it is of the same conversion. A last line that was cut off counts for nothing.
fn completed(dir: &Path, head: &str) -> BTreeSet<String> {
    let mut text = String::new();
    let read = fs::File::open(dir.join(JOURNAL)).and_then(|file| file.take(MAX_JOURNAL).read_to_string(&mut text));
    match (read, text.strip_prefix(head)) {
        (Ok(_), Some(lines)) => {
            lines.split_inclusive('\n').filter(|l| l.ends_with('\n')).filter_map(|l| serde_json::from_str(l).ok()).collect()
        }
        _ => BTreeSet::new(),
    }
}

/// Removes all that is not complete.
fn remove_others(top: &Path, dir: &Path, complete: &BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| EngineError::io("cannot list the directory", dir, e))?.flatten() {
        let left = entry.path();
        let name = left.strip_prefix(top).ok().and_then(Path::to_str).unwrap_or("");
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_others(top, &left, complete)?;
            let _ = fs::remove_dir(&left); // an empty one
        } else if !complete.contains(name) {
            fs::remove_file(&left).map_err(|e| EngineError::io("cannot remove what a killed conversion left", &left, e))?;
        }
    }
    Ok(())
}

fn sync(dir: &Path) -> Result<()> {
    match fs::File::open(dir).and_then(|d| d.sync_all()) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()), // a file system without it
        other => other.map_err(|e| EngineError::io("cannot bring the directory to the disk", dir, e)),
    }
}

fn sync_tree(dir: &Path) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(|e| EngineError::io("cannot list the directory", dir, e))?;
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        sync_tree(&entry.path())?;
    }
    sync(dir)
}

/// Refuses a target that holds something.
///
/// # Errors
/// [`ErrorKind::Exists`] where it does.
pub fn check_free(target: &Path) -> Result<()> {
    match fs::read_dir(target).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(EngineError::new(ErrorKind::Exists, "something is there already, and nothing is written over it").file(target)),
    }
}
