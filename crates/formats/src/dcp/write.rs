//! The writer of `.metadata`.

use std::collections::HashMap;

use shardwright_core::DType;

use super::types::{Chunk, Place};
use crate::{
    build::{Dict, Value},
    pickle::Plain,
};

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
