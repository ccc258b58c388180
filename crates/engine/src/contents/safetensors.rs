//! Hugging Face safetensors: one file, several with an index, or one for each rank, as torch's writer and `load --save` leave them.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read as _,
    path::Path,
};

use safetensors::tensor::Metadata;

use super::{
    common::{self, list},
    data::{Data, Extent, Files},
    types::{Contents, Format, Kind, Tensor},
};
use crate::{
    checkpoint::{ModelDir, holds_parts, parse_header},
    error::{EngineError, ErrorKind, Result},
    file::open_regular,
    filenames::{MANIFEST, RANK_MANIFEST_SUFFIX, SHARD_SUFFIX},
    saved::{
        Manifest,
        entries::Part,
        header::{SAVE_KEY, WORLD_SIZE, parts},
        unfinished,
    },
};

pub(super) fn open(path: &Path) -> Result<Contents> {
    let rank_files = if path.is_dir() { rank_files(path, &list(path)?) } else { Vec::new() };
    // Shards by torch's own writer and by `convert` have no manifests; where there are some, the last one says that the save is complete.
    let manifests = |n: &String| n.ends_with(RANK_MANIFEST_SUFFIX);
    if !rank_files.is_empty() && list(path)?.iter().any(manifests) && !path.join(MANIFEST).exists() {
        return Err(EngineError::new(ErrorKind::Checkpoint, unfinished(path)).file(path));
    }
    let mut files = Files::default();
    let mut notes = Vec::new();
    let tensors = match rank_files.is_empty() {
        true => {
            let checkpoint = ModelDir::open(path)?.safetensors()?;
            notes.extend(checkpoint.warnings().iter().cloned());
            let numbers: Vec<usize> = checkpoint.files().iter().map(|f| files.add(f.path.clone())).collect();
            let tensor = |(index, meta): (usize, &shardwright_core::TensorMeta)| {
                let place = checkpoint.location(index);
                if meta.dtype.bits() < 8 {
                    let what = format!("elements of {} are not converted", meta.dtype);
                    return Err(EngineError::new(ErrorKind::Checkpoint, what).tensor(&meta.name));
                }
                let extent = Extent::flat(numbers[place.file], place.offset, 0, meta.numel().unwrap_or(0));
                Ok(Tensor {
                    name: String::from(&meta.name),
                    kind: Kind::Trained,
                    data: Data::new(meta.dtype, meta.shape.clone(), vec![extent])?,
                })
            };
            checkpoint.model().tensors.iter().enumerate().map(tensor).collect::<Result<Vec<_>>>()?
        }
        false => of_ranks(path, &rank_files, &mut files, &mut notes)?,
    };
    let mut contents = Contents::of_tensors(path, Format::Safetensors, common::sorted(path, tensors)?, files);
    contents.notes = notes;
    contents.ranks = (!rank_files.is_empty()).then_some(rank_files.len() as u64);
    common::classify(&mut contents)?;
    Ok(contents)
}

/// The files of ranks in a directory: those that are called so, where the first of them says that it holds parts of tensors. Beside whole
/// tensors by the names that transformers reads they do not count.
pub(super) fn rank_files(dir: &Path, names: &[String]) -> Vec<String> {
    if names.iter().any(|n| n == "model.safetensors" || n == "model.safetensors.index.json") {
        return Vec::new();
    }
    let of_rank = |name: &&String| (name.starts_with("shard-") || name.starts_with("partition-")) && name.ends_with(SHARD_SUFFIX);
    let found: Vec<String> = names.iter().filter(of_rank).cloned().collect();
    match found.first() {
        Some(first) if holds_parts(&dir.join(first)) => found,
        _ => Vec::new(),
    }
}

/// Parts of a tensor, as they are found.
#[derive(Default)]
struct Parts {
    dtype: Option<shardwright_core::DType>,
    found: Vec<Found>,
}

struct Found {
    file: usize,
    offset: u64,
    shape: Vec<u64>,
    part: Part,
}

fn of_ranks(dir: &Path, names: &[String], files: &mut Files, notes: &mut Vec<String>) -> Result<Vec<Tensor>> {
    let (mut all, mut counted) = (BTreeMap::<String, Parts>::new(), true);
    for name in names {
        let path = dir.join(name);
        let error = |what: String| EngineError::new(ErrorKind::Checkpoint, what).file(&path);
        let cannot = |e| EngineError::io("cannot read the file", &path, e);
        let (mut file, meta) = open_regular(&path)?;
        let size = meta.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(cannot)?;
        let length = u64::from_le_bytes(length);
        if length > 100_000_000 || length.saturating_add(8) > size {
            return Err(error("the header is too long, or cut off".into()).found(format_args!("{length} bytes")));
        }
        let mut header = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact(&mut header).map_err(cannot)?;
        let entries = parse_header(&header, size - 8 - length).map_err(|e| e.file(&path))?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| error(format!("not a valid safetensors header: {e}")))?;
        let none = HashMap::new();
        let strings = metadata.metadata().as_ref().unwrap_or(&none); // one of them may be as long as a header
        if strings.contains_key(SAVE_KEY) && !dir.join(MANIFEST).exists() {
            return Err(EngineError::new(ErrorKind::Checkpoint, unfinished(dir)).file(dir));
        }
        match strings.get(WORLD_SIZE).map(|text| text.parse::<usize>()) {
            Some(Ok(ranks)) if ranks == names.len() => {}
            Some(ranks) => {
                let ranks = ranks.map_or_else(|_| "as many as its metadata say".to_owned(), |n| n.to_string());
                let error = EngineError::new(
                    ErrorKind::Checkpoint,
                    "files of some ranks are missing, or of another save; copy all of them here, or save again",
                )
                .file(dir);
                return Err(error.expected(format_args!("{ranks} files")).found(names.len()));
            }
            None => counted = false,
        }
        let reported = parts(strings).map_err(error)?;
        let number = files.add(path.clone());
        for entry in entries {
            let part = reported.get(&entry.name).cloned().ok_or_else(|| {
                EngineError::new(ErrorKind::Checkpoint, "the header does not say which part of the tensor the file holds")
                    .file(&path)
                    .tensor(&entry.name)
            })?;
            let parts = all.entry(entry.name.clone()).or_default();
            if *parts.dtype.get_or_insert(entry.dtype) != entry.dtype {
                return Err(EngineError::new(ErrorKind::Checkpoint, "its parts have several dtypes").file(&path).tensor(&entry.name));
            }
            parts.found.push(Found { file: number, offset: 8 + length + entry.start, shape: entry.shape, part });
        }
    }
    let shapes = shapes(dir)?;
    if !counted && shapes.is_empty() {
        notes.push(format!("the files of {} ranks do not say how many there were: a tensor ends where its last part ends", names.len()));
    }
    all.into_iter().map(|(name, parts)| tensor(&name, &parts, shapes.get(&name)).map_err(|e| e.file(dir).tensor(&name))).collect()
}

/// Global shapes, where a manifest of `load --save` tells them.
fn shapes(dir: &Path) -> Result<BTreeMap<String, Vec<u64>>> {
    match Manifest::read(dir) {
        Ok(manifest) => Ok(manifest.plan.tensors.iter().map(|t| (String::from(&t.name), t.shape.clone())).collect()),
        Err(_) => Ok(BTreeMap::new()),
    }
}

fn tensor(name: &str, parts: &Parts, shape: Option<&Vec<u64>>) -> Result<Tensor> {
    let error = |what: &str| EngineError::new(ErrorKind::Checkpoint, what);
    let dtype = parts.dtype.ok_or_else(|| error("it has no parts"))?;
    // Without a manifest: the smallest shape that holds every box.
    let bounds = || {
        let mut bounds = Vec::new();
        for found in &parts.found {
            let Part::SavedOffsets(at) = &found.part else { return Err(error("flat parts need the manifest of the save")) };
            bounds.resize(at.len().max(bounds.len()), 0);
            if at.len() != bounds.len() || found.shape.len() != bounds.len() {
                return Err(error("its parts have several numbers of dims"));
            }
            for (bound, (at, size)) in bounds.iter_mut().zip(at.iter().zip(&found.shape)) {
                *bound = at.checked_add(*size).ok_or_else(|| error("its size overflows"))?.max(*bound);
            }
        }
        Ok(bounds)
    };
    let shape = shape.map_or_else(bounds, |s| Ok(s.clone()))?;
    let mut extents = Vec::new();
    for Found { file, offset, shape: sizes, part } in &parts.found {
        match part {
            Part::Flat { start, valid, .. } => extents.push(Extent::flat(*file, *offset, *start, *valid)),
            Part::SavedOffsets(at) => {
                let inside = at.len() == shape.len()
                    && sizes.len() == shape.len()
                    && (0..shape.len()).all(|d| at[d].checked_add(sizes[d]).is_some_and(|end| end <= shape[d]));
                if !inside {
                    return Err(error("a part lies outside of it")
                        .expected(format_args!("{shape:?}"))
                        .found(format_args!("{sizes:?} at {at:?}")));
                }
                if sizes.contains(&0) {
                    continue;
                }
                let mut strides = vec![1u64; sizes.len()];
                for dim in (1..sizes.len()).rev() {
                    strides[dim - 1] = strides[dim] * sizes[dim];
                }
                extents.push(Extent::boxed(*file, *offset, &shape, at, sizes, &strides));
            }
        }
    }
    Ok(Tensor { name: name.to_owned(), kind: Kind::Trained, data: Data::new(dtype, shape, extents)? })
}
