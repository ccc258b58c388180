//! The reader of `.metadata`. Chunks, the keys of items and their places leave the pickle for [`Table`] as soon as each is complete; in the end each
//! chunk is brought together with its place.

use std::collections::{BTreeMap, HashMap};

use shardwright_core::{DType, model::numel};

use super::{
    table::{ChunkEntry, PlaceEntry, Stretch, Table, TensorEntry, number, put},
    types::{Path, Place, Tensor, error},
};
use crate::{
    FormatError, ReadAt, Result,
    globals::Global,
    pickle::{Fold, Id, Node, Pickle, Plain, Values},
};

/// Bytes that `.metadata` may have.
pub const MAX_METADATA: u64 = 512 << 20;

/// Dims that a tensor of torch may have.
const MAX_DIMS: usize = 64;

/// What a directory holds.
#[derive(Clone, Debug)]
pub struct Metadata {
    table: Table,
    /// Sorted by name.
    tensors: Vec<TensorEntry>,
    /// The plain values, in the file's order, which is that of the optimizer's parameters where it was flattened.
    pub values: Vec<(String, Place)>,
    /// Where a name stands in the nested state dict, such as `["state", "a.weight", "exp_avg"]`; those that stand at its top are left out.
    pub paths: BTreeMap<String, Path>,
}

impl Metadata {
    /// Reads `.metadata`.
    ///
    /// # Errors
    /// What is malformed, or missing.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::read(bytes)
    }

    /// Reads `.metadata`, which is not held meanwhile.
    ///
    /// # Errors
    /// As [`Metadata::parse`], and what the source cannot read.
    pub fn read(source: &(impl ReadAt + ?Sized)) -> Result<Self> {
        if source.size() > MAX_METADATA {
            let error = FormatError::new("the metadata is too large");
            return Err(error.expected(format_args!("at most {MAX_METADATA} bytes")).found(source.size()));
        }
        metadata(source)
    }

    /// The tensors, sorted by name; each is made when it is asked for.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor> + '_ {
        self.tensors.iter().map(|entry| self.table.tensor(entry))
    }
}

fn metadata(source: &(impl ReadAt + ?Sized)) -> Result<Metadata> {
    let mut found = Found::default();
    let pickle = Pickle::folded(source, &mut found)?;
    let root = object(&pickle, pickle.root(), Global::Metadata)?;
    let items = Items::new(&pickle, field(&pickle, root, "storage_data")?, &mut found)?;
    let (mut tensors, mut values) = (Vec::with_capacity(found.tensors.len()), Vec::new());
    for (name, entry) in entries(&pickle, field(&pickle, root, "state_dict_metadata")?)? {
        let name = pickle.str(*name).ok_or_else(|| error("a name that is not a string"))?;
        if let Node::Call { global: Global::BytesMetadata, .. } = pickle.node(*entry) {
            let place = items.find(name, None).ok_or_else(|| error(format_args!("no place for value '{name}'")))?;
            values.push((name.to_owned(), found.table.place(place)));
            continue;
        }
        let tensor = unfolded(&pickle, *entry, Global::TensorMetadata).and_then(|number| found.placed(name, number, &items));
        tensors.push(tensor.map_err(|e| e.within(format_args!("tensor '{name}'")))?);
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(twice) = tensors.windows(2).find(|w| w[0].name == w[1].name) {
        return Err(error(format_args!("tensor '{}' twice", twice[0].name)));
    }
    let planner = pickle.get(root, "planner_data").and_then(|id| pickle.dict(id)).unwrap_or_default();
    let paths = planner.iter().filter_map(|(name, keys)| path(&pickle, *name, *keys)).collect();
    let mut table = found.table;
    table.shrink();
    Ok(Metadata { table, tensors, values, paths })
}

/// A name and its keys, unless they say no more than the name does.
fn path(values: &Values, name: Id, keys: Id) -> Option<(String, Path)> {
    let name = values.str(name)?;
    if let Some([key]) = values.items(keys)
        && values.str(*key) == Some(name)
    {
        return None;
    }
    match values.plain(keys) {
        Ok(Plain::Tuple(path) | Plain::List(path)) => Some((name.to_owned(), path)),
        _ => None,
    }
}

fn missing(global: Global) -> FormatError {
    error(format_args!("no {global:?} where one belongs"))
}

/// The state of an object of that class.
fn object(values: &Values, id: Id, global: Global) -> Result<Id> {
    values.call(id, global).and_then(|(_, state)| state).ok_or_else(|| missing(global))
}

fn field(values: &Values, state: Id, name: &str) -> Result<Id> {
    values.get(state, name).ok_or_else(|| error(format_args!("no '{name}'")))
}

fn entries(values: &Values, id: Id) -> Result<&[(Id, Id)]> {
    values.dict(id).ok_or_else(|| error("something else than a mapping"))
}

fn shape(values: &Values, id: Id) -> Result<Vec<u64>> {
    let dims = values.shape(id).ok_or_else(|| error("a size that is not one"))?;
    match dims.len() {
        0..=MAX_DIMS => Ok(dims),
        found => Err(error(format_args!("a size of {found} dims"))),
    }
}

/// Classes of which there are objects in [`Found`]. The number of one among all of them tells its class, and its number there.
const CLASSES: [Global; 4] = [Global::Chunk, Global::TensorMetadata, Global::MetadataIndex, Global::StorageInfo];

fn folded(number: u32, class: Global) -> Result<u32> {
    let place = (0..).zip(CLASSES).find(|(_, known)| *known == class).map(|(place, _)| place);
    place.and_then(|place: u32| number.checked_mul(4)?.checked_add(place)).ok_or_else(|| error("too many parts"))
}

/// The number of an object of that class.
fn unfolded(values: &Values, id: Id, class: Global) -> Result<u32> {
    match values.node(id) {
        Node::Folded(both) if CLASSES[both as usize % 4] == class => Ok(both / 4),
        _ => Err(missing(class)),
    }
}

/// What the pickle's objects hold, by class; an object's number is its place here.
#[derive(Default)]
struct Found {
    table: Table,
    chunks: Vec<Stretch>,
    tensors: Vec<State>,
    /// Chunks of tensors.
    members: Vec<u32>,
    keys: Vec<Key>,
    /// Offsets of keys.
    offsets: Vec<u64>,
    /// Places that are stored through a transform.
    transformed: Vec<u32>,
    names: Names,
    files: Names,
}

/// What `TensorStorageMetadata` says of a tensor.
#[derive(Clone, Copy)]
struct State {
    dtype: DType,
    shape: Stretch,
    chunks: Stretch,
}

/// What an item is found by: a name, and its first index, which values that are not tensors lack.
#[derive(Clone, Copy)]
struct Key {
    name: u32,
    offsets: Option<Stretch>,
}

/// Texts that occur again and again, by number.
#[derive(Default)]
struct Names(HashMap<Box<str>, u32>);

impl Names {
    fn number(&mut self, text: &str) -> Result<u32> {
        if let Some(number) = self.find(text) {
            return Ok(number);
        }
        let number = u32::try_from(self.0.len()).map_err(|_| error("too many names"))?;
        self.0.insert(text.into(), number);
        Ok(number)
    }

    fn find(&self, text: &str) -> Option<u32> {
        self.0.get(text).copied()
    }

    fn text(&self, number: u32) -> &str {
        self.0.iter().find(|(_, n)| **n == number).map_or("", |(text, _)| text)
    }
}

impl Fold for Found {
    fn object(&mut self, values: &Values, global: Global, state: Id) -> Result<Option<u32>> {
        let number = match global {
            Global::Chunk => self.chunk(values, state)?,
            Global::TensorMetadata => self.tensor(values, state)?,
            Global::MetadataIndex => self.key(values, state)?,
            Global::StorageInfo => self.place(values, state)?,
            _ => return Ok(None),
        };
        folded(number, global).map(Some)
    }
}

impl Found {
    fn chunk(&mut self, values: &Values, state: Id) -> Result<u32> {
        let (offsets, sizes) = (shape(values, field(values, state, "offsets")?)?, shape(values, field(values, state, "sizes")?)?);
        if offsets.len() != sizes.len() {
            return Err(error(format_args!("a chunk {sizes:?} at {offsets:?}")));
        }
        let number = number(&self.chunks)?;
        self.chunks.push(put(&mut self.table.dims, offsets.into_iter().chain(sizes))?);
        Ok(number)
    }

    fn tensor(&mut self, values: &Values, state: Id) -> Result<u32> {
        let properties = object(values, field(values, state, "properties")?, Global::TensorProperties)?;
        let dtype = values.items(properties).and_then(|items| items.first()).map(|id| values.node(*id));
        let Some(Node::Global(Global::DType(dtype))) = dtype else { return Err(error("no dtype")) };
        let shape = put(&mut self.table.dims, shape(values, field(values, state, "size")?)?)?;
        let chunks = values.items(field(values, state, "chunks")?).ok_or_else(|| error("chunks that are not a list"))?;
        let chunks = chunks.iter().map(|id| unfolded(values, *id, Global::Chunk)).collect::<Result<Vec<_>>>()?;
        let number = number(&self.tensors)?;
        self.tensors.push(State { dtype, shape, chunks: put(&mut self.members, chunks)? });
        Ok(number)
    }

    /// A tensor under its name, each chunk with its place.
    fn placed(&mut self, name: &str, number: u32, items: &Items) -> Result<TensorEntry> {
        let State { dtype, shape, chunks } = self.tensors[number as usize];
        let whole = &self.table.dims[shape.range()];
        let mut placed = Vec::with_capacity(chunks.range().len());
        for chunk in &self.members[chunks.range()] {
            let bounds = self.chunks[*chunk as usize];
            let (offsets, sizes) = self.table.bounds(bounds);
            let inside = |((offset, size), dim): ((&u64, &u64), &u64)| offset.checked_add(*size).is_some_and(|end| end <= *dim);
            if offsets.len() != whole.len() || !offsets.iter().zip(sizes).zip(whole).all(inside) {
                return Err(error(format_args!("a chunk {sizes:?} at {offsets:?} outside of {whole:?}")));
            }
            if numel(sizes) == Some(0) {
                continue; // torch writes a rank's empty shard as well
            }
            let place = items.find(name, Some(offsets)).ok_or_else(|| error(format_args!("no place for the chunk at {offsets:?}")))?;
            placed.push(ChunkEntry { bounds, place });
        }
        Ok(TensorEntry { name: name.to_owned(), dtype, shape, chunks: put(&mut self.table.chunks, placed)? })
    }

    fn key(&mut self, values: &Values, state: Id) -> Result<u32> {
        let name = values.str(field(values, state, "fqn")?).ok_or_else(|| error("a name that is not a string"))?;
        let name = self.names.number(name)?;
        let offsets = match values.get(state, "offset").map(|id| (id, values.node(id))) {
            None | Some((_, Node::None)) => None,
            Some((id, _)) => Some(put(&mut self.offsets, shape(values, id)?)?),
        };
        let number = number(&self.keys)?;
        self.keys.push(Key { name, offsets });
        Ok(number)
    }

    fn place(&mut self, values: &Values, state: Id) -> Result<u32> {
        let size = |key| {
            let number = values.int(field(values, state, key)?).and_then(|n| u64::try_from(n).ok());
            number.ok_or_else(|| error(format_args!("'{key}' that is not a size")))
        };
        let file = values.str(field(values, state, "relative_path")?).ok_or_else(|| error("a file name that is not a string"))?;
        if file.is_empty() || file.starts_with('/') || file.split('/').any(|part| part == ".." || part.is_empty()) {
            return Err(error(format_args!("a file outside the directory: '{file}'")));
        }
        let known = self.files.number(file)?;
        if known as usize == self.table.files.len() {
            self.table.files.push(file.into());
        }
        let number = number(&self.table.places)?;
        if let Some(transforms) = values.get(state, "transform_descriptors")
            && values.node(transforms) != Node::None
            && values.items(transforms).is_none_or(|items| !items.is_empty())
        {
            self.transformed.push(number);
        }
        self.table.places.push(PlaceEntry { file: known, offset: size("offset")?, length: size("length")? });
        Ok(number)
    }
}

/// Where items lie, by name and first index.
struct Items {
    names: Names,
    offsets: Vec<u64>,
    /// Sorted; of a key that occurs twice, the last one counts. With the numbers of their places.
    all: Vec<(Key, u32)>,
}

impl Items {
    /// Of what was found, keys and names are taken.
    fn new(pickle: &Pickle, data: Id, found: &mut Found) -> Result<Self> {
        let data = entries(pickle, data)?;
        let mut all = Vec::with_capacity(data.len());
        for (key, place) in data {
            let key = found.keys[unfolded(pickle, *key, Global::MetadataIndex)? as usize];
            let place = unfolded(pickle, *place, Global::StorageInfo)?;
            if found.transformed.binary_search(&place).is_ok() {
                return Err(FormatError::new(format_args!(
                    "'{}' is stored through a transform, such as compression, which is not read",
                    found.names.text(key.name)
                )));
            }
            all.push((key, place));
        }
        found.keys = Vec::new();
        let mut items = Self { names: std::mem::take(&mut found.names), offsets: std::mem::take(&mut found.offsets), all: Vec::new() };
        all.sort_by(|(a, _), (b, _)| items.order(*a).cmp(&items.order(*b)));
        items.all = all;
        Ok(items)
    }

    fn order(&self, key: Key) -> (u32, Option<&[u64]>) {
        (key.name, key.offsets.map(|offsets| &self.offsets[offsets.range()]))
    }

    /// The number of an item's place.
    fn find(&self, name: &str, offsets: Option<&[u64]>) -> Option<u32> {
        let wanted = (self.names.find(name)?, offsets);
        let end = self.all.partition_point(|(key, _)| self.order(*key) <= wanted);
        let (found, place) = self.all[..end].last()?;
        (self.order(*found) == wanted).then_some(*place)
    }
}
