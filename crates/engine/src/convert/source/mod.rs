//! Recognises a checkpoint by what it holds, and describes it as [`Contents`].

mod dcp;
mod deepspeed;
mod safetensors;
mod torch_save;
mod universal;

use std::{collections::BTreeSet, fs, path::Path};

use shardwright_core::DType;
use shardwright_formats::{FormatError, ReadAt, Window, torch_file};

use super::{
    contents::{Contents, Format, Kind, Optimizer, Tensor},
    data::{Bytes, Data, Extent, Files},
};
use crate::{
    checkpoint::read_bounded,
    error::{EngineError, ErrorKind, Result},
};

impl Contents {
    /// Opens a checkpoint of any format: a directory, or a file.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`] where nothing is recognised or something is malformed, [`ErrorKind::Io`] where it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let is_dir =
            fs::metadata(path).map_err(|e| EngineError::new(ErrorKind::Checkpoint, "cannot open it").file(path).cause(e))?.is_dir();
        if !is_dir {
            return match path.extension().and_then(|e| e.to_str()) {
                Some("safetensors") => safetensors::open(path),
                _ => torch_save::open(path, &[path.to_owned()]),
            };
        }
        super::check_finished(path)?;
        let names = list(path)?;
        let has = |name: &str| names.iter().any(|n| n == name);
        if let Some(found) = dcp::find(path, &names) {
            return dcp::open(path, &found);
        }
        if let Some(tag) = universal::find(path, &names)? {
            return universal::open(path, &tag);
        }
        if let Some(tag) = deepspeed::find(path, &names)? {
            return deepspeed::open(path, &tag);
        }
        if names.iter().any(|n| n.ends_with(".safetensors")) || has("model.safetensors.index.json") {
            return safetensors::open(path);
        }
        if let Some(files) = torch_save::find(path, &names)? {
            return torch_save::open(path, &files);
        }
        Err(EngineError::new(ErrorKind::Checkpoint, "no checkpoint is recognised in it").file(path).expected(
            "safetensors files, pytorch_model.bin, .metadata of torch's distributed checkpoints (here or under model/), \
             or DeepSpeed's *_model_states.pt (here or under the tag that `latest` names)",
        ))
    }
}

/// True for a path that [`crate::Checkpoint`] does not open: another format, or safetensors of ranks.
pub fn is_other_format(path: &Path) -> bool {
    if !path.is_dir() {
        return path.is_file() && path.extension().is_none_or(|e| e != "safetensors");
    }
    let Ok(names) = list(path) else { return false };
    let of_ranks = names.iter().any(|n| n.starts_with("shard-") || n.starts_with("partition-"));
    let plain = names.iter().any(|n| n.ends_with(".safetensors") || n == "model.safetensors.index.json");
    let deep = ["latest", "latest_universal", ".metadata"].iter().any(|name| names.iter().any(|n| n == name));
    let bin = names.iter().any(|n| n.starts_with("pytorch_model.bin") || n.ends_with("_model_states.pt"));
    of_ranks || !plain && (deep || bin || dcp::find(path, &names).is_some())
}

/// True for a directory whose tensors lie in other files than safetensors, which [`crate::Checkpoint`] reads in parts.
pub(crate) fn is_parted(dir: &Path) -> bool {
    let Ok(names) = list(dir) else { return false };
    let has = |name: &str| names.iter().any(|n| n == name);
    if names.iter().any(|n| n.ends_with(".safetensors")) || has("model.safetensors.index.json") {
        return false;
    }
    let bin = has("pytorch_model.bin") || has("pytorch_model.bin.index.json");
    bin || has("latest")
        || has("latest_universal")
        || names.iter().any(|n| n.ends_with("_model_states.pt"))
        || dcp::find(dir, &names).is_some()
}

/// Names in a directory, sorted.
fn list(dir: &Path) -> Result<Vec<String>> {
    let cannot = |e| EngineError::io("cannot list the directory", dir, e);
    let entries = fs::read_dir(dir).map_err(cannot)?.collect::<Result<Vec<_>, _>>().map_err(cannot)?;
    let mut names: Vec<String> = entries.into_iter().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// Puts the file to an error of its bytes.
fn malformed(path: &Path) -> impl Fn(FormatError) -> EngineError {
    move |error| {
        let text = error.to_string();
        match error.into_io() {
            Some(cause) => EngineError::io("cannot read the file", path, cause),
            None => EngineError::new(ErrorKind::Checkpoint, text).file(path),
        }
    }
}

/// A small text file.
fn text(path: &Path) -> Result<String> {
    let text = String::from_utf8(read_bounded(path, 4095, "too long for the name of a tag")?);
    let text = text.map_err(|_| EngineError::new(ErrorKind::Checkpoint, "not UTF-8, as the name of a tag is").file(path))?;
    Ok(text.trim().to_owned())
}

/// The part of a file that `torch.save` tensor takes, as one extent of a tensor.
fn extent(file: usize, tensor: &torch_file::Tensor, shape: &[u64], at: &[u64]) -> Extent {
    Extent::boxed(file, tensor.offset, shape, at, &tensor.shape, &tensor.strides)
}

/// A whole tensor of a file of `torch.save`.
fn whole(file: usize, tensor: &torch_file::Tensor) -> Result<Data> {
    if tensor.dtype.bits() < 8 {
        return Err(EngineError::new(ErrorKind::Checkpoint, format!("elements of {} are not read", tensor.dtype)));
    }
    let extents = if tensor.numel() == 0 { Vec::new() } else { vec![extent(file, tensor, &tensor.shape, &vec![0; tensor.shape.len()])] };
    Data::new(tensor.dtype, tensor.shape.clone(), extents)
}

/// A tensor's one element, as a number.
fn scalar(files: &Files, data: &Data) -> Result<f64> {
    let mut bytes = [0u8; 8];
    let size = usize::try_from(data.dtype.bits() / 8).unwrap_or(8);
    data.read(files, 0..1.min(data.numel()), &mut bytes[..size])?;
    Ok(match data.dtype {
        DType::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).into(),
        DType::F64 => f64::from_le_bytes(bytes),
        #[expect(clippy::cast_precision_loss, reason = "a count of steps")]
        DType::I64 => i64::from_le_bytes(bytes) as f64,
        DType::I32 => i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).into(),
        DType::BF16 => half::bf16::from_le_bytes([bytes[0], bytes[1]]).into(),
        DType::F16 => half::f16::from_le_bytes([bytes[0], bytes[1]]).into(),
        other => return Err(EngineError::new(ErrorKind::Checkpoint, format!("a step is a tensor of {other}"))),
    })
}

/// Sorts the tensors by name and refuses names that occur twice.
pub(super) fn sorted(path: &Path, mut tensors: Vec<Tensor>) -> Result<Vec<Tensor>> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    match tensors.windows(2).find(|w| w[0].name == w[1].name) {
        Some(twice) => Err(EngineError::new(ErrorKind::Checkpoint, "the tensor is there twice").file(path).tensor(&twice[0].name)),
        None if tensors.is_empty() => Err(EngineError::new(ErrorKind::Checkpoint, "the checkpoint has no tensors").file(path)),
        None => Ok(tensors),
    }
}

/// What a checkpoint that does not tell parameters from buffers leaves open: names that the optimizer does not have are tied aliases,
/// frozen parameters, or buffers.
fn classify(contents: &mut Contents) -> Result<()> {
    let trained: BTreeSet<String> = contents.optimizer.iter().flat_map(Optimizer::params).map(str::to_owned).collect();
    let mut aliases = Vec::new();
    let is_open = |t: &&Tensor| !trained.is_empty() && !trained.contains(&t.name) && t.data.dtype.is_float() && t.data.shape.len() > 1;
    for tensor in contents.tensors.iter().filter(is_open) {
        let alike = |t: &&Tensor| trained.contains(&t.name) && t.data.shape == tensor.data.shape && t.data.dtype == tensor.data.dtype;
        for other in contents.tensors.iter().filter(alike) {
            if equal(contents, &tensor.data, &other.data)? {
                aliases.push((tensor.name.clone(), other.name.clone()));
                break;
            }
        }
    }
    let is_alias = |name: &str| aliases.iter().any(|(alias, _)| alias == name);
    contents.tensors.retain(|t| !is_alias(&t.name));
    let (mut frozen, mut buffers) = (0, 0);
    for tensor in &mut contents.tensors {
        let named = tensor.name.ends_with("weight") || tensor.name.ends_with("bias") && !tensor.name.ends_with("correction_bias");
        tensor.kind = match () {
            () if !tensor.data.dtype.is_float() => Kind::Buffer,
            () if trained.is_empty() || trained.contains(&tensor.name) => Kind::Trained,
            () if named => Kind::Frozen,
            () => Kind::Buffer,
        };
        frozen += usize::from(tensor.kind == Kind::Frozen);
        buffers += usize::from(tensor.kind == Kind::Buffer && tensor.data.dtype.is_float());
    }
    if frozen + buffers > 0 {
        let what = "tensors without optimizer states are taken by their names";
        contents.notes.push(format!("{what}: {frozen} as frozen parameters, {buffers} as buffers"));
    }
    for (alias, name) in &aliases {
        contents.notes.push(format!("'{alias}' equals '{name}' and is not trained: taken as tied to it"));
    }
    contents.aliases.extend(aliases);
    Ok(())
}

/// Whether two tensors of one dtype and shape have the same bytes.
fn equal(contents: &Contents, a: &Data, b: &Data) -> Result<bool> {
    const BLOCK: u64 = 1 << 18;
    let size = a.dtype.bits() / 8;
    let (mut left, mut right) = (vec![0; 8 << 18], vec![0; 8 << 18]);
    let mut at = 0;
    while at < a.numel() {
        let end = (at + BLOCK).min(a.numel());
        let len = usize::try_from((end - at) * size).unwrap_or(0);
        a.read(&contents.files, at..end, &mut left[..len])?;
        b.read(&contents.files, at..end, &mut right[..len])?;
        if left[..len] != right[..len] {
            return Ok(false);
        }
        at = end;
    }
    Ok(true)
}
