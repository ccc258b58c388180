//! `model.safetensors.index.json`: which tensor is in which file. File names are untrusted: plain relative names only.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Component, Path, PathBuf},
};

use serde::{
    Deserialize,
    de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor},
};

use super::header::MAX_HEADER;
use crate::{
    error::{EngineError, ErrorKind, Result},
    file::read_bounded,
};

/// The index's file name.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// An index holds a line per tensor; the limit is that of the headers.
const MAX_INDEX: u64 = MAX_HEADER;

/// A parsed index.
#[derive(Debug)]
#[non_exhaustive]
pub struct Index {
    /// Where it was read.
    pub path: PathBuf,
    /// The files it names, sorted.
    pub files: Vec<String>,
    /// Tensors, sorted by name, each with its file as an index into `files`.
    pub weights: Vec<(String, usize)>,
    /// `metadata.total_size`, where it is a number.
    pub total_size: Option<u64>,
}

pub(super) fn read(path: &Path) -> Result<Index> {
    let text = read_bounded(path, MAX_INDEX, "the index is too long")?;
    let mut index = parse_index(&text).map_err(|e| e.file(path))?;
    index.path = path.to_owned();
    Ok(index)
}

/// Parses an index. The error names no file: the caller knows it.
///
/// # Errors
/// [`ErrorKind::Checkpoint`] for JSON that is no index, a tensor named twice, and a file name that leaves the directory.
pub fn parse_index(text: &[u8]) -> Result<Index> {
    let raw: RawIndex = serde_json::from_slice(text)
        .map_err(|cause| EngineError::new(ErrorKind::Checkpoint, format!("not a safetensors index: {cause}")))?;
    let mut weights = raw.weight_map.0;
    weights.sort_unstable();
    if let Some(twice) = weights.windows(2).find(|w| w[0].0 == w[1].0) {
        return Err(EngineError::new(ErrorKind::Checkpoint, "the name occurs twice in the index").tensor(&twice[0].0));
    }
    let mut files: Vec<String> = weights.iter().map(|w| w.1.clone()).collect();
    files.sort_unstable();
    files.dedup();
    if let Some(name) = files.iter().find(|name| !is_plain(name)) {
        let tensor = weights.iter().find(|w| w.1 == *name).map_or("", |w| w.0.as_str());
        return Err(EngineError::new(ErrorKind::Checkpoint, "the index names a file outside of the checkpoint's directory")
            .tensor(tensor)
            .found(format_args!("'{name}'")));
    }
    let numbers: BTreeMap<&str, usize> = files.iter().enumerate().map(|(i, f)| (f.as_str(), i)).collect();
    let weights = weights.into_iter().map(|(tensor, file)| (tensor, numbers[file.as_str()])).collect();
    Ok(Index { path: PathBuf::new(), files, weights, total_size: raw.total_size })
}

/// A relative path of normal components only.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.contains('\0') && Path::new(name).components().all(|c| matches!(c, Component::Normal(_)))
}

struct RawIndex {
    weight_map: WeightMap,
    total_size: Option<u64>,
}

/// By hand, for derived deserialization would keep the last of two equal keys of `weight_map`.
impl<'de> Deserialize<'de> for RawIndex {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Index;
        impl<'de> Visitor<'de> for Index {
            type Value = RawIndex;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a weight_map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawIndex, A::Error> {
                let (mut weights, mut total_size) = (None, None);
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "weight_map" if weights.is_some() => return Err(A::Error::custom("weight_map occurs twice")),
                        "weight_map" => weights = Some(map.next_value()?),
                        "metadata" => {
                            total_size = map.next_value::<Metadata>()?.0;
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(RawIndex { weight_map: weights.ok_or_else(|| A::Error::missing_field("weight_map"))?, total_size })
            }
        }
        d.deserialize_map(Index)
    }
}

/// `metadata.total_size`, where it is a whole number: transformers writes one, some tools a float. Of the rest nothing is kept.
struct Metadata(Option<u64>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object as metadata")
            }

            fn visit_unit<E>(self) -> Result<Metadata, E> {
                Ok(Metadata(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut total_size = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key == "total_size" {
                        total_size = map.next_value::<serde_json::Value>()?.as_u64();
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Metadata(total_size))
            }
        }
        d.deserialize_any(Fields)
    }
}

/// Tensor and file names, in file order, duplicates kept.
struct WeightMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Weights;
        impl<'de> Visitor<'de> for Weights {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of file names by tensor name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut weights = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    weights.push(entry);
                }
                Ok(WeightMap(weights))
            }
        }
        d.deserialize_map(Weights)
    }
}
