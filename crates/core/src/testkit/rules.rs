//! The rules about one plan: each takes what was planned and answers with the first thing that breaks it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    case::Case,
    count,
    violation::{Found, Rule},
};
use crate::{
    Cut, DType, Globs, Layout, ModelMeta, PlanError, PlanInput, Precision, PrecisionPolicy, Reshard, ShardPlan, ShardStrategy, TensorKind,
    TensorMeta, TensorPlan, Trainable, panics, steps,
};

/// A policy that no strategy can guess: the dtypes depend on the name and on whether it is trained. Counts how often it is asked.
#[derive(Debug, Default)]
pub(super) struct Probe {
    asked: AtomicU64,
}

impl Probe {
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl PrecisionPolicy for Probe {
    fn decide(&self, param: &TensorMeta, trainable: bool) -> Precision {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let odd = param.name.bytes().fold(0u8, u8::wrapping_add) % 2 == 1;
        let storage = if odd { DType::F32 } else { param.dtype };
        Precision::new(storage, if trainable { DType::BF16 } else { storage }, DType::F32)
    }
}

/// Everything a case's input borrows.
pub(super) struct Setting {
    model: ModelMeta,
    mesh: crate::Mesh,
    probe: Probe,
    buffers: Globs,
    trainable: Trainable,
}

impl Setting {
    pub(super) fn new(case: &Case) -> Self {
        let globs = |pattern: &str| Globs::new([pattern]).expect("a fixed glob");
        Self {
            model: case.model(),
            mesh: case.mesh(),
            probe: Probe::default(),
            buffers: globs("*.inv_freq"),
            trainable: Trainable::Matching(globs("*{layers.1.*,norm*,.0*,t1.*}")),
        }
    }

    pub(super) fn input(&self) -> PlanInput<'_> {
        let mut input = PlanInput::new(&self.model, &self.mesh, &self.probe);
        input.buffers = &self.buffers;
        input.trainable = &self.trainable;
        input
    }

    /// Plans; a panic is a finding.
    pub(super) fn plan(&self, strategy: &dyn ShardStrategy) -> Result<Result<ShardPlan, PlanError>, Found> {
        caught("planning", || strategy.plan(&self.input()))
    }

    /// The steps that it takes to plan.
    pub(super) fn steps(&self, strategy: &dyn ShardStrategy) -> Result<u64, Found> {
        let (plan, steps) = steps::of(|| self.plan(strategy));
        plan.map(|_| steps + self.asked())
    }

    pub(super) fn asked(&self) -> u64 {
        self.probe.asked()
    }
}

/// Runs the author's code; a panic is a finding.
pub(super) fn caught<T>(doing: &str, run: impl FnOnce() -> T) -> Result<T, Found> {
    panics::caught(run).map_err(|text| (Rule::Total, format!("{doing} panicked: {text}")))
}

/// Holds a plan against every rule that needs no second plan.
pub(super) fn plan_holds(setting: &Setting, name: &str, plan: &ShardPlan, aligned: u64) -> Result<(), Found> {
    if plan.strategy != name {
        return Err((Rule::Registered, format!("the plan is said to be by '{}', expected '{name}'", plan.strategy)));
    }
    complete(setting, plan)?;
    for (tensor, meta) in plan.tensors.iter().zip(&setting.model.tensors) {
        inputs(setting, tensor, meta)?;
        buffers(tensor)?;
        count::tiling(tensor, plan.mesh.world_size(), aligned)?;
    }
    units(plan)?;
    if let Err(e) = plan.check(&setting.model) {
        return Err((Rule::Validation, format!("counting finds nothing wrong, but the validation says: {e}")));
    }
    serialises(plan, serde_json::to_string, |text| serde_json::from_str(text))
}

fn complete(setting: &Setting, plan: &ShardPlan) -> Result<(), Found> {
    let broken = |what: String| Err((Rule::Complete, what));
    let (planned, given) = (plan.mesh.world_size(), setting.mesh.world_size());
    if planned != given {
        return broken(format!("the plan is for {planned} ranks, expected {given}"));
    }
    let mut by_name: BTreeMap<&str, &TensorPlan> = BTreeMap::new();
    for tensor in &plan.tensors {
        if by_name.insert(&tensor.name, tensor).is_some() {
            return broken(format!("tensor '{}' is planned twice", tensor.name));
        }
    }
    for meta in &setting.model.tensors {
        let Some(tensor) = by_name.remove(meta.name.as_str()) else {
            return broken(format!("tensor '{}' is not planned", meta.name));
        };
        let kind = setting.input().kind(meta);
        if (tensor.shape.as_slice(), tensor.source, tensor.kind) != (meta.shape.as_slice(), meta.dtype, kind) {
            let (expected, found) =
                (format!("{kind:?} {} {:?}", meta.dtype, meta.shape), format!("{:?} {} {:?}", tensor.kind, tensor.source, tensor.shape));
            return broken(format!("tensor '{}' is planned as {found}, expected {expected}", meta.name));
        }
    }
    if let Some(name) = by_name.keys().next() {
        return broken(format!("tensor '{name}' is planned, but not in the model"));
    }
    match plan.tensors.windows(2).find(|w| w[0].name >= w[1].name) {
        Some(w) => broken(format!("tensor '{}' is planned after '{}': not sorted by name", w[1].name, w[0].name)),
        None => Ok(()),
    }
}

fn inputs(setting: &Setting, tensor: &TensorPlan, meta: &TensorMeta) -> Result<(), Found> {
    if tensor.kind == TensorKind::Buffer {
        return Ok(());
    }
    let trainable = setting.trainable.contains(&meta.name);
    let decided = Probe::default().decide(meta, trainable);
    let broken = |what: String| Err((Rule::Inputs, format!("tensor '{}' is {what}", meta.name)));
    if tensor.trainable != trainable {
        return broken(format!("planned with trainable {}, expected {trainable}", tensor.trainable));
    }
    if tensor.precision != decided {
        return broken(format!("planned with {:?}, expected what the policy decided, {decided:?}", tensor.precision));
    }
    Ok(())
}

fn buffers(tensor: &TensorPlan) -> Result<(), Found> {
    let whole = tensor.placement.is_replicated() && tensor.precision.storage == tensor.source && !tensor.trainable;
    if tensor.kind == TensorKind::Parameter || whole {
        return Ok(());
    }
    Err((
        Rule::Buffers,
        format!("buffer '{}' is placed by {:?} and stored as {}", tensor.name, tensor.placement.cuts, tensor.precision.storage),
    ))
}

fn units(plan: &ShardPlan) -> Result<(), Found> {
    let broken = |what: String| Err((Rule::Groups, what));
    let mut names = BTreeSet::new();
    let mut times: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for group in &plan.groups {
        if !names.insert(&group.name) {
            return broken(format!("two parameter groups are called '{}'", group.name));
        }
        if group.reshard_after_forward == Reshard::ToRanks(0) {
            return broken(format!("parameter group '{}' is resharded to groups of 0 ranks", group.name));
        }
        for &t in &group.tensors {
            times.entry(t).or_default().push(&group.name);
        }
    }
    for (i, tensor) in plan.tensors.iter().enumerate() {
        match (tensor.kind, times.remove(&i).unwrap_or_default().as_slice()) {
            (TensorKind::Parameter, [_]) | (TensorKind::Buffer, []) => {}
            (TensorKind::Parameter, []) => return broken(format!("parameter '{}' is in no parameter group", tensor.name)),
            (TensorKind::Buffer, [group, ..]) => return broken(format!("buffer '{}' is in parameter group '{group}'", tensor.name)),
            (TensorKind::Parameter, [a, b, ..]) => {
                return broken(format!("parameter '{}' is in parameter group '{a}' and in parameter group '{b}'", tensor.name));
            }
        }
    }
    match times.keys().next() {
        Some(t) => broken(format!("a parameter group holds tensor number {t} of {}", plan.tensors.len())),
        None => Ok(()),
    }
}

/// A plan is plain data, so that no strategy can make one that does not come back: what could break this is core's own way to write it.
pub(super) fn serialises<E: std::fmt::Display>(
    plan: &ShardPlan,
    write: impl Fn(&ShardPlan) -> Result<String, E>,
    read: impl Fn(&str) -> Result<ShardPlan, E>,
) -> Result<(), Found> {
    let text = write(plan).map_err(|e| (Rule::Serialises, format!("writing the plan failed: {e}")))?;
    match read(&text) {
        Ok(again) => same(plan, &again, "the plan that was read again").map_err(|what| (Rule::Serialises, what)),
        Err(e) => Err((Rule::Serialises, format!("reading the plan failed: {e}"))),
    }
}

/// What differs between two plans, in words.
pub(super) fn same(one: &ShardPlan, other: &ShardPlan, which: &str) -> Result<(), String> {
    if one == other {
        return Ok(());
    }
    if let Some((a, b)) = one.tensors.iter().zip(&other.tensors).find(|(a, b)| a != b) {
        return Err(format!("{which} has tensor '{}' with {}", b.name, difference(a, b)));
    }
    if let Some((a, b)) = one.groups.iter().zip(&other.groups).find(|(a, b)| a != b) {
        return Err(format!("{which} has parameter group '{}' with {}", b.name, difference(a, b)));
    }
    Err(format!("{which} differs in its tensors, parameter groups or mesh"))
}

/// The first field in which two values of a type differ.
fn difference<T: serde::Serialize>(first: &T, again: &T) -> String {
    let (first, again) = (serde_json::json!(first), serde_json::json!(again));
    let fields = first.as_object().into_iter().flatten();
    match fields.map(|(key, value)| (key, value, &again[key])).find(|(_, a, b)| a != b) {
        Some((key, a, b)) => format!("{key} {b}, the first with {a}"),
        None => format!("{again}, the first with {first}"),
    }
}

/// Entries of a plan: what it costs to hold, and what it took to make at the least.
pub(super) fn entries(plan: &ShardPlan) -> u64 {
    let of = |cut: &Cut| if let Layout::Bounds { bounds, .. } = &cut.layout { bounds.len() } else { 0 };
    let cuts = |cuts: &[Cut]| cuts.iter().map(of).sum::<usize>() + cuts.len().max(1);
    let tensors: usize = plan.tensors.iter().map(|t| cuts(&t.placement.cuts)).sum();
    let units: usize = plan.groups.iter().map(|u| 1 + u.tensors.len()).sum();
    (tensors + units) as u64
}
