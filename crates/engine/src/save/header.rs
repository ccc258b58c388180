//! The header of a rank's safetensors file, proven by the `safetensors` crate before a byte of it is written.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::{Value, json};
use shardwright_core::{DType, ShardPlan};

use super::{
    entries::{Entry, Part},
    names::Format,
};

/// What `safetensors` and torch refuse beyond.
const MAX_HEADER: usize = 100_000_000;

/// The first bytes of `rank`'s file: the length, the header, spaces up to a multiple of 8.
///
/// # Errors
/// A dtype that safetensors has no name for, or a header that is too large.
pub fn header(plan: &ShardPlan, rank: u32, entries: &[Entry]) -> Result<Vec<u8>, String> {
    let (mut offset, mut tensors) = (0usize, Vec::with_capacity(entries.len()));
    for entry in entries {
        let name = plan.tensors[entry.tensor].name.as_str();
        let size = |n: &u64| usize::try_from(*n).map_err(|_| format!("tensor '{name}': {n} is beyond this machine"));
        let end = offset.checked_add(size(&entry.bytes)?).ok_or("the file's size overflows")?;
        let shape = entry.shape.iter().map(size).collect::<Result<_, _>>()?;
        tensors.push((name, TensorInfo { dtype: dtype(entry.dtype)?, shape, data_offsets: (offset, end) }));
        offset = end;
    }
    let metadata = match Format::of(plan) {
        Format::TorchDcp => torch_metadata(plan, entries),
        Format::Flat => flat_metadata(plan, rank, entries),
    };
    let mut json = serde_json::to_vec(&Header { metadata, tensors }).map_err(|e| e.to_string())?;
    serde_json::from_slice::<Metadata>(&json).map_err(|e| format!("the safetensors crate refuses the header: {e}"))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() > MAX_HEADER {
        return Err(format!("a header of {} bytes is beyond the {MAX_HEADER} that safetensors reads", json.len()));
    }
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

/// As [`Metadata`] serialises, but with its strings in a fixed order.
struct Header<'a> {
    metadata: BTreeMap<&'static str, String>,
    tensors: Vec<(&'a str, TensorInfo)>,
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(self.tensors.len() + 1))?;
        map.serialize_entry("__metadata__", &self.metadata)?;
        self.tensors.iter().try_for_each(|(name, info)| map.serialize_entry(name, info))?;
        map.end()
    }
}

/// What torch 2.15's `_write_files_from_queue` puts there.
fn torch_metadata(plan: &ShardPlan, entries: &[Entry]) -> BTreeMap<&'static str, String> {
    let sharding = entries.iter().map(|e| (plan.tensors[e.tensor].name.to_string(), json!(e.part)));
    BTreeMap::from([
        ("DCP_SHARDING_INFO", Value::Object(sharding.collect()).to_string()),
        ("DCP_VERSION", "1.0".to_owned()),
        ("format", "pt".to_owned()),
    ])
}

fn flat_metadata(plan: &ShardPlan, rank: u32, entries: &[Entry]) -> BTreeMap<&'static str, String> {
    let tensor = |entry: &Entry| {
        let tensor = &plan.tensors[entry.tensor];
        let mut told = json!({ "kind": tensor.kind, "shape": tensor.shape, "numel": tensor.numel(), "dtype": entry.dtype });
        match &entry.part {
            Part::Flat { start, valid, padding } => {
                told["start"] = json!(start);
                told["valid"] = json!(valid);
                told["padding"] = json!(padding);
            }
            Part::SavedOffsets(offsets) => told["saved_offsets"] = json!(offsets),
        }
        (tensor.name.to_string(), told)
    };
    BTreeMap::from([
        ("format", "pt".to_owned()),
        ("partitions", Value::Object(entries.iter().map(tensor).collect()).to_string()),
        ("rank", rank.to_string()),
        ("strategy", plan.strategy.clone()),
        ("world_size", plan.mesh.world_size().to_string()),
    ])
}

fn dtype(dtype: DType) -> Result<Dtype, String> {
    let name = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(dtype.safetensors_name());
    serde::Deserialize::deserialize(name).map_err(|_| format!("safetensors has no dtype '{}'", dtype.safetensors_name()))
}

/// The dtype of that safetensors name.
pub(crate) fn dtype_of(dtype: Dtype) -> Option<DType> {
    DType::from_safetensors(&dtype.to_string())
}

/// Reads what [`header`] put into the metadata back: which part of the whole tensor each entry is.
///
/// # Errors
/// What is wrong with it.
pub fn parts(metadata: &Metadata) -> Result<BTreeMap<String, Part>, String> {
    let strings = metadata.metadata().as_ref().ok_or("its header has no metadata")?;
    let (key, text) = ["DCP_SHARDING_INFO", "partitions"]
        .into_iter()
        .find_map(|key| Some((key, strings.get(key)?)))
        .ok_or("its metadata tells neither DCP_SHARDING_INFO nor partitions")?;
    let told: BTreeMap<String, Value> = serde_json::from_str(text).map_err(|e| format!("its {key} is not what was expected: {e}"))?;
    told.into_iter()
        .map(|(name, value)| match part_of(&value) {
            Some(part) => Ok((name, part)),
            None => Err(format!("its {key} does not tell which part of tensor '{name}' it holds")),
        })
        .collect()
}

fn part_of(value: &Value) -> Option<Part> {
    let number = |key: &str| value.get(key)?.as_u64();
    match value.get("saved_offsets") {
        Some(offsets) => offsets.as_array()?.iter().map(Value::as_u64).collect::<Option<_>>().map(Part::SavedOffsets),
        None => Some(Part::Flat { start: number("start")?, valid: number("valid")?, padding: number("padding")? }),
    }
}
