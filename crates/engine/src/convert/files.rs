//! Output files as plans: what stands where in each, and which elements of the source it takes. Nothing is read or written here.

use std::{
    collections::HashMap,
    io::{self, Write as _},
    ops::Range,
    sync::Arc,
};

use shardwright_core::DType;
use shardwright_formats::{torch_file, zip};

use crate::{
    contents::data::Data,
    digest::{Hasher, Sha256},
    error::{EngineError, ErrorKind, Result},
};

/// Bytes of a payload that is written with what stands around it, at most.
const SMALL: u64 = 64 << 10;

/// A run of a payload.
#[derive(Clone, Debug)]
pub(super) enum Part<'a> {
    /// Elements of a tensor, in row-major order.
    Elements(&'a Data, Range<u64>),
    /// Zeros.
    Zeros(u64),
    /// One float32.
    Number(f32),
}

impl Part<'_> {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Elements(_, range) => range.end - range.start,
            Self::Zeros(count) => *count,
            Self::Number(_) => 1,
        }
    }
}

/// Contiguous elements of a file.
#[derive(Clone, Debug)]
pub(super) struct Payload<'a> {
    pub(super) offset: u64,
    pub(super) dtype: DType,
    /// Each with its first element in the payload.
    pub(super) parts: Vec<(u64, Part<'a>)>,
    pub(super) len: u64,
    /// What needs their checksum.
    pub(super) sum: Option<Sum>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Sum {
    /// A zip's member.
    Member(usize, usize),
    /// A tensor that is a file of `torch.save` by itself.
    Single(usize),
}

#[derive(Clone, Debug)]
pub(super) struct Zip {
    pub(super) base: u64,
    pub(super) layout: zip::Layout,
    pub(super) crcs: Vec<u32>,
}

/// A file of `torch.save` that holds one tensor. Checkpoints have hundreds of thousands, of a few shapes: what stands around the tensor is made when it
/// is written.
#[derive(Clone, Debug)]
pub(super) struct Single {
    base: u64,
    form: Arc<Form>,
    pub(super) crc: u32,
}

/// What files of one tensor share: its dtype and shape, and what follows from them.
struct Form {
    dtype: DType,
    shape: Vec<u64>,
    planned: torch_file::Planned,
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape)
    }
}

/// The forms that were asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Forms(HashMap<(DType, Vec<u64>), Arc<Form>>);

impl Forms {
    fn get(&mut self, dtype: DType, shape: &[u64]) -> Result<Arc<Form>> {
        let key = (dtype, shape.to_vec());
        if let Some(form) = self.0.get(&key) {
            return Ok(Arc::clone(form));
        }
        let mut writer = torch_file::Writer::default();
        let (_, value) = writer.tensor(dtype, shape).ok_or_else(overflow)?;
        let form = Arc::new(Form { dtype, shape: shape.to_vec(), planned: writer.finish(&value).ok_or_else(overflow)? });
        self.0.insert(key, Arc::clone(&form));
        Ok(form)
    }

    /// Bytes of a file of `torch.save` that holds one tensor.
    pub(super) fn size(&mut self, dtype: DType, shape: &[u64]) -> Result<u64> {
        Ok(self.get(dtype, shape)?.planned.layout.size())
    }
}

impl Single {
    /// What stands before the tensor, which has that checksum, and behind it, each with its offset.
    pub(super) fn around(&self, crc: u32) -> [(u64, Vec<u8>); 2] {
        let torch_file::Planned { pickle, layout } = &self.form.planned;
        let crcs = [crc32fast::hash(pickle), crc, crc32fast::hash(torch_file::VERSION)];
        let before = [&layout.local_header(0, crcs[0])[..], pickle, &layout.local_header(1, crcs[1])].concat();
        let behind = [&layout.local_header(2, crcs[2])[..], torch_file::VERSION, &layout.directory(&crcs)].concat();
        [(self.base, before), (self.base + layout.header(2), behind)]
    }
}

/// A file that will be written, and how it comes to its content.
pub(super) struct FilePlan<'a> {
    /// Relative to the target.
    pub(super) name: String,
    pub(super) size: u64,
    /// Bytes that are read from the source for it.
    pub(super) source_bytes: u64,
    pub(super) payloads: usize,
    content: Content<'a>,
}

type Plan<'a> = Box<dyn Fn() -> Result<OutFile<'a>> + Send + Sync + 'a>;

enum Content<'a> {
    Ready(OutFile<'a>),
    /// Planned anew when it is written, because the plans of all files together may take more memory than a batch of them; with the plan's digest.
    Deferred(Plan<'a>, Sha256),
}

impl<'a> From<OutFile<'a>> for FilePlan<'a> {
    fn from(file: OutFile<'a>) -> Self {
        let (name, size, source_bytes, payloads) = (file.name.clone(), file.size, file.source_bytes(), file.payloads.len());
        Self { name, size, source_bytes, payloads, content: Content::Ready(file) }
    }
}

impl std::fmt::Debug for FilePlan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FilePlan").field("name", &self.name).field("size", &self.size).finish_non_exhaustive()
    }
}

impl<'a> FilePlan<'a> {
    /// A file whose plan is made now, for its size and digest, and again when it is written; it must be the same both times.
    pub(super) fn deferred(plan: impl Fn() -> Result<OutFile<'a>> + Send + Sync + 'a) -> Result<Self> {
        let file = plan()?;
        let (source_bytes, payloads, digest) = (file.source_bytes(), file.payloads.len(), file.digest()?);
        Ok(Self { name: file.name, size: file.size, source_bytes, payloads, content: Content::Deferred(Box::new(plan), digest) })
    }

    /// Digest of the plan: of the place of every byte.
    pub(super) fn digest(&self) -> Result<Sha256> {
        match &self.content {
            Content::Ready(file) => file.digest(),
            Content::Deferred(_, digest) => Ok(*digest),
        }
    }

    pub(super) fn planned(self) -> Result<OutFile<'a>> {
        match self.content {
            Content::Ready(file) => Ok(file),
            Content::Deferred(plan, _) => {
                let file = plan()?;
                debug_assert_eq!((&file.name, file.size), (&self.name, self.size), "a plan must be the same each time");
                Ok(file)
            }
        }
    }
}

/// A file's content.
#[derive(Clone, Debug)]
pub(super) struct OutFile<'a> {
    /// Relative to the target.
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) literals: Vec<(u64, Vec<u8>)>,
    pub(super) payloads: Vec<Payload<'a>>,
    pub(super) zips: Vec<Zip>,
    pub(super) singles: Vec<Single>,
    forms: Forms,
}

pub(super) fn overflow() -> EngineError {
    EngineError::new(ErrorKind::Checkpoint, "the size of a file to be written overflows")
}

impl<'a> OutFile<'a> {
    pub(super) fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            size: 0,
            literals: Vec::new(),
            payloads: Vec::new(),
            zips: Vec::new(),
            singles: Vec::new(),
            forms: Forms::default(),
        }
    }

    /// A file of these bytes.
    pub(super) fn literal(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        let mut file = Self::new(name);
        file.append(bytes);
        file
    }

    /// Bytes at the end.
    pub(super) fn append(&mut self, bytes: Vec<u8>) {
        let at = self.size;
        self.size += bytes.len() as u64;
        self.literals.push((at, bytes));
    }

    /// Elements at the end.
    pub(super) fn elements(&mut self, dtype: DType, parts: Vec<Part<'a>>) -> Result<()> {
        let at = self.size;
        self.size = at.checked_add(self.payload(at, dtype, parts, None)?).ok_or_else(overflow)?;
        Ok(())
    }

    fn payload(&mut self, offset: u64, dtype: DType, parts: Vec<Part<'a>>, sum: Option<Sum>) -> Result<u64> {
        let mut len = 0u64;
        let mut placed = Vec::with_capacity(parts.len());
        for part in parts {
            if let Part::Elements(data, _) = &part
                && !data.dtype.casts_to(dtype)
            {
                return Err(EngineError::new(ErrorKind::Config, format!("{} cannot be cast to {dtype}", data.dtype)));
            }
            let start = len;
            len = len.checked_add(part.len()).ok_or_else(overflow)?;
            placed.push((start, part));
        }
        self.payloads.push(Payload { offset, dtype, parts: placed, len, sum });
        dtype.bytes(len).ok_or_else(overflow)
    }

    /// A file of `torch.save` at the end; its size.
    pub(super) fn torch(&mut self, built: Torch<'a>, root: &shardwright_formats::build::Value) -> Result<u64> {
        let Torch { writer, storages } = built;
        let torch_file::Planned { pickle, layout } = writer.finish(root).ok_or_else(overflow)?;
        let (base, zip) = (self.size, self.zips.len());
        let mut crcs = vec![0; layout.len()];
        let last = layout.len() - 1;
        (crcs[0], crcs[last]) = (crc32fast::hash(&pickle), crc32fast::hash(torch_file::VERSION));
        let at = |member| base.checked_add(layout.payload(member)).ok_or_else(overflow);
        self.literals.push((at(0)?, pickle));
        self.literals.push((at(last)?, torch_file::VERSION.to_vec()));
        for (number, storage) in storages.into_iter().enumerate() {
            match storage {
                Storage::Bytes(bytes) => {
                    crcs[number + 1] = crc32fast::hash(&bytes);
                    self.literals.push((at(number + 1)?, bytes));
                }
                Storage::Parts(dtype, parts) => drop(self.payload(at(number + 1)?, dtype, parts, Some(Sum::Member(zip, number + 1)))?),
            }
        }
        let size = layout.size();
        self.size = base.checked_add(size).ok_or_else(overflow)?;
        self.zips.push(Zip { base, layout, crcs });
        Ok(size)
    }

    /// A file of `torch.save` that is one tensor, at the end; its size.
    pub(super) fn tensor(&mut self, dtype: DType, shape: &[u64], parts: Vec<Part<'a>>) -> Result<u64> {
        let (base, number) = (self.size, self.singles.len());
        let form = self.forms.get(dtype, shape)?;
        let layout = &form.planned.layout;
        let at = base.checked_add(layout.payload(1)).ok_or_else(overflow)?;
        let size = layout.size();
        self.payload(at, dtype, parts, Some(Sum::Single(number)))?;
        self.singles.push(Single { base, form, crc: 0 });
        self.size = base.checked_add(size).ok_or_else(overflow)?;
        Ok(size)
    }

    fn digest(&self) -> Result<Sha256> {
        let mut hasher = Hasher::default();
        let mut out = io::BufWriter::new(&mut hasher);
        let Self { name, size, literals, payloads, zips, singles, forms: _ } = self;
        let written = (|| {
            write!(out, "{name:?} {size} {payloads:?} {zips:?} {singles:?}")?;
            for (offset, bytes) in literals {
                write!(out, " {offset} {} ", bytes.len())?;
                out.write_all(bytes)?;
            }
            out.flush()
        })();
        drop(out);
        written.map_err(|e| EngineError::io("cannot compare the plan of", &self.name, e))?;
        Ok(hasher.finish())
    }

    /// Bytes that are read from the source for it.
    fn source_bytes(&self) -> u64 {
        let parts = self.payloads.iter().flat_map(|p| &p.parts);
        let bytes = parts.map(|(_, part)| match part {
            Part::Elements(data, range) => data.dtype.bytes(range.end - range.start).unwrap_or(0),
            Part::Zeros(_) | Part::Number(_) => 0,
        });
        bytes.fold(0, u64::saturating_add)
    }
}

#[derive(Clone, Debug)]
enum Storage<'a> {
    Bytes(Vec<u8>),
    Parts(DType, Vec<Part<'a>>),
}

/// A file of `torch.save` that is being put together.
#[derive(Clone, Debug, Default)]
pub(super) struct Torch<'a> {
    writer: torch_file::Writer,
    storages: Vec<Storage<'a>>,
}

impl<'a> Torch<'a> {
    /// A tensor of these parts; its value for the pickle.
    pub(super) fn tensor(&mut self, dtype: DType, shape: &[u64], parts: Vec<Part<'a>>) -> Result<shardwright_formats::build::Value> {
        let (_, value) = self.writer.tensor(dtype, shape).ok_or_else(overflow)?;
        self.storages.push(Storage::Parts(dtype, parts));
        Ok(value)
    }

    /// A 0-d float32 tensor.
    pub(super) fn scalar(&mut self, number: f32) -> Result<shardwright_formats::build::Value> {
        let (_, value) = self.writer.tensor(DType::F32, &[]).ok_or_else(overflow)?;
        self.storages.push(Storage::Bytes(number.to_le_bytes().to_vec()));
        Ok(value)
    }
}

impl Payload<'_> {
    pub(super) fn bytes(&self) -> u64 {
        self.dtype.bytes(self.len).unwrap_or(u64::MAX)
    }

    /// The file of `torch.save` that is written with it, at once: where the payload is small, that saves two writes of three.
    pub(super) fn at_once(&self) -> Option<usize> {
        match self.sum {
            Some(Sum::Single(single)) if (1..=SMALL).contains(&self.bytes()) => Some(single),
            _ => None,
        }
    }
}
