//! What is counted while a load runs, and what is reported of it: progress, cancellation, statistics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::layout::RankLayout;

/// Stops loads: clone it, hand it in, cancel it from anywhere.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// A token that nobody has cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token that is cancelled by setting `flag`, as a signal handler can.
    pub fn from_flag(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }

    /// Asks to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether someone asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How far a load has come.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// Each rank, in the order in which they were asked for.
    pub ranks: &'a [RankProgress],
    /// Source bytes read so far, each byte once however many ranks hold it.
    pub read: u64,
    /// Source bytes to read.
    pub total: u64,
    /// Since the start.
    pub elapsed: Duration,
}

/// How far one rank has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RankProgress {
    /// The rank.
    pub rank: u32,
    /// Source bytes in place.
    pub done: u64,
    /// Source bytes that it needs.
    pub total: u64,
}

/// What one rank's load took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct RankStats {
    /// The rank.
    pub rank: u32,
    /// Source bytes of what it holds.
    pub bytes_needed: u64,
    /// Bytes read for it. What several ranks of this process hold is read once, and counted for the first of them.
    pub bytes_read: u64,
    /// Bytes that it holds in the storage dtype, padding left out.
    pub shard_bytes: u64,
    /// Bytes of padding.
    pub padding_bytes: u64,
    /// From the start of the load to its last byte.
    pub seconds: f64,
}

/// What the whole load took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LoadStats {
    /// Source bytes of what all ranks hold, shared ones counted once for each.
    pub bytes_needed: u64,
    /// Bytes read from files.
    pub bytes_read: u64,
    /// Bytes held in storage dtypes.
    pub shard_bytes: u64,
    /// Bytes of padding.
    pub padding_bytes: u64,
    /// Threads that read.
    pub threads: usize,
    /// From start to end.
    pub seconds: f64,
}

/// Counters that all workers share.
#[derive(Debug)]
pub(crate) struct Counters {
    started: Instant,
    /// Needed bytes that are in place, shared ones once.
    placed: AtomicU64,
    ranks: Vec<RankCounter>,
}

#[derive(Debug)]
struct RankCounter {
    rank: u32,
    total: u64,
    done: AtomicU64,
    read: AtomicU64,
    finished_nanos: AtomicU64,
}

impl Counters {
    pub(crate) fn new(layouts: &[RankLayout], started: Instant) -> Self {
        let counter = |l: &RankLayout| RankCounter {
            rank: l.rank,
            total: l.needed_bytes,
            done: AtomicU64::new(0),
            read: AtomicU64::new(0),
            finished_nanos: AtomicU64::new(0),
        };
        Self { started, placed: AtomicU64::new(0), ranks: layouts.iter().map(counter).collect() }
    }

    /// `bytes` were read and are in place for these ranks, who needed `needed` of them.
    pub(crate) fn placed(&self, ranks: &[u32], bytes: u64, needed: u64) {
        self.placed.fetch_add(bytes, Ordering::Relaxed);
        for &r in ranks {
            let rank = &self.ranks[r as usize];
            if rank.done.fetch_add(needed, Ordering::Relaxed) + needed == rank.total {
                let nanos = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
                rank.finished_nanos.store(nanos, Ordering::Relaxed);
            }
        }
    }

    /// `bytes` were read, for this rank first of all.
    pub(crate) fn read(&self, rank: u32, bytes: u64) {
        self.ranks[rank as usize].read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Needed bytes in place so far.
    pub(crate) fn total_placed(&self) -> u64 {
        self.placed.load(Ordering::Relaxed)
    }

    /// The number of the rank that was asked for at that place.
    pub(crate) fn rank(&self, index: u32) -> u32 {
        self.ranks[index as usize].rank
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    pub(crate) fn progress(&self) -> Vec<RankProgress> {
        let progress = |r: &RankCounter| RankProgress { rank: r.rank, done: r.done.load(Ordering::Relaxed), total: r.total };
        self.ranks.iter().map(progress).collect()
    }

    /// The final figures.
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds to seconds, for people")]
    pub(crate) fn finish(&self, layouts: &[RankLayout], threads: usize) -> (Vec<RankStats>, LoadStats) {
        let mut total = LoadStats { threads, seconds: self.started.elapsed().as_secs_f64(), ..LoadStats::default() };
        let ranks = self.ranks.iter().zip(layouts).map(|(counter, layout)| {
            let stats = RankStats {
                rank: layout.rank,
                bytes_needed: layout.needed_bytes,
                bytes_read: counter.read.load(Ordering::Relaxed),
                shard_bytes: layout.shard_bytes,
                padding_bytes: layout.padding_bytes,
                seconds: counter.finished_nanos.load(Ordering::Relaxed) as f64 / 1e9,
            };
            total.bytes_needed += stats.bytes_needed;
            total.bytes_read += stats.bytes_read;
            total.shard_bytes += stats.shard_bytes;
            total.padding_bytes += stats.padding_bytes;
            stats
        });
        (ranks.collect(), total)
    }
}
