//! The plan: for every tensor where it lies, in which dtypes, and in which parameter group. Data, without a file or a device.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    dtype::DType,
    mesh::Mesh,
    model::{TensorKind, numel},
    name::Name,
    placement::Placement,
    precision::Precision,
    region::Region,
    steps,
};

/// Where a rank keeps its shard between uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Offload {
    /// On the device.
    #[default]
    None,
    /// In host memory.
    Cpu,
    /// On a local disk.
    Nvme,
}

/// When a parameter group's parameters are cut again after a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reshard {
    /// They stay gathered until the backward pass.
    Never,
    /// Back to the shards.
    ToShards,
    /// To shards over groups of this many consecutive ranks.
    ToRanks(u32),
}

/// Parameters that are gathered together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ParamGroup {
    /// The module's name; empty for the root.
    pub name: String,
    /// Indices into [`ShardPlan::tensors`], in the order in which they are concatenated for a gather.
    pub tensors: Vec<usize>,
    /// What happens after forward.
    pub reshard_after_forward: Reshard,
}

impl ParamGroup {
    /// A parameter group of that module, holding nothing yet.
    pub fn new(name: impl Into<String>, reshard_after_forward: Reshard) -> Self {
        Self { name: name.into(), tensors: Vec::new(), reshard_after_forward }
    }
}

/// The plan of one tensor. Made by [`PlanInput::plan_tensors`](crate::PlanInput::plan_tensors); a strategy then changes what it decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TensorPlan {
    /// Name in the checkpoint.
    pub name: Name,
    /// Global shape in elements.
    pub shape: Vec<u64>,
    /// Element type in the checkpoint.
    pub source: DType,
    /// Parameter or buffer.
    pub kind: TensorKind,
    /// Whether the optimizer changes it (false for buffers and frozen parameters).
    pub trainable: bool,
    /// Which ranks hold which part.
    pub placement: Placement,
    /// In which dtypes it is stored, computed with and reduced.
    pub precision: Precision,
    /// Values are rounded through this dtype before they are cast to storage, as transformers' `dtype="auto"` does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounded: Option<DType>,
    /// Kept gathered while training (ZeRO-3's persistence); does not change the layout.
    pub persistent: bool,
    /// Where the shard is stored.
    pub offload: Offload,
}

impl TensorPlan {
    /// Number of elements of the whole tensor.
    pub fn numel(&self) -> u64 {
        steps::count(1);
        numel(&self.shape).unwrap_or(u64::MAX)
    }

    /// What `rank` holds.
    pub fn region(&self, rank: u32) -> Region {
        self.placement.region(&self.shape, rank)
    }

    /// Elements that `rank` holds, padding left out.
    pub fn valid_numel(&self, rank: u32) -> u64 {
        self.region(rank).numel(&self.shape)
    }

    /// Elements of `rank`'s buffer, padding included.
    pub fn padded_numel(&self, rank: u32) -> u64 {
        self.placement.padded_numel(&self.shape, rank)
    }
}

/// A complete plan: every tensor of the model, every parameter group. Made by
/// [`PlanInput::plan_tensors`](crate::PlanInput::plan_tensors), validated by
/// [`ShardPlan::check`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ShardPlan {
    /// The strategy's name.
    pub strategy: String,
    /// All ranks.
    pub mesh: Mesh,
    /// All tensors, sorted by name.
    pub tensors: Vec<TensorPlan>,
    /// All-gather groups, in a fixed order; together they hold every parameter once. `units` in JSON.
    #[serde(rename = "units", alias = "groups")]
    pub groups: Vec<ParamGroup>,
}

impl ShardPlan {
    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorPlan> {
        self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok().map(|i| &self.tensors[i])
    }

    /// The parameter group of each tensor, as an index into `groups`; `None` for buffers.
    pub fn group_of(&self) -> Vec<Option<usize>> {
        let mut group_of = vec![None; self.tensors.len()];
        for (u, group) in self.groups.iter().enumerate() {
            for &t in &group.tensors {
                group_of[t] = Some(u);
            }
        }
        group_of
    }

    /// A parameter group's tensors by the dtype in which they are gathered: groups that one collective can carry without a cast.
    pub fn gather_groups(&self, group: &ParamGroup) -> BTreeMap<DType, Vec<usize>> {
        let mut groups: BTreeMap<DType, Vec<usize>> = BTreeMap::new();
        for &t in &group.tensors {
            groups.entry(self.tensors[t].precision.compute).or_default().push(t);
        }
        groups
    }
}
