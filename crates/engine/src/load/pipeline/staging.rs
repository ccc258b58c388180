//! One worker's buffer, and what is read into it.

use std::mem::MaybeUninit;

use super::fault::FaultKind;
use crate::{
    error::{EngineError, ErrorKind},
    load::schedule::Block,
    memory::Arena,
    source::{self, ByteSource, ReadAt},
};

/// A buffer of one block, aligned for direct reads.
#[derive(Debug)]
pub(super) struct Staging {
    pub(super) memory: Arena,
    /// For what is cast before it is rearranged: not touched where nothing is.
    pub(super) spare: Arena,
}

impl Staging {
    /// The block's bytes, how many were read to get them, and the spare memory.
    pub(super) fn read<'a>(&'a mut self, source: &'a ByteSource, block: &Block) -> Result<(&'a [u8], u64, &'a mut Arena), FaultKind> {
        let bytes = in_memory(block.bytes)?;
        if let Some(mapped) = source.mapped(block.offset, bytes) {
            return Ok((mapped, block.bytes, &mut self.spare));
        }
        let (skip, read) = read_aligned(source, block, self.memory.bytes_mut())?;
        Ok((&self.memory.bytes()[skip..skip + bytes], read, &mut self.spare))
    }
}

fn in_memory(bytes: u64) -> Result<usize, FaultKind> {
    usize::try_from(bytes).map_err(|_| FaultKind::Other(EngineError::new(ErrorKind::Memory, "a block is larger than any memory")))
}

/// Reads a block to the start of `buffer`, or as far behind it as the source's alignment wants. Answers with that distance and the bytes read.
pub(super) fn read_aligned(source: &ByteSource, block: &Block, buffer: &mut [u8]) -> Result<(usize, u64), FaultKind> {
    let (bytes, alignment) = (in_memory(block.bytes)?, source.alignment());
    let skip = in_memory(block.offset % alignment)?;
    let buffer = &mut buffer[..(skip + bytes).next_multiple_of(in_memory(alignment)?)];
    let read = read_exact(source, buffer, block.offset - skip as u64, skip + bytes)?;
    Ok((skip, read))
}

/// Fills the buffer up to `needed` bytes at least. Answers with the bytes read.
pub(super) fn read_exact(source: &ByteSource, buffer: &mut [u8], offset: u64, needed: usize) -> Result<u64, FaultKind> {
    source::read_exact(|buffer, offset| source.read_at(buffer, offset), buffer, offset, needed).map_err(FaultKind::Read)
}

pub(super) fn as_uninit(bytes: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    let len = bytes.len();
    // SAFETY: the same bytes under the same borrow; casts write initialised bytes only.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), len) }
}
