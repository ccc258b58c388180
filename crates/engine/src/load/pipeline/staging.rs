//! One worker's buffer, and reads that end only when they have all their bytes.

use std::{io, mem::MaybeUninit, thread};

use super::fault::FaultKind;
use crate::{
    load::schedule::Block,
    memory::Arena,
    source::{ByteSource, ReadAt},
};

/// A buffer of one block, aligned for direct reads.
#[derive(Debug)]
pub(super) struct Staging {
    pub(super) memory: Arena,
}

impl Staging {
    /// The block's bytes, and how many were read to get them.
    pub(super) fn read<'a>(&'a mut self, source: &'a ByteSource, block: &Block) -> Result<(&'a [u8], u64), FaultKind> {
        let bytes = in_memory(block.bytes)?;
        if let Some(mapped) = source.mapped(block.offset, bytes) {
            return Ok((mapped, block.bytes));
        }
        let (skip, read) = read_aligned(source, block, self.memory.bytes_mut())?;
        Ok((&self.memory.bytes()[skip..skip + bytes], read))
    }
}

fn in_memory(bytes: u64) -> Result<usize, FaultKind> {
    usize::try_from(bytes).map_err(|_| FaultKind::Read(io::ErrorKind::OutOfMemory.into()))
}

/// Reads a block to the start of `buffer`, or as far behind it as the source's alignment wants. Answers with that distance and the bytes read.
pub(super) fn read_aligned(source: &ByteSource, block: &Block, buffer: &mut [u8]) -> Result<(usize, u64), FaultKind> {
    let (bytes, alignment) = (in_memory(block.bytes)?, source.alignment());
    let skip = in_memory(block.offset % alignment)?;
    let buffer = &mut buffer[..(skip + bytes).next_multiple_of(in_memory(alignment)?)];
    let read = read_exact(source, buffer, block.offset - skip as u64, skip + bytes)?;
    Ok((skip, read))
}

/// Interrupted and would-block reads are tried again so often without a byte in between.
const MAX_RETRIES: u32 = 100;

/// Fills the buffer up to `needed` bytes at least, over short reads and interruptions. Answers with the bytes read.
pub(super) fn read_exact(source: &ByteSource, buffer: &mut [u8], offset: u64, needed: usize) -> Result<u64, FaultKind> {
    let (mut done, mut retries) = (0, 0);
    while done < needed {
        match source.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => return Err(FaultKind::Short((needed - done) as u64)),
            Ok(n) => (done, retries) = (done + n, 0),
            Err(e) if is_transient(&e) && retries < MAX_RETRIES => {
                retries += 1;
                if e.kind() == io::ErrorKind::WouldBlock {
                    thread::sleep(std::time::Duration::from_micros(u64::from(retries) * 50));
                }
            }
            Err(e) => return Err(FaultKind::Read(e)),
        }
    }
    Ok(done as u64)
}

fn is_transient(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

pub(super) fn as_uninit(bytes: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    let len = bytes.len();
    // SAFETY: the same bytes under the same borrow; casts write initialised bytes only.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), len) }
}
