//! DeepSpeed's universal checkpoints: a directory of whole fp32 tensors for each parameter.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use shardwright_core::model::numel;
use shardwright_formats::{
    deepspeed::{ModelStates, OptimStates, Step},
    pickle::Plain,
    torch_file::TorchFile,
};

use super::{
    common::{self, list, malformed, text},
    data::{Bytes, Data, Extent, Files},
    types::{Contents, Format, Group, Kind, Optimizer, State, Tensor},
};
use crate::error::{EngineError, ErrorKind, Result};

/// The directory that has `zero/`.
pub(super) fn find(path: &Path, names: &[String]) -> Result<Option<PathBuf>> {
    if names.iter().any(|n| n == "zero") && path.join("zero/optimizer_state.pt").is_file() {
        return Ok(Some(path.to_owned()));
    }
    if !names.iter().any(|n| n == "latest_universal") {
        return Ok(None);
    }
    let tag = text(&path.join("latest_universal"))?;
    let plain = !tag.is_empty() && !tag.contains('/') && tag != "..";
    Ok((plain && path.join(&tag).join("zero").is_dir()).then(|| path.join(tag)))
}

/// The elements that `ds_to_universal` of DeepSpeed before 0.19.3 writes for a parameter of `count`: those of ranks whose partition lies beyond its end
/// come after it, though they are padding.
fn padded(count: u64, ranks: u64) -> u64 {
    let part = count.div_ceil(ranks);
    (0..ranks).fold(0, |sum: u64, rank| sum.saturating_add(part.min(count.abs_diff(rank.saturating_mul(part)))))
}

pub(super) fn open(path: &Path, dir: &Path) -> Result<Contents> {
    let names = list(dir)?;
    let mut files = Files::default();
    let missing = || EngineError::new(ErrorKind::Checkpoint, "it has no *_model_states.pt").file(dir);
    let name = names.iter().find(|n| n.ends_with("_model_states.pt")).ok_or_else(missing)?;
    let ranks = names.iter().filter(|n| n.ends_with("_model_states.pt")).count() as u64;
    let model_path = dir.join(name);
    let source = Bytes::open(&model_path)?;
    let model = TorchFile::open(&source).and_then(|file| ModelStates::read(&file, &source)).map_err(malformed(&model_path))?;
    let state_path = dir.join("zero/optimizer_state.pt");
    let source = Bytes::open(&state_path)?;
    let (groups, step) =
        TorchFile::open(&source).and_then(|file| OptimStates::read_universal(&file, &source)).map_err(malformed(&state_path))?;
    let state_number = files.add(state_path);
    step.iter().filter_map(Step::tensor).for_each(|tensor| files.expect(state_number, 0, tensor));
    let step = match step {
        None => 0.0,
        Some(Step::Number(n)) => n,
        Some(Step::Tensor(tensor)) => common::scalar(&files, &common::whole(state_number, &tensor)?)?,
    };
    let (mut tensors, mut states) = (Vec::new(), Vec::new());
    for (name, shape) in model.param_shapes.iter().flatten() {
        if name.contains('/') || name == ".." {
            return Err(EngineError::new(ErrorKind::Checkpoint, "the name leads out of the directory").file(dir).tensor(name));
        }
        let at = dir.join("zero").join(name);
        let mut found = BTreeMap::new();
        for file in list(&at).map_err(|e| e.tensor(name))?.iter().filter_map(|n| n.strip_suffix(".pt")) {
            if file == "step" {
                continue;
            }
            let file_path = at.join(format!("{file}.pt"));
            let source = Bytes::open(&file_path)?;
            let read = TorchFile::open(&source).and_then(|read| {
                let root = read.pickle.root();
                let id = read.pickle.get(root, "param").unwrap_or(root);
                read.tensor(&source, id)
            });
            let Some(tensor) = read.map_err(malformed(&file_path))? else { continue };
            let count = numel(shape).unwrap_or(0);
            if tensor.numel() != count && tensor.numel() != padded(count, ranks) || !tensor.is_contiguous() {
                let error = EngineError::new(ErrorKind::Checkpoint, "the file has another number of elements").file(file_path).tensor(name);
                return Err(error.expected(count).found(tensor.numel()));
            }
            let number = files.add(file_path);
            files.expect(number, 0, &tensor);
            found.insert(file.to_owned(), Data::new(tensor.dtype, shape.clone(), vec![Extent::flat(number, tensor.offset, 0, count)])?);
        }
        let missing = || EngineError::new(ErrorKind::Checkpoint, "fp32.pt is missing").file(&at).tensor(name);
        let data = found.remove("fp32").ok_or_else(missing)?;
        tensors.push(Tensor { name: name.clone(), kind: Kind::Trained, data });
        states.push(State { param: name.clone(), step, tensors: found.into_iter().collect() });
    }
    let number = files.add(model_path);
    model.tensors().for_each(|tensor| files.expect(number, 0, tensor));
    let mut notes = Vec::new();
    for (name, tensor) in &model.module {
        if model.buffers.contains(name) {
            let data = common::whole(number, tensor).map_err(|e| e.tensor(name))?;
            tensors.push(Tensor { name: name.clone(), kind: Kind::Buffer, data });
        }
    }
    for (name, shape) in &model.frozen_shapes {
        match model.frozen.iter().find(|(n, t)| n == name && Some(t.numel()) == numel(shape)) {
            Some((_, tensor)) => {
                let extent = Extent::flat(number, tensor.offset, 0, tensor.numel());
                tensors.push(Tensor {
                    name: name.clone(),
                    kind: Kind::Frozen,
                    data: Data::new(tensor.dtype, shape.clone(), vec![extent])?,
                });
            }
            None => notes.push(format!("frozen parameter '{name}' is not carried: a universal checkpoint keeps partitions of it only")),
        }
    }
    let flats: Vec<Vec<String>> = model.param_shapes.iter().map(|g| g.iter().map(|(n, _)| n.clone()).collect()).collect();
    let one_each = groups.len() == flats.len();
    let group = |(number, values): (usize, &Vec<(String, Plain)>)| {
        let listed = values.iter().find(|(key, _)| key == "params").map(|(_, value)| value);
        let of: Vec<usize> = match listed {
            Some(Plain::List(list)) if !one_each => {
                (0..flats.len()).filter(|n| list.contains(&Plain::Int(i64::try_from(*n).unwrap_or(-1)))).collect()
            }
            _ => vec![number],
        };
        let params = of.iter().filter_map(|n| flats.get(*n)).flatten().cloned().collect();
        Group { params, values: values.iter().filter(|(key, _)| key != "params").cloned().collect() }
    };
    let groups = groups.iter().enumerate().map(group).collect();
    let compute = model.module.iter().find(|(name, _)| !model.buffers.contains(name)).map(|(_, t)| t.dtype);
    Ok(Contents {
        path: path.to_owned(),
        format: Format::Universal,
        version: None,
        ranks: None,
        tag: None,
        tensors: common::sorted(path, tensors)?,
        aliases: model.shared.clone(),
        optimizer: Some(Optimizer { groups, states }),
        values: model.rest,
        compute,
        notes,
        files,
    })
}
