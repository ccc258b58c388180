//! A step of DistributedDataParallel, and of DeepSpeed's stages 0 to 2, which keep parameters whole. Source: `torch/nn/parallel/distributed.py`
//! and `deepspeed/runtime/zero/stage_1_and_2.py`, 0.19.8.

use shardwright_core::{DType, TensorKind};

use crate::{
    ledger::{Category as C, Phase, Place, Timeline},
    output::Traffic,
    replay::{Fixed, Run, save},
    settings::{Device, Engine, Init},
    sizes,
};

/// Elements that are trained.
fn trained(run: &Run<'_>) -> u64 {
    run.plan.tensors.iter().filter(|t| t.trainable).fold(0, |sum, t| sum.saturating_add(t.numel()))
}

/// A share of elements, as DeepSpeed cuts its flat buffer: aligned to the world.
fn share(elements: u64, world: u64) -> u64 {
    elements.div_ceil(world)
}

/// All phases on a rank.
pub(crate) fn replay(run: &Run<'_>, fixed: &Fixed) -> Timeline {
    let mut timeline = Timeline::default();
    let device = Place::Device;
    let world = u64::from(run.plan.mesh.world_size());
    let settings = run.settings;
    let width = sizes::compute_width(run.plan);
    timeline.begin(Phase::Load);
    fixed.reserve(&mut timeline);
    timeline.add(device, C::Parameters, fixed.parameters);
    timeline.add(device, C::Buffers, fixed.buffers);
    if settings.init == Init::Everywhere && !settings.on_cpu {
        timeline.touch(Place::Host, C::Temporary, fixed.whole);
    }
    let n = trained(run);
    let storage: u64 =
        run.plan.tensors.iter().filter(|t| t.trainable).map(|t| sizes::bytes(t.precision.storage, t.numel())).fold(0, u64::saturating_add);
    let (stage, on) = match &settings.engine {
        Engine::Zero(zero) => (zero.stage, zero.optimizer_on),
        _ => (0, Device::None),
    };
    let states = if on == Device::Cpu && !settings.on_cpu { Place::Host } else { device };
    let is_zero = matches!(settings.engine, Engine::Zero(_));
    let owned = if stage >= 1 { share(n, world) } else { n };
    // fp32 masters beside 16-bit parameters; with float32 parameters DeepSpeed clones them all the same in stages 1 and 2.
    if is_zero && !settings.inference && (stage >= 1 || width < 4) {
        timeline.add(states, C::Masters, owned.saturating_mul(4));
    }
    timeline.begin(Phase::Forward);
    if !settings.inference {
        let states_of = if is_zero { settings.optimizer.states(owned, 4, true) } else { fixed.optimizer_states };
        timeline.add(states, C::OptimizerStates, states_of);
    }
    // Stage 2 keeps the reduced share of the gradients; DDP its buckets beside the gradients, which live from one step to the next.
    match &settings.engine {
        Engine::Zero(zero) if stage >= 1 && zero.contiguous_gradients => {
            timeline.add(device, C::Communication, zero.reduce_bucket.min(n).saturating_mul(width));
        }
        Engine::Ddp if world > 1 => timeline.add(device, C::Communication, storage),
        _ => {}
    }
    let block = run.architecture.block(settings, width);
    let whole = block.attention.saturating_add(block.feed_forward);
    let blocks = sizes::count_blocks(run.plan.tensors.iter().filter(|t| t.kind == TensorKind::Parameter).map(|t| t.name.as_str()));
    let kept = if settings.checkpointing { block.input } else { whole }.saturating_mul(blocks);
    let autocast: u64 = match settings.engine {
        Engine::Ddp => run
            .plan
            .tensors
            .iter()
            .filter(|t| t.kind == TensorKind::Parameter && t.precision.compute != t.precision.storage && t.shape.len() > 1)
            .map(|t| sizes::bytes(t.precision.compute, t.numel()))
            .fold(0, u64::saturating_add),
        _ => 0,
    };
    timeline.add(device, C::Gathered, autocast);
    let (logits, float) = run.architecture.logits(settings, width);
    if settings.inference {
        timeline.touch(device, C::Activations, block.forward.saturating_add(whole / 2));
        timeline.touch(device, C::Loss, logits.saturating_add(float));
    } else {
        timeline.add(device, C::Activations, kept);
        timeline.touch(device, C::Activations, block.forward);
        timeline.add(device, C::Loss, logits.saturating_add(float));
        timeline.touch(device, C::Loss, if width < 4 { float } else { 0 });
        timeline.begin(Phase::Backward);
        timeline.touch(device, C::Loss, float.saturating_mul(2));
        timeline.take(device, C::Loss, float);
        if settings.checkpointing {
            timeline.touch(device, C::Activations, whole.saturating_add(block.backward));
        } else {
            timeline.touch(device, C::Activations, block.backward);
        }
        timeline.take(device, C::Activations, kept);
        timeline.take(device, C::Gathered, autocast);
        let gradients = match stage {
            2 => owned.saturating_mul(width),
            _ if is_zero => n.saturating_mul(width),
            _ => storage,
        };
        let lie_in = if stage == 2 { states } else { device };
        timeline.add(lie_in, C::Gradients, gradients);
        timeline.take(device, C::Loss, logits);
        timeline.begin(Phase::Step);
        if is_zero {
            // The share of the gradients in float32, then the optimizer's own temporaries.
            let temporary = 4 * (1 + settings.optimizer.temporaries(settings.on_cpu));
            timeline.touch(states, C::Temporary, owned.saturating_mul(temporary));
        } else {
            timeline.touch(device, C::Temporary, fixed.step_temporary);
        }
        timeline.take(lie_in, C::Gradients, gradients);
    }
    timeline.begin(Phase::Save);
    save(&mut timeline, settings, fixed);
    timeline
}

/// Bytes that a rank sends in an optimizer step: a ring's all-reduce sends nearly everything twice.
pub(crate) fn traffic(run: &Run<'_>) -> Traffic {
    let mut traffic = Traffic::default();
    let world = u64::from(run.plan.mesh.world_size());
    if run.settings.inference {
        return traffic;
    }
    let sum = |dtype: fn(&shardwright_core::TensorPlan) -> DType| {
        run.plan.tensors.iter().filter(|t| t.trainable).map(|t| sizes::bytes(dtype(t), t.numel())).fold(0u64, u64::saturating_add)
    };
    let sent = |bytes: u64| bytes / world * (world - 1);
    match &run.settings.engine {
        Engine::Zero(zero) if zero.stage >= 1 => {
            traffic.reduce = sent(sum(|t| t.precision.reduce)).saturating_mul(run.settings.accumulation);
            traffic.gather = sent(sum(|t| t.precision.compute));
            if zero.optimizer_on != Device::None {
                traffic.host_bus = sum(|t| t.precision.compute).saturating_mul(2) / world;
            }
        }
        Engine::Zero(_) => traffic.reduce = sent(sum(|t| t.precision.reduce)).saturating_mul(2),
        _ => traffic.reduce = sent(sum(|t| t.precision.storage)).saturating_mul(2).saturating_mul(run.settings.accumulation),
    }
    traffic
}
