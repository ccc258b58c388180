//! Checkpoints of other formats than safetensors: torch's distributed ones, DeepSpeed's, `pytorch_model.bin`. Their tensors lie in parts.

use std::path::PathBuf;

use shardwright_core::{Assembly, Model, ModelMeta, TensorMeta};

use super::{
    find::ModelDir,
    named::Named,
    types::{Checkpoint, CheckpointFile, Location},
};
use crate::{
    error::{EngineError, ErrorKind, Result},
    file::{Stamp, open_regular},
};

/// A part: a one-dimensional tensor of its own, and where it lies.
pub(crate) type Placed = (TensorMeta, Location);

/// A checkpoint's tensors over its files.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The files that hold parts.
    pub(crate) files: Vec<PathBuf>,
    /// What the files hold.
    pub(crate) parts: Vec<Placed>,
    /// The tensors, sorted by name.
    pub(crate) tensors: Vec<TensorMeta>,
    /// Parallel to `tensors`.
    pub(crate) assemblies: Vec<Assembly>,
    /// What was assumed.
    pub(crate) notes: Vec<String>,
}

impl ModelDir {
    /// The checkpoint that lies here in these parts.
    pub(crate) fn in_parts(self, parts: Parts) -> Result<Checkpoint> {
        let Parts { files, parts, tensors, assemblies, notes } = parts;
        let mut starts = vec![u64::MAX; files.len()];
        for (_, at) in &parts {
            starts[at.file] = starts[at.file].min(at.offset);
        }
        let file = |(path, start): (PathBuf, u64)| {
            let (_, meta) = open_regular(&path)?;
            let name = path.strip_prefix(&self.dir).unwrap_or(&path).to_string_lossy().into_owned();
            Ok(CheckpointFile { path, name, stamp: Stamp::of(&meta), data_start: start })
        };
        let files = files.into_iter().zip(starts).map(file).collect::<Result<Vec<_>>>()?;
        let facts = self.facts()?;
        let (sources, locations): (Vec<TensorMeta>, Vec<Location>) = parts.into_iter().unzip();
        let meta = ModelMeta::new(tensors.clone(), facts)
            .map_err(|name| EngineError::new(ErrorKind::Checkpoint, "the tensor occurs twice").file(&self.dir).tensor(name))?;
        let model = Model { meta, assemblies: assemblies.clone(), ..Model::default() };
        model.check(&sources).map_err(|e| EngineError::new(ErrorKind::Checkpoint, e.what).file(&self.dir).tensor(&e.tensor))?;
        Ok(Checkpoint {
            dir: self.dir,
            files,
            model,
            sources: Some(sources),
            record: None,
            named: Some(Named { tensors, assemblies }),
            locations,
            config_text: self.config_text,
            warnings: notes,
        })
    }
}
