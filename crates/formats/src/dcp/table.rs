//! The chunks of all tensors and the places of all items, side by side in a few vectors.

use std::{ops::Range, sync::Arc};

use shardwright_core::DType;

use super::types::{Chunk, Place, Tensor, error};
use crate::Result;

/// Where some values stand in one of the vectors.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stretch {
    start: u32,
    len: u32,
}

impl Stretch {
    pub(super) fn range(self) -> Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

/// The number of the next value.
pub(super) fn number<T>(values: &[T]) -> Result<u32> {
    u32::try_from(values.len()).map_err(|_| error("too many parts"))
}

/// Adds values; where they stand.
pub(super) fn put<T>(values: &mut Vec<T>, more: impl IntoIterator<Item = T>) -> Result<Stretch> {
    let start = number(values)?;
    values.extend(more);
    Ok(Stretch { start, len: number(values)? - start })
}

#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// Sizes and offsets in each dim, of tensors and chunks.
    pub(super) dims: Vec<u64>,
    /// Of each tensor in turn.
    pub(super) chunks: Vec<ChunkEntry>,
    pub(super) places: Vec<PlaceEntry>,
    pub(super) files: Vec<Arc<str>>,
}

#[derive(Clone, Debug)]
pub(super) struct TensorEntry {
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) shape: Stretch,
    pub(super) chunks: Stretch,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkEntry {
    /// Its offsets, and behind them its sizes.
    pub(super) bounds: Stretch,
    /// The number of its place.
    pub(super) place: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct PlaceEntry {
    pub(super) file: u32,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Table {
    /// Offsets and sizes of a chunk.
    pub(super) fn bounds(&self, bounds: Stretch) -> (&[u64], &[u64]) {
        let both = &self.dims[bounds.range()];
        both.split_at(both.len() / 2)
    }

    /// Gives back what nothing will be added to.
    pub(super) fn shrink(&mut self) {
        self.dims.shrink_to_fit();
        self.chunks.shrink_to_fit();
        self.places.shrink_to_fit();
    }

    pub(super) fn place(&self, number: u32) -> Place {
        let PlaceEntry { file, offset, length } = self.places[number as usize];
        Place { file: Arc::clone(&self.files[file as usize]), offset, length }
    }

    pub(super) fn tensor(&self, entry: &TensorEntry) -> Tensor {
        let chunk = |chunk: &ChunkEntry| {
            let (offsets, sizes) = self.bounds(chunk.bounds);
            Chunk { offsets: offsets.to_vec(), sizes: sizes.to_vec(), place: self.place(chunk.place) }
        };
        Tensor {
            name: entry.name.clone(),
            dtype: entry.dtype,
            shape: self.dims[entry.shape.range()].to_vec(),
            chunks: self.chunks[entry.chunks.range()].iter().map(chunk).collect(),
        }
    }
}
