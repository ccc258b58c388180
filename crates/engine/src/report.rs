//! What a load put where, as data for programs: the JSON of `--report`. Times and memory aside, the same input gives the same bytes.

use serde::Serialize;
use shardwright_core::{
    DType, Region, ShardPlan, TensorKind, TensorPlan, Unit,
    mesh::{MP_REPLICATE, MP_SHARD},
};

use crate::{
    digest::sha256,
    load::{LoadStats, Loaded, RankShards, RankStats, TensorView},
    parallel,
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
    pub units: Vec<UnitReport<'a>>,
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
pub struct UnitReport<'a> {
    /// The module's name; empty for the root.
    pub name: &'a str,
    /// Names of its parameters.
    pub tensors: Vec<&'a str>,
    /// The same by the dtype that they are gathered in, one collective each, by the dtypes' order.
    pub gather_groups: Vec<GatherGroup<'a>>,
}

/// Parameters of a unit that are gathered in one dtype.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct GatherGroup<'a> {
    /// The compute dtype.
    pub dtype: DType,
    /// Names of the parameters.
    pub tensors: Vec<&'a str>,
}

impl<'a> UnitReport<'a> {
    fn new(plan: &'a ShardPlan, unit: &'a Unit) -> Self {
        let names = |tensors: &[usize]| tensors.iter().map(|&t| plan.tensors[t].name.as_str()).collect();
        let groups = plan.gather_groups(unit).into_iter().map(|(dtype, tensors)| GatherGroup { dtype, tensors: names(&tensors) });
        Self { name: &unit.name, tensors: names(&unit.tensors), gather_groups: groups.collect() }
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
        Self {
            strategy: &plan.strategy,
            world_size: plan.mesh.world_size(),
            mesh: MeshReport { mp_replicate: plan.mesh.size_of(MP_REPLICATE), mp_shard: plan.mesh.size_of(MP_SHARD) },
            units: plan.units.iter().map(|unit| UnitReport::new(plan, unit)).collect(),
            ranks: ranks(plan, &loaded.ranks, digest),
            totals,
        }
    }
}

/// Describes the ranks; digests take a while, so the cores share the ranks.
fn ranks<'a>(plan: &'a ShardPlan, loaded: &'a [RankShards<'_>], digest: bool) -> Vec<RankReport<'a>> {
    let describe = |shards: &'a RankShards<'_>| rank(plan, shards, digest);
    if !digest {
        return loaded.iter().map(describe).collect();
    }
    let ranks: Vec<&'a RankShards<'_>> = loaded.iter().collect();
    let described = parallel::map(&ranks, |shards| Ok::<_, std::convert::Infallible>(describe(shards)));
    match described {
        Ok(described) => described,
        Err(never) => match never {},
    }
}

fn rank<'a>(plan: &'a ShardPlan, shards: &'a RankShards<'_>, digest: bool) -> RankReport<'a> {
    let &RankStats { rank, bytes_needed, bytes_read, shard_bytes, padding_bytes, seconds, .. } = shards.stats();
    let tensors = plan.tensors.iter().zip(shards.iter()).map(|(planned, view)| tensor(planned, &view, digest)).collect();
    RankReport { rank, bytes_needed, bytes_read, shard_bytes, padding_bytes, seconds, tensors }
}

fn tensor<'a>(planned: &'a TensorPlan, view: &TensorView<'_>, digest: bool) -> TensorReport<'a> {
    let elements = |bytes: &[u8]| bytes.len() as u64 * 8 / view.dtype.bits();
    let flat = matches!(view.region, Region::Flat { .. });
    TensorReport {
        name: &planned.name,
        kind: planned.kind,
        global_shape: &planned.shape,
        dtype: view.dtype,
        compute_dtype: planned.precision.compute,
        local_shape: view.local_shape.clone(),
        partition_numel: flat.then(|| elements(view.padded)),
        valid_numel: flat.then(|| elements(view.bytes)),
        sha256: digest.then(|| sha256(view.bytes).to_string()),
    }
}
