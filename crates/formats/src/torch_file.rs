//! A file of `torch.save`: a zip of one pickle and its storages, and where in the file each tensor lies.

use std::collections::BTreeMap;

use shardwright_core::{DType, model::numel};

use crate::{
    FormatError, ReadAt, Result,
    build::Value,
    globals::Global,
    pickle::{Id, Node, Pickle},
    zip::{self, Member},
};

/// Bytes that `data.pkl` may have.
pub const MAX_PICKLE: u64 = 512 << 20;

/// An opened file: its pickle read, its storages located.
#[derive(Debug)]
pub struct TorchFile {
    /// The values.
    pub pickle: Pickle,
    storages: BTreeMap<String, Member>,
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<u64>,
    /// Strides, in elements.
    pub strides: Vec<u64>,
    /// First byte of its first element, from the start of the source.
    pub offset: u64,
    /// Bytes from its first element to the end of its last one.
    pub span: u64,
    /// What it lies in; several tensors may share one.
    pub storage: Storage,
}

/// A member of the zip that holds elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Storage {
    /// First byte, from the start of the source.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Their CRC-32 by the zip's directory; 0 where it states none.
    pub crc: u32,
}

impl Tensor {
    /// Elements.
    pub fn numel(&self) -> u64 {
        numel(&self.shape).unwrap_or(u64::MAX)
    }

    /// True where its elements follow each other in row-major order.
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(dim, stride)| {
            let fits = *dim <= 1 || *stride == step;
            step *= (*dim).max(1);
            fits
        }) || self.numel() == 0
    }
}

impl TorchFile {
    /// Opens a file.
    ///
    /// # Errors
    /// Where it is not a zip of `torch.save`, or one that is malformed.
    pub fn open(source: &(impl ReadAt + ?Sized)) -> Result<Self> {
        if !zip::is_zip(source) {
            let mut start = [0; 2];
            let old = source.read_exact_at(&mut start, 0).is_ok() && start[0] == 0x80;
            let what = "not a file of torch.save in its zip format";
            return Err(match old {
                true => FormatError::new(format_args!("{what}: it is older than torch 1.6; load it and save it again with torch.save")),
                false => FormatError::new(format_args!("{what}; if it is one, its start is damaged: copy or save it again")),
            });
        }
        let members = zip::members(source)?;
        let pickles: Vec<&Member> = members.iter().filter(|m| m.name.split('/').nth(1) == Some("data.pkl")).collect();
        let [pickle] = pickles[..] else {
            return Err(FormatError::new("not a file of torch.save: it must have one data.pkl").found(pickles.len()));
        };
        let folder = pickle.name.strip_suffix("data.pkl").unwrap_or_default();
        let member = |name: &str| members.iter().find(|m| m.name.strip_prefix(folder) == Some(name));
        if let Some(order) = member("byteorder") {
            let order = zip::content(source, order, 16)?;
            if order != b"little" {
                return Err(FormatError::new("the tensors' byte order is not read")
                    .expected("little")
                    .found(String::from_utf8_lossy(&order)));
            }
        }
        let pickle = Pickle::parse(&zip::content(source, pickle, MAX_PICKLE)?)?;
        let key = |m: &Member| Some(m.name.strip_prefix(folder)?.strip_prefix("data/")?.to_owned());
        let storages = members.iter().filter_map(|m| Some((key(m)?, m.clone()))).collect();
        Ok(Self { pickle, storages })
    }

    /// The tensor that a value is; `None` where it is something else.
    ///
    /// # Errors
    /// Where it is a tensor that is malformed: a storage that is missing or too small, a dtype that is not known.
    pub fn tensor(&self, source: &(impl ReadAt + ?Sized), id: Id) -> Result<Option<Tensor>> {
        self.tensor_within(source, id, 4)
    }

    fn tensor_within(&self, source: &(impl ReadAt + ?Sized), id: Id, depth: u32) -> Result<Option<Tensor>> {
        let Node::Call { global, args, .. } = self.pickle.node(id) else { return Ok(None) };
        let malformed = || FormatError::new(format_args!("a tensor's {global:?} has other arguments than torch writes"));
        let args = self.pickle.items(args).ok_or_else(malformed)?;
        let depth = depth.checked_sub(1).ok_or_else(malformed)?;
        match global {
            Global::RebuildParameter => self.tensor_within(source, *args.first().ok_or_else(malformed)?, depth),
            Global::RebuildFromType => {
                let [function, _, inner, ..] = args else { return Err(malformed()) };
                let Node::Global(function) = self.pickle.node(*function) else { return Err(malformed()) };
                let inner = self.pickle.items(*inner).ok_or_else(malformed)?;
                self.rebuilt(source, function, inner)
            }
            Global::RebuildTensor | Global::RebuildTensorV3 => self.rebuilt(source, global, args),
            _ => Ok(None),
        }
    }

    fn rebuilt(&self, source: &(impl ReadAt + ?Sized), global: Global, args: &[Id]) -> Result<Option<Tensor>> {
        let malformed = |what: &str| FormatError::new(format_args!("a tensor of the file has {what}"));
        let [storage, offset, shape, strides, ..] = args else { return Err(malformed("too few arguments")) };
        let Node::Persistent(storage) = self.pickle.node(*storage) else { return Err(malformed("no storage")) };
        let storage = self.pickle.items(storage).ok_or_else(|| malformed("a storage that is not a tuple"))?;
        let [_, class, key, _, _] = storage else { return Err(malformed("a storage of other arguments than torch writes")) };
        let key = self.pickle.str(*key).ok_or_else(|| malformed("a storage whose key is not a string"))?;
        let typed = match self.pickle.node(*class) {
            Node::Global(Global::Storage(dtype)) => Some(dtype),
            Node::Global(Global::UntypedStorage) => None,
            _ => return Err(malformed("a storage of an unknown class")),
        };
        let dtype = match (global, args.get(6).map(|id| self.pickle.node(*id))) {
            (Global::RebuildTensorV3, Some(Node::Global(Global::DType(dtype)))) => dtype,
            (Global::RebuildTensor, _) => typed.ok_or_else(|| malformed("no dtype"))?,
            _ => return Err(malformed("no dtype")),
        };
        let member = self.storages.get(key).ok_or_else(|| malformed("a storage that the file lacks").found(format_args!("data/{key}")))?;
        let shape = self.pickle.shape(*shape).ok_or_else(|| malformed("a shape that is not one"))?;
        let strides = self.pickle.shape(*strides).ok_or_else(|| malformed("strides that are not ones"))?;
        if shape.len() != strides.len() || shape.len() > 64 {
            return Err(malformed("another number of strides than dims"));
        }
        let offset = self.pickle.int(*offset).and_then(|n| u64::try_from(n).ok()).ok_or_else(|| malformed("an offset that is not one"))?;
        let count = numel(&shape).ok_or_else(|| malformed("a shape that overflows"))?;
        let reach = || shape.iter().zip(&strides).try_fold(1u64, |n, (d, s)| n.checked_add(d.checked_sub(1)?.checked_mul(*s)?));
        let reach = if count == 0 { Some(0) } else { reach() };
        let span = reach.and_then(|n| dtype.bytes(n)).ok_or_else(|| malformed("strides that overflow"))?;
        let first = dtype.bytes(offset).ok_or_else(|| malformed("an offset that overflows"))?;
        if first.checked_add(span).is_none_or(|end| end > member.size) {
            return Err(malformed("elements beyond its storage")
                .expected(format_args!("at most {} bytes in data/{key}", member.size))
                .found(format_args!("{dtype} {shape:?} with strides {strides:?} from element {offset}")));
        }
        if span == 0 {
            return Ok(Some(Tensor { dtype, shape, strides, offset: 0, span, storage: Storage::default() }));
        }
        let storage = Storage { start: zip::payload(source, member)?, size: member.size, crc: member.crc };
        Ok(Some(Tensor { dtype, shape, strides, offset: storage.start + first, span, storage }))
    }
}

/// A file of `torch.save` to be written: the pickle, and how large each storage is.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    storages: Vec<u64>,
}

/// What to write: segments in order, each at its offset.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The pickle.
    pub pickle: Vec<u8>,
    /// Where everything lies. Member 0 is the pickle, then the storages in order, last `version`.
    pub layout: zip::Layout,
}

/// What `version` holds.
pub const VERSION: &[u8] = b"3\n";

impl Writer {
    /// Adds a contiguous tensor; its storage's number and the value for the pickle. `None` where its size overflows.
    pub fn tensor(&mut self, dtype: DType, shape: &[u64]) -> Option<(usize, Value)> {
        let numel = numel(shape)?;
        let key = self.storages.len();
        self.storages.push(dtype.bytes(numel)?);
        Some((key, Value::tensor(dtype, shape, key, numel)))
    }

    /// The file of that root value. `None` where sizes overflow.
    pub fn finish(self, root: &Value) -> Option<Planned> {
        let pickle = root.pickle();
        let names: Vec<String> = (0..self.storages.len()).map(|key| format!("archive/data/{key}")).collect();
        let members = names.iter().map(String::as_str).zip(self.storages.iter().copied());
        let first = ("archive/data.pkl", pickle.len() as u64);
        let last = ("archive/version", VERSION.len() as u64);
        let layout = zip::Layout::new([first].into_iter().chain(members).chain([last]))?;
        Some(Planned { pickle, layout })
    }
}

/// A whole file without tensors, in memory: what torch's distributed checkpoints keep a plain value in.
///
/// # Errors
/// Where sizes overflow.
pub fn small(root: &Value) -> Result<Vec<u8>> {
    zip::write(&[("archive/data.pkl", &root.pickle()), ("archive/version", VERSION)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(root: &Value, storages: &[&[u8]]) -> Vec<u8> {
        let pickle = root.pickle();
        let names: Vec<String> = (0..storages.len()).map(|k| format!("a/data/{k}")).collect();
        let mut members: Vec<(&str, &[u8])> = vec![("a/data.pkl", &pickle)];
        members.extend(names.iter().map(String::as_str).zip(storages.iter().copied()));
        zip::write(&members).unwrap()
    }

    fn error(root: &Value, storages: &[&[u8]]) -> String {
        let bytes = file(root, storages);
        let file = TorchFile::open(&bytes).unwrap();
        file.tensor(&bytes, file.pickle.root()).unwrap_err().to_string()
    }

    #[test]
    fn a_tensor_lies_where_it_was_written() {
        let mut writer = Writer::default();
        let (_, a) = writer.tensor(DType::BF16, &[2, 3]).unwrap();
        let (_, b) = writer.tensor(DType::F8E4M3, &[4]).unwrap();
        let planned = writer.finish(&Value::fields([("a", a), ("b", b)])).unwrap();
        let bytes = zip::write(&[
            ("archive/data.pkl", &planned.pickle),
            ("archive/data/0", &[1; 12]),
            ("archive/data/1", &[2; 4]),
            ("archive/version", VERSION),
        ])
        .unwrap();
        assert_eq!(bytes.len() as u64, planned.layout.size());
        let file = TorchFile::open(&bytes).unwrap();
        let get = |key| file.tensor(&bytes, file.pickle.get(file.pickle.root(), key).unwrap()).unwrap().unwrap();
        let (a, b) = (get("a"), get("b"));
        assert_eq!(
            (a.dtype, a.shape.as_slice(), a.offset, a.span, a.is_contiguous()),
            (DType::BF16, &[2, 3][..], planned.layout.payload(1), 12, true)
        );
        assert_eq!((b.dtype, b.offset), (DType::F8E4M3, planned.layout.payload(2)));
    }

    #[test]
    fn a_storage_too_small_is_refused() {
        assert!(error(&Value::tensor(DType::F32, &[3], 0, 3), &[&[0; 8]]).contains("beyond its storage"));
        assert!(error(&Value::tensor(DType::F32, &[1 << 40, 1 << 40], 0, 3), &[&[0; 8]]).contains("overflow"));
    }

    #[test]
    fn a_missing_storage_is_refused() {
        assert!(error(&Value::tensor(DType::F32, &[3], 4, 3), &[&[0; 12]]).contains("data/4"));
    }

    #[test]
    fn the_format_before_zips_is_refused_with_advice() {
        let error = TorchFile::open(&b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec()).unwrap_err().to_string();
        assert!(error.contains("torch 1.6"), "{error}");
        assert!(TorchFile::open(&b"hello".to_vec()).unwrap_err().to_string().contains("not a file of torch.save"));
    }
}
