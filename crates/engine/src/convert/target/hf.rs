//! Hugging Face directories: whole tensors in files of a bounded size, or each rank's rows in a file of its own.

use serde::{
    Serialize, Serializer,
    ser::{Error as _, SerializeMap as _},
};
use shardwright_core::DType;

use super::planner::{Planned, Planner, all, chunk};
use crate::{
    contents::{Kind, Tensor},
    convert::{
        files::{FilePlan, OutFile, Part},
        names::{Names, OfHub},
    },
    error::{EngineError, ErrorKind, Result},
    saved::header::WORLD_SIZE,
};

/// One tensor of a file.
struct Entry<'a> {
    name: std::borrow::Cow<'a, str>,
    dtype: DType,
    shape: Vec<u64>,
    parts: Vec<Part<'a>>,
    offsets: Option<Vec<u64>>,
}

impl Entry<'_> {
    fn bytes(&self) -> u64 {
        shardwright_core::model::numel(&self.shape).and_then(|n| self.dtype.bytes(n)).unwrap_or(0)
    }
}

impl<'a> Planner<'a> {
    pub(super) fn hf(&self) -> Result<Planned<'a>> {
        let mut files: Vec<Vec<Entry<'a>>> = vec![Vec::new()];
        let mut size = 0u64;
        let entries = match self.options.names {
            Some(Names::Hub) => self.of_hub()?,
            _ => {
                let entry = |tensor: &'a Tensor| Entry {
                    name: tensor.name.as_str().into(),
                    dtype: self.dtype(tensor),
                    shape: tensor.data.shape.clone(),
                    parts: all(&tensor.data),
                    offsets: None,
                };
                self.contents.tensors.iter().map(entry).collect()
            }
        };
        for entry in entries {
            let bytes = entry.bytes();
            if size > 0 && size.saturating_add(bytes) > self.options.max_file_size {
                files.push(Vec::new());
                size = 0;
            }
            size += bytes;
            if let Some(last) = files.last_mut() {
                last.push(entry);
            }
        }
        let count = files.len();
        let name = |number: usize| match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let (mut map, mut total, mut parameters) = (Vec::new(), 0u64, 0u64);
        let mut out = Vec::new();
        for (number, entries) in files.into_iter().enumerate() {
            for entry in &entries {
                map.push((entry.name.clone(), number));
                total += entry.bytes();
                parameters += shardwright_core::model::numel(&entry.shape).unwrap_or(0);
            }
            out.push(file(name(number), entries, None)?.into());
        }
        if count > 1 {
            let names: Vec<String> = (0..count).map(name).collect();
            let weight_map = Entries(map.iter().map(|(tensor, number)| (&**tensor, names[*number].as_str())).collect());
            let index = Index { metadata: Totals { total_parameters: parameters, total_size: total }, weight_map };
            let mut text = Vec::new();
            let written = serde_json::to_writer_pretty(&mut text, &index);
            written.map_err(|e| EngineError::new(ErrorKind::Checkpoint, format!("the index cannot be written: {e}")))?;
            text.push(b'\n');
            out.push(OutFile::literal("model.safetensors.index.json", text).into());
        }
        let mut lost = self.lost_with_weights();
        if !self.contents.aliases.is_empty() {
            let names: Vec<&str> = self.contents.aliases.iter().map(|(alias, _)| alias.as_str()).collect();
            lost.push(format!("tied names, which from_pretrained ties again: {}", names.join(", ")));
        }
        Ok(Planned { files: out, lost })
    }

    pub(super) fn hf_sharded(&self) -> Result<Planned<'a>> {
        let file = |rank| {
            let planner = self.clone();
            FilePlan::deferred(move || planner.shard(rank))
        };
        Ok(Planned { files: (0..self.ranks()).map(file).collect::<Result<_>>()?, lost: self.lost_with_weights() })
    }

    /// A rank's file.
    fn shard(&self, rank: u64) -> Result<OutFile<'a>> {
        let mut entries = Vec::new();
        for (name, tensor) in self.with_aliases() {
            let dtype = self.dtype(tensor);
            let found = match tensor.kind {
                Kind::Buffer if rank > 0 => None,
                Kind::Buffer => Some((vec![0; tensor.data.shape.len()], tensor.data.shape.clone(), all(&tensor.data))),
                _ => chunk(&tensor.data, self.ranks(), rank),
            };
            entries.extend(found.map(|(offsets, shape, parts)| Entry { name: name.into(), dtype, shape, parts, offsets: Some(offsets) }));
        }
        file(format!("shard-{:05}-model-00001-of-00001.safetensors", rank + 1), entries, Some(self.ranks()))
    }

    /// Tensors as files on the hub hold them.
    fn of_hub(&self) -> Result<Vec<Entry<'a>>> {
        let contents = self.contents;
        let dir = self.options.config.as_deref().unwrap_or(&contents.path);
        let entry = |tensor: OfHub| {
            let dtype = match (self.options.dtype, tensor.kind) {
                (Some(dtype), Kind::Trained | Kind::Frozen) if tensor.meta.dtype.is_float() => dtype,
                _ => tensor.meta.dtype,
            };
            let part = |(index, start, length): (usize, u64, u64)| Part::Elements(&contents.tensors[index].data, start..start + length);
            Entry {
                name: tensor.meta.name.to_string().into(),
                dtype,
                shape: tensor.meta.shape,
                parts: tensor.runs.into_iter().map(part).collect(),
                offsets: None,
            }
        };
        Ok(contents.of_hub(dir)?.into_iter().map(entry).collect())
    }

    fn lost_with_weights(&self) -> Vec<String> {
        let mut lost = Vec::new();
        if let Some(optimizer) = &self.contents.optimizer {
            let states: Vec<&str> = optimizer.state_names().into_iter().collect();
            lost.push(format!("the optimizer: groups, steps, {} of {} parameters", states.join(", "), optimizer.states.len()));
        }
        self.lose_values(&mut lost, &[]);
        lost
    }
}

/// A safetensors file. Wide dtypes come first, so that each tensor is aligned.
fn file<'a>(name: String, mut entries: Vec<Entry<'a>>, ranks: Option<u64>) -> Result<OutFile<'a>> {
    entries.sort_by(|a, b| b.dtype.bits().cmp(&a.dtype.bits()).then(a.name.cmp(&b.name)));
    entries
        .iter()
        .try_fold(0u64, |at, entry| at.checked_add(entry.bytes()))
        .ok_or_else(|| EngineError::new(ErrorKind::Checkpoint, "the file's size overflows"))?;
    let mut text = json_of(&Header { entries: &entries, ranks })?;
    text.resize(text.len().next_multiple_of(8), b' ');
    text.shrink_to_fit();
    let mut file = OutFile::new(name);
    file.append((text.len() as u64).to_le_bytes().to_vec());
    file.append(text);
    for entry in entries {
        file.elements(entry.dtype, entry.parts)?;
    }
    Ok(file)
}

fn json_of(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| EngineError::new(ErrorKind::Checkpoint, format!("a header cannot be written: {e}")))
}

/// A file's header, written as it is gone through: a file may have hundreds of thousands of tensors.
struct Header<'a, 'e> {
    entries: &'e [Entry<'a>],
    /// Of how many ranks the file is one's.
    ranks: Option<u64>,
}

#[derive(Serialize)]
struct Info<'e> {
    dtype: &'static str,
    shape: &'e [u64],
    data_offsets: [u64; 2],
}

#[derive(Serialize)]
struct Place<'e> {
    saved_offsets: Option<&'e [u64]>,
}

impl Serialize for Header<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.entries.len() + 1))?;
        map.serialize_entry("__metadata__", &Metadata(self))?;
        let mut at = 0;
        for entry in self.entries {
            let end = at + entry.bytes();
            let info = Info { dtype: entry.dtype.safetensors_name(), shape: &entry.shape, data_offsets: [at, end] };
            map.serialize_entry(&*entry.name, &info)?;
            at = end;
        }
        map.end()
    }
}

/// Where a rank's rows stand in each tensor, in the text that torch's reader wants, and the format.
struct Metadata<'h, 'a, 'e>(&'h Header<'a, 'e>);

impl Serialize for Metadata<'_, '_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(ranks) = self.0.ranks {
            let places = self.0.entries.iter().map(|e| (&*e.name, Place { saved_offsets: e.offsets.as_deref() }));
            let text = serde_json::to_string(&Entries(places.collect())).map_err(S::Error::custom)?;
            map.serialize_entry("DCP_SHARDING_INFO", &text)?;
            map.serialize_entry("DCP_VERSION", "1.0")?;
            map.serialize_entry(WORLD_SIZE, &ranks.to_string())?;
        }
        map.serialize_entry("format", "pt")?;
        map.end()
    }
}

#[derive(Serialize)]
struct Index<'e> {
    metadata: Totals,
    weight_map: Entries<'e, &'e str>,
}

#[derive(Serialize)]
struct Totals {
    total_parameters: u64,
    total_size: u64,
}

/// A map in the order of its entries.
struct Entries<'e, V>(Vec<(&'e str, V)>);

impl<V: Serialize> Serialize for Entries<'_, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}
