//! An arena: one mapping that holds all tensors of one dtype of one rank.

use std::{io, ptr::NonNull};

use enum_dispatch::enum_dispatch;

/// Size and alignment of a transparent huge page.
pub const HUGE_PAGE: usize = 2 << 20;

/// Zeroed memory of one rank. Written through `slice_mut` while a load runs, read-only afterwards.
#[derive(Debug)]
pub struct Arena {
    memory: Memory,
    len: usize,
}

impl Arena {
    /// Maps `len` zero bytes; nothing is touched. From one huge page on, huge pages are asked for.
    ///
    /// # Errors
    /// The system's, where it grants no such mapping.
    pub fn new(len: usize) -> io::Result<Self> {
        let memory = if len >= HUGE_PAGE { HugePages::map(len)?.into() } else { SmallPages::map(len)?.into() };
        Ok(Self { memory, len })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for an arena without bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the bytes are.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.memory.start()
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has `len` initialised (zero) bytes for as long as `self` lives; writers exist only during a load, which hands
        // no arena out before they are done.
        unsafe { std::slice::from_raw_parts(self.memory.start().as_ptr(), self.len) }
    }

    /// Bytes to write to.
    ///
    /// # Safety
    /// No other slice that overlaps the range may exist at the same time.
    ///
    /// # Panics
    /// Where the range is not inside the arena.
    #[expect(clippy::mut_from_ref, reason = "disjoint parts are written by several threads; the caller ensures disjointness")]
    pub(crate) unsafe fn slice_mut(&self, offset: usize, len: usize) -> &mut [u8] {
        assert!(offset <= self.len && len <= self.len - offset, "bytes {offset}+{len} of an arena of {}", self.len);
        // SAFETY: inside the mapping by the assertion, not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start().as_ptr().add(offset), len) }
    }

    /// All bytes, to change them in place.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start().as_ptr(), self.len) }
    }
}

/// A kind of memory.
#[enum_dispatch]
trait Mapping {
    /// First byte.
    fn start(&self) -> NonNull<u8>;
}

#[enum_dispatch(Mapping)]
#[derive(Debug)]
enum Memory {
    HugePages,
    SmallPages,
}

/// A private anonymous mapping; unmapped on drop.
#[derive(Debug)]
struct Map {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for Map {}
// SAFETY: `Map` itself gives no access to its bytes; `Arena` says who may.
unsafe impl Sync for Map {}

impl Map {
    fn new(len: usize) -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping overlaps nothing.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap answered with null"))?;
        Ok(Self { start, len })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `mmap` gave; nothing borrows it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Aligned to huge pages and advised to use them, where the kernel has them.
#[derive(Debug)]
struct HugePages {
    map: Map,
    /// Bytes before the first aligned one.
    skip: usize,
}

impl HugePages {
    fn map(len: usize) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let rounded = len.checked_next_multiple_of(HUGE_PAGE).ok_or_else(too_large)?;
        let map = Map::new(rounded.checked_add(HUGE_PAGE).ok_or_else(too_large)?)?;
        let pages = Self { skip: map.start.as_ptr().align_offset(HUGE_PAGE), map };
        #[cfg(target_os = "linux")]
        // SAFETY: advice on a range of our own mapping; where the kernel has no huge pages it fails and nothing changes.
        unsafe {
            libc::madvise(pages.start().as_ptr().cast(), rounded, libc::MADV_HUGEPAGE)
        };
        Ok(pages)
    }
}

impl Mapping for HugePages {
    fn start(&self) -> NonNull<u8> {
        // SAFETY: `skip` is below HUGE_PAGE, by which the mapping is longer than what is used of it.
        unsafe { self.map.start.add(self.skip) }
    }
}

/// Plain pages, for arenas that would leave most of a huge page empty.
#[derive(Debug)]
struct SmallPages {
    map: Map,
}

impl SmallPages {
    fn map(len: usize) -> io::Result<Self> {
        Ok(Self { map: Map::new(len.max(1))? })
    }
}

impl Mapping for SmallPages {
    fn start(&self) -> NonNull<u8> {
        self.map.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arenas_are_zero_and_large_ones_are_aligned() {
        for len in [0, 1, 4097, HUGE_PAGE, 3 * HUGE_PAGE + 5] {
            let mut arena = Arena::new(len).unwrap();
            assert_eq!(arena.len(), len);
            assert!(arena.bytes().iter().all(|&b| b == 0));
            assert!(len < HUGE_PAGE || arena.bytes().as_ptr().align_offset(HUGE_PAGE) == 0);
            arena.bytes_mut().fill(7);
            assert!(arena.bytes().iter().all(|&b| b == 7));
        }
    }

    #[test]
    fn what_cannot_be_mapped_is_an_error() {
        assert!(Arena::new(usize::MAX).is_err());
        assert!(Arena::new(1 << 60).is_err());
    }
}
