//! The strict reader of a safetensors header: 8 bytes of length, JSON, and the check that the tensors tile the data exactly.
//! It trusts nothing: lengths are capped, arithmetic is checked, duplicate names are found.

use std::{borrow::Cow, fmt, fs::File, marker::PhantomData, os::unix::fs::FileExt, path::Path};

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use shardwright_core::{DType, model::numel};

use crate::{
    error::{EngineError, ErrorKind, Result},
    file::open_regular,
    source::{ReadFailure, read_exact},
};

/// The largest header that is read, as in the reference implementation.
pub(super) const MAX_HEADER: u64 = 100_000_000;

/// One tensor of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its dtype.
    pub dtype: DType,
    /// Its shape in elements.
    pub shape: Vec<u64>,
    /// First byte, from the start of the data.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// What a file's header says.
pub(super) struct Header {
    /// Where the data starts in the file.
    pub(super) data_start: u64,
    /// The tensors, sorted by offset.
    pub(super) entries: Vec<Entry>,
    /// Whose tensors these are.
    pub(super) kept: Kept,
}

/// What a file's metadata say of its tensors' places. `torch.distributed.checkpoint` writes them for whole tensors too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kept {
    /// Nothing: they are whole.
    #[default]
    Whole,
    /// All begin where their tensors begin: whole, or rank 0's parts, as the file's name says.
    AtTheStart,
    /// Parts.
    Parts,
}

/// The value of `DCP_SHARDING_INFO`, by tensor.
#[derive(Deserialize)]
struct Place {
    saved_offsets: Vec<u64>,
}

/// The value of our own `partitions`, by tensor, as far as it says that it is ours.
#[derive(Deserialize)]
struct Partition {
    #[serde(rename = "shape")]
    _shape: Vec<u64>,
}

impl Kept {
    fn known_by(key: &str, value: &str) -> Self {
        let mut elsewhere = false;
        match key {
            "partitions" if each(value, |_: Partition| ()) => Self::Parts,
            "DCP_SHARDING_INFO" if each(value, |p: Place| elsewhere |= p.saved_offsets.iter().any(|&o| o != 0)) && elsewhere => Self::Parts,
            "DCP_SHARDING_INFO" => Self::AtTheStart,
            _ => Self::Whole,
        }
    }
}

/// Shows every value of a JSON object to `f`, one at a time: a text may be as long as a header. False where it is none of such values.
fn each<T: for<'de> Deserialize<'de>>(text: &str, f: impl FnMut(T)) -> bool {
    struct Each<F, T>(F, PhantomData<T>);
    impl<'de, F: FnMut(T), T: Deserialize<'de>> Visitor<'de> for Each<F, T> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some((_, value)) = map.next_entry::<IgnoredAny, T>()? {
                self.0(value);
            }
            Ok(())
        }
    }
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(Each(f, PhantomData)).and_then(|()| json.end()).is_ok()
}

/// True for a file whose metadata say which parts of its tensors it holds, as the files of ranks do.
pub(crate) fn holds_parts(path: &Path) -> bool {
    let header = open_regular(path).and_then(|(file, meta)| read(&file, path, meta.len()));
    header.is_ok_and(|header| header.kept != Kept::Whole)
}

/// Reads the header of a file of `size` bytes.
pub(super) fn read(file: &File, path: &Path, size: u64) -> Result<Header> {
    let error = |what: &str| EngineError::new(ErrorKind::Checkpoint, what).file(path);
    if size < 8 {
        return Err(error("too short for a safetensors file").expected("at least 8 bytes").found(size));
    }
    let read = |to: &mut [u8], offset: u64| {
        let needed = to.len();
        read_exact(|to, at| file.read_at(to, at), to, offset, needed).map(drop).map_err(|failure| match failure {
            ReadFailure::Failed { error, offset } => EngineError::io("cannot read the header", path, error).offset(offset),
            ReadFailure::Ended { offset, missing } => {
                error("the file ended inside its header").offset(offset).expected(format_args!("{missing} bytes more"))
            }
        })
    };
    let mut length = [0; 8];
    read(&mut length, 0)?;
    let start = length;
    let length = u64::from_le_bytes(length);
    // A header of 1,152 bytes begins like a pickle: what can be a length is one.
    if let Some(what) = text_instead(start).filter(|_| length > MAX_HEADER.min(size - 8)) {
        return Err(error(what).expected("a safetensors file").found(format_args!("'{}…'", String::from_utf8_lossy(&start))));
    }
    if length > MAX_HEADER {
        return Err(error("the header is too long").expected(format_args!("at most {MAX_HEADER} bytes")).found(length));
    }
    if length > size - 8 {
        return Err(error("the header reaches beyond the file").expected(format_args!("at most {} bytes", size - 8)).found(length));
    }
    let mut text = vec![0; usize::try_from(length).map_err(|_| error("the header is too long"))?];
    read(&mut text, 8)?;
    let (entries, kept) = parse(&text, size - 8 - length).map_err(|e| e.file(path))?;
    Ok(Header { data_start: 8 + length, entries, kept })
}

/// What stands in place of a file that was never fetched. As a length these bytes are beyond any header.
fn text_instead(start: [u8; 8]) -> Option<&'static str> {
    match &start {
        b"version " => Some("a Git LFS pointer, not the file itself; 'git lfs pull' fetches it"),
        [b'P', b'K', 3, 4, ..] => Some("a zip archive, as torch.save writes it, not a safetensors file"),
        [b'G', b'G', b'U', b'F', ..] => Some("a GGUF file, not a safetensors file"),
        [0x89, b'H', b'D', b'F', ..] => Some("an HDF5 file, not a safetensors file"),
        [0x80, 2..=5, ..] => Some("a pickle, as older versions of torch.save write it, not a safetensors file"),
        _ if start.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) => Some("a text, not a safetensors file"),
        _ => None,
    }
}

/// Parses and validates a header whose data has `data` bytes. Sorted by offset. The error names no file: the caller knows it.
///
/// # Errors
/// [`ErrorKind::Checkpoint`] for JSON that is none, unknown dtypes, names that occur twice, sizes that do not fit, holes and overlaps.
pub fn parse_header(text: &[u8], data: u64) -> Result<Vec<Entry>> {
    parse(text, data).map(|(entries, _)| entries)
}

fn parse(text: &[u8], data: u64) -> Result<(Vec<Entry>, Kept)> {
    let mut found = Found { entries: Vec::new(), tensor: None, kept: Kept::Whole };
    let mut json = serde_json::Deserializer::from_slice(text);
    let parsed = HeaderSeed(&mut found).deserialize(&mut json).and_then(|()| json.end());
    if let Err(cause) = parsed {
        let error = EngineError::new(ErrorKind::Checkpoint, format!("the header is not a safetensors header: {cause}"));
        return Err(match found.tensor {
            Some(tensor) => error.tensor(tensor),
            None => error,
        });
    }
    let mut entries = found.entries;
    check_names(&entries)?;
    entries.sort_unstable_by(|a, b| (a.start, a.end, &a.name).cmp(&(b.start, b.end, &b.name)));
    check_tiling(&entries, data)?;
    Ok((entries, found.kept))
}

fn check_names(entries: &[Entry]) -> Result<()> {
    let mut names: Vec<&str> = entries.iter().map(|e| e.name.as_str()).collect();
    names.sort(); // stable, for names come in ascending runs
    match names.windows(2).find(|w| w[0] == w[1]) {
        Some(twice) => Err(EngineError::new(ErrorKind::Checkpoint, "the name occurs twice in the header").tensor(twice[0])),
        None => Ok(()),
    }
}

/// Every tensor as large as its shape says, one behind the other, to the last byte of the file.
fn check_tiling(entries: &[Entry], data: u64) -> Result<()> {
    let mut at = 0;
    for e in entries {
        let error = |what: &str| EngineError::new(ErrorKind::Checkpoint, what).tensor(&e.name);
        // Products of some dims are taken later on: with a 0 among them they must not overflow either.
        let bounded = e.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1))).and_then(|n| n.checked_mul(8));
        let bytes = bounded.and_then(|_| e.dtype.bytes(numel(&e.shape)?));
        let Some(bytes) = bytes else {
            return Err(error("the shape has no size in whole bytes below 2^64").found(format_args!("{} {:?}", e.dtype, e.shape)));
        };
        if e.end.checked_sub(e.start) != Some(bytes) {
            return Err(error("data_offsets do not fit dtype and shape")
                .expected(format_args!("{bytes} bytes for {} {:?}", e.dtype, e.shape))
                .found(format_args!("[{}, {}]", e.start, e.end)));
        }
        if e.start > at {
            return Err(error("a hole before the tensor").expected(format_args!("it at byte {at} of the data")).found(e.start));
        }
        if e.start < at {
            return Err(error("the tensor overlaps the one before").expected(format_args!("it at byte {at} of the data")).found(e.start));
        }
        at = e.end;
    }
    let error = |what: &str| EngineError::new(ErrorKind::Checkpoint, what).expected(format_args!("{at} bytes of data")).found(data);
    match at.cmp(&data) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => Err(error("the file goes on behind its last tensor")),
        std::cmp::Ordering::Greater => {
            let cut = entries.iter().find(|e| e.end > data).map_or("", |e| e.name.as_str());
            Err(error("the file is truncated; download or copy it again").tensor(cut))
        }
    }
}

/// What was parsed so far; `tensor` is the one being parsed, for the message.
struct Found {
    entries: Vec<Entry>,
    tensor: Option<String>,
    kept: Kept,
}

struct HeaderSeed<'a>(&'a mut Found);

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if std::mem::replace(&mut metadata, true) {
                    return Err(A::Error::custom("__metadata__ occurs twice"));
                }
                map.next_value_seed(MetadataSeed(&mut self.0.kept))?;
                continue;
            }
            self.0.tensor = Some(name);
            let (dtype, shape, [start, end]) = map.next_value_seed(EntrySeed)?;
            let name = self.0.tensor.take().unwrap_or_default();
            self.0.entries.push(Entry { name, dtype, shape, start, end });
        }
        Ok(())
    }
}

/// `__metadata__`: strings only, thrown away but for what they tell of places.
struct MetadataSeed<'a>(&'a mut Kept);

impl<'de> DeserializeSeed<'de> for MetadataSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MetadataSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings as __metadata__")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((key, value)) = map.next_entry::<Cow<'de, str>, Text<'de>>()? {
            *self.0 = (*self.0).max(Kept::known_by(&key, &value.0));
        }
        Ok(())
    }
}

/// A string, and nothing else.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct String;
        impl<'de> Visitor<'de> for String {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string in __metadata__")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        d.deserialize_str(String)
    }
}

struct EntrySeed;

type RawEntry = (DType, Vec<u64>, [u64; 2]);

impl<'de> DeserializeSeed<'de> for EntrySeed {
    type Value = RawEntry;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<RawEntry, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntrySeed {
    type Value = RawEntry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawEntry, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            let twice = match &*key {
                "dtype" => {
                    let name = map.next_value::<Cow<'de, str>>()?;
                    let known = DType::from_safetensors(&name).ok_or_else(|| unknown_dtype(&name))?;
                    dtype.replace(known).is_some()
                }
                "shape" => shape.replace(map.next_value_seed(Dims)?).is_some(),
                "data_offsets" => offsets.replace(map.next_value::<[u64; 2]>()?).is_some(),
                other => return Err(A::Error::unknown_field(other, &["dtype", "shape", "data_offsets"])),
            };
            if twice {
                return Err(A::Error::custom(format_args!("{key} occurs twice")));
            }
        }
        let missing = A::Error::missing_field;
        Ok((
            dtype.ok_or_else(|| missing("dtype"))?,
            shape.ok_or_else(|| missing("shape"))?,
            offsets.ok_or_else(|| missing("data_offsets"))?,
        ))
    }
}

fn unknown_dtype<E: serde::de::Error>(name: &str) -> E {
    let known: Vec<&str> = DType::ALL.iter().map(|d| d.safetensors_name()).collect();
    E::custom(format_args!("unknown dtype '{name}', expected one of {}", known.join(", ")))
}

/// A shape, of at most 64 dims.
struct Dims;

impl<'de> DeserializeSeed<'de> for Dims {
    type Value = Vec<u64>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Vec<u64>, D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Dims {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of dims as shape")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
        let mut dims = Vec::with_capacity(2);
        while let Some(dim) = seq.next_element()? {
            if dims.len() == 64 {
                return Err(A::Error::custom("a shape of more than 64 dims"));
            }
            dims.push(dim);
        }
        Ok(dims)
    }
}
