//! What every way of reading can do, and the plainest of them: through the page cache.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
};

use enum_dispatch::enum_dispatch;

use crate::file::Stamp;

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

/// Reads through the page cache.
#[derive(Debug)]
pub(crate) struct Buffered {
    pub(super) file: File,
}

impl Buffered {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)? })
    }

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
