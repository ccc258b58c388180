//! Changes that save memory, each predicted anew, the cheapest first.

use shardwright_core::{Mesh, Offload, Reshard, ShardPlan, TensorKind};

pub use crate::output::Budget;
use crate::{
    activations::Architecture,
    output::{Advice, World},
    predict::{offloads, predict, reshards},
    settings::{Device, Engine, Settings},
};

impl Budget {
    /// Whether a rank with these peaks fits; `None` where no memory was given.
    pub fn fits(&self, device: u64, host: u64) -> Option<bool> {
        match (self.device, self.host) {
            (None, None) => None,
            (have_device, have_host) => Some(have_device.is_none_or(|n| device <= n) && have_host.is_none_or(|n| host <= n)),
        }
    }
}

/// A change: what to write, what it does, and how the run then looks.
struct Change {
    change: String,
    effect: &'static str,
    plan: ShardPlan,
    settings: Settings,
    computation: f64,
}

/// The share of a step that recomputing activations adds: a forward pass is about a third of forward and backward.
const RECOMPUTE: f64 = 1.0 / 3.0;

/// Predicts each change that this run can make on its world, and those of them that save device memory. Those that fit come first, then by
/// what they cost: traffic, then computation.
pub fn advise(plan: &ShardPlan, architecture: &Architecture, settings: &Settings, world: &World, budget: &Budget) -> Vec<Advice> {
    let mut found: Vec<Advice> = changes(plan, settings)
        .into_iter()
        .map(|change| {
            let then = predict(&change.plan, architecture, &change.settings);
            Advice {
                change: change.change,
                effect: change.effect.to_owned(),
                device: then.peak.device,
                host: then.peak.host,
                fits: budget.fits(then.peak.device, then.peak.host),
                traffic: difference(then.traffic.total(), world.traffic.total()),
                computation: change.computation,
            }
        })
        .filter(|advice| advice.device < world.peak.device)
        .collect();
    sort(&mut found);
    found
}

/// Adds other strategies on the same world, where they save device memory.
pub fn advise_strategies<'a>(world: &mut World, others: impl IntoIterator<Item = &'a World>) {
    for other in others {
        if other.peak.device >= world.peak.device {
            continue;
        }
        world.advice.push(Advice {
            change: other.variant.clone(),
            effect: "another strategy, with its defaults".to_owned(),
            device: other.peak.device,
            host: other.peak.host,
            fits: other.fits,
            traffic: difference(other.traffic.total(), world.traffic.total()),
            computation: 0.0,
        });
    }
    sort(&mut world.advice);
}

/// What fits comes first, then what costs less.
fn sort(advice: &mut [Advice]) {
    advice.sort_by(|a, b| {
        let cost = |x: &Advice| (x.fits != Some(true), x.traffic.max(0));
        cost(a).cmp(&cost(b)).then(a.computation.total_cmp(&b.computation)).then(a.device.cmp(&b.device))
    });
}

fn difference(then: u64, now: u64) -> i64 {
    let more = i64::try_from(then.saturating_sub(now)).unwrap_or(i64::MAX);
    let fewer = i64::try_from(now.saturating_sub(then)).unwrap_or(i64::MAX);
    more - fewer
}

fn changes(plan: &ShardPlan, settings: &Settings) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut push = |change: &str, effect: &'static str, plan: ShardPlan, settings: Settings, computation: f64| {
        changes.push(Change { change: change.to_owned(), effect, plan, settings, computation });
    };
    if !settings.checkpointing && !settings.inference {
        let then = Settings { checkpointing: true, ..settings.clone() };
        push("enable_activation_checkpointing: true", "activations are recomputed in the backward pass", plan.clone(), then, RECOMPUTE);
    }
    if settings.micro_batch > 1 {
        let then = smaller_batch(settings);
        let change = format!("micro_batch_size: {}, global_batch_size as it is", then.micro_batch);
        push(&change, "more, smaller forward passes for the same optimizer step", plan.clone(), then, 0.0);
    }
    let is_zero3 = matches!(&settings.engine, Engine::Zero(zero) if zero.stage == 3);
    if !is_zero3 && plan.strategy != shardwright_core::replicate::REPLICATE && !reshards(plan) {
        let mut then = plan.clone();
        then.groups.iter_mut().for_each(|u| u.reshard_after_forward = Reshard::ToShards);
        push(
            "dist_config.reshard_after_forward: true",
            "parameter groups are gathered again for the backward pass",
            then,
            settings.clone(),
            0.0,
        );
    }
    if let Engine::Zero(zero) = &settings.engine {
        let with = |zero| Settings { engine: Engine::Zero(zero), ..settings.clone() };
        if zero.stage == 3 && zero.max_reuse > 0 {
            let mut then = zero.clone();
            (then.max_reuse, then.max_live, then.prefetch_bucket) = (0, 0, 0);
            let change = "zero_optimization: stage3_max_reuse_distance, stage3_max_live_parameters and stage3_prefetch_bucket_size: 0";
            push(change, "parameters are freed as soon as their module has run", plan.clone(), with(then), 0.0);
        }
        if zero.stage >= 1 && zero.reduce_bucket > SMALL_BUCKET {
            let mut then = zero.clone();
            then.reduce_bucket = SMALL_BUCKET;
            let change = format!("zero_optimization.reduce_bucket_size: {SMALL_BUCKET}");
            push(&change, "gradients are reduced in smaller pieces", plan.clone(), with(then), 0.0);
        }
        if zero.stage >= 1 && zero.optimizer_on == Device::None && !settings.on_cpu && !settings.inference {
            let mut then = zero.clone();
            then.optimizer_on = Device::Cpu;
            push(
                "zero_optimization.offload_optimizer.device: cpu",
                "masters and states in host memory; the CPU updates them",
                plan.clone(),
                with(then.clone()),
                0.0,
            );
            if zero.stage == 3 {
                then.parameters_on = Device::Cpu;
                let mut both = plan.clone();
                offload(&mut both);
                push(
                    "zero_optimization.offload_optimizer and offload_param.device: cpu",
                    "parameters in host memory as well",
                    both,
                    with(then),
                    0.0,
                );
            }
        }
    } else if !offloads(plan, settings) && !settings.on_cpu && plan.strategy != shardwright_core::replicate::REPLICATE {
        let mut then = plan.clone();
        offload(&mut then);
        push(
            "dist_config.offload_params: true",
            "shards, gradients and states in host memory; the CPU updates them",
            then,
            settings.clone(),
            0.0,
        );
    }
    if let Some(wider) = twice_the_ranks(plan) {
        let mut then = settings.clone();
        then.accumulation = (settings.accumulation / 2).max(1);
        let change = format!("--world-size {}", wider.mesh.world_size());
        push(&change, "every shard is half as large", wider, then, 0.0);
    }
    changes
}

/// A reduction bucket that still keeps a fast network busy.
const SMALL_BUCKET: u64 = 10_000_000;

fn smaller_batch(settings: &Settings) -> Settings {
    let samples = settings.micro_batch.saturating_mul(settings.accumulation);
    let micro = (1..=settings.micro_batch / 2).rev().find(|m| samples.is_multiple_of(*m)).unwrap_or(1);
    Settings { micro_batch: micro, accumulation: samples / micro, ..settings.clone() }
}

fn offload(plan: &mut ShardPlan) {
    plan.tensors.iter_mut().filter(|t| t.kind == TensorKind::Parameter).for_each(|t| t.offload = Offload::Cpu);
}

/// The same plan over twice as many ranks along the axis that tensors are cut over; `None` for layouts that do not follow from a size.
fn twice_the_ranks(plan: &ShardPlan) -> Option<ShardPlan> {
    use shardwright_core::{Layout, model::numel};
    let last = plan.mesh.axes().last()?;
    let axes = plan.mesh.axes().iter().map(|a| (a.name.clone(), if a.name == last.name { a.size.saturating_mul(2) } else { a.size }));
    let mesh = Mesh::new(axes).ok()?;
    let mut wider = plan.clone();
    let mut cut = false;
    for tensor in &mut wider.tensors {
        let only = match tensor.placement.cuts.as_mut_slice() {
            [] => continue,
            [only] => only,
            _ => return None,
        };
        // A group that is no whole row of ranks says nothing of how it would grow.
        if only.axis.stride != 1 || only.axis.size.checked_rem(last.size) != Some(0) {
            return None;
        }
        let size = only.axis.size.checked_mul(2)?;
        only.axis.size = size;
        cut = true;
        match &mut only.layout {
            Layout::Dim { dim, chunk } => *chunk = tensor.shape.get(*dim)?.div_ceil(u64::from(size)),
            Layout::Flat { partition } => *partition = numel(&tensor.shape)?.div_ceil(u64::from(size)),
            Layout::Chunk { .. } | Layout::Partition => {}
            _ => return None,
        }
    }
    wider.mesh = mesh;
    cut.then_some(wider)
}
