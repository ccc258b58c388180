//! What a checkpoint holds, from its headers alone: tensors, dtypes, sizes, files, and of other formats than whole safetensors the optimizer, ranks
//! and step too. No tensor data is read, nothing is rendered.

use std::{collections::BTreeMap, fs};

use serde::Serialize;
use shardwright_core::DType;

use crate::{
    checkpoint::Checkpoint,
    contents::{Contents, Kind},
};

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

/// What a checkpoint of another format holds.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ContentsInspection {
    /// Its format.
    pub format: String,
    /// The version that wrote it, where it says so.
    pub version: Option<String>,
    /// Ranks that saved it, where that is known.
    pub ranks: Option<u64>,
    /// Steps that training has taken, where that is known.
    pub step: Option<i64>,
    /// The files that hold tensors, by path from the checkpoint's, with their sizes in bytes.
    pub files: BTreeMap<String, u64>,
    /// The tensors of the model, by name.
    pub tensors: Vec<ContentsTensor>,
    /// Tied names, each with what it is tied to.
    pub tied: Vec<(String, String)>,
    /// The optimizer, where there is one.
    pub optimizer: Option<OptimizerInfo>,
    /// What cannot be carried into another format, or was assumed.
    pub notes: Vec<String>,
}

/// One tensor of such a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ContentsTensor {
    /// Its name.
    pub name: String,
    /// `parameter`, `frozen` or `buffer`.
    pub kind: &'static str,
    /// Its element type.
    pub dtype: &'static str,
    /// In elements, outermost dim first.
    pub shape: Vec<u64>,
    /// Size.
    pub bytes: u64,
}

/// An optimizer's states.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OptimizerInfo {
    /// Steps taken.
    pub step: f64,
    /// Names of the states, such as `exp_avg`.
    pub states: Vec<String>,
    /// Parameters that have states.
    pub parameters: usize,
    /// The parameter groups, in order.
    pub groups: Vec<GroupInfo>,
}

/// One parameter group.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GroupInfo {
    /// Names of its parameters, in order.
    pub parameters: Vec<String>,
    /// Those of its hyperparameters that are numbers, such as `lr`.
    pub values: BTreeMap<String, f64>,
}

/// What a tensor of the model is, in a word.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Trained => "parameter",
        Kind::Frozen => "frozen",
        Kind::Buffer => "buffer",
    }
}

/// Tells what a checkpoint of any format holds.
pub fn inspect_contents(contents: &Contents) -> ContentsInspection {
    let file = |path: &std::path::PathBuf| {
        let name = path.strip_prefix(&contents.path).ok().filter(|rest| !rest.as_os_str().is_empty()).unwrap_or(path);
        (name.display().to_string(), fs::metadata(path).map_or(0, |meta| meta.len()))
    };
    let tensor = |tensor: &crate::contents::Tensor| ContentsTensor {
        name: tensor.name.clone(),
        kind: kind_name(tensor.kind),
        dtype: tensor.data.dtype().torch_name(),
        shape: tensor.data.shape().to_vec(),
        bytes: tensor.data.bytes(),
    };
    let optimizer = |optimizer: &crate::contents::Optimizer| OptimizerInfo {
        step: optimizer.step(),
        states: optimizer.state_names().into_iter().map(str::to_owned).collect(),
        parameters: optimizer.states.len(),
        groups: optimizer
            .groups
            .iter()
            .map(|group| GroupInfo {
                parameters: group.params.clone(),
                values: group.values.iter().filter_map(|(key, value)| Some((key.clone(), value.number()?))).collect(),
            })
            .collect(),
    };
    ContentsInspection {
        format: contents.format.to_string(),
        version: contents.version.clone(),
        ranks: contents.ranks,
        step: contents.step(),
        files: contents.files().map(file).collect(),
        tensors: contents.tensors.iter().map(tensor).collect(),
        tied: contents.aliases.clone(),
        optimizer: contents.optimizer.as_ref().map(optimizer),
        notes: contents.notes.clone(),
    }
}
