//! Plans as data, without a checkpoint's bytes or a device: what each strategy decides for one small model.

use shardwright::core::{
    Cut, DType, Globs, Mesh, ModelFacts, ModelMeta, Placement, PlanError, PlanInput, Precision, PrecisionPolicy, Reshard, ShardPlan,
    ShardStrategy, TensorMeta, plan_checked, replicate::Replicate, testkit::elements,
};
use shardwright::{fsdp2::Fsdp2, zero3::Zero3};

/// Storage float32, compute bfloat16, whatever the source.
#[derive(Debug)]
struct Mixed;

impl PrecisionPolicy for Mixed {
    fn decide(&self, _: &TensorMeta, _: bool) -> Precision {
        Precision::new(DType::F32, DType::BF16, DType::F32)
    }
}

fn model() -> ModelMeta {
    let config =
        serde_json::json!({"architectures": ["TinyForCausalLM"], "model_type": "qwen3", "hidden_size": 3, "tie_word_embeddings": false});
    let tensors = [
        ("lm_head.weight", DType::BF16, vec![7, 3]),
        ("model.embed_tokens.weight", DType::BF16, vec![7, 3]),
        ("model.layers.0.mlp.experts", DType::BF16, vec![2, 3, 3]),
        ("model.layers.0.norm.weight", DType::F32, vec![3]),
        ("model.layers.1.norm.weight", DType::F32, vec![1]),
        ("model.norm.weight", DType::F16, vec![3]),
        ("model.position_ids", DType::I64, vec![1, 5]),
        ("model.rotary.inv_freq", DType::F32, vec![4]),
    ];
    ModelMeta::new(tensors.map(|(name, dtype, shape)| TensorMeta::new(name, dtype, shape)).to_vec(), ModelFacts::from_config(&config))
        .unwrap()
}

fn plan(strategy: &dyn ShardStrategy, mesh: Mesh) -> Result<ShardPlan, PlanError> {
    let (model, buffers) = (model(), Globs::new(["*.inv_freq"]).unwrap());
    let mut input = PlanInput::new(&model, &mesh, &Mixed);
    input.buffers = &buffers;
    plan_checked(strategy, &input)
}

/// One line a tensor: what it is, its dtypes, and what each rank holds; then the parameter groups.
fn render(plan: &ShardPlan) -> String {
    let mut out = format!("{} on {} ranks\n", plan.strategy, plan.mesh.world_size());
    for t in &plan.tensors {
        let p = t.precision;
        let kind = format!("{:?}", t.kind).to_lowercase();
        out +=
            &format!("{} {:?} {kind} {} -> storage {} compute {} reduce {}\n", t.name, t.shape, t.source, p.storage, p.compute, p.reduce);
        for rank in 0..plan.mesh.world_size() {
            out += &format!("    rank {rank}: {:?}, {} of {} elements\n", t.region(rank), t.valid_numel(rank), t.padded_numel(rank));
        }
    }
    for group in &plan.groups {
        let names: Vec<&str> = group.tensors.iter().map(|&t| plan.tensors[t].name.as_str()).collect();
        out += &format!("parameter group '{}' {:?}: {}\n", group.name, group.reshard_after_forward, names.join(", "));
    }
    out
}

#[test]
fn fsdp2_on_three_ranks() {
    insta::assert_snapshot!(render(&plan(&Fsdp2::default(), Mesh::replicate_shard(1, 3).unwrap()).unwrap()));
}

#[test]
fn fsdp2_hybrid_on_two_by_two() {
    insta::assert_snapshot!(render(&plan(&Fsdp2::default(), Mesh::replicate_shard(2, 2).unwrap()).unwrap()));
}

#[test]
fn zero3_on_three_ranks() {
    insta::assert_snapshot!(render(&plan(&Zero3::default(), Mesh::replicate_shard(1, 3).unwrap()).unwrap()));
}

#[test]
fn zero3_with_mics_groups_of_two() {
    let strategy = Zero3 { mics_shard_size: Some(2), ..Zero3::default() };
    insta::assert_snapshot!(render(&plan(&strategy, Mesh::replicate_shard(1, 4).unwrap()).unwrap()));
}

#[test]
fn replicate_on_two_ranks() {
    insta::assert_snapshot!(render(&plan(&Replicate, Mesh::replicate_shard(1, 2).unwrap()).unwrap()));
}

#[test]
fn a_plan_is_data_that_comes_back() {
    let plan = plan(&Fsdp2::default(), Mesh::replicate_shard(1, 3).unwrap()).unwrap();
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<ShardPlan>(&text).unwrap(), plan);
}

#[test]
fn a_zero_dim_parameter_is_refused_by_name_under_fsdp2_and_planned_under_zero3() {
    let model = ModelMeta::new(vec![TensorMeta::new("scale", DType::F32, [])], ModelFacts::default()).unwrap();
    let mesh = Mesh::replicate_shard(1, 2).unwrap();
    let input = PlanInput::new(&model, &mesh, &Mixed);
    let refused = plan_checked(&Fsdp2::default(), &input).unwrap_err().to_string();
    assert!(refused.contains("'scale'") && refused.contains("0-d"), "{refused}");
    let planned = plan_checked(&Zero3::default(), &input).unwrap();
    assert_eq!([0, 1].map(|rank| planned.tensors[0].valid_numel(rank)), [1, 0]);
    assert_eq!(planned.tensors[0].padded_numel(1), 1);
}

#[test]
fn meshes_that_a_strategy_cannot_use_are_refused() {
    let reshard = Fsdp2 { reshard_after_forward: Reshard::ToRanks(3), ..Fsdp2::default() };
    let refused = plan(&reshard, Mesh::replicate_shard(1, 4).unwrap()).unwrap_err().to_string();
    assert!(refused.contains("reshard_after_forward is 3") && refused.contains('4'), "{refused}");
    let mics = Zero3 { mics_shard_size: Some(3), ..Zero3::default() };
    let refused = plan(&mics, Mesh::replicate_shard(1, 4).unwrap()).unwrap_err().to_string();
    assert!(refused.contains("mics_shard_size is 3") && refused.contains('4'), "{refused}");
}

/// deepspeed: `mark_persistent_parameters` grants in order, skips what would pass the model's threshold, and goes on.
#[test]
fn persistence_is_granted_in_order_below_both_thresholds() {
    let strategy = Zero3 { param_persistence_threshold: 18, model_persistence_threshold: 22, ..Zero3::default() };
    let plan = plan(&strategy, Mesh::replicate_shard(1, 2).unwrap()).unwrap();
    let persistent: Vec<&str> = plan.tensors.iter().filter(|t| t.persistent).map(|t| t.name.as_str()).collect();
    assert_eq!(persistent, ["model.layers.0.mlp.experts", "model.layers.0.norm.weight", "model.layers.1.norm.weight"]);
}

/// torch 2.15 `fully_shard`, ran on 2 to 7 ranks: a parameter without elements has 0 rows on every rank, whatever its rows.
#[test]
fn fsdp2_gives_no_rows_of_tensors_without_elements() {
    for (shape, local) in [(vec![5, 0], [0, 0]), (vec![0, 5], [0, 5])] {
        let model = ModelMeta::new(vec![TensorMeta::new("w", DType::F32, shape.clone())], ModelFacts::default()).unwrap();
        let mesh = Mesh::replicate_shard(1, 3).unwrap();
        let plan = plan_checked(&Fsdp2::default(), &PlanInput::new(&model, &mesh, &Mixed)).unwrap();
        for rank in 0..3 {
            assert_eq!(plan.tensors[0].region(rank).local_shape(&shape), Some(local.to_vec()), "{shape:?}");
        }
    }
}

/// A rank as the oracle has it: its local shape, the elements of its padded buffer if torch pads, and the runs of values that it holds.
fn held(placement: &Placement, shape: &[u64], rank: u32, padded: bool) -> String {
    let region = placement.region(shape, rank);
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for flat in elements(&region, shape) {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == flat => *last = flat,
            _ => runs.push((flat, flat)),
        }
    }
    let buffer = if padded { format!("/{}", placement.padded_numel(shape, rank)) } else { String::new() };
    let runs: Vec<String> = runs.iter().map(|(from, to)| format!("{from}-{to}")).collect();
    format!("{:?}{buffer}: {}", region.local_shape(shape).unwrap(), runs.join(" "))
}

/// torch 2.15, ran on 4, 6 and 8 ranks (tests/oracle/generate/gen_mesh.py): what each rank holds of tensors on meshes of two and three axes,
/// by `distribute_tensor` in every combination of Shard and Replicate, and by `fully_shard` over parameters that are DTensors already.
#[test]
fn several_cuts_are_dtensors() {
    let dims = |of: &serde_json::Value| of.as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect::<Vec<u64>>();
    let mut rows = 0;
    for (world, kind) in [4u32, 6, 8].iter().flat_map(|world| [(world, "distribute"), (world, "fully_shard")]) {
        let path = format!("{}/tests/oracle/mesh/w{world}.json", env!("CARGO_MANIFEST_DIR"));
        let oracle: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for row in oracle[kind].as_array().unwrap() {
            let (sizes, shape) = (dims(&row[0]), dims(&row[1]));
            let names = ["a", "b", "c"];
            let mesh = Mesh::new(names.into_iter().zip(sizes.iter().map(|&n| u32::try_from(n).unwrap()))).unwrap();
            let words = row[2].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
            let mut cuts: Vec<Cut> = names
                .into_iter()
                .zip(words.clone())
                .filter_map(|(name, word)| Some(Cut::chunk(mesh.axis(name).unwrap(), word.strip_prefix('S')?.parse().unwrap())))
                .collect();
            // fully_shard cuts what the other axes left, and pads.
            let placement = if kind == "distribute" {
                Placement::of(cuts)
            } else {
                let first = cuts.remove(0);
                Placement::of(cuts.into_iter().chain([first])).padded()
            };
            let model = ModelMeta::new(vec![TensorMeta::new("w", DType::F32, shape.clone())], ModelFacts::default()).unwrap();
            let mut plan = PlanInput::new(&model, &mesh, &Mixed).plan_tensors("mesh", |_| Ok(placement.clone())).unwrap();
            plan.groups = shardwright::core::strategy::groups_by(&plan.tensors, Reshard::ToShards, |_| "");
            plan.check(&model).unwrap_or_else(|e| panic!("{row}: {e}"));
            for (rank, expected) in (0..*world).zip(row[3].as_array().unwrap()) {
                assert_eq!(held(&placement, &shape, rank, kind == "fully_shard"), expected.as_str().unwrap(), "{kind} rank {rank}: {row}");
            }
            rows += 1;
        }
    }
    assert_eq!(rows, 1167);
}
