//! `.metadata` of torch's distributed checkpoints: which tensors there are, in which chunks, and where each chunk's file of `torch.save` lies
//! inside the `.distcp` files. There may be millions of chunks: `table` holds them in some 50 bytes each.

mod read;
mod table;
mod write;

use std::{collections::BTreeMap, sync::Arc};

use shardwright_core::DType;

use self::table::{Table, TensorEntry};
pub use self::write::Writer;
use crate::{FormatError, ReadAt, Result, pickle::Plain};

/// Bytes that `.metadata` may have.
pub const MAX_METADATA: u64 = 512 << 20;

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
        read::metadata(source)
    }

    /// The tensors, sorted by name; each is made when it is asked for.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor> + '_ {
        self.tensors.iter().map(|entry| self.table.tensor(entry))
    }
}

fn error(what: impl std::fmt::Display) -> FormatError {
    FormatError::new(format_args!("not metadata of torch's distributed checkpoints: it has {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a test writes.
    struct Sample {
        tensors: Vec<Tensor>,
        values: Vec<(String, Place)>,
        paths: BTreeMap<String, Path>,
    }

    fn sample() -> Sample {
        let place = |offset| Place { file: "__0_0.distcp".into(), offset, length: 100 };
        let chunk = |row, rows, at| Chunk { offsets: vec![row, 0], sizes: vec![rows, 3], place: place(at) };
        let tensor = Tensor { name: "a".into(), dtype: DType::BF16, shape: vec![5, 3], chunks: vec![chunk(0, 3, 0), chunk(3, 2, 100)] };
        let paths = [("a", vec!["a"]), ("lr", vec!["groups", "lr"])];
        let paths = paths.map(|(name, path)| (name.to_owned(), path.into_iter().map(|key| Plain::Str(key.into())).collect()));
        Sample { tensors: vec![tensor], values: vec![("lr".into(), place(200))], paths: paths.into() }
    }

    fn write(metadata: &Sample) -> Vec<u8> {
        let mut writer = Writer::default();
        for Tensor { name, dtype, shape, chunks } in &metadata.tensors {
            writer.tensor(name, &metadata.paths[name], *dtype, shape, chunks);
        }
        metadata.values.iter().for_each(|(name, place)| writer.value(name, &metadata.paths[name], place));
        writer.finish().concat()
    }

    #[test]
    fn what_is_written_is_read() {
        let (sample, read) = (sample(), Metadata::parse(&write(&sample())).unwrap());
        assert_eq!((read.tensors().collect::<Vec<_>>(), read.values), (sample.tensors, sample.values));
        // That of "a" says no more than its name.
        assert_eq!(
            read.paths.into_iter().collect::<Vec<_>>(),
            sample.paths.into_iter().filter(|(name, _)| name == "lr").collect::<Vec<_>>()
        );
    }

    /// So many that what was read of the first ones leaves the pickle again and again.
    #[test]
    fn thousands_of_chunks_are_read() {
        let mut sample = Sample { tensors: Vec::new(), values: sample().values, paths: sample().paths };
        for number in 0..500u64 {
            let name = format!("layers.{number:03}.weight");
            let chunk = |rank: u64| {
                let place = Place { file: format!("__{rank}_0.distcp").into(), offset: number * 1000, length: 900 + rank };
                Chunk { offsets: vec![rank * 70_000, 0], sizes: vec![70_000, number + 1], place }
            };
            sample.paths.insert(name.clone(), vec![Plain::Str("model".into()), Plain::Str(name.clone())]);
            sample.tensors.push(Tensor { name, dtype: DType::F32, shape: vec![560_000, number + 1], chunks: (0..8).map(chunk).collect() });
        }
        let read = Metadata::parse(&write(&sample)).unwrap();
        assert_eq!(read.tensors().collect::<Vec<_>>(), sample.tensors);
        sample.paths.remove("a");
        assert_eq!((read.values, read.paths), (sample.values, sample.paths));
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
