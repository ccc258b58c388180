//! DeepSpeed checkpoints of ZeRO stages 1 to 3: flat partitions of all ranks, put together by the order of the optimizer's parameters.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use shardwright_core::{DType, model::numel};
use shardwright_formats::{
    deepspeed::{Flat, ModelStates, OptimStates, Step},
    pickle::Plain,
    torch_file::{self, TorchFile},
};

use super::{
    common::{self, list, malformed, text},
    data::{Bytes, Data, Extent, Files},
    types::{Contents, Format, Group, Kind, Optimizer, State, Tensor},
};
use crate::error::{EngineError, ErrorKind, Result};

/// The directory of the tag that `latest` names, or the directory itself where it holds the files.
pub(super) fn find(path: &Path, names: &[String]) -> Result<Option<std::path::PathBuf>> {
    if names.iter().any(|n| n.ends_with("_model_states.pt")) {
        return Ok(Some(path.to_owned()));
    }
    if !names.iter().any(|n| n == "latest") {
        return Ok(None);
    }
    let latest = path.join("latest");
    let tag = text(&latest)?;
    let plain = !tag.is_empty() && !tag.contains('/') && tag != "..";
    match plain && path.join(&tag).is_dir() {
        true => Ok(Some(path.join(tag))),
        false => {
            Err(EngineError::new(ErrorKind::Checkpoint, "it names a tag that is not there").file(latest).found(format_args!("'{tag}'")))
        }
    }
}

/// One rank's file and its number among the files.
struct Opened<T> {
    number: usize,
    read: T,
}

fn open_file<T>(
    dir: &Path,
    name: &str,
    files: &mut Files,
    read: impl Fn(&TorchFile, &Bytes) -> shardwright_formats::Result<T>,
) -> Result<Opened<T>> {
    let path = dir.join(name);
    let source = Bytes::open(&path)?;
    let read = TorchFile::open(&source).and_then(|file| read(&file, &source)).map_err(malformed(&path))?;
    Ok(Opened { number: files.add(path), read })
}

/// The rank in names such as `bf16_zero_pp_rank_3_mp_rank_00_optim_states.pt`.
fn rank(name: &str) -> Option<u64> {
    name.split("zero_pp_rank_").nth(1)?.split('_').next()?.parse().ok()
}

/// Files of every rank from 0 on with that ending; all must be there.
fn of_ranks(dir: &Path, names: &[String], ending: &str, world_size: u64) -> Result<Vec<String>> {
    let mut found: Vec<(u64, &String)> = names.iter().filter(|n| n.ends_with(ending)).filter_map(|n| Some((rank(n)?, n))).collect();
    found.sort();
    let error = |what: String| EngineError::new(ErrorKind::Checkpoint, what).file(dir);
    if let Some(other) = found.iter().find(|(_, n)| !n.contains("_mp_rank_00_")) {
        return Err(error("a checkpoint of model-parallel ranks is not read".into()).found(format_args!("'{}'", other.1)));
    }
    if let Some(twice) = found.windows(2).find(|w| w[0].0 == w[1].0) {
        return Err(error(format!("two files of rank {}: '{}' and '{}'", twice[0].0, twice[0].1, twice[1].1)));
    }
    if let Some(missing) = (0..world_size).find(|r| !found.iter().any(|(rank, _)| rank == r)) {
        return Err(error(format!("no '*{ending}' of rank {missing}")).expected(format_args!("{world_size} ranks")).found(found.len()));
    }
    if found.len() as u64 != world_size {
        return Err(error(format!("more '*{ending}' than ranks")).expected(format_args!("{world_size} ranks")).found(found.len()));
    }
    Ok(found.into_iter().map(|(_, name)| name.clone()).collect())
}

pub(super) fn open(path: &Path, dir: &Path) -> Result<Contents> {
    let names = list(dir)?;
    let error = |what: &str| EngineError::new(ErrorKind::Checkpoint, what.to_owned()).file(dir);
    let mut files = Files::default();
    let first = names.iter().find(|n| n.ends_with("_model_states.pt")).ok_or_else(|| error("it has no *_model_states.pt"))?;
    let sharded = rank(first).is_some();
    let first = match sharded {
        true => names
            .iter()
            .find(|n| rank(n) == Some(0) && n.ends_with("_model_states.pt"))
            .ok_or_else(|| error("no model states of rank 0"))?,
        false => first,
    };
    let read_model = |file: &TorchFile, source: &Bytes| ModelStates::read(file, source);
    let read_optimizer = |file: &TorchFile, source: &Bytes| OptimStates::read(file, source);
    let first = open_file(dir, first, &mut files, read_model)?;
    let world_size = first.read.dp_world_size;
    if first.read.mp_world_size != 1 {
        return Err(error("a checkpoint of model-parallel ranks is not read").found(format_args!("{} of them", first.read.mp_world_size)));
    }
    if world_size == 0 || world_size > 1 << 20 {
        return Err(error("the number of ranks makes no sense").found(world_size));
    }
    let mut models = vec![first];
    if sharded {
        for name in of_ranks(dir, &names, "_model_states.pt", world_size)?.iter().skip(1) {
            models.push(open_file(dir, name, &mut files, read_model)?);
        }
    }
    let optimizers = of_ranks(dir, &names, "_optim_states.pt", world_size)?
        .iter()
        .map(|name| open_file(dir, name, &mut files, read_optimizer))
        .collect::<Result<Vec<_>>>()?;
    same_step(dir, &models)?;
    for (rank, optimizer) in (0u32..).zip(&optimizers) {
        if optimizer.read.stage != optimizers[0].read.stage || optimizer.read.partitions != world_size {
            return Err(error("the optimizer's file is of another stage or world")
                .rank(rank)
                .expected(format_args!("{world_size} ranks"))
                .found(optimizer.read.partitions));
        }
    }
    let stage = optimizers[0].read.stage;
    if (stage == 3) != sharded {
        return Err(error("model and optimizer files are of different ZeRO stages"));
    }
    let mut order = match stage {
        3 => Order::of_stage3(&models[0].read, world_size)?,
        _ => Order::of_slices(&models[0].read, &optimizers)?,
    };
    models.iter().for_each(|model| model.read.tensors().for_each(|tensor| files.expect(model.number, 0, tensor)));
    optimizers.iter().for_each(|rank| rank.read.tensors().for_each(|tensor| files.expect(rank.number, 0, tensor)));
    let (masters, states) = order.gather(&optimizers, &files)?;
    let groups = order.groups(&optimizers[0].read);
    build(
        path,
        Built {
            files,
            models,
            masters,
            optimizer: Optimizer { groups, states },
            stage,
            world_size,
            tag: (dir != path).then(|| dir.file_name()?.to_str().map(str::to_owned)).flatten(),
            config: optimizers[0].read.config.clone(),
        },
    )
}

/// Ranks must have been saved at the same step.
fn same_step(dir: &Path, models: &[Opened<ModelStates>]) -> Result<()> {
    let step = |model: &ModelStates| model.rest.iter().find(|(key, _)| key == "global_steps").map(|(_, value)| value.clone());
    let first = step(&models[0].read);
    for (rank, model) in (0u32..).zip(models) {
        let this = step(&model.read);
        if this != first {
            let error = EngineError::new(ErrorKind::Checkpoint, "ranks were saved at different steps").file(dir).rank(rank);
            return Err(error.expected(format_args!("{first:?}")).found(format_args!("{this:?}")));
        }
        if model.read.param_shapes != models[0].read.param_shapes {
            return Err(EngineError::new(ErrorKind::Checkpoint, "ranks have other parameters than rank 0").file(dir).rank(rank));
        }
    }
    Ok(())
}

/// A parameter's elements in one rank's flat partition.
struct Slice {
    rank: usize,
    flat: usize,
    /// First element in the flat partition.
    from: u64,
    /// First element of the parameter.
    at: u64,
    numel: u64,
}

/// Which parameters lie where in the flat partitions.
struct Order {
    params: Vec<(String, Vec<u64>, Vec<Slice>)>,
    /// Names in each flat partition, in order.
    flats: Vec<Vec<String>>,
}

impl Order {
    fn of_stage3(model: &ModelStates, world_size: u64) -> Result<Self> {
        let mut params = Vec::new();
        for (flat, shapes) in model.param_shapes.iter().enumerate() {
            let mut from = 0u64;
            for (name, shape) in shapes {
                let overflow = || EngineError::new(ErrorKind::Checkpoint, "its size overflows").tensor(name);
                let count = numel(shape).ok_or_else(overflow)?;
                let partition = count.div_ceil(world_size);
                let mut slices = Vec::new();
                for rank in 0..world_size {
                    let at = (rank * partition).min(count);
                    let numel = (at.saturating_add(partition)).min(count) - at;
                    slices.push(Slice { rank: usize::try_from(rank).unwrap_or(usize::MAX), flat, from, at, numel });
                }
                from = from.checked_add(partition).ok_or_else(overflow)?;
                params.push((name.clone(), shape.clone(), slices));
            }
        }
        let flats = model.param_shapes.iter().map(|shapes| shapes.iter().map(|(name, _)| name.clone()).collect()).collect();
        Ok(Self { params, flats })
    }

    /// Stages 1 and 2: each rank says which part of which parameter it has, and the ranks follow each other.
    fn of_slices(model: &ModelStates, optimizers: &[Opened<OptimStates>]) -> Result<Self> {
        let missing = || {
            EngineError::new(
                ErrorKind::Checkpoint,
                "the optimizer's files do not record 'param_slice_mappings'; DeepSpeed 0.14 and later do",
            )
        };
        let shapes: BTreeMap<&str, &Vec<u64>> = model.param_shapes.iter().flatten().map(|(n, s)| (n.as_str(), s)).collect();
        let mut params: Vec<(String, Vec<u64>, Vec<Slice>)> = Vec::new();
        let mut index = BTreeMap::<String, usize>::new();
        let mut flats = vec![Vec::new(); optimizers[0].read.flat.len()];
        for (rank, optimizer) in optimizers.iter().enumerate() {
            for (flat, slices) in optimizer.read.slices.as_ref().ok_or_else(missing)?.iter().enumerate() {
                for (name, from, numel) in slices {
                    let unknown =
                        || EngineError::new(ErrorKind::Checkpoint, "the optimizer has a parameter that the model lacks").tensor(name);
                    let shape = shapes.get(name.as_str()).ok_or_else(unknown)?;
                    let at = *index.entry(name.clone()).or_insert_with(|| {
                        params.push((name.clone(), (*shape).clone(), Vec::new()));
                        if let Some(names) = flats.get_mut(flat) {
                            names.push(name.clone());
                        }
                        params.len() - 1
                    });
                    let done: u64 = params[at].2.iter().map(|s: &Slice| s.numel).sum();
                    params[at].2.push(Slice { rank, flat, from: *from, at: done, numel: *numel });
                }
            }
        }
        if let Some(lost) = shapes.keys().find(|name| !index.contains_key(**name)) {
            return Err(EngineError::new(ErrorKind::Checkpoint, "no rank has a part of it").tensor(*lost));
        }
        Ok(Self { params, flats })
    }

    /// Masters and states of every parameter.
    fn gather(&mut self, optimizers: &[Opened<OptimStates>], files: &Files) -> Result<(Vec<Tensor>, Vec<State>)> {
        let (mut masters, mut states) = (Vec::new(), Vec::new());
        for (name, shape, slices) in &self.params {
            let data = |of: &dyn Fn(&Flat) -> Option<torch_file::Tensor>| -> Result<Option<Data>> {
                let (mut extents, mut dtype) = (Vec::new(), None);
                for slice in slices.iter().filter(|s| s.numel > 0) {
                    let file = &optimizers[slice.rank];
                    let rank = u32::try_from(slice.rank).unwrap_or(u32::MAX);
                    let error =
                        |what: &str| EngineError::new(ErrorKind::Checkpoint, what).file(files.path(file.number)).tensor(name).rank(rank);
                    let flat = file.read.flat.get(slice.flat).ok_or_else(|| error("the flat partition of its group is missing"))?;
                    let Some(tensor) = of(flat) else { return Ok(None) };
                    if slice.from.checked_add(slice.numel).is_none_or(|end| end > tensor.numel()) || !tensor.is_contiguous() {
                        let expected = format!("{} elements from element {}", slice.numel, slice.from);
                        return Err(error("the flat partition is too small for it").expected(expected).found(tensor.numel()));
                    }
                    if *dtype.get_or_insert(tensor.dtype) != tensor.dtype {
                        return Err(error("ranks have it in several dtypes"));
                    }
                    let size = tensor.dtype.bits() / 8;
                    extents.push(Extent::flat(file.number, tensor.offset + slice.from * size, slice.at, slice.numel));
                }
                let data = Data::new(dtype.unwrap_or(DType::F32), shape.clone(), extents).map_err(|e| e.tensor(name))?;
                Ok(Some(data))
            };
            let master = data(&|flat| Some(flat.fp32.clone()))?;
            masters.extend(master.map(|data| Tensor { name: name.clone(), kind: Kind::Trained, data }));
            let Some(first) = slices.first() else { continue };
            let flat = &optimizers[first.rank].read.flat[first.flat];
            let names: BTreeSet<&String> = flat.states.iter().map(|(n, _)| n).collect();
            let mut tensors = Vec::new();
            for state in names {
                let of = |flat: &Flat| flat.states.iter().find(|(n, _)| n == state).map(|(_, t)| t.clone());
                // Moments of stages 1 and 2 keep the padding that the masters lack.
                if flat.states.iter().any(|(n, t)| n == state && (t.numel() < flat.fp32.numel() || !t.dtype.is_float())) {
                    let what = format!(
                        "the optimizer's state '{state}' is not a float for each element; quantised and factored states are not read"
                    );
                    return Err(EngineError::new(ErrorKind::Checkpoint, what).tensor(name));
                }
                if let Some(data) = data(&of)? {
                    tensors.push((state.clone(), data));
                }
            }
            let step = match &flat.step {
                None => 0.0,
                Some(Step::Number(n)) => *n,
                Some(Step::Tensor(tensor)) => common::scalar(files, &common::whole(optimizers[first.rank].number, tensor)?)?,
            };
            states.push(State { param: name.clone(), step, tensors });
        }
        Ok((masters, states))
    }

    /// The groups: `params` of each lists flat partitions.
    fn groups(&self, optimizer: &OptimStates) -> Vec<Group> {
        let one_each = optimizer.groups.len() == self.flats.len();
        let group = |(number, values): (usize, &Vec<(String, Plain)>)| {
            let listed = values.iter().find(|(key, _)| key == "params").map(|(_, value)| value);
            let flats: Vec<usize> = match listed {
                Some(Plain::List(list)) if !one_each => list.iter().filter_map(Plain::number).map(as_index).collect(),
                _ => vec![number],
            };
            let params = flats.iter().filter_map(|flat| self.flats.get(*flat)).flatten().cloned().collect();
            Group { params, values: values.iter().filter(|(key, _)| key != "params").cloned().collect() }
        };
        optimizer.groups.iter().enumerate().map(group).collect()
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small index; any other finds nothing")]
fn as_index(number: f64) -> usize {
    number as usize
}

struct Built {
    files: Files,
    models: Vec<Opened<ModelStates>>,
    masters: Vec<Tensor>,
    optimizer: Optimizer,
    stage: u8,
    world_size: u64,
    tag: Option<String>,
    config: Option<Plain>,
}

fn build(path: &Path, built: Built) -> Result<Contents> {
    let Built { files, models, masters: mut tensors, optimizer, stage, world_size, tag, config } = built;
    let model = &models[0];
    let trained: BTreeSet<String> = tensors.iter().map(|t| t.name.clone()).collect();
    let (mut aliases, mut notes) = (model.read.shared.clone(), Vec::new());
    // Frozen parameters: a partition of each rank, or whole.
    for (name, shape) in &model.read.frozen_shapes {
        let count = numel(shape).unwrap_or(0);
        let partition = if stage == 3 { count.div_ceil(world_size) } else { count };
        let (mut extents, mut dtype) = (Vec::new(), DType::F32);
        for (rank, model) in (0u64..).zip(&models) {
            let error = |what: &str| EngineError::new(ErrorKind::Checkpoint, what).file(files.path(model.number)).tensor(name);
            let part = model
                .read
                .frozen
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, t)| t)
                .ok_or_else(|| error("the frozen parameter is missing"))?;
            dtype = part.dtype;
            let at = (rank * partition).min(count);
            let valid = (at + partition).min(count) - at;
            if valid > part.numel() || !part.is_contiguous() {
                return Err(error("the frozen parameter's partition is too small").expected(valid).found(part.numel()));
            }
            extents.push(Extent::flat(model.number, part.offset, at, valid));
        }
        let data = Data::new(dtype, shape.clone(), extents).map_err(|e| e.file(path).tensor(name))?;
        tensors.push(Tensor { name: name.clone(), kind: Kind::Frozen, data });
    }
    let frozen: BTreeSet<String> = model.read.frozen_shapes.iter().map(|(n, _)| n.clone()).collect();
    let mut compute = None;
    let mut open = Vec::new();
    for (name, tensor) in &model.read.module {
        if model.read.buffers.contains(name) {
            let data = common::whole(model.number, tensor).map_err(|e| e.file(path).tensor(name))?;
            tensors.push(Tensor { name: name.clone(), kind: Kind::Buffer, data });
            continue;
        }
        compute = compute.or(Some(tensor.dtype));
        if trained.contains(name) || frozen.contains(name) || aliases.iter().any(|(alias, _)| alias == name) {
            continue;
        }
        match stage {
            // It has no data of its own, so it is another's name.
            3 => open.push(name.clone()),
            _ => {
                let data = common::whole(model.number, tensor).map_err(|e| e.file(path).tensor(name))?;
                tensors.push(Tensor { name: name.clone(), kind: Kind::Frozen, data });
            }
        }
    }
    let embeddings: Vec<&String> = trained.iter().chain(&frozen).filter(|n| is_embedding(n)).collect();
    for name in open {
        match embeddings[..] {
            [embedding] if is_head(&name) => {
                notes.push(format!("'{name}' has no data of its own: taken as tied to '{embedding}'"));
                aliases.push((name, embedding.clone()));
            }
            _ => notes.push(format!("'{name}' has no data of its own and is not carried: it is tied to a parameter that ZeRO-3 does not record; --tie {name}=NAME names it")),
        }
    }
    for (name, why) in &model.read.dropped {
        notes.push(format!("'{name}' is not carried: {why}"));
    }
    let version = model.read.rest.iter().find(|(key, _)| key == "ds_version").and_then(|(_, value)| match value {
        Plain::Str(text) => Some(text.clone()),
        _ => None,
    });
    let mut values: Vec<(String, Plain)> = model.read.rest.clone();
    if let Some(config) = config.filter(|_| !values.iter().any(|(key, _)| key == "ds_config")) {
        values.push(("ds_config".into(), config));
    }
    Ok(Contents {
        path: path.to_owned(),
        format: Format::DeepSpeed(stage),
        version,
        ranks: Some(world_size),
        tag,
        tensors: common::sorted(path, tensors)?,
        aliases,
        optimizer: Some(optimizer),
        values,
        compute,
        notes,
        files,
    })
}

fn is_head(name: &str) -> bool {
    ["lm_head.weight", "output.weight", "embed_out.weight"].iter().any(|end| name.ends_with(end))
}

fn is_embedding(name: &str) -> bool {
    ["embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight"]
        .iter()
        .any(|end| name.ends_with(end))
}
