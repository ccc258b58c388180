//! Saving without loading first: every rank's file is written from the checkpoint through a few windows of memory.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError, atomic::AtomicU64},
    time::Instant,
};

use shardwright_core::{Region, ShardPlan};

use super::{
    saver::{Saved, Saver},
    supply,
};
use crate::{
    digest::Sha256,
    error::Result,
    load::{IoOptions, LoadStats, Loader, RankStats},
    parallel,
};

/// Bytes in windows of all ranks that are written at once.
const WINDOWS: usize = 24 << 20;
/// Each of them has three: one being read, one waiting, one being written.
const WINDOWS_A_RANK: usize = 3;

/// What a save from the checkpoint did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Streamed {
    /// What was written.
    pub saved: Saved,
    /// Each rank, in the order in which they were asked for. A rank's seconds end with its file.
    pub ranks: Vec<RankStats>,
    /// Totals.
    pub stats: LoadStats,
    /// What each of these ranks holds of each tensor of the plan, where digests were asked for; in their order.
    pub digests: Option<Vec<Vec<Sha256>>>,
}

impl Saver<'_> {
    /// Saves these ranks from the checkpoint, and completes the directory if they were the last. What the files hold is what a
    /// [`Loader`] of the same plan would put into memory; here it passes through windows of 24 MiB in all, whatever the model's size.
    ///
    /// `digests` asks for the digest of every tensor's part on each rank, those that another rank writes included.
    ///
    /// # Errors
    /// As [`Loader::load`] and [`Saver::save`].
    pub fn stream(&self, ranks: &[u32], io: &IoOptions, digests: bool) -> Result<Streamed> {
        self.stream_by(WINDOWS / WINDOWS_A_RANK / parallel::threads(ranks.len()), ranks, io, digests)
    }

    /// With windows of that many bytes.
    pub(super) fn stream_by(&self, window: usize, ranks: &[u32], io: &IoOptions, digests: bool) -> Result<Streamed> {
        let started = Instant::now();
        let loader = Loader::new(self.plan, self.checkpoint).ranks(ranks).io(io.clone());
        let threads = loader.explain()?.threads;
        let mut sizes = loader.sizes()?;
        let identity = self.identity()?;
        let side_by_side = parallel::threads(ranks.len());
        let io = IoOptions { threads: Some((threads / side_by_side).max(1)), ..io.clone() };
        let (spare, read) = (Mutex::new(Vec::new()), AtomicU64::new(0));
        let supply =
            supply::Streamed { plan: self.plan, checkpoint: self.checkpoint, io, cancel: &self.cancel, window, spare: &spare, read };
        let made = Mutex::new(Vec::new());
        let saved = self.stage_and_commit(identity, ranks, |stage, at| {
            let rank = ranks[at];
            let supply = supply.of_rank();
            let mut staged = self.stage_rank(stage, identity, rank, &supply, digests).map_err(|e| e.rank(rank))?;
            let held = staged.digests.take();
            made.lock().unwrap_or_else(PoisonError::into_inner).push((at, supply.bytes_read(), started.elapsed(), held));
            Ok(staged)
        })?;
        let mut made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
        made.sort_by_key(|(at, ..)| *at);
        let mut stats = LoadStats { threads, ..LoadStats::default() };
        for (rank, (_, read, elapsed, _)) in sizes.iter_mut().zip(&made) {
            (rank.bytes_read, rank.seconds) = (*read, elapsed.as_secs_f64());
            stats.bytes_needed += rank.bytes_needed;
            stats.bytes_read += rank.bytes_read;
            stats.shard_bytes += rank.shard_bytes;
            stats.padding_bytes += rank.padding_bytes;
        }
        let held = digests.then(|| made.into_iter().map(|(.., held)| held.unwrap_or_default()).collect::<Vec<_>>());
        let digests = held.map(|held| complete(self.plan, ranks, &held, &supply)).transpose()?;
        stats.seconds = started.elapsed().as_secs_f64();
        Ok(Streamed { saved, ranks: sizes, stats, digests })
    }
}

/// The digests of every tensor on every rank. What a rank does not write is written by another rank of this process, or is read once more.
fn complete(plan: &ShardPlan, ranks: &[u32], held: &[Vec<(usize, Sha256)>], supply: &supply::Streamed<'_>) -> Result<Vec<Vec<Sha256>>> {
    let mut known: HashMap<(usize, Region), Sha256> = HashMap::new();
    for (&rank, written) in ranks.iter().zip(held) {
        for (tensor, digest) in written {
            known.insert((*tensor, plan.tensors[*tensor].region(rank)), *digest);
        }
    }
    let mut all = Vec::with_capacity(ranks.len());
    for &rank in ranks {
        let digest = |tensor: usize| {
            let region = plan.tensors[tensor].region(rank);
            known.get(&(tensor, region)).map_or_else(|| supply.digest(tensor, rank), |digest| Ok(*digest))
        };
        all.push((0..plan.tensors.len()).map(digest).collect::<Result<Vec<_>>>()?);
    }
    Ok(all)
}
