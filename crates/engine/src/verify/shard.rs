//! One safetensors file as the `safetensors` crate reads it: which tensors, where their bytes lie; and its bytes, read at offsets. No file
//! is held open between the two: there may be more ranks than a process may have open files.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use safetensors::tensor::Metadata;
use shardwright_core::DType;

use crate::{
    error::{EngineError, ErrorKind, Result},
    save::header::dtype_of,
};

const MAX_HEADER: u64 = 100_000_000;

/// A file's header, proven.
#[derive(Debug)]
pub(super) struct Safetensors {
    pub(super) path: PathBuf,
    pub(super) metadata: HashMap<String, String>,
    /// In the order of the bytes.
    pub(super) tensors: Vec<StoredTensor>,
}

/// A tensor of a file.
#[derive(Clone, Debug)]
pub(super) struct StoredTensor {
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) shape: Vec<u64>,
    /// First byte, from the start of the file.
    pub(super) start: u64,
    pub(super) bytes: u64,
}

impl Safetensors {
    /// Reads the header. Faults of the file are of `kind`.
    pub(super) fn open(path: &Path, kind: ErrorKind) -> Result<Self> {
        let wrong = |what: String| EngineError::new(kind, what).file(path);
        let cannot = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => wrong("it ends before its header does".into()),
            io::ErrorKind::NotFound => wrong("it is missing".into()),
            _ => EngineError::io("cannot read the file", path, e),
        };
        if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
            return Err(wrong("it is no regular file".into()));
        }
        let file = File::open(path).map_err(cannot)?;
        let size = file.metadata().map_err(cannot)?.len();
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0).map_err(cannot)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER.min(size.saturating_sub(8)) {
            return Err(wrong(format!("its header has {length} bytes, in a file of {size}")));
        }
        let mut header = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact_at(&mut header, 8).map_err(cannot)?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| wrong(format!("its header is not one: {e}")))?;
        let start = 8 + length;
        let end = start.saturating_add(metadata.data_len() as u64); // the header may claim nearly 2^64
        if end != size {
            return Err(wrong("its size is not what its header says".into()).expected(format_args!("{end} bytes")).found(size));
        }
        drop(header);
        let tensors = stored(&metadata, start).map_err(wrong)?;
        Ok(Self { path: path.to_owned(), metadata: metadata.metadata().clone().unwrap_or_default(), tensors })
    }
}

/// A file opened for its bytes.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) path: &'a Path,
    file: File,
}

impl<'a> Reader<'a> {
    pub(super) fn open(path: &'a Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| EngineError::io("cannot open the file", path, e))?;
        Ok(Self { path, file })
    }

    /// Fills `bytes` from that offset on.
    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let cannot = |e| EngineError::io("cannot read the file", self.path, e).offset(offset);
        self.file.read_exact_at(bytes, offset).map_err(cannot)
    }
}

fn stored(metadata: &Metadata, start: u64) -> Result<Vec<StoredTensor>, String> {
    let tensor = |name: String| {
        let info = metadata.info(&name).ok_or_else(|| format!("tensor '{name}' is told of twice"))?;
        let dtype = dtype_of(info.dtype).ok_or_else(|| format!("tensor '{name}' has the unknown dtype {}", info.dtype))?;
        let (from, to) = info.data_offsets;
        let shape = info.shape.iter().map(|&d| d as u64).collect();
        Ok(StoredTensor { name, dtype, shape, start: start + from as u64, bytes: (to - from) as u64 })
    };
    metadata.offset_keys().into_iter().map(tensor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 16 tensors that together end 5 bytes before 2^64.
    #[test]
    fn a_header_that_claims_all_there_is_contradicts_its_file() {
        let entry = |i: u64| {
            let (start, size) = (i << 60, if i == 15 { (1 << 60) - 5 } else { 1u64 << 60 });
            format!(r#""{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{start},{}]}}"#, start + size)
        };
        let header = format!("{{{}}}", (0..16).map(entry).collect::<Vec<_>>().join(","));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
        let error = Safetensors::open(&path, ErrorKind::Mismatch).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        assert!(error.to_string().contains("its size is not what its header says"), "{error}");
    }
}
