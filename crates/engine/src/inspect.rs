//! What a checkpoint holds, from its headers alone: tensors, dtypes, sizes, files. No tensor data is read, nothing is rendered.

use std::collections::BTreeMap;

use serde::Serialize;
use shardwright_core::DType;

use crate::checkpoint::Checkpoint;

/// A checkpoint's contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// What `config.json` calls the model, where it does.
    pub architecture: Option<String>,
    /// The safetensors files, by name.
    pub files: Vec<FileInfo>,
    /// The tensors, by name.
    pub tensors: Vec<TensorInfo>,
    /// What they sum up to, by dtype.
    pub dtypes: BTreeMap<DType, Sum>,
    /// What they sum up to.
    pub totals: Sum,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FileInfo {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its size, header included.
    pub bytes: u64,
    /// Tensors in it.
    pub tensors: u64,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// In elements, outermost dim first.
    pub shape: Vec<u64>,
    /// Elements.
    pub numel: u64,
    /// Size.
    pub bytes: u64,
    /// The file that holds it.
    pub file: String,
}

/// Tensors, their elements and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Sum {
    /// How many tensors.
    pub tensors: u64,
    /// Their elements.
    pub numel: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Sum {
    fn add(&mut self, tensor: &TensorInfo) {
        self.tensors += 1;
        self.numel = self.numel.saturating_add(tensor.numel);
        self.bytes = self.bytes.saturating_add(tensor.bytes);
    }
}

/// Tells what a checkpoint holds.
pub fn inspect(checkpoint: &Checkpoint) -> Inspection {
    let mut files: Vec<FileInfo> =
        checkpoint.files().iter().map(|f| FileInfo { name: f.name.clone(), bytes: f.stamp.size, tensors: 0 }).collect();
    let (mut dtypes, mut totals) = (BTreeMap::<DType, Sum>::new(), Sum::default());
    let mut tensors = Vec::with_capacity(checkpoint.sources().len());
    for (index, meta) in checkpoint.sources().iter().enumerate() {
        let place = checkpoint.location(index);
        let file = &mut files[place.file];
        file.tensors += 1;
        let tensor = TensorInfo {
            name: checkpoint.source_name(index),
            dtype: meta.dtype,
            shape: meta.shape.clone(),
            numel: meta.numel().unwrap_or(u64::MAX),
            bytes: place.bytes,
            file: file.name.clone(),
        };
        dtypes.entry(meta.dtype).or_default().add(&tensor);
        totals.add(&tensor);
        tensors.push(tensor);
    }
    Inspection { architecture: checkpoint.model().facts.architecture.clone(), files, tensors, dtypes, totals }
}
