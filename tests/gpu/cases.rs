//! Checkpoints and plans to load: every pair of dtypes, odd sizes, misaligned offsets, every layout; and the oracle's cases.

use std::{collections::BTreeMap, path::Path};

use shardwright::core::{
    Cut, DType, Globs, GroupAxis, Layout, Mesh, ModelFacts, ModelMeta, Padding, Placement, PlanInput, Precision, PrecisionPolicy, Reshard,
    ShardPlan, ShardStrategy, TensorMeta, plan_checked, strategy::groups_by,
};

pub const FLOATS: [DType; 6] = [DType::F64, DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2];

/// A tensor to plan: name, source and storage dtype, shape, placement.
pub type Spec = (String, DType, DType, Vec<u64>, Placement);

#[derive(Debug)]
struct AsSpecified(BTreeMap<String, DType>);

impl PrecisionPolicy for AsSpecified {
    fn decide(&self, param: &TensorMeta, _trainable: bool) -> Precision {
        Precision::uniform(self.0[param.name.as_str()])
    }
}

/// The plan of those tensors, and a file of them in `dir`, their bytes every value in turn, `pad` spaces behind the header.
pub fn planned(dir: &Path, mesh: &Mesh, specs: &[Spec], pad: usize) -> ShardPlan {
    let metas = specs.iter().map(|s| TensorMeta::new(&s.0, s.1, s.3.clone())).collect();
    let model = ModelMeta::new(metas, ModelFacts::default()).unwrap();
    let policy = AsSpecified(specs.iter().map(|s| (s.0.clone(), s.2)).collect());
    let placement = |t: &TensorMeta| specs.iter().find(|s| s.0 == t.name).unwrap().4.clone();
    let mut plan = PlanInput::new(&model, mesh, &policy).plan_tensors("test", |t| Ok(placement(t))).unwrap();
    plan.groups = groups_by(&plan.tensors, Reshard::Never, |_| "");
    let (mut header, at) = header(specs);
    header += &" ".repeat(pad);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    // A generator's low bytes: every exponent, NaN and infinity occur.
    let mut state = 1u64;
    file.extend((0..at).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()[5]
    }));
    std::fs::write(dir.join("model.safetensors"), file).unwrap();
    plan
}

/// The header of a file of those tensors, and how many bytes of data it has.
pub fn header(specs: &[Spec]) -> (String, u64) {
    let (mut entries, mut at) = (Vec::new(), 0);
    for (name, from, _, shape, _) in specs {
        let end = at + from.bytes(shape.iter().product()).unwrap();
        entries.push(format!(r#""{name}":{{"dtype":"{}","shape":{shape:?},"data_offsets":[{at},{end}]}}"#, from.safetensors_name()));
        at = end;
    }
    (format!("{{{}}}", entries.join(",")), at)
}

/// Every pair of dtypes, each in sizes about the kernels' boundaries, flat on so many ranks, so that parts start anywhere.
pub fn every_pair(ranks: u32) -> (Mesh, Vec<Spec>) {
    let mesh = Mesh::replicate_shard(1, ranks).unwrap();
    let axis = mesh.axis("mp_shard").unwrap();
    let mut specs = Vec::new();
    for from in FLOATS {
        for to in FLOATS {
            for numel in [1u64, 17, 255, 8193, 30_011] {
                let name = format!("{from}.{to}.{numel}");
                specs.push((name, from, to, vec![numel], Placement::flat(axis, &[numel]).unwrap()));
            }
        }
    }
    (mesh, specs)
}

/// Every layout, in dtypes that are upcast, downcast and left; many short runs, some long ones, some ranks that hold the same.
pub fn every_layout() -> (Mesh, Vec<Spec>) {
    let mesh = Mesh::replicate_shard(2, 3).unwrap();
    let axis = mesh.axis("mp_shard").unwrap();
    let whole = Placement::replicated();
    let at = |layout, padding| Placement::one(axis, layout, padding);
    let (tp, fsdp) = (mesh.axis("mp_replicate").unwrap(), axis);
    let placements = [
        (vec![301u64, 33], Placement::chunked(axis, &[301, 33], 0).unwrap()),
        (vec![301, 33], at(Layout::Dim { dim: 1, chunk: 11 }, Padding::None)),
        (vec![7, 5, 64], at(Layout::Bounds { dim: 1, bounds: vec![0, 1, 1, 5] }, Padding::None)),
        (vec![1000, 401], Placement::flat(axis, &[1000, 401]).unwrap()),
        (vec![], whole.clone()),
        (vec![0, 9], whole.clone()),
        (vec![77, 1000], whole),
        (vec![50, 50], Placement::owned(axis, 2)),
        (vec![31, 40, 9], Placement::of([Cut::chunk(tp, 1), Cut::chunk(fsdp, 0)]).padded()),
        (vec![101, 12], Placement::of([Cut::chunk(tp, 0), Cut::chunk(fsdp, 0)]).padded()),
    ];
    let mut specs = Vec::new();
    for (i, (shape, placement)) in placements.iter().enumerate() {
        for (from, to) in [(DType::BF16, DType::F32), (DType::F32, DType::BF16), (DType::F16, DType::F16), (DType::F8E4M3, DType::BF16)] {
            specs.push((format!("t{i}.{from}.{to}"), from, to, shape.clone(), placement.clone()));
        }
    }
    for dtype in [DType::I64, DType::Bool, DType::U8] {
        specs.push((format!("buffer.{dtype}"), dtype, dtype, vec![513], Placement::replicated()));
    }
    (mesh, specs)
}

#[derive(Debug)]
struct Stored(Option<DType>);

impl PrecisionPolicy for Stored {
    fn decide(&self, param: &TensorMeta, _trainable: bool) -> Precision {
        Precision::uniform(self.0.unwrap_or(param.dtype))
    }
}

/// The plan of an oracle case, by its file's name: `CHECKPOINT.STORAGE.wN[.rR]`. `None` for checkpoints that are not here.
pub fn of_oracle(strategy: &dyn ShardStrategy, name: &str, model: &ModelMeta) -> ShardPlan {
    let parts: Vec<&str> = name.split('.').collect();
    let world: u32 = parts[2].strip_prefix('w').unwrap().parse().unwrap();
    let replicate = parts.get(3).and_then(|r| r.strip_prefix('r')?.parse().ok()).unwrap_or(1);
    let mesh = Mesh::replicate_shard(replicate, world / replicate).unwrap();
    let policy = Stored(DType::from_spelling(parts[1]));
    let globs = Globs::new::<&str>([]).unwrap();
    let mut input = PlanInput::new(model, &mesh, &policy);
    input.buffers = &globs;
    plan_checked(strategy, &input).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// For an axis over all ranks of a world.
pub fn one_rank() -> GroupAxis {
    GroupAxis { stride: 1, size: 1 }
}
