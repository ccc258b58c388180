//! `.metadata` of torch's distributed checkpoints: which tensors there are, in which chunks, and where each chunk's file of `torch.save` lies
//! inside the `.distcp` files. There may be millions of chunks: `table` holds them in some 70 bytes each.

mod read;
mod table;
mod types;
mod write;

pub use self::{
    read::{MAX_METADATA, Metadata},
    types::{Chunk, Path, Place, Tensor},
    write::Writer,
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use shardwright_core::DType;

    use super::*;
    use crate::pickle::Plain;

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

    /// A size that is looked up takes a few bytes of a pickle, however long it is.
    #[test]
    fn a_tensor_of_more_dims_than_torch_has_is_refused() {
        let mut metadata = sample();
        for dims in [64, 65] {
            metadata.tensors[0].shape = vec![1; dims];
            let chunk = &mut metadata.tensors[0].chunks[0];
            (chunk.offsets, chunk.sizes) = (vec![0; dims], vec![1; dims]);
            metadata.tensors[0].chunks.truncate(1);
            let read = Metadata::parse(&write(&metadata));
            match dims {
                64 => assert_eq!(read.unwrap().tensors().collect::<Vec<_>>(), metadata.tensors),
                _ => assert!(read.unwrap_err().to_string().contains("a size of 65 dims")),
            }
        }
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
