//! Checkpoints of other formats than safetensors: torch's distributed ones, DeepSpeed's, `pytorch_model.bin`. Their tensors lie in parts.

use std::path::PathBuf;

use shardwright_core::{Model, ModelMeta, TensorMeta};

use super::{
    find::ModelDir,
    named::{Named, Places},
    types::{Checkpoint, CheckpointFile, Location},
};
use crate::{
    error::{EngineError, ErrorKind, Result},
    file::{Stamp, open_regular},
};

/// A checkpoint's tensors over its files.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The files that hold parts.
    pub(crate) files: Vec<PathBuf>,
    /// What the files hold: parts, each a one-dimensional tensor of its own.
    pub(crate) sources: Vec<TensorMeta>,
    /// Where each lies.
    pub(crate) locations: Vec<Location>,
    /// The tensors, sorted by name.
    pub(crate) tensors: Vec<TensorMeta>,
    /// Which part belongs where.
    pub(crate) places: Places,
    /// What was assumed.
    pub(crate) notes: Vec<String>,
}

impl ModelDir {
    /// The checkpoint that lies here in these parts.
    pub(crate) fn in_parts(self, parts: Parts) -> Result<Checkpoint> {
        let Parts { files, sources, locations, tensors, places, notes } = parts;
        let mut starts = vec![u64::MAX; files.len()];
        for at in &locations {
            starts[at.file] = starts[at.file].min(at.offset);
        }
        let file = |(path, start): (PathBuf, u64)| {
            let (_, meta) = open_regular(&path)?;
            let name = path.strip_prefix(&self.dir).unwrap_or(&path).to_string_lossy().into_owned();
            Ok(CheckpointFile { path, name, stamp: Stamp::of(&meta), data_start: start })
        };
        let files = files.into_iter().zip(starts).map(file).collect::<Result<Vec<_>>>()?;
        let facts = self.facts()?;
        let meta = ModelMeta::new(tensors.clone(), facts)
            .map_err(|name| EngineError::new(ErrorKind::Checkpoint, "the tensor occurs twice").file(&self.dir).tensor(name))?;
        let assemblies = (0..tensors.len()).filter_map(|tensor| places.assembly(tensor, &sources)).collect();
        let model = Model { meta, assemblies, ..Model::default() };
        model.check(&sources).map_err(|e| EngineError::new(ErrorKind::Checkpoint, e.what).file(&self.dir).tensor(&e.tensor))?;
        Ok(Checkpoint {
            dir: self.dir,
            files,
            model,
            sources: Some(sources),
            record: None,
            named: Some(Named { tensors, places }),
            locations,
            config_text: self.config_text,
            warnings: notes,
        })
    }
}
