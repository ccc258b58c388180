//! Where bytes come from: an open file, read in one of a closed set of ways. What is read when is the pipeline's business.

mod exact;
#[cfg(test)]
pub(crate) mod faulty;

use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use enum_dispatch::enum_dispatch;

pub(crate) use self::exact::{ReadFailure, read_exact};
use crate::checkpoint::Stamp;

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

/// An open file.
#[enum_dispatch]
pub(crate) trait ReadAt {
    /// Reads some bytes at that offset; 0 at the file's end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// What the open file is now.
    fn stamp(&self) -> io::Result<Stamp>;

    /// The bytes, where they can be had without reading.
    fn mapped(&self, _offset: u64, _len: usize) -> Option<&[u8]> {
        None
    }

    /// What offset, length and buffer of a read must be multiples of.
    fn alignment(&self) -> u64 {
        1
    }

    /// Whether that byte can be had without waiting for a disk, as far as is known.
    fn is_cached(&self, _offset: u64) -> bool {
        true
    }

    /// Tells the system that these bytes will be read soon.
    fn announce(&self, _offset: u64, _len: u64) {}

    /// Tells the system that these bytes need not stay cached.
    fn forget(&self, _offset: u64, _len: u64) {}
}

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
        let file = Buffered { file: File::open(path)? };
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

/// Reads through the page cache.
#[derive(Debug)]
pub(crate) struct Buffered {
    file: File,
}

impl Buffered {
    fn advise(&self, offset: u64, len: u64, advice: libc::c_int) {
        let (Ok(offset), Ok(len)) = (libc::off_t::try_from(offset), libc::off_t::try_from(len)) else { return };
        #[cfg(target_os = "linux")]
        // SAFETY: advice on an open descriptor; it can only be ignored.
        unsafe {
            libc::posix_fadvise(self.file.as_raw_fd(), offset, len, advice)
        };
    }
}

impl ReadAt for Buffered {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn stamp(&self) -> io::Result<Stamp> {
        Ok(Stamp::of(&self.file.metadata()?))
    }

    #[cfg(target_os = "linux")]
    fn is_cached(&self, offset: u64) -> bool {
        let mut byte = 0u8;
        let part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let Ok(offset) = libc::off_t::try_from(offset) else { return false };
        // SAFETY: one byte of our own to read into, on an open descriptor.
        unsafe { libc::preadv2(self.file.as_raw_fd(), &raw const part, 1, offset, libc::RWF_NOWAIT) == 1 }
    }

    fn announce(&self, offset: u64, len: u64) {
        self.advise(offset, len, libc::POSIX_FADV_WILLNEED);
    }

    fn forget(&self, offset: u64, len: u64) {
        self.advise(offset, len, libc::POSIX_FADV_DONTNEED);
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
