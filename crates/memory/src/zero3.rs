//! A step of DeepSpeed ZeRO-3, replayed. Source: `deepspeed/runtime/zero/{stage3,partition_parameters,partitioned_param_coordinator}.py`, 0.19.8.

use std::collections::VecDeque;

use shardwright_core::{DType, TensorKind};

use crate::{
    ledger::{Category as C, Phase, Place, Timeline},
    output::Traffic,
    replay::{Fixed, Run, save},
    settings::{Device, Zero},
    sizes,
};

/// One parameter of the trace.
struct Parameter {
    numel: u64,
    /// Gathered, padding included, in the compute dtype.
    gathered: u64,
    persistent: bool,
    trainable: bool,
    /// Of its gradient, in the dtype of the reduction.
    reduce: u64,
    compute: u64,
    /// Steps of the trace that use it.
    uses: Vec<usize>,
}

/// A module's own parameters, used in one step of the trace.
struct Step {
    module: usize,
    /// The block, and whether this is the first, or the last, of its modules in this direction.
    block: Option<usize>,
    enters: bool,
    leaves: bool,
    /// Past the middle of its block.
    half: bool,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Forward,
    Recompute,
    Backward,
}

/// Sums that stay the same over a step.
struct Sums {
    /// Elements of the trainable partitions.
    partition: u64,
    /// Elements of the largest sub-group.
    sub_group: u64,
    sub_groups: u64,
    model_dtype: DType,
    gradient_dtype: DType,
    reduce_dtype: DType,
    master_width: u64,
    has_masters: bool,
    state_width: u64,
}

fn sums(run: &Run<'_>, zero: &Zero) -> Sums {
    let trained = || run.plan.tensors.iter().filter(|t| t.trainable);
    let any = run.plan.tensors.iter().find(|t| t.kind == TensorKind::Parameter);
    let model_dtype = any.map_or(DType::F32, |t| t.precision.storage);
    let width = sizes::bytes(model_dtype, 1);
    let partition = trained().map(|t| t.padded_numel(0)).fold(0, u64::saturating_add);
    let largest = trained().map(|t| t.padded_numel(0)).max().unwrap_or(0);
    let (sub_group, sub_groups) = if partition <= zero.sub_group {
        (partition, 1)
    } else {
        (zero.sub_group.saturating_add(largest).min(partition), partition.div_ceil(zero.sub_group))
    };
    let master_width = if zero.low_precision_masters { width } else { 4 };
    Sums {
        partition,
        sub_group,
        sub_groups,
        model_dtype,
        gradient_dtype: zero.gradient_dtype.unwrap_or(model_dtype),
        reduce_dtype: any.map_or(DType::F32, |t| t.precision.reduce),
        master_width,
        // Parameters that are in the masters' dtype and on their device are the masters.
        has_masters: width != master_width || (zero.optimizer_on != Device::None && zero.parameters_on == Device::None),
        state_width: if zero.low_precision_states { width } else { master_width },
    }
}

/// All phases on a rank.
pub(crate) fn replay(run: &Run<'_>, zero: &Zero, fixed: &Fixed) -> (Timeline, Traffic) {
    let mut timeline = Timeline::default();
    let device = Place::Device;
    let on_cpu = run.settings.on_cpu;
    let place = |on: Device| match on {
        Device::Cpu | Device::Nvme if !on_cpu => Place::Host,
        _ => device,
    };
    let sums = sums(run, zero);
    let width = sizes::bytes(sums.model_dtype, 1);
    let trains = !run.settings.inference && sums.partition > 0;
    timeline.begin(Phase::Load);
    fixed.reserve(&mut timeline);
    timeline.add(device, C::Buffers, fixed.buffers);
    parameters(&mut timeline, run, zero, &sums, fixed);
    if zero.hpz > 1 {
        let secondary: u64 = run
            .plan
            .tensors
            .iter()
            .filter(|t| t.kind == TensorKind::Parameter)
            .map(|t| t.numel().div_ceil(zero.hpz))
            .fold(0, u64::saturating_add);
        timeline.add(device, C::Gathered, secondary.saturating_mul(width));
    }
    if trains {
        optimizer(&mut timeline, run, zero, &sums, place(zero.optimizer_on));
        if zero.contiguous_gradients {
            timeline.add(device, C::Communication, sizes::bytes(sums.reduce_dtype, zero.reduce_bucket));
        }
        timeline.add(place(zero.optimizer_on), C::Gradients, sizes::bytes(sums.gradient_dtype, sums.partition));
    }
    let mut trace = Trace::new(run, zero);
    timeline.add(device, C::Gathered, trace.persistent);
    timeline.begin(Phase::Forward);
    if trains {
        states(&mut timeline, run, zero, &sums, place(zero.optimizer_on));
    }
    trace.replay(run, &mut timeline, &sums);
    if trains {
        timeline.begin(Phase::Step);
        if zero.optimizer_on == Device::None {
            step(&mut timeline, run, &sums, width);
        } else if zero.offload_ratio < 1.0 && zero.optimizer_on == Device::Cpu {
            timeline.touch(device, C::Temporary, sums.sub_group.saturating_mul(4));
        }
    }
    timeline.begin(Phase::Save);
    save(&mut timeline, run.settings, fixed);
    let traffic = trace.traffic(run, zero, &sums, width);
    (timeline, traffic)
}

/// Partitions: one flat buffer on the device, pinned flat buffers in host memory, or files with buffers to swap through.
fn parameters(timeline: &mut Timeline, run: &Run<'_>, zero: &Zero, sums: &Sums, fixed: &Fixed) {
    let width = sizes::bytes(sums.model_dtype, 1);
    match zero.parameters_on {
        _ if run.settings.on_cpu => timeline.add(Place::Device, C::Parameters, fixed.parameters),
        Device::None => {
            timeline.add(Place::Device, C::Parameters, fixed.parameters);
            // `defragment` goes through a buffer in host memory.
            timeline.touch(Place::Host, C::Temporary, sums.partition.saturating_mul(width));
        }
        Device::Cpu => timeline.add(Place::Host, C::Parameters, fixed.parameters),
        Device::Nvme => {
            let in_host = zero.max_in_cpu.saturating_mul(width).min(fixed.parameters);
            timeline.add(Place::Host, C::Parameters, in_host);
            timeline.add(Place::Nvme, C::Parameters, fixed.parameters - in_host);
            let buffers = zero.parameter_buffers.saturating_mul(zero.parameter_buffer).saturating_mul(width);
            timeline.add(Place::Host, C::Communication, buffers);
        }
    }
}

/// Masters, and the buffers of the optimizer that are made at the start.
fn optimizer(timeline: &mut Timeline, run: &Run<'_>, zero: &Zero, sums: &Sums, place: Place) {
    let masters = if sums.has_masters { sums.partition.saturating_mul(sums.master_width) } else { 0 };
    match zero.optimizer_on {
        Device::None => {
            timeline.add(place, C::Masters, masters);
            // The cast is cloned, sub-group by sub-group.
            if sums.has_masters {
                timeline.touch(place, C::Temporary, sums.sub_group.saturating_mul(sums.master_width));
            }
            timeline.touch(place, C::Temporary, sums.sub_group.saturating_mul(sums.master_width));
        }
        Device::Cpu => {
            let share = |bytes: u64| if run.settings.on_cpu { 0 } else { ratio(bytes, 1.0 - zero.offload_ratio) };
            let kept = share(masters);
            timeline.add(Place::Device, C::Masters, kept);
            timeline.add(place, C::Masters, masters - kept);
            // A float32 gradient for every sub-group.
            timeline.add(place, C::Gradients, sums.partition.saturating_mul(sums.master_width));
        }
        Device::Nvme => {
            timeline.add(Place::Nvme, C::Masters, masters);
            timeline.add(Place::Nvme, C::Gradients, sums.partition.saturating_mul(sums.master_width));
            let buffers = zero.optimizer_buffers.saturating_mul(sums.sub_group).saturating_mul(sums.master_width);
            timeline.add(place, C::Communication, buffers);
        }
    }
}

fn states(timeline: &mut Timeline, run: &Run<'_>, zero: &Zero, sums: &Sums, place: Place) {
    // Flat sub-groups, padding included. Muon goes by matrices, whose share of the partitions it is.
    let optimizer = run.settings.optimizer;
    let matrices: u64 =
        run.plan.tensors.iter().filter(|t| t.trainable && sizes::is_matrix(t)).map(|t| t.padded_numel(0)).fold(0, u64::saturating_add);
    let rest = sums.partition - matrices;
    let one = |elements: u64, matrix: bool| if elements > 0 { optimizer.states(elements, sums.state_width, matrix) } else { 0 };
    let more_steps = sums.sub_groups.saturating_sub(1).saturating_mul(optimizer.states(0, 4, false));
    let bytes = if optimizer == crate::Optimizer::Muon {
        one(matrices, true).saturating_add(one(rest, false))
    } else {
        one(sums.partition, false).saturating_add(more_steps)
    };
    match zero.optimizer_on {
        Device::Nvme => timeline.add(Place::Nvme, C::OptimizerStates, bytes),
        Device::Cpu if !run.settings.on_cpu => {
            let kept = ratio(bytes, 1.0 - zero.offload_ratio);
            timeline.add(Place::Device, C::OptimizerStates, kept);
            timeline.add(place, C::OptimizerStates, bytes - kept);
        }
        _ => timeline.add(place, C::OptimizerStates, bytes),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of bytes, between none and all of them")]
fn ratio(bytes: u64, share: f64) -> u64 {
    ((bytes as f64 * share.clamp(0.0, 1.0)) as u64).min(bytes)
}

/// The gradients of a sub-group are flattened, cast to float32, and the optimizer runs on that.
fn step(timeline: &mut Timeline, run: &Run<'_>, sums: &Sums, width: u64) {
    let device = Place::Device;
    let flat = sizes::bytes(sums.gradient_dtype, sums.sub_group);
    let float = sums.sub_group.saturating_mul(sums.master_width);
    if width == sums.master_width {
        timeline.add(device, C::Temporary, float);
    } else {
        timeline.add(device, C::Temporary, flat);
        timeline.add(device, C::Temporary, float);
        timeline.take(device, C::Temporary, flat);
    }
    timeline.touch(device, C::Temporary, float.saturating_mul(run.settings.optimizer.temporaries(run.settings.on_cpu)));
    timeline.take(device, C::Temporary, float);
}

/// The order in which modules are used, and what is gathered meanwhile.
struct Trace<'z> {
    zero: &'z Zero,
    modules: Vec<Vec<usize>>,
    parameters: Vec<Parameter>,
    steps: Vec<Step>,
    /// Elements of all modules before a step.
    before: Vec<u64>,
    /// Bytes of the parameters that stay gathered.
    persistent: u64,
    /// Bytes gathered in one pass over the trace.
    fetched: u64,
}

impl<'z> Trace<'z> {
    fn new(run: &Run<'_>, zero: &'z Zero) -> Self {
        let plan = run.plan;
        let mut order: Vec<usize> = (0..plan.groups.len()).collect();
        order.sort_by_key(|&u| sizes::order(&plan.groups[u].name));
        let mut parameters = Vec::new();
        let mut modules: Vec<Vec<usize>> = Vec::new();
        let mut blocks: Vec<Option<usize>> = Vec::new();
        let mut last = None;
        let mut count = 0;
        for &u in &order {
            let group = &plan.groups[u];
            let block = sizes::block_of(&group.name);
            if block.is_some() && block != last {
                count += 1;
            }
            last = block;
            blocks.push(block.map(|_| count - 1));
            let own = group.tensors.iter().map(|&t| {
                let tensor = &plan.tensors[t];
                parameters.push(Parameter {
                    numel: tensor.numel(),
                    gathered: sizes::bytes(tensor.precision.compute, sizes::gathered_numel(tensor)),
                    persistent: tensor.persistent,
                    trainable: tensor.trainable,
                    reduce: sizes::bytes(tensor.precision.reduce, sizes::gathered_numel(tensor)),
                    compute: sizes::bytes(tensor.precision.compute, tensor.numel()),
                    uses: Vec::new(),
                });
                parameters.len() - 1
            });
            modules.push(own.collect());
        }
        let steps = steps(&blocks, run.settings.checkpointing, run.settings.inference);
        let mut before = Vec::with_capacity(steps.len() + 1);
        let mut sum = 0u64;
        for (at, step) in steps.iter().enumerate() {
            before.push(sum);
            for &p in &modules[step.module] {
                parameters[p].uses.push(at);
                sum = sum.saturating_add(parameters[p].numel);
            }
        }
        before.push(sum);
        let persistent = parameters.iter().filter(|p| p.persistent).map(|p| p.compute).fold(0, u64::saturating_add);
        Self { zero, modules, parameters, steps, before, persistent, fetched: 0 }
    }

    /// The next step after `at` that uses a parameter.
    fn next_use(&self, parameter: usize, at: usize) -> Option<usize> {
        let uses = &self.parameters[parameter].uses;
        uses.get(uses.partition_point(|&s| s <= at)).copied()
    }

    fn replay(&mut self, run: &Run<'_>, timeline: &mut Timeline, sums: &Sums) {
        let device = Place::Device;
        let width = sizes::compute_width(run.plan);
        let block = run.architecture.block(run.settings, width);
        let whole = block.attention.saturating_add(block.feed_forward);
        let kept = if run.settings.checkpointing { block.input } else { whole };
        let outside = run.architecture.outside(run.settings, width);
        let (logits, float) = run.architecture.logits(run.settings, width);
        let mut gathered = Gathered::new(self);
        let mut bucket = Bucket { size: self.zero.reduce_bucket, contiguous: self.zero.contiguous_gradients, ..Bucket::default() };
        let casts = sums.reduce_dtype != sums.model_dtype;
        let mut phase = Phase::Forward;
        for at in 0..self.steps.len() {
            let (kind, module, of_block, enters, leaves, half) = {
                let step = &self.steps[at];
                (step.kind, step.module, step.block.is_some(), step.enters, step.leaves, step.half)
            };
            if kind != Kind::Forward && phase == Phase::Forward {
                loss_forward(timeline, outside, logits, float, width);
                phase = Phase::Backward;
                timeline.begin(phase);
                loss_backward(timeline, outside, logits, float, width);
            }
            gathered.fetch(self, timeline, at);
            if of_block {
                match kind {
                    Kind::Forward if enters => {
                        if !run.settings.inference {
                            timeline.add(device, C::Activations, kept);
                        }
                        let passing = if run.settings.checkpointing || run.settings.inference { whole / 2 } else { 0 };
                        timeline.touch(device, C::Activations, block.forward.saturating_add(passing));
                    }
                    Kind::Recompute if leaves => timeline.add(device, C::Activations, whole),
                    Kind::Backward if enters => timeline.touch(device, C::Activations, block.backward),
                    Kind::Backward if half => {
                        timeline.take(device, C::Activations, block.feed_forward);
                        timeline.touch(device, C::Activations, block.backward / 2);
                    }
                    _ => {}
                }
            }
            if kind == Kind::Backward {
                for &p in &self.modules[module] {
                    bucket.take_gradient(timeline, &self.parameters[p], casts);
                }
                if of_block && leaves {
                    timeline.take(device, C::Activations, block.attention);
                    if run.settings.checkpointing {
                        timeline.take(device, C::Activations, block.input);
                    }
                }
            }
            gathered.release(self, timeline, at);
        }
        if phase == Phase::Forward {
            // Nothing is trained.
            timeline.touch(device, C::Loss, logits);
        } else {
            bucket.flush(timeline, casts);
            timeline.take(device, C::Loss, logits);
        }
        timeline.take(device, C::Gathered, timeline.now().get(device, C::Gathered) - self.persistent - hpz(run, self.zero));
        self.fetched = gathered.fetched;
    }

    fn traffic(&self, run: &Run<'_>, zero: &Zero, sums: &Sums, width: u64) -> Traffic {
        let world = run.plan.tensors.iter().map(sizes::group_ranks).max().unwrap_or(1);
        let steps = run.settings.accumulation;
        let sent = |bytes: u64| bytes / world * (world - 1);
        let mut traffic = Traffic { gather: sent(self.fetched).saturating_mul(steps), ..Traffic::default() };
        // Persistent parameters are gathered anew after the optimizer step.
        sizes::grow(&mut traffic.gather, sent(self.persistent));
        if run.settings.inference {
            return traffic;
        }
        let reduce = self.parameters.iter().filter(|p| p.trainable).map(|p| p.reduce).fold(0, u64::saturating_add);
        traffic.reduce = sent(reduce).saturating_mul(steps);
        if zero.optimizer_on != Device::None {
            sizes::grow(&mut traffic.host_bus, sizes::bytes(sums.gradient_dtype, sums.partition).saturating_mul(steps));
            sizes::grow(&mut traffic.host_bus, sums.partition.saturating_mul(width));
        }
        if zero.optimizer_on == Device::Nvme {
            sizes::grow(&mut traffic.nvme, sums.partition.saturating_mul(2 * 12));
        }
        if zero.parameters_on != Device::None {
            sizes::grow(&mut traffic.host_bus, (self.fetched / world).saturating_mul(steps));
        }
        if zero.parameters_on == Device::Nvme {
            sizes::grow(&mut traffic.nvme, (self.fetched / world).saturating_mul(steps));
        }
        traffic
    }
}

fn hpz(run: &Run<'_>, zero: &Zero) -> u64 {
    if zero.hpz <= 1 {
        return 0;
    }
    let parameters = run.plan.tensors.iter().filter(|t| t.kind == TensorKind::Parameter);
    let width = parameters.clone().next().map_or(4, |t| sizes::bytes(t.precision.storage, 1));
    parameters.map(|t| t.numel().div_ceil(zero.hpz)).fold(0, u64::saturating_add).saturating_mul(width)
}

fn loss_forward(timeline: &mut Timeline, outside: u64, logits: u64, float: u64, width: u64) {
    let device = Place::Device;
    timeline.add(device, C::Activations, outside);
    timeline.add(device, C::Loss, logits.saturating_add(float));
    timeline.touch(device, C::Loss, if width < 4 { float } else { 0 });
}

fn loss_backward(timeline: &mut Timeline, outside: u64, logits: u64, float: u64, width: u64) {
    let device = Place::Device;
    timeline.touch(device, C::Loss, float.saturating_mul(2));
    timeline.take(device, C::Loss, float);
    timeline.touch(device, C::Loss, float.saturating_add(if width < 4 { logits } else { 0 }));
    timeline.take(device, C::Activations, outside);
}

/// Forward over all modules, then back; under checkpointing each block is run forward again before its backward pass.
fn steps(blocks: &[Option<usize>], checkpointing: bool, inference: bool) -> Vec<Step> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (at, block) in blocks.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if block.is_some() && blocks[run.start] == *block => run.end = at + 1,
            _ => runs.push(at..at + 1),
        }
    }
    let mut steps = Vec::new();
    let mut pass = |run: &std::ops::Range<usize>, kind: Kind| {
        let length = run.len();
        for i in 0..length {
            let module = if kind == Kind::Backward { run.end - 1 - i } else { run.start + i };
            let (enters, leaves, half) = (i == 0, i + 1 == length, i == length / 2 && length > 1);
            steps.push(Step { module, block: blocks[module], enters, leaves, half, kind });
        }
    };
    for run in &runs {
        pass(run, Kind::Forward);
    }
    if !inference {
        for run in runs.iter().rev() {
            if checkpointing && blocks[run.start].is_some() {
                pass(run, Kind::Recompute);
            }
            pass(run, Kind::Backward);
        }
    }
    steps
}

/// Which parameters are gathered, and which are on their way.
struct Gathered {
    is_gathered: Vec<bool>,
    /// Bytes of each while it is.
    held: Vec<u64>,
    /// Collectives that nobody has waited for: their parameters and the bytes of their buffer.
    in_flight: Vec<(Vec<usize>, u64)>,
    /// Uses that are not yet fetched for: step and parameter, in the order of the trace.
    queue: VecDeque<(usize, usize)>,
    /// The last step that something was fetched or skipped for.
    fetched_for: Vec<usize>,
    available: u64,
    fetched: u64,
}

impl Gathered {
    fn new(trace: &Trace<'_>) -> Self {
        let queue = trace.steps.iter().enumerate().flat_map(|(at, step)| trace.modules[step.module].iter().map(move |&p| (at, p)));
        Self {
            is_gathered: trace.parameters.iter().map(|p| p.persistent).collect(),
            held: trace.parameters.iter().map(|p| p.compute).collect(),
            in_flight: Vec::new(),
            queue: queue.collect(),
            fetched_for: vec![0; trace.parameters.len()],
            available: 0,
            fetched: 0,
        }
    }

    fn is_under_way(&self, parameter: usize) -> bool {
        self.in_flight.iter().any(|(on, _)| on.contains(&parameter))
    }

    /// Makes a module's parameters available, then starts collectives for the next ones.
    fn fetch(&mut self, trace: &Trace<'_>, timeline: &mut Timeline, at: usize) {
        let wanted = &trace.modules[trace.steps[at].module];
        let missing: Vec<usize> = wanted.iter().copied().filter(|&p| !self.is_gathered[p] && !self.is_under_way(p)).collect();
        self.start(trace, timeline, missing);
        // Waiting for one parameter of a collective finishes all of it.
        let mut done = Vec::new();
        self.in_flight.retain(|(on, bytes)| {
            let is_due = on.iter().any(|p| wanted.contains(p));
            if is_due {
                done.push((on.clone(), *bytes));
            }
            !is_due
        });
        for (on, buffer) in done {
            // A coalesced gather is copied apart, parameter by parameter; that of a single one is the parameter.
            if on.len() > 1 {
                let copied = on.iter().map(|&p| trace.parameters[p].compute).fold(0, u64::saturating_add);
                timeline.add(Place::Device, C::Gathered, copied);
                timeline.take(Place::Device, C::Communication, buffer);
            } else {
                timeline.take(Place::Device, C::Communication, buffer);
                timeline.add(Place::Device, C::Gathered, buffer);
                self.held[on[0]] = buffer;
            }
            on.iter().for_each(|&p| self.is_gathered[p] = true);
        }
        while self.queue.front().is_some_and(|&(step, _)| step <= at) {
            if let Some((step, p)) = self.queue.pop_front() {
                self.fetched_for[p] = self.fetched_for[p].max(step);
            }
        }
        let most = trace.zero.max_live.saturating_sub(self.available).min(trace.zero.prefetch_bucket);
        let mut next = Vec::new();
        let mut numel = 0u64;
        while numel < most {
            let Some((step, p)) = self.queue.pop_front() else { break };
            self.fetched_for[p] = self.fetched_for[p].max(step);
            if !self.is_gathered[p] && !self.is_under_way(p) && !next.contains(&p) {
                numel = numel.saturating_add(trace.parameters[p].numel);
                next.push(p);
            }
        }
        self.start(trace, timeline, next);
    }

    fn start(&mut self, trace: &Trace<'_>, timeline: &mut Timeline, parameters: Vec<usize>) {
        if parameters.is_empty() {
            return;
        }
        let bytes = parameters.iter().map(|&p| trace.parameters[p].gathered).fold(0, u64::saturating_add);
        self.available = parameters.iter().fold(self.available, |n, &p| n.saturating_add(trace.parameters[p].numel));
        sizes::grow(&mut self.fetched, bytes);
        timeline.add(Place::Device, C::Communication, bytes);
        self.in_flight.push((parameters, bytes));
    }

    /// Frees a module's parameters, but those that are used again soon or that prefetching has counted on.
    fn release(&mut self, trace: &Trace<'_>, timeline: &mut Timeline, at: usize) {
        for &p in &trace.modules[trace.steps[at].module] {
            let parameter = &trace.parameters[p];
            let soon = trace.next_use(p, at).is_some_and(|next| trace.before[next] - trace.before[at + 1] < trace.zero.max_reuse);
            if parameter.persistent || soon || self.fetched_for[p] > at || !self.is_gathered[p] {
                continue;
            }
            self.is_gathered[p] = false;
            self.available = self.available.saturating_sub(parameter.numel);
            timeline.take(Place::Device, C::Gathered, self.held[p]);
            self.held[p] = parameter.compute;
        }
    }
}

/// The bucket that gradients are collected in before they are reduced.
#[derive(Default)]
struct Bucket {
    size: u64,
    contiguous: bool,
    elements: u64,
    /// Gradients that are not in the buffer, for they are larger or there is none.
    outside: u64,
    /// Bytes of the bucket's gradients, in the dtypes of the reduction.
    reduce: u64,
}

impl Bucket {
    fn take_gradient(&mut self, timeline: &mut Timeline, parameter: &Parameter, casts: bool) {
        if !parameter.trainable {
            return;
        }
        if self.elements.saturating_add(parameter.numel) > self.size && self.elements > 0 {
            self.flush(timeline, casts);
        }
        timeline.add(Place::Device, C::Gradients, parameter.compute);
        if self.contiguous && self.elements.saturating_add(parameter.numel) <= self.size {
            timeline.take(Place::Device, C::Gradients, parameter.compute);
        } else {
            self.outside = self.outside.saturating_add(parameter.compute);
        }
        self.elements = self.elements.saturating_add(parameter.numel);
        self.reduce = self.reduce.saturating_add(parameter.reduce);
    }

    /// All gradients of the bucket are interleaved by rank into one tensor, which is reduced.
    fn flush(&mut self, timeline: &mut Timeline, casts: bool) {
        let copies = if casts { 2 } else { 1 };
        timeline.touch(Place::Device, C::Communication, self.reduce.saturating_mul(copies));
        timeline.take(Place::Device, C::Gradients, self.outside);
        (self.elements, self.outside, self.reduce) = (0, 0, 0);
    }
}
