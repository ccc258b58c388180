//! Where the bytes of a rank come from, as a save sees it.

use crate::{
    error::Result,
    load::RankShards,
    saved::entries::{Entries, Entry},
};

/// A rank's loaded shards, as bytes.
pub trait RankBytes: Sync {
    /// Which rank.
    fn rank(&self) -> u32;

    /// The valid bytes, row-major and little-endian, of its part of the tensor that the plan has at that index.
    fn valid(&self, tensor: usize) -> &[u8];
}

impl RankBytes for RankShards<'_> {
    fn rank(&self) -> u32 {
        self.rank()
    }

    fn valid(&self, tensor: usize) -> &[u8] {
        self.tensor(tensor).bytes
    }
}

/// Gives the valid bytes of a rank's entries, in the order of the file.
pub(super) trait Supply {
    /// Calls `take(entry, bytes, whether they are its last)` for consecutive bytes; an entry without bytes is given once.
    fn supply(&self, entries: &Entries<'_>, take: &mut Take<'_>) -> Result<()>;
}

pub(super) type Take<'a> = dyn FnMut(&Entry, &[u8], bool) -> Result<()> + 'a;
