//! The header of a rank's safetensors file, validated by the `safetensors` crate before a byte of it is written.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use safetensors::tensor::{Dtype, Metadata};
use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap as _};
use shardwright_core::{DType, ShardPlan, TensorKind, TensorPlan};

use super::entries::{Entries, Entry, Part};
use crate::filenames::Format;

/// Tensors that the `safetensors` crate is shown at once.
const VALIDATED_AT_ONCE: usize = 4096;
/// Bytes of the header's length, before the header.
const LENGTH: usize = 8;
/// What `safetensors` and torch refuse beyond.
const MAX_HEADER: usize = 100_000_000;

/// The first bytes of `rank`'s file: the length, the header, spaces up to a multiple of 8.
///
/// # Errors
/// A dtype that safetensors has no name for, or a header that is too large.
pub fn header(plan: &ShardPlan, rank: u32, entries: &Entries<'_>) -> Result<Vec<u8>, String> {
    let mut end = 0u64;
    for entry in entries.iter() {
        dtype(entry.dtype)?;
        end = end.checked_add(entry.bytes).ok_or("the file's size overflows")?;
    }
    // Validated in parts: validating the whole would take many times the header's memory.
    for start in (0..entries.len()).step_by(VALIDATED_AT_ONCE) {
        let range = start..(start + VALIDATED_AT_ONCE).min(entries.len());
        let text = serde_json::to_vec(&Header { metadata: BTreeMap::new(), entries, range }).map_err(|e| e.to_string())?;
        serde_json::from_slice::<Metadata>(&text).map_err(|e| format!("the safetensors crate refuses the header: {e}"))?;
    }
    let mut bytes = vec![0; LENGTH];
    let header = Header { metadata: metadata(plan, rank, entries)?, entries, range: 0..entries.len() };
    serde_json::to_writer(&mut bytes, &header).map_err(|e| e.to_string())?;
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    let length = bytes.len() - LENGTH;
    if length > MAX_HEADER {
        return Err(format!("a header of {length} bytes is beyond the {MAX_HEADER} that safetensors reads"));
    }
    bytes[..LENGTH].copy_from_slice(&(length as u64).to_le_bytes());
    Ok(bytes)
}

/// As [`Metadata`] serialises, but with its strings in a fixed order, and without a copy of the entries.
struct Header<'a> {
    metadata: BTreeMap<&'static str, String>,
    entries: &'a Entries<'a>,
    /// Which of them, in the order of the bytes.
    range: Range<usize>,
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Info<'a> {
            dtype: &'static str,
            shape: &'a [u64],
            data_offsets: [u64; 2],
        }
        let mut map = s.serialize_map(Some(self.range.len() + 1))?;
        map.serialize_entry("__metadata__", &self.metadata)?;
        let mut start = 0;
        for entry in self.entries.range(self.range.clone()) {
            let end = start + entry.bytes;
            let info = Info { dtype: entry.dtype.safetensors_name(), shape: &entry.shape, data_offsets: [start, end] };
            map.serialize_entry(entry.name.as_str(), &info)?;
            start = end;
        }
        map.end()
    }
}

/// The metadata's strings: for torch's format what torch 2.15's `_write_files_from_queue` puts there.
fn metadata(plan: &ShardPlan, rank: u32, entries: &Entries<'_>) -> Result<BTreeMap<&'static str, String>, String> {
    let parts = |flat| serde_json::to_string(&Parts { plan, entries, flat }).map_err(|e| e.to_string());
    Ok(match Format::of(plan) {
        Format::TorchDcp => {
            BTreeMap::from([("DCP_SHARDING_INFO", parts(false)?), ("DCP_VERSION", "1.0".to_owned()), ("format", "pt".to_owned())])
        }
        Format::Flat => BTreeMap::from([
            ("format", "pt".to_owned()),
            ("partitions", parts(true)?),
            ("rank", rank.to_string()),
            ("strategy", plan.strategy.clone()),
            ("world_size", plan.mesh.world_size().to_string()),
        ]),
    })
}

/// What a file of flat partitions tells of a tensor.
#[derive(Serialize)]
struct Partition<'a> {
    kind: TensorKind,
    shape: &'a [u64],
    numel: u64,
    dtype: DType,
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    padding: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    saved_offsets: Option<&'a [u64]>,
}

impl<'a> Partition<'a> {
    fn new(tensor: &'a TensorPlan, entry: &'a Entry) -> Self {
        let (kind, shape, numel, dtype) = (tensor.kind, tensor.shape.as_slice(), tensor.numel(), entry.dtype);
        let (flat, saved_offsets) = match &entry.part {
            &Part::Flat { start, valid, padding } => (Some((start, valid, padding)), None),
            Part::SavedOffsets(offsets) => (None, Some(offsets.as_slice())),
        };
        let [start, valid, padding] = [flat.map(|f| f.0), flat.map(|f| f.1), flat.map(|f| f.2)];
        Self { kind, shape, numel, dtype, start, valid, padding, saved_offsets }
    }
}

/// Each entry's part of the whole tensor, by name; of flat partitions with what else is to know of the tensor.
struct Parts<'a> {
    plan: &'a ShardPlan,
    entries: &'a Entries<'a>,
    flat: bool,
}

impl Serialize for Parts<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(self.entries.len()))?;
        for entry in self.entries.iter() {
            if self.flat {
                map.serialize_entry(entry.name.as_str(), &Partition::new(&self.plan.tensors[entry.tensor], &entry))?;
            } else {
                map.serialize_entry(entry.name.as_str(), &entry.part)?;
            }
        }
        map.end()
    }
}

pub(crate) fn dtype(dtype: DType) -> Result<Dtype, String> {
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
pub fn parts(metadata: &HashMap<String, String>) -> Result<BTreeMap<String, Part>, String> {
    let (key, text) = ["DCP_SHARDING_INFO", "partitions"]
        .into_iter()
        .find_map(|key| Some((key, metadata.get(key)?)))
        .ok_or("its metadata has neither DCP_SHARDING_INFO nor partitions")?;
    let parts: BTreeMap<String, AnyPart> = serde_json::from_str(text).map_err(|e| format!("its {key} is not what was expected: {e}"))?;
    let part = |(name, part): (String, AnyPart)| match part.known() {
        Some(part) => Ok((name, part)),
        None => Err(format!("its {key} does not say which part of tensor '{name}' it holds")),
    };
    parts.into_iter().map(part).collect()
}

/// A part as a file tells it; whatever else it says is ignored.
#[derive(Deserialize)]
struct AnyPart {
    saved_offsets: Option<Vec<u64>>,
    start: Option<u64>,
    valid: Option<u64>,
    padding: Option<u64>,
}

impl AnyPart {
    fn known(self) -> Option<Part> {
        match self.saved_offsets {
            Some(offsets) => Some(Part::SavedOffsets(offsets)),
            None => Some(Part::Flat { start: self.start?, valid: self.valid?, padding: self.padding? }),
        }
    }
}
