//! Small files that a conversion copies as they are: config and tokenizer, a trainer's counters.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use crate::{
    error::{EngineError, ErrorKind, Result},
    file::{self, Stamp, open_regular, unchanged},
    load::CancelToken,
    save,
};

/// A file to copy along, as it was when the conversion was planned.
#[derive(Debug)]
pub(super) struct Beside {
    /// Its name in the target.
    name: String,
    path: PathBuf,
    stamp: Stamp,
}

impl Beside {
    /// # Errors
    /// [`ErrorKind::Checkpoint`] for what is not a regular file: a target without it would lack, say, its tokenizer.
    pub(super) fn new(name: String, path: PathBuf) -> Result<Self> {
        let meta = fs::metadata(&path).map_err(|e| EngineError::io("cannot look at the file", &path, e))?;
        if !meta.is_file() {
            let what = "not a regular file, which a conversion would copy along; remove or replace it";
            return Err(EngineError::new(ErrorKind::Checkpoint, what).file(path));
        }
        Ok(Self { name, path, stamp: Stamp::of(&meta) })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.stamp.size
    }

    /// Copies it into a directory, onto the disk.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`] where it is not what it was, [`ErrorKind::Io`], [`ErrorKind::Cancelled`].
    pub(super) fn copy(&self, stage: &Path, cancel: &CancelToken) -> Result<()> {
        let to = stage.join(&self.name);
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir).map_err(|e| EngineError::io("cannot make the directory", dir, e))?;
        }
        let (file, meta) = open_regular(&self.path)?;
        unchanged(&self.path, self.stamp, Stamp::of(&meta))?;
        let written = |e| EngineError::io("cannot write the copy", &to, e);
        let mut copy = fs::File::create(&to).map_err(written)?;
        let (mut file, mut block) = (file.take(self.stamp.size), vec![0; 1 << 18]);
        loop {
            if cancel.is_cancelled() {
                return Err(EngineError::new(ErrorKind::Cancelled, "the conversion was stopped"));
            }
            match file.read(&mut block).map_err(|e| EngineError::io("cannot read the file to copy", &self.path, e))? {
                0 => break,
                n => copy.write_all(&block[..n]).map_err(written)?,
            }
        }
        copy.sync_all().map_err(|e| EngineError::io("cannot bring the file to the disk", &to, e))?;
        self.check_unchanged()
    }

    /// # Errors
    /// [`ErrorKind::Checkpoint`] where it is not what it was.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let meta = fs::metadata(&self.path).map_err(|e| EngineError::io("cannot look at the file again", &self.path, e))?;
        unchanged(&self.path, self.stamp, Stamp::of(&meta))
    }
}

/// Config and tokenizer of a directory, sorted by name.
pub(super) fn of_model(dir: &Path) -> Result<Vec<Beside>> {
    let names = file::list(dir).map_err(|e| EngineError::io("cannot list the directory", dir, e))?;
    let copied = names.into_iter().filter(|name| save::is_copied(name));
    copied.map(|name| Beside::new(name.clone(), dir.join(name))).collect()
}
