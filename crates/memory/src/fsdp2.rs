//! A step of FSDP2, replayed. Source: `torch/distributed/fsdp/_fully_shard/{_fsdp_collectives,_fsdp_param_group,_fsdp_param}.py`, torch 2.15.

use shardwright_core::Reshard;

use crate::{
    ledger::{Category as C, Phase, Place, Timeline},
    output::Traffic,
    replay::{Fixed, Run, save},
    settings::Init,
    sizes::{self, GroupSize},
};

/// All phases on a rank.
pub(crate) fn replay(run: &Run<'_>, fixed: &Fixed) -> Timeline {
    let mut timeline = Timeline::default();
    let shards = run.shards_lie_in();
    timeline.begin(Phase::Load);
    fixed.reserve(&mut timeline);
    timeline.add(shards, C::Parameters, fixed.parameters);
    timeline.add(Place::Device, C::Buffers, fixed.buffers);
    match run.settings.init {
        Init::Everywhere => timeline.touch(Place::Host, C::Temporary, fixed.whole),
        Init::Rank0 if fixed.is_rank0 => timeline.touch(Place::Host, C::Temporary, fixed.whole),
        _ => {}
    }
    // A step in its steady state: the states are there from the first one on.
    timeline.begin(Phase::Forward);
    timeline.add(shards, C::OptimizerStates, fixed.optimizer_states);
    forward(run, &mut timeline);
    if !run.settings.inference {
        backward(run, &mut timeline, shards);
        timeline.begin(Phase::Step);
        timeline.touch(shards, C::Temporary, fixed.step_temporary);
        timeline.take(shards, C::Gradients, timeline.now().get(shards, C::Gradients));
    }
    timeline.begin(Phase::Save);
    save(&mut timeline, run.settings, fixed);
    timeline
}

/// Gathers one parameter group: the output of the collective, beside the input cast to the compute dtype.
fn gather(timeline: &mut Timeline, group: &GroupSize, shards: Place) {
    timeline.add(Place::Device, C::Communication, group.gathered);
    let copied = if shards == Place::Host { group.shard.max(group.gather_input) } else { group.gather_input };
    timeline.touch(Place::Device, C::Communication, copied);
}

fn forward(run: &Run<'_>, timeline: &mut Timeline) {
    let shards = run.shards_lie_in();
    let width = sizes::compute_width(run.plan);
    let block = run.architecture.block(run.settings, width);
    let kept = if run.settings.checkpointing { block.input } else { block.attention.saturating_add(block.feed_forward) };
    let first = run.first_trained();
    let Some((root, inner)) = run.units.split_last() else { return };
    gather(timeline, root, shards);
    timeline.add(Place::Device, C::Gathered, root.gathered);
    // The output of a gather is freed when the next one is awaited, so that the copy out of it overlaps with that one.
    let mut before = root.gathered;
    for (at, group) in inner.iter().enumerate() {
        gather(timeline, group, shards);
        timeline.take(Place::Device, C::Communication, before);
        before = group.gathered;
        timeline.add(Place::Device, C::Gathered, group.gathered);
        if group.block.is_some() {
            let whole = block.attention.saturating_add(block.feed_forward);
            let passing = if run.settings.checkpointing || at < first { block.forward.saturating_add(whole / 2) } else { block.forward };
            if !run.settings.inference && at >= first {
                timeline.add(Place::Device, C::Activations, kept);
            }
            timeline.touch(Place::Device, C::Activations, passing);
        }
        let stays = run.still_gathered(group);
        timeline.take(Place::Device, C::Gathered, group.gathered - stays);
    }
    let outside = run.architecture.outside(run.settings, width);
    timeline.add(Place::Device, C::Activations, outside);
    let (logits, float) = run.architecture.logits(run.settings, width);
    timeline.add(Place::Device, C::Loss, logits);
    if width < 4 {
        timeline.add(Place::Device, C::Loss, float);
        timeline.touch(Place::Device, C::Loss, float);
        timeline.take(Place::Device, C::Loss, float);
    }
    // What log_softmax keeps.
    timeline.add(Place::Device, C::Loss, float);
    timeline.take(Place::Device, C::Communication, before);
    timeline.take(Place::Device, C::Gathered, root.gathered - run.still_gathered(root));
    if run.settings.inference {
        timeline.take(Place::Device, C::Activations, outside);
    }
}

fn backward(run: &Run<'_>, timeline: &mut Timeline, shards: Place) {
    timeline.begin(Phase::Backward);
    let device = Place::Device;
    let width = sizes::compute_width(run.plan);
    let block = run.architecture.block(run.settings, width);
    let (logits, float) = run.architecture.logits(run.settings, width);
    let outside = run.architecture.outside(run.settings, width);
    let Some((root, inner)) = run.units.split_last() else { return };
    let first = run.first_trained();
    let mut state = Reducing { shards, input: 0 };
    // The root is gathered first; its own pass ends last.
    again(run, timeline, root, shards, false);
    let trained = &inner[first.min(inner.len())..];
    if let Some(last) = trained.last() {
        prefetch(run, timeline, last, shards);
    }
    // The gradients of nll_loss and of log_softmax, then the logits' own.
    timeline.add(device, C::Loss, float);
    timeline.touch(device, C::Loss, float);
    timeline.take(device, C::Loss, float);
    timeline.take(device, C::Loss, float);
    timeline.touch(device, C::Loss, float.saturating_add(if width < 4 { logits } else { 0 }));
    timeline.touch(device, C::Loss, logits);
    let [feed_forward, rest] = root.gradients;
    timeline.add(device, C::Gradients, feed_forward.saturating_add(rest));
    timeline.take(device, C::Activations, outside);
    for (at, group) in trained.iter().enumerate().rev() {
        again(run, timeline, group, shards, true);
        if at > 0 {
            prefetch(run, timeline, &trained[at - 1], shards);
        }
        if group.block.is_some() {
            if run.settings.checkpointing {
                timeline.add(device, C::Activations, block.attention.saturating_add(block.feed_forward));
            }
            timeline.touch(device, C::Activations, block.backward);
            timeline.take(device, C::Activations, block.feed_forward);
            timeline.add(device, C::Gradients, group.gradients[0]);
            timeline.touch(device, C::Activations, block.backward / 2);
            timeline.take(device, C::Activations, block.attention);
            timeline.add(device, C::Gradients, group.gradients[1]);
            if run.settings.checkpointing {
                timeline.take(device, C::Activations, block.input);
            }
        } else {
            timeline.add(device, C::Gradients, group.gradients[0].saturating_add(group.gradients[1]));
        }
        timeline.take(device, C::Gathered, group.gathered);
        state.reduce(timeline, group);
    }
    timeline.take(device, C::Gathered, root.gathered);
    state.reduce(timeline, root);
    timeline.take(device, C::Communication, state.input);
    // The caller still holds the logits.
    timeline.take(device, C::Loss, logits);
}

/// Gathers a parameter group for its backward pass, unless it stayed gathered. `prefetched` says that the collective ran already.
fn again(run: &Run<'_>, timeline: &mut Timeline, group: &GroupSize, shards: Place, prefetched: bool) {
    if run.reshard(group) == Reshard::Never {
        return;
    }
    if !prefetched {
        gather(timeline, group, shards);
    }
    timeline.add(Place::Device, C::Gathered, group.gathered - run.still_gathered(group));
    timeline.take(Place::Device, C::Communication, group.gathered);
}

fn prefetch(run: &Run<'_>, timeline: &mut Timeline, group: &GroupSize, shards: Place) {
    if run.reshard(group) != Reshard::Never {
        gather(timeline, group, shards);
    }
}

struct Reducing {
    shards: Place,
    /// Input of the reduce-scatter before, which is kept until the next one starts.
    input: u64,
}

impl Reducing {
    fn reduce(&mut self, timeline: &mut Timeline, group: &GroupSize) {
        let device = Place::Device;
        let whole = group.gradients[0].saturating_add(group.gradients[1]);
        if whole == 0 {
            return;
        }
        timeline.take(device, C::Communication, self.input);
        timeline.add(device, C::Communication, group.reduce);
        timeline.take(device, C::Gradients, whole);
        timeline.add(device, C::Communication, group.reduced);
        if group.reduced != group.sharded_gradients {
            timeline.touch(device, C::Gradients, group.sharded_gradients);
        }
        timeline.take(device, C::Communication, group.reduced);
        timeline.add(self.shards, C::Gradients, group.sharded_gradients);
        self.input = group.reduce;
    }
}

/// Bytes that a rank sends in an optimizer step.
pub(crate) fn traffic(run: &Run<'_>) -> Traffic {
    let mut traffic = Traffic::default();
    let steps = run.settings.accumulation;
    let replicas = run.plan.mesh.world_size() as u64 / run.units.iter().map(|u| u.group).max().unwrap_or(1).max(1);
    let offloaded = run.shards_lie_in() == Place::Host;
    let first = run.first_trained();
    for (at, group) in run.units.iter().enumerate() {
        let sent = |bytes: u64| bytes / group.group * (group.group - 1);
        let is_root = at + 1 == run.units.len();
        let again = u64::from(!run.settings.inference && run.reshard(group) != Reshard::Never && (at >= first || is_root));
        sizes::grow(&mut traffic.gather, sent(group.gathered).saturating_mul(1 + again).saturating_mul(steps));
        if run.settings.inference {
            continue;
        }
        sizes::grow(&mut traffic.reduce, sent(group.reduce).saturating_mul(steps));
        if replicas > 1 {
            let both_ways = group.reduced.saturating_mul(2) / replicas * (replicas - 1);
            sizes::grow(&mut traffic.reduce, both_ways.saturating_mul(steps));
        }
        if offloaded {
            sizes::grow(
                &mut traffic.host_bus,
                group.shard.saturating_mul(1 + again).saturating_add(group.sharded_gradients).saturating_mul(steps),
            );
        }
    }
    traffic
}
