//! What crosses the bus and through how large a ring: pure functions of dtypes, threads and a budget.

use shardwright_core::DType;

use super::kernels::{Kernel, TILE, Tile};
use crate::{
    error::{EngineError, ErrorKind, Result},
    source::DIRECT_ALIGNMENT,
};

/// What a user may set about loading to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Page-locked host memory of this process at most, in bytes.
    pub ring_bytes: usize,
    /// Where casts to a smaller dtype happen.
    pub downcast: Downcast,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self { ring_bytes: 256 << 20, downcast: Downcast::default() }
    }
}

/// Where a cast to a smaller dtype happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Downcast {
    /// On the host, so that the smaller dtype crosses the bus.
    #[default]
    Host,
    /// On the device, so that the host's cores only read.
    Device,
}

/// How a tensor's elements get to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crossing {
    /// As they are in the file, and so they stay.
    Plain,
    /// As they are in the file, cast on the device.
    CastThere(Kernel),
    /// Cast on the host before.
    CastHere,
    /// Rounded on the host before, cast on the device.
    RoundedHere(Kernel),
}

impl Crossing {
    /// The smaller dtype crosses; of two of one size the file's, so that the device does the work. Values that are rounded `through` a third
    /// dtype cross in that one, or in `to` where that is smaller.
    pub(crate) fn of(from: DType, through: Option<DType>, to: DType, downcast: Downcast) -> Self {
        if let Some(through) = through.filter(|&through| through != from && through != to) {
            match Self::of(through, None, to, downcast) {
                Self::CastThere(kernel) => Self::RoundedHere(kernel),
                Self::Plain | Self::CastHere | Self::RoundedHere(_) => Self::CastHere,
            }
        } else if from == to {
            Self::Plain
        } else if to.bits() < from.bits() && downcast == Downcast::Host {
            Self::CastHere
        } else {
            Self::CastThere(Kernel { from, to })
        }
    }
}

/// Slots of a worker: one is filled while one crosses and one is cast.
pub(crate) const SLOTS: usize = 3;
/// A block of this size crosses at nearly full speed; a larger one starts later, and takes longer to pin.
const BLOCK: usize = 2 << 20;
/// Below this, calls cost more than copies.
const SMALLEST: usize = 64 << 10;
/// The ring is at most this part of what is loaded, down to blocks of [`SHORT`]: pinning a byte takes some ten times as long as sending it.
const PART: u64 = 32;
const SHORT: usize = 512 << 10;
/// Streams of a device for casts, which overlap with the copies of others.
pub(crate) const STREAMS: usize = 4;

/// The ring: `SLOTS` slots for each worker, each a block's bytes and the tiles that take it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    /// Bytes of a block at most.
    pub(crate) block: usize,
    /// Runs of a block at most.
    pub(crate) runs: usize,
    /// Tiles of a block at most.
    tiles: usize,
}

impl Ring {
    /// A ring of at most `budget` bytes for so many workers, no larger than a load of `total` bytes can use. `ranks` are loaded by this
    /// process; each may need a tile of its own for a run.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where the budget is too small.
    pub(crate) fn new(budget: usize, workers: usize, ranks: usize, total: u64) -> Result<Self> {
        let runs = (4096 / ranks.max(1)).max(1);
        let with = |block: usize| {
            let cuts = block.div_ceil(usize::try_from(TILE).unwrap_or(1));
            Self { block, runs, tiles: (runs + cuts) * ranks.max(1) }
        };
        let each = |bytes: u64, slots: usize| usize::try_from(bytes / slots.max(1) as u64).map_or(BLOCK, |b| b.min(BLOCK));
        let worthwhile = each(total / PART, SLOTS * workers).max(SHORT);
        let mut block = each(total, workers).min(worthwhile).next_multiple_of(SMALLEST).clamp(SMALLEST, BLOCK);
        while with(block).bytes(workers) > budget {
            block = block / 2 / SMALLEST * SMALLEST;
            if block == 0 {
                let least = with(SMALLEST).bytes(workers);
                let error = EngineError::new(ErrorKind::Config, format!("the ring is too small for {workers} threads and {ranks} ranks"));
                return Err(error.expected(format_args!("{least} bytes or more")).found(budget));
            }
        }
        Ok(with(block))
    }

    /// Bytes of a slot: the block, what alignment adds to it, and its tiles.
    pub(crate) fn slot(&self) -> usize {
        // Slots stand side by side, and a direct read wants its buffer aligned.
        (self.data() + self.tiles * Tile::BYTES).next_multiple_of(DIRECT_ALIGNMENT)
    }

    /// Bytes of a slot's data: direct reads start and end at multiples of their alignment.
    pub(crate) fn data(&self) -> usize {
        (self.block + 2 * DIRECT_ALIGNMENT).next_multiple_of(16)
    }

    /// Bytes of the whole ring.
    pub(crate) fn bytes(&self, workers: usize) -> usize {
        self.slot().saturating_mul(SLOTS * workers)
    }
}

/// Cuts a run into tiles.
pub(crate) fn tiles(run: Tile, kernel: Kernel, to_size: u64) -> impl Iterator<Item = Tile> {
    (0..run.count.div_ceil(TILE)).map(move |i| Tile {
        src: run.src + i * TILE * kernel.element(),
        dst: run.dst + i * TILE * to_size,
        count: TILE.min(run.count - i * TILE),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_dtype_crosses() {
        for &from in DType::ALL {
            for &to in DType::ALL.iter().filter(|&&to| from.casts_to(to)) {
                let expected = match from.bits().cmp(&to.bits()) {
                    _ if from == to => Crossing::Plain,
                    std::cmp::Ordering::Greater => Crossing::CastHere,
                    _ => Crossing::CastThere(Kernel { from, to }),
                };
                assert_eq!(Crossing::of(from, None, to, Downcast::Host), expected, "{from} to {to}");
            }
        }
        let rounded = |to| Crossing::of(DType::F32, Some(DType::BF16), to, Downcast::Host);
        assert_eq!(rounded(DType::F32), Crossing::RoundedHere(Kernel { from: DType::BF16, to: DType::F32 }));
        assert_eq!((rounded(DType::BF16), rounded(DType::F8E4M3)), (Crossing::CastHere, Crossing::CastHere));
        let downcasted = Crossing::of(DType::F32, None, DType::BF16, Downcast::Device);
        assert_eq!(downcasted, Crossing::CastThere(Kernel { from: DType::F32, to: DType::BF16 }));
    }

    #[test]
    fn the_ring_stays_within_its_budget_and_shrinks_for_small_loads() {
        for workers in [1, 2, 7, 16, 64] {
            for ranks in [1, 3, 8, 64, 5000] {
                for budget in [1 << 20, 10 << 20, 256 << 20, 2 << 30] {
                    for total in [0, 1, 1 << 20, u64::MAX] {
                        match Ring::new(budget, workers, ranks, total) {
                            Ok(ring) => {
                                assert!(ring.bytes(workers) <= budget && ring.block.is_multiple_of(SMALLEST) && ring.block > 0);
                                // Every run cut once more than whole tiles would, for every rank.
                                assert!(ring.tiles >= ranks * (ring.runs + ring.block / usize::try_from(TILE).unwrap()));
                                assert!(ring.data().is_multiple_of(16) && ring.slot().is_multiple_of(DIRECT_ALIGNMENT));
                            }
                            Err(e) => assert_eq!(e.kind(), ErrorKind::Config),
                        }
                    }
                }
            }
        }
        assert_eq!(Ring::new(256 << 20, 8, 1, u64::MAX).unwrap().block, BLOCK);
        assert_eq!(Ring::new(256 << 20, 2, 1, 300_000).unwrap().block, 192 << 10);
        assert_eq!(Ring::new(256 << 20, 16, 1, 1 << 30).unwrap().block, 704 << 10);
        let error = Ring::new(1 << 20, 16, 1, 1 << 30).unwrap_err().to_string();
        assert!(error.contains("16 threads") && error.contains("bytes or more"), "{error}");
    }

    #[test]
    fn tiles_cover_a_run_once() {
        let kernel = Kernel { from: DType::BF16, to: DType::F32 };
        for count in [0, 1, TILE - 1, TILE, TILE + 1, 5 * TILE + 3] {
            let (mut src, mut dst, mut left) = (6, 1 << 40, count);
            for tile in tiles(Tile { src, dst, count }, kernel, 4) {
                assert_eq!((tile.src, tile.dst), (src, dst));
                assert!(tile.count > 0 && tile.count <= TILE);
                (src, dst, left) = (src + tile.count * 2, dst + tile.count * 4, left - tile.count);
            }
            assert_eq!(left, 0);
        }
    }
}
