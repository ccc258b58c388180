//! One safetensors file as the `safetensors` crate reads it: which tensors, where their bytes lie; and its bytes, read at offsets. No file
//! is held open between the two: there may be more ranks than a process may have open files.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io::{self, Read as _, Seek as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use safetensors::tensor::{Metadata, TensorInfo};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use shardwright_core::DType;

use crate::{
    error::{EngineError, ErrorKind, Result},
    saved::header::{dtype, dtype_of},
};

const MAX_HEADER: u64 = 100_000_000;

/// A file's header, validated.
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
            return Err(wrong("not a regular file".into()));
        }
        let file = File::open(path).map_err(cannot)?;
        let size = file.metadata().map_err(cannot)?.len();
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0).map_err(cannot)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER.min(size.saturating_sub(8)) {
            return Err(wrong(format!("its header has {length} bytes, in a file of {size}")));
        }
        // Never held whole: it may have 100 MB.
        (&file).seek(io::SeekFrom::Start(8)).map_err(cannot)?;
        let text = io::BufReader::with_capacity(1 << 16, (&file).take(length));
        let header = serde_json::from_reader(text)
            .map_err(|e| if e.is_io() { cannot(e.into()) } else { wrong(format!("its header is not valid: {e}")) });
        let Header { metadata, mut tensors } = header?;
        let start = 8 + length;
        let end = validate(&mut tensors).map_err(wrong)?;
        let end = start.saturating_add(end); // the header may claim nearly 2^64
        if end != size {
            return Err(wrong("its size is not what its header says".into()).expected(format_args!("{end} bytes")).found(size));
        }
        tensors.iter_mut().for_each(|tensor| tensor.start += start);
        Ok(Self { path: path.to_owned(), metadata, tensors })
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

/// A header as its text has it: offsets from the header's end, nothing validated. The crate's own type takes five times its memory.
struct Header {
    metadata: HashMap<String, String>,
    tensors: Vec<StoredTensor>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header { metadata: HashMap::new(), tensors: Vec::new() };
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                header.metadata = map.next_value()?;
                continue;
            }
            let TensorInfo { dtype, shape, data_offsets: (from, to) } = map.next_value()?;
            let dtype = dtype_of(dtype).ok_or_else(|| A::Error::custom(format_args!("tensor '{name}' has the unknown dtype {dtype}")))?;
            let bytes = to.checked_sub(from).ok_or_else(|| A::Error::custom(format_args!("tensor '{name}' ends before it begins")))?;
            let shape = shape.iter().map(|&d| d as u64).collect();
            header.tensors.push(StoredTensor { name, dtype, shape, start: from as u64, bytes: bytes as u64 });
        }
        header.tensors.shrink_to_fit();
        Ok(header)
    }
}

/// Tensors that the `safetensors` crate is shown at once: validating all of them would take many times their memory.
const VALIDATED_AT_ONCE: usize = 4096;

/// Sorts the tensors as their bytes lie, has the `safetensors` crate check that they tile the file without holes, and gives their end.
fn validate(tensors: &mut [StoredTensor]) -> Result<u64, String> {
    let mut by_name: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    by_name.sort_unstable();
    if let Some(twice) = by_name.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("tensor '{}' is listed twice", twice[0]));
    }
    drop(by_name);
    tensors.sort_by_key(|t| (t.start, t.bytes));
    let mut end = 0;
    for part in tensors.chunks(VALIDATED_AT_ONCE) {
        let first = part[0].start;
        if first != end {
            return Err(format!(
                "its header is not valid: tensor '{}' begins at byte {first}, and the one before ends at {end}",
                part[0].name
            ));
        }
        let info = |t: &StoredTensor| {
            let from = usize::try_from(t.start - first).ok()?;
            let to = from.checked_add(usize::try_from(t.bytes).ok()?)?;
            let shape = t.shape.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
            Some((t.name.clone(), TensorInfo { dtype: dtype(t.dtype).ok()?, shape, data_offsets: (from, to) }))
        };
        let infos = part.iter().map(info).collect::<Option<Vec<_>>>().ok_or("its header is not valid: a size overflows")?;
        let valid = Metadata::new(None, infos).map_err(|e| format!("its header is not valid: {e}"))?;
        end = first.saturating_add(valid.data_len() as u64);
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(header: &str, bytes: u64) -> Result<Safetensors> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
        File::options().append(true).open(&path).unwrap().set_len(8 + header.len() as u64 + bytes).unwrap();
        Safetensors::open(&path, ErrorKind::Mismatch)
    }

    /// Faults in, between and beyond the parts that the crate is shown; and their order is that of the bytes.
    #[test]
    fn a_header_of_many_parts_is_validated_as_one() {
        let count = 2 * VALIDATED_AT_ONCE as u64 + 3;
        let header = |place: &dyn Fn(u64) -> (u64, u64)| {
            let entry = |i: u64| {
                let (from, to) = place(i);
                format!(r#""t{i}":{{"dtype":"U8","shape":[2],"data_offsets":[{from},{to}]}}"#)
            };
            // The last in the text first.
            format!("{{{}}}", (0..count).rev().map(entry).collect::<Vec<_>>().join(","))
        };
        let whole = opened(&header(&|i| (2 * i, 2 * i + 2)), 2 * count).unwrap();
        assert_eq!(whole.tensors.len() as u64, count);
        assert!(whole.tensors.iter().zip(0..).all(|(t, i): (_, u64)| t.name == format!("t{i}") && t.bytes == 2));
        for hole in [5, VALIDATED_AT_ONCE as u64, count - 1] {
            let text = header(&|i| if i < hole { (2 * i, 2 * i + 2) } else { (2 * i + 1, 2 * i + 3) });
            assert!(opened(&text, 2 * count + 1).is_err(), "a hole at {hole}");
            let text = header(&|i| if i == hole { (2 * i, 2 * i + 3) } else { (2 * i, 2 * i + 2) });
            assert!(opened(&text, 2 * count).is_err(), "three bytes at {hole}");
        }
        let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        assert!(opened(twice, 2).unwrap_err().to_string().contains("twice"));
        let back = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[2,1]}}"#;
        assert!(opened(back, 2).unwrap_err().to_string().contains("ends before it begins"));
    }

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
