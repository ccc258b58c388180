//! `.metadata` of torch's distributed checkpoints: which tensors there are, in which chunks, and where each chunk's file of `torch.save` lies
//! inside the `.distcp` files.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use shardwright_core::{DType, model::numel};

use crate::{
    FormatError, Result,
    build::{Dict, Value},
    globals::Global,
    pickle::{Id, Node, Pickle, Plain},
};

/// Bytes that `.metadata` may have.
pub const MAX_METADATA: u64 = 512 << 20;

/// What a directory holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    /// The tensors, sorted by name.
    pub tensors: Vec<Tensor>,
    /// The plain values, in the file's order, which is that of the optimizer's parameters where it was flattened.
    pub values: Vec<(String, Place)>,
    /// Where each name stands in the nested state dict, such as `["state", "a.weight", "exp_avg"]`.
    pub paths: BTreeMap<String, Path>,
}

/// Keys of nested mappings, outermost first: what torch calls planner data.
pub type Path = Vec<Plain>;

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its fully qualified name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Global shape.
    pub shape: Vec<u64>,
    /// Boxes that tile it.
    pub chunks: Vec<Chunk>,
}

/// A box of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// First index in each dim.
    pub offsets: Vec<u64>,
    /// Size in each dim.
    pub sizes: Vec<u64>,
    /// Where it lies.
    pub place: Place,
}

/// An item of a `.distcp` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's name in the directory.
    pub file: Arc<str>,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

impl Metadata {
    /// Reads `.metadata`.
    ///
    /// # Errors
    /// What is malformed, or missing.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let pickle = Pickle::parse(bytes)?;
        let reader = Reader { pickle: &pickle };
        let root = reader.object(pickle.root(), Global::Metadata)?;
        let places = reader.places(reader.field(root, "storage_data")?)?;
        let state = reader.field(root, "state_dict_metadata")?;
        let (mut tensors, mut values) = (Vec::new(), Vec::new());
        for (name, entry) in reader.entries(state)? {
            let name = pickle.str(*name).ok_or_else(|| error("a name that is not a string"))?;
            if let Node::Call { global: Global::BytesMetadata, .. } = pickle.node(*entry) {
                let place = places.get(name, None).ok_or_else(|| error(format_args!("no place for value '{name}'")))?;
                values.push((name.to_owned(), place.clone()));
            } else {
                tensors.push(reader.tensor(name, *entry, &places).map_err(|e| e.within(format_args!("tensor '{name}'")))?);
            }
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(twice) = tensors.windows(2).find(|w| w[0].name == w[1].name) {
            return Err(error(format_args!("tensor '{}' twice", twice[0].name)));
        }
        let planner = pickle.get(root, "planner_data").and_then(|id| pickle.dict(id)).unwrap_or_default();
        let path = |(name, path): &(Id, Id)| match pickle.plain(*path) {
            Ok(Plain::Tuple(path) | Plain::List(path)) => Some((pickle.str(*name)?.to_owned(), path)),
            _ => None,
        };
        Ok(Self { tensors, values, paths: planner.iter().filter_map(path).collect() })
    }
}

fn error(what: impl std::fmt::Display) -> FormatError {
    FormatError::new(format_args!("not metadata of torch's distributed checkpoints: it has {what}"))
}

/// Where an item's first index stands in `Places::offsets`; `None` for what is not a tensor.
type Offsets = Option<(u32, u32)>;

/// Where items lie, by name and first index; there may be millions.
#[derive(Default)]
struct Places<'a> {
    /// Sorted once all are there; of a key that occurs twice, the last one counts.
    all: Vec<(&'a str, Offsets, Place)>,
    offsets: Vec<u64>,
}

impl<'a> Places<'a> {
    fn offsets(&self, of: Offsets) -> Option<&[u64]> {
        of.and_then(|(start, end)| self.offsets.get(start as usize..end as usize))
    }

    fn push(&mut self, name: &'a str, offsets: Option<Vec<u64>>, place: Place) -> Result<()> {
        let at = |len: usize| u32::try_from(len).map_err(|_| error("too many places"));
        let offsets = match offsets {
            None => None,
            Some(offsets) => {
                let start = at(self.offsets.len())?;
                self.offsets.extend(offsets);
                Some((start, at(self.offsets.len())?))
            }
        };
        self.all.push((name, offsets, place));
        Ok(())
    }

    fn sorted(mut self) -> Self {
        let mut all = std::mem::take(&mut self.all);
        all.sort_by(|a, b| (a.0, self.offsets(a.1)).cmp(&(b.0, self.offsets(b.1))));
        self.all = all;
        self
    }

    fn get(&self, name: &str, offsets: Option<&[u64]>) -> Option<&Place> {
        let end = self.all.partition_point(|entry| (entry.0, self.offsets(entry.1)) <= (name, offsets));
        let (found, at, place) = self.all[..end].last()?;
        (*found == name && self.offsets(*at) == offsets).then_some(place)
    }
}

struct Reader<'a> {
    pickle: &'a Pickle,
}

impl<'a> Reader<'a> {
    /// The state of an object of that class.
    fn object(&self, id: Id, global: Global) -> Result<Id> {
        self.pickle.call(id, global).and_then(|(_, state)| state).ok_or_else(|| error(format_args!("no {global:?} where one belongs")))
    }

    fn field(&self, state: Id, name: &str) -> Result<Id> {
        self.pickle.get(state, name).ok_or_else(|| error(format_args!("no '{name}'")))
    }

    fn entries(&self, id: Id) -> Result<&'a [(Id, Id)]> {
        self.pickle.dict(id).ok_or_else(|| error("something else than a mapping"))
    }

    fn shape(&self, id: Id) -> Result<Vec<u64>> {
        self.pickle.shape(id).ok_or_else(|| error("a size that is not one"))
    }

    fn places(&self, data: Id) -> Result<Places<'a>> {
        let (mut places, mut files) = (Places::default(), BTreeSet::<Arc<str>>::new());
        for (index, info) in self.entries(data)? {
            let index = self.object(*index, Global::MetadataIndex)?;
            let name = self.pickle.str(self.field(index, "fqn")?).ok_or_else(|| error("a name that is not a string"))?;
            let offsets = match self.pickle.get(index, "offset").map(|id| (id, self.pickle.node(id))) {
                None | Some((_, Node::None)) => None,
                Some((id, _)) => Some(self.shape(id)?),
            };
            let info = self.object(*info, Global::StorageInfo)?;
            let number = |key| {
                let number = self.pickle.int(self.field(info, key)?).and_then(|n| u64::try_from(n).ok());
                number.ok_or_else(|| error(format_args!("'{key}' that is not a size")))
            };
            let file = self.pickle.str(self.field(info, "relative_path")?).ok_or_else(|| error("a file name that is not a string"))?;
            if file.is_empty() || file.starts_with('/') || file.split('/').any(|part| part == ".." || part.is_empty()) {
                return Err(error(format_args!("a file outside the directory: '{file}'")));
            }
            if let Some(transforms) = self.pickle.get(info, "transform_descriptors")
                && *self.pickle.node(transforms) != Node::None
                && self.pickle.items(transforms).is_none_or(|items| !items.is_empty())
            {
                return Err(FormatError::new(format_args!(
                    "'{name}' is stored through a transform, such as compression, which is not read"
                )));
            }
            let file = match files.get(file) {
                Some(known) => Arc::clone(known),
                None => {
                    let new = Arc::<str>::from(file);
                    files.insert(Arc::clone(&new));
                    new
                }
            };
            places.push(name, offsets, Place { file, offset: number("offset")?, length: number("length")? })?;
        }
        Ok(places.sorted())
    }

    fn tensor(&self, name: &'a str, entry: Id, places: &Places<'a>) -> Result<Tensor> {
        let state = self.object(entry, Global::TensorMetadata)?;
        let properties = self.object(self.field(state, "properties")?, Global::TensorProperties)?;
        let dtype = self.pickle.items(properties).and_then(|items| items.first()).map(|id| self.pickle.node(*id));
        let Some(Node::Global(Global::DType(dtype))) = dtype else { return Err(error("no dtype")) };
        let shape = self.shape(self.field(state, "size")?)?;
        let chunks = self.pickle.items(self.field(state, "chunks")?).ok_or_else(|| error("chunks that are not a list"))?;
        let chunk = |id: &Id| {
            let chunk = self.object(*id, Global::Chunk)?;
            let (offsets, sizes) = (self.shape(self.field(chunk, "offsets")?)?, self.shape(self.field(chunk, "sizes")?)?);
            let inside = |((offset, size), dim): ((&u64, &u64), &u64)| offset.checked_add(*size).is_some_and(|end| end <= *dim);
            if offsets.len() != shape.len() || sizes.len() != shape.len() || !offsets.iter().zip(&sizes).zip(&shape).all(inside) {
                return Err(error(format_args!("a chunk {sizes:?} at {offsets:?} outside of {shape:?}")));
            }
            if numel(&sizes) == Some(0) {
                return Ok(None); // torch writes a rank's empty shard as well
            }
            let place = places.get(name, Some(&offsets)).ok_or_else(|| error(format_args!("no place for the chunk at {offsets:?}")))?;
            Ok(Some(Chunk { offsets, sizes, place: place.clone() }))
        };
        let chunks = chunks.iter().map(chunk).filter_map(Result::transpose).collect::<Result<_>>()?;
        Ok(Tensor { name: name.to_owned(), dtype: *dtype, shape, chunks })
    }
}

const METADATA: &str = "torch.distributed.checkpoint.metadata";

/// Values that are written once and referred to, as pickling does it: without them each tensor takes a kilobyte.
#[derive(Default)]
struct Memo {
    values: Vec<Value>,
    known: HashMap<String, u32>,
}

impl Memo {
    /// A value by its name, made when it is first asked for.
    fn get(&mut self, name: &str, make: impl FnOnce(&mut Self) -> Value) -> Value {
        if let Some(&number) = self.known.get(name) {
            return Value::memo(number);
        }
        let value = make(self);
        let number = u32::try_from(self.values.len()).unwrap_or(u32::MAX);
        self.values.push(value);
        self.known.insert(name.to_owned(), number);
        Value::memo(number)
    }

    fn str(&mut self, text: &str) -> Value {
        self.get(&format!("'{text}'"), |_| Value::str(text))
    }

    fn global(&mut self, module: &str, name: &str) -> Value {
        self.get(name, |_| Value::global(module, name))
    }

    fn class(&mut self, name: &str) -> Value {
        self.global(METADATA, name)
    }

    fn fields<const N: usize>(&mut self, fields: [(&str, Value); N]) -> Value {
        Value::dict(fields.map(|(key, value)| (self.str(key), value)))
    }

    fn shape(&mut self, dims: &[u64]) -> Value {
        self.global("torch", "Size").call([Value::tuple(dims.iter().map(|d| Value::size(*d)))])
    }

    /// What `TensorProperties` holds: dtype, layout, requires_grad, memory format, whether it is pinned.
    fn properties(&mut self, dtype: DType) -> Value {
        let state = self.get(&format!("properties of {dtype}"), |_| {
            let layout = Value::global("torch.serialization", "_get_layout").call([Value::str("torch.strided")]);
            let memory = Value::global(METADATA, "_MEM_FORMAT_ENCODING").call([Value::int(0)]);
            Value::tuple([Value::dtype(dtype), layout, Value::bool(false), memory, Value::bool(false)])
        });
        self.class("TensorProperties").object(Some(&state))
    }

    fn chunk(&mut self, chunk: &Chunk) -> Value {
        let fields = [("offsets", self.shape(&chunk.offsets)), ("sizes", self.shape(&chunk.sizes))];
        let fields = self.fields(fields);
        self.class("ChunkStorageMetadata").object(Some(&fields))
    }

    fn info(&mut self, place: &Place) -> Value {
        let fields =
            [("relative_path", self.str(&place.file)), ("offset", Value::size(place.offset)), ("length", Value::size(place.length))];
        let fields = self.fields(fields);
        self.global("torch.distributed.checkpoint.filesystem", "_StorageInfo").object(Some(&fields))
    }
}

/// Makes the pickle of `.metadata`, an item at a time; it holds no more of them than their opcodes.
#[derive(Default)]
pub struct Writer {
    memo: Memo,
    state: Dict,
    planner: Dict,
    storage: Dict,
    names: u32,
}

impl Writer {
    /// A tensor and its chunks.
    pub fn tensor(&mut self, name: &str, path: &[Plain], dtype: DType, shape: &[u64], chunks: &[Chunk]) {
        let memo = &mut self.memo;
        let list = Value::list(chunks.iter().map(|chunk| memo.chunk(chunk)).collect::<Vec<_>>());
        let fields = [("properties", memo.properties(dtype)), ("size", memo.shape(shape)), ("chunks", list)];
        let fields = memo.fields(fields);
        let value = memo.class("TensorStorageMetadata").object(Some(&fields));
        let fqn = self.name_and_path(name, path, &value);
        let memo = &mut self.memo;
        for (index, chunk) in (0u64..).zip(chunks) {
            let fields = [("fqn", Value::memo(fqn)), ("offset", memo.shape(&chunk.offsets)), ("index", Value::size(index))];
            let fields = memo.fields(fields);
            self.storage.push(&memo.class("MetadataIndex").object(Some(&fields)), &memo.info(&chunk.place));
        }
    }

    /// A value that is not a tensor.
    pub fn value(&mut self, name: &str, path: &[Plain], place: &Place) {
        let value = self.memo.class("BytesStorageMetadata").object(None);
        let fqn = self.name_and_path(name, path, &value);
        let fields = self.memo.fields([("fqn", Value::memo(fqn))]);
        self.storage.push(&self.memo.class("MetadataIndex").object(Some(&fields)), &self.memo.info(place));
    }

    fn name_and_path(&mut self, name: &str, path: &[Plain], value: &Value) -> u32 {
        // Names come after what is shared, of which there is little.
        const FIRST_NAME: u32 = 1 << 20;
        let number = FIRST_NAME.saturating_add(self.names);
        self.names += 1;
        self.state.push(&Value::str(name).kept(number), value);
        let is_name = matches!(path, [Plain::Str(key)] if key == name);
        let path = if is_name { vec![Value::memo(number)] } else { path.iter().map(Value::plain).collect() };
        self.planner.push(&Value::memo(number), &Value::tuple(path));
        number
    }

    /// The pickle, in pieces.
    pub fn finish(self) -> Vec<Vec<u8>> {
        let Self { mut memo, state, planner, storage, .. } = self;
        let fields = [
            ("state_dict_metadata", state.finish()),
            ("planner_data", planner.finish()),
            ("storage_data", storage.finish()),
            ("storage_meta", Value::none()),
            ("version", Value::str("1.0.0")),
        ];
        let fields = fields.map(|(key, value)| (memo.str(key), value));
        let class = memo.class("Metadata");
        Value::pickled_object(class, fields, memo.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Metadata {
        let place = |offset| Place { file: "__0_0.distcp".into(), offset, length: 100 };
        let chunk = |row, rows, at| Chunk { offsets: vec![row, 0], sizes: vec![rows, 3], place: place(at) };
        let tensor = Tensor { name: "a".into(), dtype: DType::BF16, shape: vec![5, 3], chunks: vec![chunk(0, 3, 0), chunk(3, 2, 100)] };
        let paths = [("a", vec!["a"]), ("lr", vec!["groups", "lr"])];
        let paths = paths.map(|(name, path)| (name.to_owned(), path.into_iter().map(|key| Plain::Str(key.into())).collect()));
        Metadata { tensors: vec![tensor], values: vec![("lr".into(), place(200))], paths: paths.into() }
    }

    fn write(metadata: &Metadata) -> Vec<u8> {
        let mut writer = Writer::default();
        for Tensor { name, dtype, shape, chunks } in &metadata.tensors {
            writer.tensor(name, &metadata.paths[name], *dtype, shape, chunks);
        }
        metadata.values.iter().for_each(|(name, place)| writer.value(name, &metadata.paths[name], place));
        writer.finish().concat()
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Metadata::parse(&write(&sample())).unwrap(), sample());
    }

    #[test]
    fn a_chunk_outside_its_tensor_is_refused() {
        let mut metadata = sample();
        metadata.tensors[0].chunks[1].sizes[0] = 3;
        let error = Metadata::parse(&write(&metadata)).unwrap_err().to_string();
        assert!(error.contains("tensor 'a'") && error.contains("outside of [5, 3]"), "{error}");
    }

    #[test]
    fn a_file_outside_the_directory_is_refused() {
        for file in ["../x", "/etc/passwd", "a//b", ""] {
            let mut metadata = sample();
            metadata.values[0].1.file = file.into();
            assert!(Metadata::parse(&write(&metadata)).unwrap_err().to_string().contains("outside the directory"));
        }
    }
}
