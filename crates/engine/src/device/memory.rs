//! What the driver gave, given back on drop: device memory, pinned memory, streams, events.

use std::{ptr::NonNull, sync::Arc};

use super::driver::{Gpu, RawEvent, RawStream};
use crate::{
    error::{EngineError, ErrorKind, Result},
    memory::Arena,
};

/// Device memory.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) address: u64,
    pub(crate) len: usize,
}

impl DeviceMemory {
    /// Allocates; what lies there is whatever lay there before. No bytes are no allocation.
    pub(crate) fn new(gpu: &Arc<Gpu>, len: usize) -> Result<Self> {
        let address = if len == 0 { 0 } else { gpu.allocate(len)? };
        Ok(Self { gpu: Arc::clone(gpu), address, len })
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated by `new`; streams that use it are finished before (see `to_device::Transport` and `shards`).
            unsafe { self.gpu.release(self.address) };
        }
    }
}

/// Page-locked host memory, given back when the last part of it is dropped. It gives no access to its bytes; its parts do.
#[derive(Debug)]
pub(crate) struct PinnedBlock {
    gpu: Arc<Gpu>,
    pages: Pages,
    pub(crate) len: usize,
}

/// Whose pages they are.
#[derive(Debug)]
enum Pages {
    /// Huge pages of our own, registered with the driver. Of memory that the driver allocates each small page is locked by itself, which took an H100's
    /// driver 118 ms for 96 MiB, against 26 ms with the first touch of huge pages.
    Ours(Arena),
    /// The driver's, where it registers none.
    Drivers(NonNull<u8>),
}

impl PinnedBlock {
    pub(crate) fn new(gpu: &Arc<Gpu>, len: usize) -> Result<Self> {
        let no_memory = |e| EngineError::new(ErrorKind::Memory, format!("cannot map {len} bytes to pin")).cause(e);
        let memory = Arena::new(len).map_err(no_memory)?;
        memory.keep_from_children();
        // SAFETY: a mapping of so many bytes, which is unregistered before it is unmapped.
        let registered = unsafe { gpu.register(memory.start(), len) }?;
        let pages = if registered { Pages::Ours(memory) } else { Pages::Drivers(gpu.pin(len)?) };
        Ok(Self { gpu: Arc::clone(gpu), pages, len })
    }

    fn start(&self) -> NonNull<u8> {
        match &self.pages {
            Pages::Ours(memory) => memory.start(),
            Pages::Drivers(start) => *start,
        }
    }
}

// SAFETY: the memory belongs to the process, not to a thread, and the block itself gives no access to it.
unsafe impl Send for PinnedBlock {}
// SAFETY: as above.
unsafe impl Sync for PinnedBlock {}

/// A part of page-locked host memory that nothing else overlaps.
#[derive(Debug)]
pub(crate) struct Pinned {
    block: Arc<PinnedBlock>,
    offset: usize,
    len: usize,
}

impl Pinned {
    /// `count` parts of `len` bytes each, side by side in one allocation: pinning costs by the call as well as by the page.
    ///
    /// # Panics
    /// Where the block has parts already, or is too small.
    pub(crate) fn parts(block: &Arc<PinnedBlock>, count: usize, len: usize) -> Vec<Self> {
        assert!(
            Arc::strong_count(block) == 1 && count.checked_mul(len).is_some_and(|bytes| bytes <= block.len),
            "parts that would overlap"
        );
        (0..count).map(|i| Self { block: Arc::clone(block), offset: i * len, len }).collect()
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: `parts` saw to it that all parts lie in the block.
        unsafe { self.block.start().as_ptr().add(self.offset) }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes of the block, for as long as the block lives; no other part overlaps them.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }

    /// To write to; the owner sees to it that no copy is reading.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

impl Drop for PinnedBlock {
    fn drop(&mut self) {
        match &self.pages {
            // SAFETY: registered by `new`; copies that read it are finished before (see `to_device::Transport`).
            Pages::Ours(memory) => unsafe { self.gpu.unregister(memory.start()) },
            // SAFETY: given by `pin`; as above.
            Pages::Drivers(start) => unsafe { self.gpu.unpin(*start) },
        }
    }
}

/// A stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) raw: RawStream,
}

impl Stream {
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        Ok(Self { raw: gpu.create_stream()?, gpu: Arc::clone(gpu) })
    }

    /// Waits for all of its work.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.gpu.synchronize(self.raw)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        unsafe { self.gpu.destroy_stream(self.raw) };
    }
}

/// An event.
#[derive(Debug)]
pub(crate) struct Event {
    gpu: Arc<Gpu>,
    raw: RawEvent,
}

impl Event {
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        Ok(Self { raw: gpu.create_event()?, gpu: Arc::clone(gpu) })
    }

    /// Marks what the stream has to do so far.
    pub(crate) fn record(&self, stream: &Stream) -> Result<()> {
        self.gpu.record(self.raw, stream.raw)
    }

    /// Waits until all that is done.
    pub(crate) fn wait(&self) -> Result<()> {
        self.gpu.wait(self.raw)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        unsafe { self.gpu.destroy_event(self.raw) };
    }
}
