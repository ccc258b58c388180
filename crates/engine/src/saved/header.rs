//! The header of a rank's safetensors file, validated by the `safetensors` crate before a byte of it is written.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt, io,
    ops::Range,
};

use safetensors::tensor::{Dtype, Metadata};
use serde::{
    Deserialize, Deserializer as _, Serialize, Serializer,
    de::{Error as _, MapAccess, Visitor},
    ser::SerializeMap as _,
};
use shardwright_core::{DType, ShardPlan, TensorKind, TensorPlan};

use super::{
    entries::{Entries, Entry, Part},
    manifest::VERSION,
};
use crate::filenames::Format;

/// Tensors that the `safetensors` crate is shown at once.
const VALIDATED_AT_ONCE: usize = 4096;
/// Bytes of the header's length, before the header.
const LENGTH: usize = 8;
/// In the metadata of shards in torch's format: these are part of a save, which is whole only with its manifest. Other writers' shards lack it.
pub(crate) const SAVE_KEY: &str = "shardwright_save";
/// In the metadata: how many files there are, one for each rank.
pub(crate) const WORLD_SIZE: &str = "world_size";
/// What `safetensors` and torch refuse beyond.
const MAX_HEADER: usize = 100_000_000;

/// The first bytes of a rank's file: the length, the header, spaces up to a multiple of 8. Written piece by piece, never held whole.
#[derive(Debug)]
pub struct HeaderText<'a> {
    header: Header<'a>,
    /// Bytes of the header, spaces left out.
    length: usize,
}

/// The header of `rank`'s file, validated.
///
/// # Errors
/// A dtype that safetensors has no name for, or a header that is too large.
pub fn header<'a>(plan: &'a ShardPlan, rank: u32, entries: &'a Entries<'a>) -> Result<HeaderText<'a>, String> {
    let mut end = 0u64;
    for entry in entries.iter() {
        dtype(entry.dtype)?;
        end = end.checked_add(entry.bytes).ok_or("the file's size overflows")?;
    }
    // Validated in parts: validating the whole would take many times the header's memory.
    for start in (0..entries.len()).step_by(VALIDATED_AT_ONCE) {
        let range = start..(start + VALIDATED_AT_ONCE).min(entries.len());
        let text = serde_json::to_vec(&Header { metadata: None, entries, range }).map_err(|e| e.to_string())?;
        serde_json::from_slice::<Metadata>(&text).map_err(|e| format!("the safetensors crate refuses the header: {e}"))?;
    }
    let header = Header { metadata: Some(Strings { plan, rank, entries }), entries, range: 0..entries.len() };
    let mut count = Count(0);
    serde_json::to_writer(&mut count, &header).map_err(|e| e.to_string())?;
    let text = HeaderText { header, length: count.0 };
    match text.padded() {
        length if length > MAX_HEADER => Err(format!("a header of {length} bytes is beyond the {MAX_HEADER} that safetensors reads")),
        _ => Ok(text),
    }
}

impl HeaderText<'_> {
    /// Bytes of the header, spaces included.
    fn padded(&self) -> usize {
        self.length.next_multiple_of(LENGTH)
    }

    /// Passes all of it on, in many small pieces.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, mut to: impl io::Write) -> io::Result<()> {
        to.write_all(&(self.padded() as u64).to_le_bytes())?;
        serde_json::to_writer(&mut to, &self.header)?;
        to.write_all(&b"        "[..self.padded() - self.length])
    }
}

/// Counts what is written.
struct Count(usize);

impl io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// As [`Metadata`] serialises, but with its strings in a fixed order, and without a copy of the entries.
#[derive(Debug)]
struct Header<'a> {
    metadata: Option<Strings<'a>>,
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
        let mut map = s.serialize_map(None)?;
        if let Some(metadata) = &self.metadata {
            map.serialize_entry("__metadata__", metadata)?;
        }
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

/// The metadata's strings: for torch's format what torch 2.15's `_write_files_from_queue` puts there, and [`SAVE_KEY`].
#[derive(Debug)]
struct Strings<'a> {
    plan: &'a ShardPlan,
    rank: u32,
    entries: &'a Entries<'a>,
}

impl Serialize for Strings<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let parts = |flat| JsonText(Parts { plan: self.plan, entries: self.entries, flat });
        let mut map = s.serialize_map(None)?;
        match Format::of(self.plan) {
            Format::TorchDcp => {
                map.serialize_entry("DCP_SHARDING_INFO", &parts(false))?;
                map.serialize_entry("DCP_VERSION", "1.0")?;
                map.serialize_entry("format", "pt")?;
                map.serialize_entry(SAVE_KEY, &VERSION.to_string())?;
                map.serialize_entry(WORLD_SIZE, &self.plan.mesh.world_size().to_string())?;
            }
            Format::Flat => {
                map.serialize_entry("format", "pt")?;
                map.serialize_entry("partitions", &parts(true))?;
                map.serialize_entry("rank", &self.rank.to_string())?;
                map.serialize_entry("strategy", &self.plan.strategy)?;
                map.serialize_entry(WORLD_SIZE, &self.plan.mesh.world_size().to_string())?;
            }
        }
        map.end()
    }
}

/// The JSON text of a value as a string, passed on as it is made.
struct JsonText<T>(T);

impl<T: Serialize> Serialize for JsonText<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<T: Serialize> fmt::Display for JsonText<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        serde_json::to_writer(ToText(f), &self.0).map_err(|_| fmt::Error)
    }
}

/// Takes the pieces that serde_json writes, each of which is UTF-8.
struct ToText<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl io::Write for ToText<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = std::str::from_utf8(bytes).map_err(io::Error::other)?;
        self.0.write_str(text).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
    let mut parts = BTreeMap::new();
    each_part(metadata, |name, part| {
        parts.insert(name.to_owned(), part);
    })?;
    Ok(parts)
}

/// Shows each part that [`header`] put into the metadata to `take`, with the name of its tensor, one at a time: there may be a million.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn each_part(metadata: &HashMap<String, String>, take: impl FnMut(&str, Part)) -> Result<(), String> {
    struct Each<F>(F);
    impl<'de, F: FnMut(&str, Part)> Visitor<'de> for Each<F> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of tensors")
        }
        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some(Borrowed(name)) = map.next_key()? {
                let part = map.next_value::<AnyPart>()?.known();
                let unknown = || A::Error::custom(format_args!("it does not say which part of tensor '{name}' it holds"));
                (self.0)(&name, part.ok_or_else(unknown)?);
            }
            Ok(())
        }
    }
    let (key, text) = ["DCP_SHARDING_INFO", "partitions"]
        .into_iter()
        .find_map(|key| Some((key, metadata.get(key)?)))
        .ok_or("its metadata has neither DCP_SHARDING_INFO nor partitions")?;
    let mut json = serde_json::Deserializer::from_str(text);
    let read = json.deserialize_map(Each(take)).and_then(|()| json.end());
    read.map_err(|e| format!("its {key} is not what was expected: {e}"))
}

/// A name that is borrowed from its text where it has no escapes.
#[derive(Deserialize)]
struct Borrowed<'a>(#[serde(borrow)] Cow<'a, str>);

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
