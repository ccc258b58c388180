//! Opens the checkpoint that a path or a hub id means, whatever its format.

use std::path::Path;

use crate::{
    checkpoint::{Checkpoint, HubEnv, ModelDir},
    contents::{Contents, Optimizer, is_parted},
    error::{EngineError, ErrorKind, Result},
    file::check_finished,
};

impl Checkpoint {
    /// Opens a directory, or a single `.safetensors` file. Directories of `pytorch_model.bin`, of torch's distributed checkpoints and of
    /// DeepSpeed's are opened too: their tensors are read where they lie, for any world.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`] for anything missing or malformed, naming file, tensor, expected and found; [`ErrorKind::Io`] where the
    /// operating system refuses to read.
    pub fn open(path: &Path) -> Result<Self> {
        ModelDir::open(path)?.checkpoint()
    }

    /// Finds `model`, a path relative to one of `base_dirs` or a hub id in the local cache, and opens it.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], and where nothing is found, with all the places that were tried.
    pub fn find(model: &str, base_dirs: &[impl AsRef<Path>], env: &HubEnv) -> Result<Self> {
        ModelDir::find(model, base_dirs, env)?.checkpoint()
    }
}

impl Contents {
    /// Opens a checkpoint of any format: a path, or a hub id in the local cache.
    ///
    /// # Errors
    /// As [`Contents::open`], and where nothing is found, with all the places that were tried.
    pub fn find(name: &Path, env: &HubEnv) -> Result<Self> {
        match name.exists() {
            true => Self::open(name),
            false => Self::open(&ModelDir::find(&name.to_string_lossy(), &[] as &[&Path], env)?.dir),
        }
    }
}

impl Checkpoint {
    /// The states of a checkpoint's optimizer, each as a tensor `PARAMETER.STATE`, such as `a.weight.exp_avg`, and what else is known of them.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], and where it has no optimizer.
    pub fn open_optimizer(path: &Path) -> Result<(Self, Optimizer)> {
        let contents = Contents::open(path)?;
        let parts = contents.state_parts()?;
        let none = || EngineError::new(ErrorKind::Checkpoint, "it has no states of an optimizer").file(path).found(contents.format);
        let optimizer = contents.optimizer.as_ref().ok_or_else(none)?;
        Ok((ModelDir::open(path)?.in_parts(parts)?, optimizer.clone()))
    }
}

impl ModelDir {
    /// Reads the headers: the checkpoint that lies here.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn checkpoint(self) -> Result<Checkpoint> {
        check_finished(&self.dir)?;
        let parted = match &self.file {
            Some(name) => (!name.ends_with(".safetensors")).then(|| self.dir.join(name)),
            None => is_parted(&self.dir).then(|| self.dir.clone()),
        };
        match parted {
            Some(path) => self.in_parts(Contents::open(&path)?.parts()?),
            None => self.safetensors(),
        }
    }
}
