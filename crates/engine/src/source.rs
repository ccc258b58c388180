//! Where bytes come from: an open file, read in one of a closed set of ways. What is read when is the pipeline's business.

mod exact;
#[cfg(test)]
pub(crate) mod faulty;
mod read_at;

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use enum_dispatch::enum_dispatch;

pub(crate) use self::{
    exact::{ReadFailure, read_exact},
    read_at::{Buffered, ReadAt},
};
use crate::file::Stamp;

/// How files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadMethod {
    /// `pread` through the page cache.
    #[default]
    Pread,
    /// `pread` past the page cache (`O_DIRECT`), where the file system can; else as [`ReadMethod::Pread`].
    Direct,
    /// A mapping. A file that shrinks under it kills the process with SIGBUS: only for files that nobody changes.
    Mmap,
}

/// Offsets, lengths and buffers of direct reads are multiples of this.
pub(crate) const DIRECT_ALIGNMENT: usize = 4096;

/// The ways to read.
#[enum_dispatch(ReadAt)]
#[derive(Debug)]
pub(crate) enum ByteSource {
    Buffered,
    Direct,
    Mapped,
    #[cfg(test)]
    Faulty(faulty::Faulty),
}

/// Opens files in one way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Opener {
    pub(crate) method: ReadMethod,
    #[cfg(test)]
    pub(crate) faults: Option<std::sync::Arc<faulty::Faults>>,
}

impl Opener {
    /// Opens files to be read in that way.
    pub(crate) fn new(method: ReadMethod) -> Self {
        Self {
            method,
            #[cfg(test)]
            faults: None,
        }
    }

    /// Opens a file.
    pub(crate) fn open(&self, path: &Path) -> io::Result<ByteSource> {
        let file = Buffered::open(path)?;
        #[cfg(test)]
        if let Some(faults) = self.faults.clone() {
            return Ok(faulty::Faulty { file, faults }.into());
        }
        Ok(match self.method {
            ReadMethod::Pread => file.into(),
            ReadMethod::Direct => match Direct::open(path) {
                Some(direct) => Direct { direct, buffered: file, refused: AtomicBool::new(false) }.into(),
                None => file.into(),
            },
            ReadMethod::Mmap => Mapped::new(file)?.into(),
        })
    }
}

/// Reads past the page cache; a read that the file system refuses is done through it after all, and so are all later ones.
#[derive(Debug)]
pub(crate) struct Direct {
    direct: File,
    buffered: Buffered,
    refused: AtomicBool,
}

impl Direct {
    fn open(path: &Path) -> Option<File> {
        File::options().read(true).custom_flags(libc::O_DIRECT).open(path).ok()
    }
}

impl ReadAt for Direct {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if !self.refused.load(Ordering::Relaxed) {
            match self.direct.read_at(buffer, offset) {
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => self.refused.store(true, Ordering::Relaxed),
                answer => return answer,
            }
        }
        self.buffered.read_at(buffer, offset)
    }

    fn stamp(&self) -> io::Result<Stamp> {
        self.buffered.stamp()
    }

    fn alignment(&self) -> u64 {
        DIRECT_ALIGNMENT as u64
    }
}

/// Reads from a mapping.
#[derive(Debug)]
pub(crate) struct Mapped {
    map: memmap2::Mmap,
    file: Buffered,
}

impl Mapped {
    fn new(file: Buffered) -> io::Result<Self> {
        // SAFETY: the caller chose a mapping and was warned that nobody may shrink or rewrite the file meanwhile (see `ReadMethod::Mmap`).
        let map = unsafe { memmap2::Mmap::map(&file.file)? };
        Ok(Self { map, file })
    }
}

impl ReadAt for Mapped {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn stamp(&self) -> io::Result<Stamp> {
        self.file.stamp()
    }

    fn mapped(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.map.get(start..start.checked_add(len)?)
    }

    fn is_cached(&self, offset: u64) -> bool {
        self.file.is_cached(offset)
    }

    fn announce(&self, offset: u64, len: u64) {
        self.file.announce(offset, len);
    }

    fn forget(&self, offset: u64, len: u64) {
        self.file.forget(offset, len);
    }
}
