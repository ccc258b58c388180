//! An arena: one mapping that holds all tensors of one dtype of one rank.

use std::{io, ptr::NonNull};

use enum_dispatch::enum_dispatch;
use memmap2::{Advice, MmapMut, MmapRaw};

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

    /// Leaves the memory out of processes that this one forks: a device that writes or reads it means the pages that it has now.
    pub(crate) fn keep_from_children(&self) {
        #[cfg(target_os = "linux")]
        drop(self.memory.mapping().advise(Advice::DontFork));
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
        // SAFETY: a mapping's address is not null.
        unsafe { NonNull::new_unchecked(self.memory.start()) }
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has `len` initialised (zero) bytes for as long as `self` lives; writers exist only during a load, which hands
        // no arena out before they are done.
        unsafe { std::slice::from_raw_parts(self.memory.start(), self.len) }
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
        unsafe { std::slice::from_raw_parts_mut(self.memory.start().add(offset), len) }
    }

    /// All bytes, to change them in place.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start(), self.len) }
    }
}

/// A kind of memory.
#[enum_dispatch]
trait Mapping {
    /// First byte; never null.
    fn start(&self) -> *mut u8;

    /// All of it.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "advice is for Linux"))]
    fn mapping(&self) -> &MmapRaw;
}

#[enum_dispatch(Mapping)]
#[derive(Debug)]
enum Memory {
    HugePages,
    SmallPages,
}

/// Private anonymous memory. Raw, because threads write to parts of it; [`Arena`] says who may.
fn anonymous(len: usize) -> io::Result<MmapRaw> {
    MmapMut::map_anon(len).map(MmapRaw::from)
}

/// Aligned to huge pages and advised to use them, where the kernel has them.
#[derive(Debug)]
struct HugePages {
    map: MmapRaw,
    /// Bytes before the first aligned one.
    skip: usize,
}

impl HugePages {
    fn map(len: usize) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let rounded = len.checked_next_multiple_of(HUGE_PAGE).ok_or_else(too_large)?;
        let map = anonymous(rounded.checked_add(HUGE_PAGE).ok_or_else(too_large)?)?;
        let skip = map.as_ptr().align_offset(HUGE_PAGE);
        // Where the kernel has no huge pages this fails and nothing changes.
        #[cfg(target_os = "linux")]
        drop(map.advise_range(Advice::HugePage, skip, rounded));
        Ok(Self { map, skip })
    }
}

impl Mapping for HugePages {
    fn start(&self) -> *mut u8 {
        // SAFETY: `skip` is below HUGE_PAGE, by which the mapping is longer than what is used of it.
        unsafe { self.map.as_mut_ptr().add(self.skip) }
    }

    fn mapping(&self) -> &MmapRaw {
        &self.map
    }
}

/// Plain pages, for arenas that would leave most of a huge page empty.
#[derive(Debug)]
struct SmallPages {
    map: MmapRaw,
}

impl SmallPages {
    fn map(len: usize) -> io::Result<Self> {
        Ok(Self { map: anonymous(len.max(1))? })
    }
}

impl Mapping for SmallPages {
    fn start(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    fn mapping(&self) -> &MmapRaw {
        &self.map
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
