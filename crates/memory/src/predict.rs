//! From a plan to the memory of every rank: ranks that hold the same are found, and one of each kind is replayed.

use std::collections::{BTreeMap, HashMap};

use shardwright_core::{Cut, GroupAxis, Layout as Rule, Offload, Placement, Reshard, ShardPlan, TensorKind, TensorPlan};

use crate::{
    activations::Architecture,
    formulas, fsdp2,
    ledger::{Category, Phase, Place, Timeline},
    output::{Axis, Item, Layout, ParamGroup, Peak, PhaseRow, RankGroup, Traffic, World},
    replay::{Fixed, Run},
    replicate,
    settings::{Device, Engine, Settings},
    sizes::{self, GroupSize},
    zero3,
};

/// Tensors of one shape and one placement have equal parts: the blocks of a model are asked once.
struct Alike<'a> {
    of: Vec<usize>,
    examples: Vec<&'a TensorPlan>,
}

impl<'a> Alike<'a> {
    fn new(plan: &'a ShardPlan) -> Self {
        let mut seen: HashMap<(&[u64], &Placement), usize> = HashMap::new();
        let mut examples = Vec::new();
        let of = plan.tensors.iter().map(|t| {
            *seen.entry((&t.shape, &t.placement)).or_insert_with(|| {
                examples.push(t);
                examples.len() - 1
            })
        });
        let of = of.collect();
        Self { of, examples }
    }

    fn on(&self, rank: u32) -> Local<'_> {
        Local { of: &self.of, elements: self.examples.iter().map(|t| (t.valid_numel(rank), t.padded_numel(rank))).collect() }
    }
}

/// What a rank holds of each tensor, in elements.
struct Local<'a> {
    of: &'a [usize],
    elements: Vec<(u64, u64)>,
}

impl Local<'_> {
    fn valid(&self, tensor: usize) -> u64 {
        self.elements[self.of[tensor]].0
    }

    fn padded(&self, tensor: usize) -> u64 {
        self.elements[self.of[tensor]].1
    }
}

/// Predicts the memory of every rank.
pub fn predict(plan: &ShardPlan, architecture: &Architecture, settings: &Settings) -> World {
    let units = sizes::units(plan);
    let run = Run { plan, architecture, settings, units: &units };
    let mut traffic = Traffic::default();
    let mut ranks: Vec<RankGroup> = Vec::new();
    for kind in kinds(plan, settings) {
        let (timeline, sent) = replay(&run, &kind.fixed);
        traffic = sent;
        let phases = Phase::ALL.map(|phase| row(&timeline, phase, settings, architecture.is_known()));
        let count = kind.ranks.iter().map(|[first, last]| last - first + 1).sum();
        ranks.push(RankGroup { ranks: kind.ranks, count, phases: phases.to_vec(), units: kind.units });
    }
    let (layouts, layout_of) = layouts(plan, settings);
    World {
        strategy: plan.strategy.clone(),
        variant: String::new(),
        world_size: plan.mesh.world_size(),
        mesh: plan.mesh.axes().iter().map(|a| Axis { name: a.name.clone(), size: a.size }).collect(),
        peak: peak(&ranks),
        fits: None,
        uneven: uneven(&ranks),
        ranks,
        traffic,
        units: group_rows(plan, &units),
        layouts,
        layout_of,
        advice: Vec::new(),
    }
}

fn replay(run: &Run<'_>, fixed: &Fixed) -> (Timeline, Traffic) {
    match &run.settings.engine {
        Engine::Zero(zero) if zero.stage == 3 => zero3::replay(run, zero, fixed),
        Engine::Zero(_) | Engine::Ddp => (replicate::replay(run, fixed), replicate::traffic(run)),
        Engine::Fsdp2 { .. } | Engine::Other => (fsdp2::replay(run, fixed), fsdp2::traffic(run)),
    }
}

/// What a rank holds, from its parts of the tensors.
fn fixed(plan: &ShardPlan, settings: &Settings, local: &Local<'_>, rank: u32) -> Fixed {
    let mut fixed = Fixed { buffers: sizes::buffers(plan), is_rank0: rank == 0, on_cpu: settings.on_cpu, ..Fixed::default() };
    let mut all = 0u64;
    let mut largest = 0u64;
    for (t, tensor) in plan.tensors.iter().enumerate().filter(|(_, t)| t.kind == TensorKind::Parameter) {
        let storage = |elements: u64| sizes::bytes(tensor.precision.storage, elements);
        sizes::grow(&mut fixed.parameters, storage(local.padded(t)));
        let whole = storage(tensor.numel());
        sizes::grow(&mut fixed.whole, whole);
        fixed.largest_whole = fixed.largest_whole.max(whole);
        if tensor.trainable && !settings.inference {
            let valid = local.valid(t);
            let width = sizes::bytes(tensor.precision.storage, 1);
            sizes::grow(&mut fixed.optimizer_states, settings.optimizer.states(valid, width, sizes::is_matrix(tensor)));
            sizes::grow(&mut all, storage(valid));
            largest = largest.max(storage(valid));
        }
    }
    let each = settings.optimizer.temporaries(settings.on_cpu);
    fixed.step_temporary = each.saturating_mul(if settings.on_cpu { largest } else { all });
    fixed
}

/// Ranks that hold the same.
struct Ranks {
    ranks: Vec<[u32; 2]>,
    fixed: Fixed,
    units: Vec<u64>,
}

/// Rank 0 is a kind of its own only where it has work of its own.
fn kinds(plan: &ShardPlan, settings: &Settings) -> Vec<Ranks> {
    let mut axes: Vec<GroupAxis> = Vec::new();
    for cut in plan.tensors.iter().flat_map(|tensor| &tensor.placement.cuts) {
        if !axes.contains(&cut.axis) {
            axes.push(cut.axis);
        }
    }
    let special = settings.saves_whole || settings.init == crate::Init::Rank0;
    // What a rank holds depends on its coordinates alone.
    let mut of_place: BTreeMap<(bool, Vec<u32>), usize> = BTreeMap::new();
    let mut of_parts: HashMap<(bool, Vec<(u64, u64)>), usize> = HashMap::new();
    let mut kinds: Vec<Ranks> = Vec::new();
    let alike = Alike::new(plan);
    for rank in 0..plan.mesh.world_size() {
        let first = rank == 0 && special;
        let place = (first, axes.iter().map(|a| a.coordinate(rank)).collect());
        let at = *of_place.entry(place).or_insert_with(|| {
            let local = alike.on(rank);
            *of_parts.entry((first, local.elements.clone())).or_insert_with(|| {
                let held = |t: usize| sizes::bytes(plan.tensors[t].precision.storage, local.valid(t));
                let units = plan.groups.iter().map(|u| u.tensors.iter().map(|&t| held(t)).fold(0, u64::saturating_add)).collect();
                let mut fixed = fixed(plan, settings, &local, rank);
                fixed.is_rank0 = first;
                kinds.push(Ranks { ranks: Vec::new(), fixed, units });
                kinds.len() - 1
            })
        });
        match kinds[at].ranks.last_mut() {
            Some([_, last]) if *last + 1 == rank => *last = rank,
            _ => kinds[at].ranks.push([rank, rank]),
        }
    }
    kinds
}

fn row(timeline: &Timeline, phase: Phase, settings: &Settings, known: bool) -> PhaseRow {
    let peak = &timeline.peaks()[phase as usize];
    let mut items = Vec::new();
    for place in Place::ALL {
        for category in Category::ALL {
            let bytes = peak.get(place, category);
            if bytes > 0 {
                let formula = formulas::id(&settings.engine, phase, place, category, known).to_owned();
                items.push(Item { place, category, bytes, formula });
            }
        }
    }
    PhaseRow { phase, device: peak.total(Place::Device), host: peak.total(Place::Host), nvme: peak.total(Place::Nvme), items }
}

fn peak(ranks: &[RankGroup]) -> Peak {
    let mut peak = Peak { device: 0, phase: Phase::Load, rank: 0, host: 0, nvme: 0 };
    for group in ranks {
        for row in &group.phases {
            if row.device > peak.device {
                (peak.device, peak.phase, peak.rank) = (row.device, row.phase, group.ranks[0][0]);
            }
            peak.host = peak.host.max(row.host);
            peak.nvme = peak.nvme.max(row.nvme);
        }
    }
    peak
}

/// Names the fullest and the emptiest rank, and the category that differs most between them.
fn uneven(ranks: &[RankGroup]) -> Option<String> {
    let highest = |g: &RankGroup| g.phases.iter().map(|p| p.device.saturating_add(p.host)).max().unwrap_or(0);
    let most = ranks.iter().max_by_key(|g| (highest(g), u32::MAX - g.ranks[0][0]))?;
    let least = ranks.iter().min_by_key(|g| (highest(g), g.ranks[0][0]))?;
    let more = highest(most).saturating_sub(highest(least));
    if more == 0 {
        return None;
    }
    let (phase, _) = most.phases.iter().enumerate().max_by_key(|(_, p)| p.device.saturating_add(p.host))?;
    let of = |g: &RankGroup, category| g.phases[phase].items.iter().filter(|i| i.category == category).map(|i| i.bytes).sum::<u64>();
    let category = Category::ALL.into_iter().max_by_key(|&c| of(most, c).saturating_sub(of(least, c)))?;
    let why = match category {
        Category::OptimizerStates => "the last chunks of dim 0 are shorter or empty, and states follow the shard without its padding",
        Category::Temporary if most.phases[phase].phase == Phase::Save => "rank 0 collects the whole model to save it",
        Category::Temporary => "rank 0 holds the whole model while it is loaded, or the optimizer's temporaries follow the shard",
        _ => "its shards are larger",
    };
    Some(format!(
        "rank {} holds {more} bytes more than rank {} at their highest, most of it {}: {why}",
        most.ranks[0][0],
        least.ranks[0][0],
        category.name().replace('_', " ")
    ))
}

fn group_rows(plan: &ShardPlan, sizes_of: &[GroupSize]) -> Vec<ParamGroup> {
    let gathered: BTreeMap<usize, u64> = sizes_of.iter().map(|u| (u.index, u.gathered)).collect();
    let rows = plan.groups.iter().enumerate().map(|(index, group)| ParamGroup {
        name: group.name.clone(),
        tensors: group.tensors.iter().map(|&t| u32::try_from(t).unwrap_or(u32::MAX)).collect(),
        bytes: group
            .tensors
            .iter()
            .map(|&t| sizes::bytes(plan.tensors[t].precision.storage, plan.tensors[t].numel()))
            .fold(0, u64::saturating_add),
        gathered: gathered.get(&index).copied().unwrap_or(0),
    });
    rows.collect()
}

fn layouts(plan: &ShardPlan, settings: &Settings) -> (Vec<Layout>, Vec<u32>) {
    let mut index: BTreeMap<Layout, u32> = BTreeMap::new();
    let mut layouts = Vec::new();
    let of = plan.tensors.iter().map(|tensor| {
        let layout = layout(tensor, settings);
        *index.entry(layout.clone()).or_insert_with(|| {
            layouts.push(layout);
            u32::try_from(layouts.len() - 1).unwrap_or(u32::MAX)
        })
    });
    let of = of.collect();
    (layouts, of)
}

fn layout(tensor: &TensorPlan, settings: &Settings) -> Layout {
    let cuts = tensor.placement.cuts.as_slice();
    let axis = cuts.last().map_or(GroupAxis { stride: 1, size: 1 }, |cut| cut.axis);
    let (rule, dim) = match cuts {
        [] => ("whole", 0),
        [Cut { layout: Rule::Dim { dim, .. }, .. }] => ("dim", *dim),
        [Cut { layout: Rule::Flat { .. }, .. }] => ("flat", 0),
        _ => ("other", 0),
    };
    let place = match tensor.offload {
        _ if settings.on_cpu => Place::Device,
        Offload::Cpu => Place::Host,
        Offload::Nvme => Place::Nvme,
        _ => Place::Device,
    };
    Layout {
        rule: rule.to_owned(),
        dim: u32::try_from(dim).unwrap_or(u32::MAX),
        stride: axis.stride,
        size: axis.size,
        storage: tensor.precision.storage.torch_name().to_owned(),
        compute: tensor.precision.compute.torch_name().to_owned(),
        reduce: tensor.precision.reduce.torch_name().to_owned(),
        trainable: tensor.trainable,
        persistent: tensor.persistent,
        place,
        buffer: tensor.kind == TensorKind::Buffer,
    }
}

/// Whether parameter groups are cut again after their forward pass.
pub(crate) fn reshards(plan: &ShardPlan) -> bool {
    plan.groups.iter().any(|u| u.reshard_after_forward != Reshard::Never)
}

/// Whether shards or optimizer states leave the device.
pub(crate) fn offloads(plan: &ShardPlan, settings: &Settings) -> bool {
    let states = matches!(&settings.engine, Engine::Zero(zero) if zero.optimizer_on != Device::None);
    states || plan.tensors.iter().any(|t| t.offload != Offload::None)
}
