//! Plans as data, without a checkpoint's bytes or a device: what each strategy decides for one small model.

use shardwright::core::{
    DType, Globs, Mesh, ModelFacts, ModelMeta, PlanError, PlanInput, Precision, PrecisionPolicy, Reshard, ShardPlan, ShardStrategy,
    TensorMeta, plan_checked, replicate::Replicate,
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

/// One line a tensor: what it is, its dtypes, and what each rank holds; then the units.
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
    for unit in &plan.units {
        let names: Vec<&str> = unit.tensors.iter().map(|&t| plan.tensors[t].name.as_str()).collect();
        out += &format!("unit '{}' {:?}: {}\n", unit.name, unit.reshard_after_forward, names.join(", "));
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
