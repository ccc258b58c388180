//! What the replays of all engines share: the run, what a rank holds whatever the step does, and the saving of a checkpoint.

use shardwright_core::{Offload, Reshard, ShardPlan};

use crate::{
    activations::Architecture,
    ledger::{Category as C, Place, Timeline},
    settings::Settings,
    sizes::GroupSize,
};

/// What a run gives to a replay.
pub(crate) struct Run<'a> {
    pub plan: &'a ShardPlan,
    pub architecture: &'a Architecture,
    pub settings: &'a Settings,
    pub units: &'a [GroupSize],
}

impl Run<'_> {
    pub(crate) fn shards_lie_in(&self) -> Place {
        let offloaded = self.plan.tensors.iter().any(|t| t.offload != Offload::None);
        if offloaded && !self.settings.on_cpu { Place::Host } else { Place::Device }
    }

    pub(crate) fn reshard(&self, group: &GroupSize) -> Reshard {
        self.plan.groups[group.index].reshard_after_forward
    }

    /// Bytes of a parameter group that stay gathered between its forward and its backward pass.
    pub(crate) fn still_gathered(&self, group: &GroupSize) -> u64 {
        match self.reshard(group) {
            Reshard::Never => group.gathered,
            Reshard::ToRanks(ranks) => group.gathered / u64::from(ranks.max(1)),
            _ => 0,
        }
    }

    /// The first parameter group that a backward pass reaches: below it nothing is trained. Adapters leave no block out.
    pub(crate) fn first_trained(&self) -> usize {
        self.units.iter().position(|u| u.gradients != [0, 0]).unwrap_or(self.units.len())
    }
}

/// What the driver's context and the collective library take on a GPU: an assumption, and reported as one.
pub const RESERVE: u64 = 1 << 30;

/// What a rank holds that does not depend on the course of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fixed {
    /// Shards with their padding.
    pub parameters: u64,
    pub buffers: u64,
    pub optimizer_states: u64,
    /// Temporary tensors of the optimizer step.
    pub step_temporary: u64,
    /// The whole model, in the storage dtypes.
    pub whole: u64,
    /// The largest parameter, whole.
    pub largest_whole: u64,
    pub is_rank0: bool,
    pub on_cpu: bool,
}

impl Fixed {
    pub(crate) fn reserve(&self, timeline: &mut Timeline) {
        if !self.on_cpu {
            timeline.add(Place::Device, C::Reserve, RESERVE);
        }
    }
}

/// A rank's own shards are copied to host memory, and where the whole model is written, rank 0 collects it there tensor by tensor.
pub(crate) fn save(timeline: &mut Timeline, settings: &Settings, fixed: &Fixed) {
    let now = *timeline.now();
    let own = [C::Parameters, C::OptimizerStates, C::Masters].iter().fold(0u64, |sum, &c| sum.saturating_add(now.get(Place::Device, c)));
    let staged = if settings.on_cpu { 0 } else { own };
    timeline.touch(Place::Host, C::Temporary, staged);
    if settings.saves_whole {
        timeline.add(Place::Device, C::Gathered, fixed.largest_whole);
        if fixed.is_rank0 {
            timeline.touch(Place::Host, C::Temporary, fixed.whole);
        }
        timeline.take(Place::Device, C::Gathered, fixed.largest_whole);
    }
}
