//! The kit, tested: strategies planted with one defect each, each caught under its own rule with a small case; and sound ones that pass.

use std::{
    collections::{BTreeMap, HashSet},
    sync::atomic::{AtomicU32, Ordering},
};

use super::*;
use crate::{
    Cut, DType, GroupAxis, Layout, Mesh, ModelMeta, Padding, ParamGroup, Placement, PlanError, PlanInput, Precision, PrecisionPolicy,
    Reshard, ShardPlan, ShardStrategy, TensorKind, TensorMeta, TensorPlan, replicate::Replicate, strategy::groups_by,
};

/// Dim-0 chunks over all ranks, a parameter group a layer, 0-d tensors refused; and, where there is one, a defect.
#[derive(Debug)]
struct Planted {
    defect: &'static str,
    planned: AtomicU32,
}

impl Planted {
    fn new(defect: &'static str) -> Self {
        Self { defect, planned: AtomicU32::new(0) }
    }

    fn place(&self, tensor: &TensorMeta, mesh: &Mesh) -> Result<Placement, PlanError> {
        let mut axis = mesh.axis("mp_shard").unwrap();
        if self.defect == "strides past the world" {
            axis.stride *= 2;
        }
        if tensor.shape.is_empty() {
            return Err(PlanError::tensor(tensor, "it is 0-d"));
        }
        let mut placement = Placement::chunked(axis, &tensor.shape, 0).unwrap();
        let rows = tensor.shape[0];
        match (self.defect, &mut placement.cuts[0].layout) {
            ("rounds chunks down", Layout::Dim { chunk, .. }) => *chunk = rows / u64::from(axis.size),
            ("multiplies without care", _) => drop(tensor.shape.iter().product::<u64>() * 2),
            ("refuses uneven rows", _) if !rows.is_multiple_of(u64::from(axis.size)) => return Err(PlanError::tensor(tensor, "uneven")),
            ("refuses another tensor", _) => return Err(PlanError::Tensor { tensor: "other".into(), reason: "it is not there".into() }),
            ("refuses odd meshes", _) if axis.size % 2 == 1 => return Err(PlanError::Mesh("odd".into())),
            ("puts the largest last", layout) if axis.size > 1 => {
                let bounds = (0..=u64::from(axis.size)).map(|c| if c < u64::from(axis.size) { 0 } else { rows }).collect();
                *layout = Layout::Bounds { dim: 0, bounds };
            }
            ("lets bounds fall", layout) if axis.size == 3 => *layout = Layout::Bounds { dim: 0, bounds: vec![0, rows, rows / 2, rows] },
            ("lets bounds fall where nothing is", layout) if axis.size == 3 && tensor.numel() == Some(0) && rows > 1 => {
                *layout = Layout::Bounds { dim: 0, bounds: vec![0, rows, rows / 2, rows] };
            }
            ("reaches beyond", layout) if axis.size == 2 => *layout = Layout::Bounds { dim: 0, bounds: vec![0, rows, rows + 1] },
            ("owns by hand", layout) => *layout = Layout::Owner { coordinate: axis.size },
            ("pads to a power of two", layout) => {
                let partition = tensor.numel().unwrap().div_ceil(u64::from(axis.size)).next_power_of_two();
                *layout = Layout::Flat { partition };
            }
            ("cuts one axis twice", _) => placement.cuts.push(Cut::chunk(axis, 0)),
            ("owns and is owned", _) => placement.cuts = vec![Cut::owner(axis, 0), Cut::owner(GroupAxis { stride: 1, size: 1 }, 1)],
            _ => {}
        }
        Ok(placement)
    }

    /// What a slow strategy computes does not matter, only that it looks.
    fn looks(&self, all: &[TensorMeta], ranks: u32) -> usize {
        match self.defect {
            "scans all tensors for each" => all.iter().map(|t| all.iter().filter(|o| o.name.starts_with(&*t.name)).count()).sum(),
            "scans a copy of its own for each" => {
                let copy = all.to_vec();
                copy.iter().map(|t| copy.iter().filter(|o| o.name < t.name).count()).sum()
            }
            "sums the sizes before each" => (0..all.len()).map(|i| all[..i].iter().filter_map(TensorMeta::numel).count()).sum(),
            "looks again for every rank" => (0..ranks).map(|_| all.iter().filter(|t| t.name.len() > 9).count()).sum(),
            _ => 0,
        }
    }

    fn units(&self, plan: &mut ShardPlan) {
        plan.groups = groups_by(&plan.tensors, Reshard::ToShards, layer);
        match self.defect {
            "leaves the root out" => plan.groups.retain(|u| !u.name.is_empty()),
            "claims twice" => {
                let all = (0..plan.tensors.len()).filter(|&t| plan.tensors[t].kind == TensorKind::Parameter).collect();
                let mut group = ParamGroup::new("everything", Reshard::Never);
                group.tensors = all;
                plan.groups.push(group);
            }
            "puts buffers into parameter groups" => {
                let buffer = plan.tensors.iter().position(|t| t.kind == TensorKind::Buffer);
                plan.groups.iter_mut().take(1).for_each(|u| u.tensors.extend(buffer));
            }
            "names parameter groups alike" => plan.groups.iter_mut().for_each(|u| u.name = "layer".into()),
            "counts beyond the tensors" => plan.groups.iter_mut().take(1).for_each(|u| u.tensors.push(1000)),
            "orders by hash" => {
                let names: HashSet<String> = plan.groups.iter().map(|u| u.name.clone()).collect();
                for (at, name) in names.into_iter().enumerate() {
                    let from = plan.groups.iter().position(|u| u.name == name).unwrap();
                    plan.groups.swap(at, from);
                }
            }
            "a parameter group a rank" => {
                plan.groups.extend((0..plan.mesh.world_size()).map(|r| ParamGroup::new(format!("rank{r}"), Reshard::Never)));
            }
            _ => {}
        }
    }
}

/// `model.layers.3` of `model.layers.3.mlp.up_proj.weight`; empty for what is in no layer.
fn layer(tensor: &TensorPlan) -> &str {
    let Some(at) = tensor.name.find("layers.") else { return "" };
    let end = tensor.name[at + 7..].find('.').map_or(tensor.name.len(), |dot| at + 7 + dot);
    &tensor.name[..end]
}

impl ShardStrategy for Planted {
    fn name(&self) -> &str {
        if self.defect == "goes by another name" { "acme/other" } else { "acme/planted" }
    }

    fn plan(&self, input: &PlanInput<'_>) -> Result<ShardPlan, PlanError> {
        let before = if self.defect == "remembers" { self.planned.fetch_add(1, Ordering::Relaxed) } else { 0 };
        if self.defect == "asks for every rank" {
            let asks = input.model.tensors.iter().flat_map(|t| (0..input.mesh.world_size()).map(move |_| t));
            asks.for_each(|t| _ = input.precision.decide(t, true));
        }
        std::hint::black_box(self.looks(&input.model.tensors, input.mesh.world_size()));
        let mut plan = input.plan_tensors("acme/planted", |tensor| self.place(tensor, input.mesh))?;
        if self.defect == "scans the plan for each" {
            let tensors = &plan.tensors;
            tensors.iter().for_each(|t| _ = std::hint::black_box(tensors.iter().filter(|o| layer(o) == layer(t)).count()));
        }
        match self.defect {
            "signs another's name" => plan.strategy = "fsdp2".into(),
            "shrinks the world" => plan.mesh = Mesh::replicate_shard(1, 1).unwrap(),
            "forgets a tensor" => drop(plan.tensors.pop()),
            "sorts by size" => plan.tensors.sort_by_key(TensorPlan::numel),
            "flattens shapes" => plan.tensors.iter_mut().for_each(|t| t.shape = vec![t.numel()]),
            "decides dtypes itself" => plan.tensors.iter_mut().for_each(|t| t.precision = Precision::uniform(DType::F32)),
            "trains everything" => plan.tensors.iter_mut().for_each(|t| t.trainable = t.kind == TensorKind::Parameter),
            "cuts buffers" => plan.tensors.iter_mut().filter(|t| t.kind == TensorKind::Buffer && !t.shape.is_empty()).for_each(|t| {
                t.placement = Placement::chunked(plan.mesh.all_ranks(), &t.shape, 0).unwrap();
            }),
            "sizes by the largest seen" => {
                let tensors = u32::try_from(plan.tensors.len()).unwrap();
                let largest = self.planned.fetch_max(tensors, Ordering::Relaxed).max(tensors);
                plan.tensors.iter_mut().for_each(|t| t.persistent = largest > tensors);
            }
            "remembers" if before > 0 => plan.tensors.iter_mut().for_each(|t| t.persistent = true),
            _ => {}
        }
        self.units(&mut plan);
        Ok(plan)
    }
}

fn kit(defect: &'static str) -> StrategyKit<'static> {
    StrategyKit::new("acme/planted", move |_, _| Ok(Box::new(Planted::new(defect)))).refuses("0-d tensors", |t, _| t.shape.is_empty())
}

#[test]
fn sound_strategies_pass() {
    let summary = kit("").assert();
    assert!(summary.plans > 190 && summary.shards > 100_000, "{summary}");
    StrategyKit::new("replicate", |_, _| Ok(Box::new(Replicate))).assert();
}

/// What is planted into strategies, and the rule that finds it.
#[rustfmt::skip]
const DEFECTS: &[(&str, Rule)] = &[
    ("goes by another name", Rule::Registered),
    ("signs another's name", Rule::Registered),
    ("multiplies without care", Rule::Total),
    ("refuses uneven rows", Rule::Refusal),
    ("refuses another tensor", Rule::Refusal),
    ("refuses odd meshes", Rule::Refusal),
    ("shrinks the world", Rule::Complete),
    ("forgets a tensor", Rule::Complete),
    ("sorts by size", Rule::Complete),
    ("flattens shapes", Rule::Complete),
    ("decides dtypes itself", Rule::Inputs),
    ("trains everything", Rule::Inputs),
    ("cuts buffers", Rule::Buffers),
    ("rounds chunks down", Rule::Gap),
    ("strides past the world", Rule::Gap),
    ("reaches beyond", Rule::Gap),
    ("owns by hand", Rule::Gap),
    ("cuts one axis twice", Rule::Gap),
    ("owns and is owned", Rule::Gap),
    ("lets bounds fall", Rule::Overlap),
    ("lets bounds fall where nothing is", Rule::Validation),
    ("puts the largest last", Rule::Padding),
    ("pads to a power of two", Rule::Padding),
    ("leaves the root out", Rule::Groups),
    ("claims twice", Rule::Groups),
    ("puts buffers into parameter groups", Rule::Groups),
    ("names parameter groups alike", Rule::Groups),
    ("counts beyond the tensors", Rule::Groups),
    ("orders by hash", Rule::Deterministic),
    ("remembers", Rule::Deterministic),
    ("sizes by the largest seen", Rule::Order),
    ("asks for every rank", Rule::Steps),
    ("a parameter group a rank", Rule::Steps),
    ("scans all tensors for each", Rule::Steps),
    ("scans a copy of its own for each", Rule::Steps),
    ("scans the plan for each", Rule::Steps),
    ("sums the sizes before each", Rule::Steps),
    ("looks again for every rank", Rule::Steps),
];

#[test]
fn each_defect_is_caught_under_its_own_rule() {
    for &(defect, rule) in DEFECTS {
        let violation = kit(defect).run().expect_err(defect);
        assert_eq!(violation.rule, rule, "{defect}: {violation}");
    }
}

/// Copies every rank's regions out of memory; and, where there is one, a defect.
struct Copies(&'static str);

impl Loader for Copies {
    fn load(&self, plan: &ShardPlan, checkpoint: &BTreeMap<String, Vec<u8>>) -> Result<Vec<Vec<Vec<u8>>>, String> {
        if self.0 == "fails" && plan.mesh.world_size() == 4 {
            return Err("disk on fire".into());
        }
        let ranks = if self.0 == "forgets a rank" { plan.mesh.world_size() - 1 } else { plan.mesh.world_size() };
        Ok((0..ranks).map(|rank| plan.tensors.iter().map(|t| self.buffer(t, rank, &checkpoint[t.name.as_str()])).collect()).collect())
    }
}

fn size(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

impl Copies {
    fn buffer(&self, tensor: &TensorPlan, rank: u32, source: &[u8]) -> Vec<u8> {
        let (from, to) = (size(tensor.source.bits() / 8), size(tensor.precision.storage.bits() / 8));
        let rank = if self.0 == "serves rank 0 to all" { 0 } else { rank };
        let mut buffer = Vec::new();
        for flat in elements(&tensor.region(rank), &tensor.shape) {
            let skipped = if self.0 == "does not cast" { 0 } else { to - from };
            buffer.extend(std::iter::repeat_n(0, skipped).chain(source[size(flat) * from..size(flat + 1) * from].iter().copied()));
        }
        let padding = if self.0 == "leaves padding as it was" { 0xAA } else { 0 };
        let padded = if self.0 == "cuts padding off" { 0 } else { size(tensor.padded_numel(rank)) * to };
        buffer.resize(padded.max(buffer.len()), padding);
        buffer
    }
}

#[test]
fn each_defect_of_a_loader_is_caught() {
    let summary = kit("").loader(&Copies("")).assert();
    assert!(summary.loads > 50, "{summary}");
    for (defect, says) in [
        ("fails", "the load failed: disk on fire"),
        ("forgets a rank", "0 ranks were loaded, expected 1"),
        ("serves rank 0 to all", "rank 1, tensor"),
        ("does not cast", "element 0 of its shard is"),
        ("leaves padding as it was", "of its padding is 0xaa, expected zero"),
        ("cuts padding off", "its buffer has 0 bytes, expected"),
    ] {
        let violation = kit("").loader(&Copies(defect)).run().expect_err(defect);
        assert_eq!(violation.rule, Rule::Load, "{defect}: {violation}");
        assert!(violation.found.contains(says), "{defect}: {violation}");
    }
}

/// Every placement of a small tensor on a small world, sound or not.
fn placements(shape: &[u64]) -> Vec<Placement> {
    let mut all = vec![Placement::replicated()];
    for (stride, size) in (0..4).flat_map(|stride| (0..5).map(move |size| (stride, size))) {
        let mut layouts: Vec<Layout> = (0..5).map(|coordinate| Layout::Owner { coordinate }).collect();
        layouts.push(Layout::Partition);
        layouts.extend((0..3).map(|dim| Layout::Chunk { dim }));
        layouts.extend((0..8).map(|partition| Layout::Flat { partition }));
        layouts.extend((0..3).flat_map(|dim| (0..5).map(move |chunk| Layout::Dim { dim, chunk })));
        let reach = shape.first().map_or(0, |d| d + 2);
        let mut bounds: Vec<Vec<u64>> = vec![Vec::new()];
        for _ in 0..=size {
            bounds = bounds.iter().flat_map(|b| (0..reach).map(|next| [b.as_slice(), &[next]].concat())).collect();
        }
        layouts.extend(bounds.into_iter().map(|bounds| Layout::Bounds { dim: 0, bounds }));
        for layout in layouts {
            for padding in [Padding::None, Padding::ToFirst] {
                all.push(Placement::one(GroupAxis { stride, size }, layout.clone(), padding));
            }
        }
    }
    all
}

/// Placements of two cuts of a small tensor on a small world, sound or not.
fn pairs(shape: &[u64]) -> Vec<Placement> {
    let rows = shape.first().copied().unwrap_or(1);
    let mut layouts = vec![Layout::Partition, Layout::Owner { coordinate: 0 }, Layout::Owner { coordinate: 1 }];
    layouts.extend((0..3).flat_map(|dim| [Layout::Chunk { dim }, Layout::Dim { dim, chunk: 1 }, Layout::Dim { dim, chunk: 2 }]));
    layouts.extend([1, 3].map(|partition| Layout::Flat { partition }));
    layouts.extend([vec![0, 0, rows], vec![0, rows, rows], vec![0, 1, 2]].map(|bounds| Layout::Bounds { dim: 0, bounds }));
    let axes = [(1, 1), (1, 2), (2, 2), (1, 3), (3, 2), (4, 2)].map(|(stride, size)| GroupAxis { stride, size });
    let mut all = Vec::new();
    for (first, last) in layouts.iter().flat_map(|first| layouts.iter().map(move |last| (first, last))) {
        for (a, b) in axes.iter().flat_map(|&a| axes.iter().map(move |&b| (a, b))) {
            let cuts = [Cut { axis: a, layout: first.clone() }, Cut { axis: b, layout: last.clone() }];
            all.extend([Placement::of(cuts.clone()), Placement::of(cuts).padded()]);
        }
    }
    all
}

/// As below, of two cuts. The validation is stricter in two more places: bounds after a cut that leaves uneven parts, and flat elements after one
/// that leaves them in one run only by chance.
#[test]
fn the_proof_of_two_cuts_agrees_with_counting() {
    let (mut sound, mut unsound, mut stricter) = (0, 0, 0);
    for shape in [&[][..], &[1], &[3], &[4], &[2, 3], &[5, 4], &[3, 0], &[1, 4, 2]] {
        let model = ModelMeta::new(vec![TensorMeta::new("w", DType::F32, shape)], Default::default()).unwrap();
        for placement in pairs(shape) {
            for world in [4, 6, 8] {
                let mesh = Mesh::replicate_shard(1, world).unwrap();
                let input = PlanInput::new(&model, &mesh, &Stub);
                let mut plan = input.plan_tensors("acme/any", |_| Ok(placement.clone())).unwrap();
                plan.groups = groups_by(&plan.tensors, Reshard::Never, |_| "");
                let (proved, counted) = (plan.check(&model), count::tiling(&plan.tensors[0], world, u64::MAX));
                let last = &placement.cuts[1].layout;
                let may = last.is_flat() || matches!(last, Layout::Bounds { .. }) || shape.contains(&0);
                assert!(
                    proved.is_ok() == counted.is_ok() || (proved.is_err() && may),
                    "{shape:?} on {world}: {placement:?}: {proved:?}, {counted:?}"
                );
                *match (proved, counted) {
                    (Err(_), Ok(())) => &mut stricter,
                    (_, Ok(())) => &mut sound,
                    _ => &mut unsound,
                } += 1;
            }
        }
    }
    assert!(
        sound > 10_000 && unsound > 100_000 && stricter < sound / 4,
        "{sound} sound, {unsound} unsound, {stricter} refused all the same"
    );
}

/// `check` is arithmetic on the rules; counting walks elements. They agree on every placement of every small case, but for two kinds
/// that the validation refuses although nothing is missing or twice: bounds that fall, and rules for no element that would not hold for one.
#[test]
fn the_proof_by_arithmetic_agrees_with_counting() {
    let (mut sound, mut unsound) = (0, 0);
    for shape in [&[][..], &[0], &[1], &[2], &[3], &[2, 3], &[3, 0], &[0, 2]] {
        let model = ModelMeta::new(vec![TensorMeta::new("w", DType::F32, shape)], Default::default()).unwrap();
        for placement in placements(shape) {
            for world in [1, 2, 3, 4, 6] {
                let mesh = Mesh::replicate_shard(1, world).unwrap();
                let setting = Stub;
                let input = PlanInput::new(&model, &mesh, &setting);
                let mut plan = input.plan_tensors("acme/any", |_| Ok(placement.clone())).unwrap();
                plan.groups = groups_by(&plan.tensors, Reshard::Never, |_| "");
                let (proved, counted) = (plan.check(&model), count::tiling(&plan.tensors[0], world, u64::MAX));
                let layout = placement.cuts.first().map(|cut| &cut.layout);
                let falls = matches!(layout, Some(Layout::Bounds { bounds, .. }) if bounds.windows(2).any(|w| w[0] > w[1]));
                let stricter = proved.is_err() && counted.is_ok() && (falls || shape.contains(&0));
                assert!(stricter || proved.is_ok() == counted.is_ok(), "{shape:?} on {world}: {placement:?}: {proved:?}, {counted:?}");
                *if counted.is_ok() { &mut sound } else { &mut unsound } += 1;
            }
        }
    }
    assert!(sound > 3_000 && unsound > 100_000, "{sound} sound, {unsound} unsound");
}

#[derive(Debug)]
struct Stub;

impl PrecisionPolicy for Stub {
    fn decide(&self, param: &TensorMeta, _: bool) -> Precision {
        Precision::uniform(param.dtype)
    }
}

/// Sections with one defect each.
mod sections {
    use serde::{Deserialize, Serialize};

    use super::super::{Rule, section::Section};
    use crate::{
        diagnostic::Diagnostic,
        registry::{Place, PolicyEntry, StrategyEntry},
        replicate::Replicate,
        strategy_config::{BuildContext, Built, BuiltPolicy, PolicyConfig, PolicyContext, StrategyConfig},
    };

    macro_rules! section {
        ($name:ident, $summary:literal, { $($body:tt)* } $($strict:ident)?) => {
            #[derive(Default, Serialize, Deserialize, schemars::JsonSchema)]
            #[serde(default $(, $strict)?)]
            struct $name { $($body)* }

            impl StrategyConfig for $name {
                const NAME: &'static str = "acme/section";
                const SUMMARY: &'static str = $summary;

                fn build(self, _: &mut BuildContext<'_>) -> Result<Built, Diagnostic> {
                    Ok(Built::new(Replicate))
                }
            }

            impl PolicyConfig for $name {
                const NAME: &'static str = "acme/section";
                const SUMMARY: &'static str = $summary;

                fn build(self, cx: &mut PolicyContext<'_>) -> Result<BuiltPolicy, Diagnostic> {
                    cx.base.take().ok_or_else(|| Diagnostic::error("acme", "nothing to fall through to"))
                }
            }
        };
    }

    section!(Sound, "sound", {
        /// A knob.
        knob: u32,
        /// Another.
        other: Option<String>,
    } deny_unknown_fields);
    section!(Lax, "lax", {
        /// A knob.
        knob: u32,
    });
    section!(Undocumented, "undocumented", { knob: u32 } deny_unknown_fields);
    section!(Unsummed, "", {} deny_unknown_fields);
    section!(Forgetful, "forgetful", {
        /// A knob.
        #[serde(skip_serializing)]
        knob: u32,
    } deny_unknown_fields);
    section!(OneWay, "one way", {
        /// A knob.
        #[serde(serialize_with = "one_more")]
        knob: u32,
    } deny_unknown_fields);

    fn one_more<S: serde::Serializer>(knob: &u32, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u32(knob + 1)
    }

    /// What is found in a section, as a strategy's and as a policy's.
    fn broken<T: StrategyConfig + PolicyConfig>(others: &[&str]) -> [Option<Rule>; 2] {
        let place = Place::new("acme", "1.0.0", crate::VERSION, "src/lib.rs", 1);
        let sections = [Section::from(StrategyEntry::of::<T>(place)), Section::from(PolicyEntry::of::<T>(place))];
        sections.map(|section| section.holds(others.iter().copied()).err().map(|(rule, _)| rule))
    }

    type Planted = (&'static [&'static str], fn(&[&str]) -> [Option<Rule>; 2], Rule);

    /// Sections with one defect each, what else is read as one, and the rule that finds it.
    pub(super) const DEFECTS: &[Planted] = &[
        (&[], broken::<Lax>, Rule::UnknownKey),
        (&[], broken::<Undocumented>, Rule::Documented),
        (&[], broken::<Unsummed>, Rule::Documented),
        (&[], broken::<Forgetful>, Rule::Documented),
        (&[], broken::<OneWay>, Rule::Config),
        (&["knob: many"], broken::<Sound>, Rule::Config),
    ];

    #[test]
    fn each_defect_of_a_section_is_caught() {
        assert_eq!(broken::<Sound>(&["", "knob: 3\nother: some"]), [None, None]);
        for (others, broken, rule) in DEFECTS {
            assert_eq!(broken(others), [Some(*rule); 2]);
        }
    }
}

#[test]
fn a_name_that_is_not_registered_is_said_with_what_is() {
    let violation = strategy("acme/absent").run().unwrap_err();
    assert_eq!(violation.rule, Rule::Registered);
    assert!(violation.found.contains("available: acme/knobs, acme/planted, replicate"), "{violation}");
    assert_eq!(policy("acme/absent").run().unwrap_err().rule, Rule::Registered);
}

#[test]
fn a_registered_strategy_runs_the_suite_through_the_resolver() {
    strategy("replicate").assert();
    // Registered by a test of the registry: it makes a strategy of another name.
    assert_eq!(strategy("acme/knobs").run().unwrap_err().rule, Rule::Registered);
}

/// A policy with one defect.
#[derive(Debug)]
struct PlantedPolicy {
    defect: &'static str,
    asked: AtomicU32,
    born: u32,
}

impl PlantedPolicy {
    fn new(defect: &'static str) -> Self {
        static BORN: AtomicU32 = AtomicU32::new(0);
        Self { defect, asked: AtomicU32::new(0), born: BORN.fetch_add(1, Ordering::Relaxed) }
    }
}

impl PrecisionPolicy for PlantedPolicy {
    fn decide(&self, param: &TensorMeta, _: bool) -> Precision {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        Precision::uniform(match self.defect {
            "panics on 0-d" if param.shape[0] == 1 => DType::F32,
            "pins integers" => DType::I32,
            "pins what cannot be cast" => DType::F4,
            "alternates" if asked.is_multiple_of(2) => DType::F32,
            "differs by instance" if self.born.is_multiple_of(2) => DType::F32,
            _ => param.dtype,
        })
    }
}

/// What is planted into policies, and the rule that finds it.
const POLICY_DEFECTS: &[(&str, Rule)] = &[
    ("panics on 0-d", Rule::Total),
    ("pins integers", Rule::Storable),
    ("pins what cannot be cast", Rule::Storable),
    ("alternates", Rule::Order),
    ("differs by instance", Rule::Deterministic),
];

#[test]
fn each_defect_of_a_policy_is_caught() {
    let kit = |defect| PolicyKit::new("acme/planted", move |_| Ok(Box::new(PlantedPolicy::new(defect))));
    kit("").assert();
    for &(defect, rule) in POLICY_DEFECTS {
        let violation = kit(defect).run().expect_err(defect);
        assert_eq!(violation.rule, rule, "{defect}: {violation}");
        assert!(violation.case.starts_with("tensor '"), "{violation}");
    }
}

/// Registered: the sound strategy, under which not every policy finds a plan.
mod registered {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{
        diagnostic::Diagnostic,
        strategy_config::{BuildContext, Built, BuiltPolicy, PolicyConfig, PolicyContext, PrecisionSummary, StrategyConfig},
    };

    #[derive(Default, Serialize, Deserialize, schemars::JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    struct SoundConfig {}

    impl StrategyConfig for SoundConfig {
        const NAME: &'static str = "acme/planted";
        const SUMMARY: &'static str = "sound";

        fn build(self, _: &mut BuildContext<'_>) -> Result<Built, Diagnostic> {
            Ok(Built::new(Planted::new("")))
        }
    }

    crate::register_strategy!(SoundConfig);

    #[derive(Default, Serialize, Deserialize, schemars::JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    struct PickyConfig {}

    impl PolicyConfig for PickyConfig {
        const NAME: &'static str = "acme/picky";
        const SUMMARY: &'static str = "storable under replicate alone";

        fn build(self, cx: &mut PolicyContext<'_>) -> Result<BuiltPolicy, Diagnostic> {
            let defect = if cx.strategy == "replicate" { "" } else { "pins what cannot be cast" };
            let summary = PrecisionSummary::of_words("checkpoint", "checkpoint", "checkpoint", "picky", "picky");
            Ok(BuiltPolicy::new(PlantedPolicy::new(defect), summary))
        }
    }

    crate::register_precision!(PickyConfig);

    #[test]
    fn a_policy_is_held_against_every_strategy_that_is_linked() {
        let violation = policy("acme/picky").run().unwrap_err();
        assert_eq!(violation.rule, Rule::Inputs, "{violation}");
        assert!(violation.found.contains("under 'acme/planted' there is no plan"), "{violation}");
    }
}

/// Writes a plan and reads it again, forgetting something on the way.
#[test]
fn a_plan_that_does_not_come_back_is_caught() {
    let model = ModelMeta::new(vec![TensorMeta::new("w", DType::F32, [4])], Default::default()).unwrap();
    let mesh = Mesh::replicate_shard(1, 2).unwrap();
    let mut plan = Planted::new("").plan(&PlanInput::new(&model, &mesh, &Stub)).unwrap();
    plan.tensors[0].persistent = true;
    let write = |plan: &ShardPlan| serde_json::to_string(plan).map_err(|e| e.to_string());
    let read = |text: &str| serde_json::from_str::<ShardPlan>(text).map_err(|e| e.to_string());
    assert_eq!(rules::serialises(&plan, write, read), Ok(()));
    let forgets = |text: &str| read(&text.replace("\"persistent\":true", "\"persistent\":false"));
    let cannot = |_: &ShardPlan| Err("no word for it".to_owned());
    let breaks = |found: Result<(), (Rule, String)>, says: &str| {
        let (rule, found) = found.unwrap_err();
        assert!(rule == Rule::Serialises && found.contains(says), "{found}");
    };
    breaks(rules::serialises(&plan, write, forgets), "tensor 'w' with persistent false, the first with true");
    breaks(rules::serialises(&plan, write, |text| read(&text[1..])), "reading the plan failed");
    breaks(rules::serialises(&plan, cannot, read), "writing the plan failed: no word for it");
}

/// A rule that nothing is planted for could be one that never finds anything.
#[test]
fn every_rule_has_something_planted_for_it() {
    // Beside the tables: the loaders' defects, the codec's, and the names and policies of `registered`.
    let sections = || sections::DEFECTS.iter().map(|(_, _, rule)| *rule);
    let of_strategies: Vec<Rule> = DEFECTS.iter().map(|(_, rule)| *rule).chain(sections()).chain([Rule::Load, Rule::Serialises]).collect();
    let of_policies: Vec<Rule> =
        POLICY_DEFECTS.iter().map(|(_, rule)| *rule).chain(sections()).chain([Rule::Registered, Rule::Inputs]).collect();
    for &rule in Rule::ALL {
        let subjects = rule.subjects();
        assert!(subjects == Subjects::Policies || of_strategies.contains(&rule), "nothing is planted into strategies for '{rule}'");
        assert!(subjects == Subjects::Strategies || of_policies.contains(&rule), "nothing is planted into policies for '{rule}'");
    }
}
