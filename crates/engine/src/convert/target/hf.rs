//! Hugging Face directories: whole tensors in files of a bounded size, or each rank's rows in a file of its own.

use serde_json::{Map, Value, json};
use shardwright_core::DType;

use super::planner::{Planned, Planner, all, chunk};
use crate::{
    contents::{Kind, Tensor},
    convert::{
        names::{Names, OfHub},
        write::{OutFile, Part},
    },
    error::{EngineError, ErrorKind, Result},
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

impl<'a> Planner<'a, '_> {
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
        let (mut map, mut total, mut parameters) = (Map::new(), 0u64, 0u64);
        let mut out = Vec::new();
        for (number, entries) in files.into_iter().enumerate() {
            for entry in &entries {
                map.insert(entry.name.to_string(), Value::String(name(number)));
                total += entry.bytes();
                parameters += shardwright_core::model::numel(&entry.shape).unwrap_or(0);
            }
            out.push(file(name(number), entries, false)?);
        }
        if count > 1 {
            let index = json!({ "metadata": { "total_parameters": parameters, "total_size": total }, "weight_map": map });
            out.push(OutFile::literal("model.safetensors.index.json", format!("{index:#}\n").into_bytes()));
        }
        let mut lost = self.lost_with_weights();
        if !self.contents.aliases.is_empty() {
            let names: Vec<&str> = self.contents.aliases.iter().map(|(alias, _)| alias.as_str()).collect();
            lost.push(format!("tied names, which from_pretrained ties again: {}", names.join(", ")));
        }
        Ok(Planned { files: out, lost })
    }

    pub(super) fn hf_sharded(&self) -> Result<Planned<'a>> {
        let ranks = self.ranks();
        let mut out = Vec::new();
        for rank in 0..ranks {
            let mut entries = Vec::new();
            for (name, tensor) in self.with_aliases() {
                let dtype = self.dtype(tensor);
                let found = match tensor.kind {
                    Kind::Buffer if rank > 0 => None,
                    Kind::Buffer => Some((vec![0; tensor.data.shape.len()], tensor.data.shape.clone(), all(&tensor.data))),
                    _ => chunk(&tensor.data, ranks, rank),
                };
                entries.extend(found.map(|(offsets, shape, parts)| Entry {
                    name: name.into(),
                    dtype,
                    shape,
                    parts,
                    offsets: Some(offsets),
                }));
            }
            out.push(file(format!("shard-{:05}-model-00001-of-00001.safetensors", rank + 1), entries, true)?);
        }
        Ok(Planned { files: out, lost: self.lost_with_weights() })
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
fn file<'a>(name: String, mut entries: Vec<Entry<'a>>, of_rank: bool) -> Result<OutFile<'a>> {
    entries.sort_by(|a, b| b.dtype.bits().cmp(&a.dtype.bits()).then(a.name.cmp(&b.name)));
    let mut header = Map::new();
    let mut metadata = Map::new();
    if of_rank {
        let offsets = entries.iter().map(|e| (e.name.to_string(), json!({ "saved_offsets": e.offsets })));
        metadata.insert("DCP_SHARDING_INFO".into(), Value::Object(offsets.collect()).to_string().into());
        metadata.insert("DCP_VERSION".into(), "1.0".into());
    }
    metadata.insert("format".into(), "pt".into());
    header.insert("__metadata__".into(), Value::Object(metadata));
    let mut at = 0u64;
    for entry in &entries {
        let end = at.checked_add(entry.bytes()).ok_or_else(|| EngineError::new(ErrorKind::Checkpoint, "the file's size overflows"))?;
        let info = json!({ "dtype": entry.dtype.safetensors_name(), "shape": entry.shape, "data_offsets": [at, end] });
        header.insert(entry.name.to_string(), info);
        at = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut file = OutFile::new(name);
    file.append((text.len() as u64).to_le_bytes().to_vec());
    file.append(text);
    for entry in entries {
        file.elements(entry.dtype, entry.parts)?;
    }
    Ok(file)
}
