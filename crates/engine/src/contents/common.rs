//! What the readers of all formats need: names of a directory, tensors of `torch.save`, kinds of tensors where a format does not tell them.

use std::{collections::BTreeSet, path::Path};

use shardwright_core::DType;
use shardwright_formats::{FormatError, torch_file};

use super::{
    data::{Data, Extent, Files},
    types::{Contents, Kind, Optimizer, Tensor},
};
use crate::{
    error::{EngineError, ErrorKind, Result},
    file::{self, read_bounded},
};

/// Names in a directory, sorted.
pub(super) fn list(dir: &Path) -> Result<Vec<String>> {
    file::list(dir).map_err(|e| EngineError::io("cannot list the directory", dir, e))
}

/// Puts the file to an error of its bytes.
pub(crate) fn malformed(path: &Path) -> impl Fn(FormatError) -> EngineError {
    move |error| {
        let text = error.to_string();
        match error.into_io() {
            Some(cause) => EngineError::io("cannot read the file", path, cause),
            None => EngineError::new(ErrorKind::Checkpoint, text).file(path),
        }
    }
}

/// A small text file.
pub(super) fn text(path: &Path) -> Result<String> {
    let text = String::from_utf8(read_bounded(path, 4095, "too long for the name of a tag")?);
    let text = text.map_err(|_| EngineError::new(ErrorKind::Checkpoint, "not UTF-8, as the name of a tag is").file(path))?;
    Ok(text.trim().to_owned())
}

/// The part of a file that `torch.save` tensor takes, as one extent of a tensor.
pub(super) fn extent(file: usize, tensor: &torch_file::Tensor, shape: &[u64], at: &[u64]) -> Extent {
    Extent::boxed(file, tensor.offset, shape, at, &tensor.shape, &tensor.strides)
}

/// A whole tensor of a file of `torch.save`.
pub(super) fn whole(file: usize, tensor: &torch_file::Tensor) -> Result<Data> {
    if tensor.dtype.bits() < 8 {
        return Err(EngineError::new(ErrorKind::Checkpoint, format!("elements of {} are not read", tensor.dtype)));
    }
    let extents = if tensor.numel() == 0 { Vec::new() } else { vec![extent(file, tensor, &tensor.shape, &vec![0; tensor.shape.len()])] };
    Data::new(tensor.dtype, tensor.shape.clone(), extents)
}

/// A tensor's one element, as a number.
pub(super) fn scalar(files: &Files, data: &Data) -> Result<f64> {
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
pub(crate) fn sorted(path: &Path, mut tensors: Vec<Tensor>) -> Result<Vec<Tensor>> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    match tensors.windows(2).find(|w| w[0].name == w[1].name) {
        Some(twice) => Err(EngineError::new(ErrorKind::Checkpoint, "the tensor is there twice").file(path).tensor(&twice[0].name)),
        None if tensors.is_empty() => Err(EngineError::new(ErrorKind::Checkpoint, "the checkpoint has no tensors").file(path)),
        None => Ok(tensors),
    }
}

/// What a checkpoint that does not tell parameters from buffers leaves open: names that the optimizer does not have are tied aliases,
/// frozen parameters, or buffers.
pub(super) fn classify(contents: &mut Contents) -> Result<()> {
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
pub(super) fn equal(contents: &Contents, a: &Data, b: &Data) -> Result<bool> {
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
