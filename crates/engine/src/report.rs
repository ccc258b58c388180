//! What a load put where, as data for programs: the JSON of `--report`. Times and memory aside, the same input gives the same bytes.

use std::convert::Infallible;

use serde::Serialize;
use shardwright_core::{
    DType, ParamGroup, Region, ShardPlan, TensorKind, TensorPlan,
    mesh::{MP_REPLICATE, MP_SHARD},
};

use crate::{
    digest::{Sha256, sha256},
    load::{LoadStats, Loaded, RankShards, RankStats},
    parallel,
    save::Streamed,
};

/// Everything about a load.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report<'a> {
    /// The strategy's name.
    pub strategy: &'a str,
    /// Number of ranks.
    pub world_size: u32,
    /// How the ranks are arranged.
    pub mesh: MeshReport,
    /// All-gather groups.
    pub units: Vec<GroupReport<'a>>,
    /// The loaded ranks.
    pub ranks: Vec<RankReport<'a>>,
    /// Sums and the whole load's figures.
    pub totals: Totals,
}

/// Sizes of the mesh's axes; 1 for an axis that it has not.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct MeshReport {
    /// Groups that hold equal shards.
    pub mp_replicate: u32,
    /// Ranks that a parameter is cut over.
    pub mp_shard: u32,
}

/// One all-gather group.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct GroupReport<'a> {
    /// The module's name; empty for the root.
    pub name: &'a str,
    /// Names of its parameters.
    pub tensors: Vec<&'a str>,
    /// The same by the dtype that they are gathered in, one collective each, by the dtypes' order.
    pub gather_groups: Vec<GatherGroup<'a>>,
}

/// Parameters of a group that are gathered in one dtype.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct GatherGroup<'a> {
    /// The compute dtype.
    pub dtype: DType,
    /// Names of the parameters.
    pub tensors: Vec<&'a str>,
}

impl<'a> GroupReport<'a> {
    fn new(plan: &'a ShardPlan, group: &'a ParamGroup) -> Self {
        let names = |tensors: &[usize]| tensors.iter().map(|&t| plan.tensors[t].name.as_str()).collect();
        let groups = plan.gather_groups(group).into_iter().map(|(dtype, tensors)| GatherGroup { dtype, tensors: names(&tensors) });
        Self { name: &group.name, tensors: names(&group.tensors), gather_groups: groups.collect() }
    }
}

/// One rank. Sizes are in bytes.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RankReport<'a> {
    /// The rank.
    pub rank: u32,
    /// Of the checkpoint, what it holds.
    pub bytes_needed: u64,
    /// Read from files; what several ranks of one process share counts for the first of them.
    pub bytes_read: u64,
    /// Held, in the storage dtypes, padding left out.
    pub shard_bytes: u64,
    /// Held as padding.
    pub padding_bytes: u64,
    /// From the start of the load to its last byte.
    pub seconds: f64,
    /// What it holds of each tensor, by name.
    pub tensors: Vec<TensorReport<'a>>,
}

/// What one rank holds of one tensor.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct TensorReport<'a> {
    /// Its name.
    pub name: &'a str,
    /// Parameter or buffer.
    pub kind: TensorKind,
    /// In elements.
    pub global_shape: &'a [u64],
    /// The storage dtype.
    pub dtype: DType,
    /// What it is gathered and computed in.
    pub compute_dtype: DType,
    /// Of a tensor that is cut by dim, or whole: the shape of the part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_shape: Option<Vec<u64>>,
    /// Of a flat one: elements of the partition, padding included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition_numel: Option<u64>,
    /// Of a flat one: elements of the partition, padding left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_numel: Option<u64>,
    /// Over the valid bytes in row-major order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// The whole load. Sizes are in bytes.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Totals {
    /// Sum over ranks.
    pub bytes_needed: u64,
    /// Read from files, each byte once.
    pub bytes_read: u64,
    /// Sum over ranks.
    pub shard_bytes: u64,
    /// Sum over ranks.
    pub padding_bytes: u64,
    /// From start to end.
    pub seconds: f64,
    /// Source bytes read per second, in 10⁹.
    pub gigabytes_per_second: f64,
    /// The largest resident size of this process (VmHWM), at the end of the load; absent where the system does not say.
    pub peak_memory_bytes: Option<u64>,
}

impl Totals {
    /// The figures of a load whose process had this peak.
    pub fn new(stats: &LoadStats, peak_memory_bytes: Option<u64>) -> Self {
        let rate = if stats.seconds > 0.0 { stats.bytes_read as f64 / stats.seconds / 1e9 } else { 0.0 };
        Self {
            bytes_needed: stats.bytes_needed,
            bytes_read: stats.bytes_read,
            shard_bytes: stats.shard_bytes,
            padding_bytes: stats.padding_bytes,
            seconds: stats.seconds,
            gigabytes_per_second: rate,
            peak_memory_bytes,
        }
    }
}

impl<'a> Report<'a> {
    /// Describes a load for `plan`, with the digest of every tensor if asked; `totals` are its figures.
    pub fn new(plan: &'a ShardPlan, loaded: &'a Loaded<'_>, totals: Totals, digest: bool) -> Self {
        // Digests take a while, so the cores share the ranks.
        let digests = digest.then(|| {
            let ranks: Vec<&RankShards<'_>> = loaded.ranks.iter().collect();
            let digests = |rank: &&RankShards<'_>| Ok::<_, Infallible>(rank.iter().map(|view| sha256(view.bytes)).collect::<Vec<_>>());
            match parallel::map(&ranks, digests) {
                Ok(digests) => digests,
                Err(never) => match never {},
            }
        });
        let ranks: Vec<RankStats> = loaded.ranks.iter().map(|rank| *rank.stats()).collect();
        Self::describe(plan, &ranks, digests.as_deref(), totals)
    }

    /// Describes a save that was made without loading first.
    pub fn of_streamed(plan: &'a ShardPlan, streamed: &Streamed, totals: Totals) -> Self {
        Self::describe(plan, &streamed.ranks, streamed.digests.as_deref(), totals)
    }

    fn describe(plan: &'a ShardPlan, ranks: &[RankStats], digests: Option<&[Vec<Sha256>]>, totals: Totals) -> Self {
        let digests = |at: usize| digests.and_then(|digests| digests.get(at)).map(Vec::as_slice);
        Self {
            strategy: &plan.strategy,
            world_size: plan.mesh.world_size(),
            mesh: MeshReport { mp_replicate: plan.mesh.size_of(MP_REPLICATE), mp_shard: plan.mesh.size_of(MP_SHARD) },
            units: plan.groups.iter().map(|group| GroupReport::new(plan, group)).collect(),
            ranks: ranks.iter().enumerate().map(|(at, stats)| rank(plan, stats, digests(at))).collect(),
            totals,
        }
    }
}

fn rank<'a>(plan: &'a ShardPlan, stats: &RankStats, digests: Option<&[Sha256]>) -> RankReport<'a> {
    let &RankStats { rank, bytes_needed, bytes_read, shard_bytes, padding_bytes, seconds, .. } = stats;
    let digest = |index: usize| digests.and_then(|digests| digests.get(index)).map(Sha256::to_string);
    let tensors = plan.tensors.iter().enumerate().map(|(index, planned)| tensor(planned, rank, digest(index))).collect();
    RankReport { rank, bytes_needed, bytes_read, shard_bytes, padding_bytes, seconds, tensors }
}

fn tensor(planned: &TensorPlan, rank: u32, sha256: Option<String>) -> TensorReport<'_> {
    let region = planned.region(rank);
    let flat = matches!(region, Region::Flat { .. });
    TensorReport {
        name: &planned.name,
        kind: planned.kind,
        global_shape: &planned.shape,
        dtype: planned.precision.storage,
        compute_dtype: planned.precision.compute,
        local_shape: region.local_shape(&planned.shape),
        partition_numel: flat.then(|| planned.padded_numel(rank)),
        valid_numel: flat.then(|| region.numel(&planned.shape)),
        sha256,
    }
}
