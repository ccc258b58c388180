//! Planning a model of 70 billion parameters on 1,024 ranks, per strategy: the plan with its validation, then one rank's regions and every
//! rank's; and a plugin's strategy, found in the registry and called through `dyn`, against the same layout called directly.

use std::{collections::BTreeMap, fs, hint::black_box, io::Write, path::Path};

use criterion::Criterion;
use shardwright::config::{Draft, Input, Resolved, Supplied};
use shardwright::core::{
    DType, Mesh, ModelFacts, ModelMeta, Placement, PlanError, PlanInput, PrecisionPolicy, Reshard, ShardPlan, ShardStrategy, TensorMeta,
    diagnostic::{Diagnostic, Source},
    plan_checked, register_strategy,
    registry::Registry,
    schemars, serde,
    strategy::{groups_by, modules},
    strategy_config::{BuildContext, Built, StrategyConfig},
};
use shardwright::engine::{Checkpoint, architecture::ModelOptions};

const RANKS: u32 = 1024;

/// LLaMA-70B's names and shapes: 723 tensors.
fn llama_70b() -> ModelMeta {
    let mut tensors = vec![
        TensorMeta::new("lm_head.weight", DType::BF16, [128_256, 8192]),
        TensorMeta::new("model.embed_tokens.weight", DType::BF16, [128_256, 8192]),
        TensorMeta::new("model.norm.weight", DType::BF16, [8192]),
    ];
    for layer in 0..80 {
        for (part, shape) in [
            ("input_layernorm.weight", &[8192][..]),
            ("mlp.down_proj.weight", &[8192, 28_672]),
            ("mlp.gate_proj.weight", &[28_672, 8192]),
            ("mlp.up_proj.weight", &[28_672, 8192]),
            ("post_attention_layernorm.weight", &[8192]),
            ("self_attn.k_proj.weight", &[1024, 8192]),
            ("self_attn.o_proj.weight", &[8192, 8192]),
            ("self_attn.q_proj.weight", &[8192, 8192]),
            ("self_attn.v_proj.weight", &[1024, 8192]),
        ] {
            tensors.push(TensorMeta::new(format!("model.layers.{layer}.{part}"), DType::BF16, shape));
        }
    }
    ModelMeta::new(tensors, ModelFacts::default()).expect("names are distinct")
}

/// The same layout twice: called directly, and registered as a plugin's is.
#[derive(Debug)]
struct Rows;

impl ShardStrategy for Rows {
    fn name(&self) -> &str {
        RowsConfig::NAME
    }

    #[inline(never)] // the same code for both callers: what is measured is the call
    fn plan(&self, input: &PlanInput<'_>) -> Result<ShardPlan, PlanError> {
        let axis = input.mesh.all_ranks();
        let place = |tensor: &TensorMeta| Placement::chunked(axis, &tensor.shape, 0).map_err(|reason| PlanError::tensor(tensor, reason));
        let mut plan = input.plan_tensors(self.name(), place)?;
        plan.groups = groups_by(&plan.tensors, Reshard::ToShards, |tensor| modules(&tensor.name).next().unwrap_or(""));
        Ok(plan)
    }
}

#[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(crate = "shardwright::core::serde", default, deny_unknown_fields)]
#[schemars(crate = "shardwright::core::schemars")]
struct RowsConfig {}

impl StrategyConfig for RowsConfig {
    const NAME: &'static str = "bench/rows";
    const SUMMARY: &'static str = "dim 0 over all ranks";

    fn build(self, _: &mut BuildContext<'_>) -> Result<Built, Diagnostic> {
        Ok(Built::new(Rows))
    }
}

register_strategy!(RowsConfig);

/// As a user's YAML selects it.
fn resolved(name: &str) -> Resolved {
    let registry = Registry::linked().expect("the registry is sound");
    let yaml = format!("dist_config: {{name: {name}}}");
    let input = Input { config: Source::new("bench.yaml", yaml), overrides: Vec::new(), env: BTreeMap::new() };
    let supplied = Supplied { world_size: Some(RANKS), ..Supplied::default() };
    let outcome = Draft::parse(&input, &registry).resolve(&supplied, &registry);
    outcome.resolved.unwrap_or_else(|| panic!("{:?}", outcome.diagnostics))
}

/// Elements that these ranks hold, from their regions.
fn held(plan: &ShardPlan, ranks: std::ops::Range<u32>) -> u64 {
    ranks.map(|rank| plan.tensors.iter().map(|tensor| tensor.valid_numel(rank)).sum::<u64>()).sum()
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let model = llama_70b();
    let mesh = Mesh::replicate_shard(1, RANKS).expect("a sound mesh");
    for name in ["replicate", "fsdp2", "zero3", RowsConfig::NAME] {
        let resolved = resolved(name);
        let input = PlanInput::new(&model, &mesh, &*resolved.precision);
        let mut group = criterion.benchmark_group(format!("plan/{name}"));
        group.bench_function("plan and validation", |b| b.iter(|| plan_checked(&*resolved.strategy, black_box(&input))));
        group.bench_function("one rank", |b| {
            b.iter(|| plan_checked(&*resolved.strategy, black_box(&input)).map(|plan| held(&plan, 1023..1024)));
        });
        group.bench_function("all ranks", |b| {
            b.iter(|| plan_checked(&*resolved.strategy, black_box(&input)).map(|plan| held(&plan, 0..RANKS)));
        });
        group.finish();
    }
    dispatch(&mut criterion, &model, &mesh);
    experts(&mut criterion);
    criterion.final_summary();
}

/// A checkpoint's headers, with holes for data.
fn headers(dir: &Path, config: &str, tensors: &[(String, Vec<u64>)], files: usize) {
    fs::write(dir.join("config.json"), config).expect("a scratch directory");
    for (number, part) in tensors.chunks(tensors.len().div_ceil(files)).enumerate() {
        let (mut header, mut end) = (serde_json::Map::new(), 0u64);
        for (name, shape) in part {
            let start = end;
            end += 2 * shape.iter().product::<u64>();
            header.insert(name.clone(), serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] }));
        }
        let header = serde_json::Value::Object(header).to_string();
        let path = dir.join(format!("part-{number}.safetensors"));
        let mut file = fs::File::create(path).expect("a scratch file");
        file.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| file.write_all(header.as_bytes())).expect("a header");
        file.set_len(8 + header.len() as u64 + end).expect("a hole");
    }
}

fn qwen3_30b_a3b() -> (&'static str, Vec<(String, Vec<u64>)>) {
    let config = r#"{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48,
        "num_experts": 128, "moe_intermediate_size": 768, "intermediate_size": 6144, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "num_experts_per_tok": 8,
        "decoder_sparse_step": 1, "mlp_only_layers": []}"#;
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![151_936, 2048]),
        ("lm_head.weight".to_owned(), vec![151_936, 2048]),
        ("model.norm.weight".to_owned(), vec![2048]),
    ];
    for layer in 0..48 {
        let under = |part: &str| format!("model.layers.{layer}.{part}.weight");
        for (part, shape) in
            [("input_layernorm", 2048), ("post_attention_layernorm", 2048), ("self_attn.q_norm", 128), ("self_attn.k_norm", 128)]
        {
            tensors.push((under(part), vec![shape]));
        }
        for (part, rows, columns) in [
            ("self_attn.q_proj", 4096, 2048),
            ("self_attn.k_proj", 512, 2048),
            ("self_attn.v_proj", 512, 2048),
            ("self_attn.o_proj", 2048, 4096),
            ("mlp.gate", 128, 2048),
        ] {
            tensors.push((under(part), vec![rows, columns]));
        }
        for expert in 0..128 {
            for (part, rows, columns) in [("gate_proj", 768, 2048), ("up_proj", 768, 2048), ("down_proj", 2048, 768)] {
                tensors.push((under(&format!("mlp.experts.{expert}.{part}")), vec![rows, columns]));
            }
        }
    }
    (config, tensors)
}

/// As released: with a scale beside each matrix, which the class does not have, and the predictor of further tokens, which it drops.
fn deepseek_v3() -> (&'static str, Vec<(String, Vec<u64>)>) {
    let config = r#"{"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61,
        "n_routed_experts": 256, "n_shared_experts": 1, "first_k_dense_replace": 3, "moe_intermediate_size": 2048, "intermediate_size": 18432,
        "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280, "tie_word_embeddings": false, "torch_dtype": "bfloat16"}"#;
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![129_280, 7168]),
        ("lm_head.weight".to_owned(), vec![129_280, 7168]),
        ("model.norm.weight".to_owned(), vec![7168]),
    ];
    let mlp = |tensors: &mut Vec<(String, Vec<u64>)>, under: &str, size: u64| {
        tensors.push((format!("{under}.gate_proj.weight"), vec![size, 7168]));
        tensors.push((format!("{under}.up_proj.weight"), vec![size, 7168]));
        tensors.push((format!("{under}.down_proj.weight"), vec![7168, size]));
    };
    for layer in 0..62 {
        let under = format!("model.layers.{layer}");
        for (part, shape) in [
            ("input_layernorm", vec![7168]),
            ("post_attention_layernorm", vec![7168]),
            ("self_attn.q_a_proj", vec![1536, 7168]),
            ("self_attn.q_a_layernorm", vec![1536]),
            ("self_attn.q_b_proj", vec![24_576, 1536]),
            ("self_attn.kv_a_proj_with_mqa", vec![576, 7168]),
            ("self_attn.kv_a_layernorm", vec![512]),
            ("self_attn.kv_b_proj", vec![32_768, 512]),
            ("self_attn.o_proj", vec![7168, 16_384]),
        ] {
            tensors.push((format!("{under}.{part}.weight"), shape));
        }
        if layer < 3 {
            mlp(&mut tensors, &format!("{under}.mlp"), 18_432);
            continue;
        }
        tensors.push((format!("{under}.mlp.gate.weight"), vec![256, 7168]));
        tensors.push((format!("{under}.mlp.gate.e_score_correction_bias"), vec![256]));
        mlp(&mut tensors, &format!("{under}.mlp.shared_experts"), 2048);
        (0..256).for_each(|expert| mlp(&mut tensors, &format!("{under}.mlp.experts.{expert}"), 2048));
    }
    let matrices = tensors.iter().filter(|(name, shape)| shape.len() == 2 && name.contains(".layers.") && name.ends_with(".weight"));
    let scale = |(name, shape): &(String, Vec<u64>)| (format!("{name}_scale_inv"), shape.iter().map(|n| n.div_ceil(128)).collect());
    let scales: Vec<(String, Vec<u64>)> = matrices.map(scale).collect();
    tensors.extend(scales);
    (config, tensors)
}

fn experts(criterion: &mut Criterion) {
    for (name, (config, tensors), files) in [("qwen3-30b-a3b", qwen3_30b_a3b(), 16), ("deepseek-v3", deepseek_v3(), 160)] {
        let dir = tempfile::tempdir().expect("a scratch directory");
        headers(dir.path(), config, &tensors, files);
        let mut group = criterion.benchmark_group(format!("experts/{name}"));
        group.sample_size(10);
        let open = || Checkpoint::open(dir.path()).expect("sound headers");
        let found = |checkpoint: Checkpoint| {
            let model = checkpoint.find_model(&ModelOptions::new("llm")).expect("the model of its config");
            checkpoint.with_model(model).expect("sound pieces")
        };
        let resolved = resolved("fsdp2");
        let mesh = Mesh::replicate_shard(1, 8).expect("a sound mesh");
        let plan = |checkpoint: &Checkpoint| {
            let input = PlanInput::new(checkpoint.model(), &mesh, &*resolved.precision);
            plan_checked(&*resolved.strategy, &input).map(|plan| held(&plan, 3..4)).expect("a plan")
        };
        group.bench_function(format!("{} headers", tensors.len()), |b| b.iter(open));
        let opened = open();
        group.bench_function("the class's parameters", |b| b.iter(|| found(opened.clone())));
        let assembled = found(opened.clone());
        group.bench_function("plan and validation", |b| b.iter(|| plan(&assembled)));
        group.bench_function("all of it, one rank of 8", |b| b.iter(|| plan(&found(open()))));
        group.finish();
    }
}

fn dispatch(criterion: &mut Criterion, model: &ModelMeta, mesh: &Mesh) {
    let plugin = resolved(RowsConfig::NAME);
    let policy: &dyn PrecisionPolicy = &*plugin.precision;
    let input = PlanInput::new(model, mesh, policy);
    let mut group = criterion.benchmark_group("dispatch");
    group.bench_function("direct", |b| b.iter(|| Rows.plan(black_box(&input))));
    group.bench_function("registered", |b| b.iter(|| plugin.strategy.plan(black_box(&input))));
    group.finish();
}
