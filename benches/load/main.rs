//! Loads against the roofline: the same bytes, by the same threads, through a bare loop into memory of the same kind.
//!
//! Cold, the roofline is one thread that reads the same bytes in file order and does nothing with them.
//!
//! `stacked` cases load a mixture of experts as its class has it, experts stacked and gate and up joined, `transposed` ones every matrix the
//! other way round, against the same bare loop over the files' bytes; `caller's` loads into memory that is there, against a load into arenas.
//!
//! `cargo bench --bench load [-- FILTER…] [--runs N] [--io "direct | mmap | readahead | threads=N | depth=N | block=BYTES"]`. Every measurement is a fresh process (a warm heap flatters), loader and bare loop
//! take turns, medians are compared. The checkpoints are generated once, under `target/bench-data`.

mod balloon;
mod bare;
mod cache;
mod child;

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::balloon::Balloon;
use serde_json::{Value, json};
use shardwright_core::{DType, TensorMeta};
use shardwright_engine::generate::{Content, Qwen3, write_checkpoint};

/// One thing to measure.
#[derive(Clone)]
struct Case {
    model: Qwen3,
    cold: bool,
    /// World size, and the rank that is loaded; all ranks without one.
    world: u32,
    rank: Option<u32>,
    storage: &'static str,
    io: String,
    form: Form,
}

/// What is loaded of the files.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Their tensors, into arenas.
    Plain,
    /// Their tensors, into memory of the caller's.
    Callers,
    /// A mixture of experts as its class has it.
    Stacked,
    /// Every matrix transposed.
    Transposed,
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Callers => "caller's",
            Self::Stacked => "stacked",
            Self::Transposed => "transposed",
        }
    }
}

impl Case {
    fn name(&self) -> String {
        let state = if self.cold { "cold" } else { "hot" };
        let ranks = self.rank.map_or_else(|| format!("all {}", self.world), |r| format!("rank {r} of {}", self.world));
        let io = if self.io.is_empty() { String::new() } else { format!(" {}", self.io) };
        let form = if self.form == Form::Plain { String::new() } else { format!(" {}", self.form.name()) };
        let model = if self.form == Form::Stacked { "moe" } else { self.model.name };
        format!("{model} {state} {ranks} {}{io}{form}", self.storage)
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cold in [false, true] {
        for model in [Qwen3::B0_6, Qwen3::B1_7] {
            for (world, rank) in [(2, None), (8, Some(3))] {
                for storage in ["float32", "bfloat16"] {
                    cases.push(Case { model, cold, world, rank, storage, io: String::new(), form: Form::Plain });
                }
            }
        }
    }
    for io in ["direct", "mmap", "readahead"] {
        cases.push(Case { model: Qwen3::B0_6, cold: true, world: 2, rank: None, storage: "bfloat16", io: io.into(), form: Form::Plain });
    }
    for (form, world) in [(Form::Stacked, 2), (Form::Transposed, 1), (Form::Transposed, 2)] {
        for storage in ["float32", "bfloat16"] {
            cases.push(Case { model: Qwen3::B0_6, cold: false, world, rank: None, storage, io: String::new(), form });
        }
    }
    for storage in ["float32", "bfloat16"] {
        cases.push(Case { model: Qwen3::B0_6, cold: false, world: 2, rank: Some(1), storage, io: String::new(), form: Form::Callers });
    }
    cases
}

fn main() {
    if let Ok(job) = env::var("SHARDWRIGHT_BENCH_JOB") {
        println!("{}", child::run(&serde_json::from_str(&job).expect("a job of the parent's")));
        return;
    }
    let args: Vec<String> = env::args().skip(1).filter(|a| a != "--bench").collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1));
    let runs = value("--runs").map(|n| n.parse::<usize>().expect("a number of runs"));
    let ios: Vec<&String> = args.windows(2).filter(|w| w[0] == "--io").map(|w| &w[1]).collect();
    let is_filter = |a: &&String| !a.starts_with("--") && !ios.contains(a) && value("--runs") != Some(a);
    let filters: Vec<&String> = args.iter().filter(is_filter).collect();
    println!("ratios are bare loop by load: of the medians, of the best runs, of the CPU seconds");
    println!(
        "{:<44} {:>7} {:>7} {:>7} {:>7} {:>7} {:>8} {:>8} {:>9} {:>9}",
        "", "GB/s", "bare", "median", "best", "cpu", "ms", "read/nd", "extra MiB", "cpu s/GB"
    );
    let mut balloon = Balloon::default();
    if filters.is_empty() || filters.iter().any(|f| *f == "growth") {
        growth();
        linear(&mut balloon);
    }
    let with_io = |case: Case| ios.iter().map(move |io| Case { io: io.to_string(), ..case.clone() }).collect::<Vec<_>>();
    let cases = if ios.is_empty() { cases() } else { cases().into_iter().filter(|c| c.io.is_empty()).flat_map(with_io).collect() };
    for case in cases {
        if filters.iter().all(|f| case.name().contains(*f)) {
            measure(&case, runs.unwrap_or(if case.cold { 3 } else { 9 }), &mut balloon);
        }
    }
}

/// 100,000 tensors in 200 files: open, plan and validate for 512 ranks, then load one.
fn growth() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../bench-data/experts");
    if !dir.join("model.safetensors.index.json").is_file() {
        let name = |i: u32| format!("model.layers.{}.mlp.experts.{}.weight", i / 500, i % 500);
        let tensors: Vec<_> = (0..100_000).map(|i| TensorMeta::new(name(i), DType::BF16, [512u64])).collect();
        write_checkpoint(&dir, &tensors, 500 * 1024, Content::Random).expect("the checkpoint can be generated");
    }
    let job = json!({ "what": "load", "dir": dir, "world": 512, "rank": 77, "storage": "float32", "io": "", "form": "" });
    let runs: Vec<Value> = (0..5).map(|_| fresh(&job)).collect();
    let best = |key: &str| runs.iter().filter_map(|r| r[key].as_f64()).fold(f64::INFINITY, f64::min) * 1e3;
    let figures = ["opening", "opening_cpu", "seconds", "cpu"].map(best);
    let [open, open_cpu, load, load_cpu] = figures;
    println!(
        "100,000 tensors in 200 files, rank 77 of 512: open and plan {open:.0} ms (CPU {open_cpu:.0}), load {load:.0} ms (CPU {load_cpu:.0})"
    );
}

/// The same model with ever more layers: seconds a gigabyte should stay what they are.
fn linear(balloon: &mut Balloon) {
    for (layers, name) in [(7, "1.7b-7"), (14, "1.7b-14"), (28, "1.7b-28")] {
        let model = Qwen3::B1_7.with_layers(name, layers);
        let case = Case { model, cold: false, world: 2, rank: None, storage: "bfloat16", io: String::new(), form: Form::Plain };
        let dir = data(model);
        let runs: Vec<Value> = (0..7).map(|_| spawn(&case, &dir, "load", balloon)).collect();
        let seconds = sorted(&runs, "seconds")[runs.len() / 2];
        let gigabytes = sorted(&runs, "read")[0] / 1e9;
        println!("{name:<16} {gigabytes:>6.2} GB in {:>7.1} ms: {:.3} s/GB", seconds * 1e3, seconds / gigabytes);
    }
}

fn sorted(values: &[Value], key: &str) -> Vec<f64> {
    let mut numbers: Vec<f64> = values.iter().map(|v| v[key].as_f64().expect("a number")).collect();
    numbers.sort_by(f64::total_cmp);
    numbers
}

fn data(model: Qwen3) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../bench-data").join(format!("qwen3-{}", model.name));
    model.write(&dir).expect("the checkpoint can be generated");
    dir
}

/// One layer of Qwen3-30B-A3B with 96 experts: 0.9 GB.
fn experts() -> PathBuf {
    const HIDDEN: u64 = 2048;
    const INNER: u64 = 768;
    const EXPERTS: u64 = 96;
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../bench-data/moe");
    if dir.join("config.json").is_file() {
        return dir;
    }
    let (q, kv) = (4096, 512);
    let layer = |part: &str, shape: &[u64]| TensorMeta::new(format!("model.layers.0.{part}.weight"), DType::BF16, shape.to_vec());
    let mut tensors = vec![TensorMeta::new("model.embed_tokens.weight", DType::BF16, [1024, HIDDEN])];
    tensors.extend([
        layer("self_attn.q_proj", &[q, HIDDEN]),
        layer("self_attn.k_proj", &[kv, HIDDEN]),
        layer("self_attn.v_proj", &[kv, HIDDEN]),
        layer("self_attn.o_proj", &[HIDDEN, q]),
        layer("self_attn.q_norm", &[128]),
        layer("self_attn.k_norm", &[128]),
        layer("mlp.gate", &[EXPERTS, HIDDEN]),
    ]);
    for expert in 0..EXPERTS {
        let part = |name: &str, shape: &[u64]| layer(&format!("mlp.experts.{expert}.{name}"), shape);
        tensors.extend([part("gate_proj", &[INNER, HIDDEN]), part("up_proj", &[INNER, HIDDEN]), part("down_proj", &[HIDDEN, INNER])]);
    }
    tensors.extend([layer("input_layernorm", &[HIDDEN]), layer("post_attention_layernorm", &[HIDDEN])]);
    tensors.push(TensorMeta::new("model.norm.weight", DType::BF16, [HIDDEN]));
    write_checkpoint(&dir, &tensors, 400_000_000, Content::Random).expect("the checkpoint can be generated");
    let config = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "dtype": "bfloat16", "hidden_size": HIDDEN,
        "moe_intermediate_size": INNER, "intermediate_size": 6144, "num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "num_experts": EXPERTS, "num_experts_per_tok": 8, "vocab_size": 1024, "tie_word_embeddings": true,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).expect("the config can be written");
    dir
}

fn measure(case: &Case, runs: usize, balloon: &mut Balloon) {
    let dir = if case.form == Form::Stacked { experts() } else { data(case.model) };
    let (mut loads, mut bares) = (Vec::new(), Vec::new());
    if !case.cold {
        spawn(case, &dir, "load", balloon); // touches the memory that those to come will get
    }
    for _ in 0..runs {
        loads.push(spawn(case, &dir, "load", balloon));
        let beside = match case.form {
            Form::Callers => "arenas",
            _ if case.cold => "sequential",
            _ => "bare",
        };
        bares.push(spawn(case, &dir, beside, balloon));
    }
    let median = |values: &[Value], key: &str| sorted(values, key)[values.len() / 2];
    let best = |values: &[Value]| sorted(values, "seconds")[0];
    let (load, bare, bytes) = (median(&loads, "seconds"), median(&bares, "seconds"), median(&loads, "read"));
    println!(
        "{:<44} {:>7.2} {:>7.2} {:>7.3} {:>7.3} {:>7.3} {:>8.1} {:>8.4} {:>9.1} {:>9.3}",
        case.name(),
        bytes / load / 1e9,
        bytes / bare / 1e9,
        bare / load,
        best(&bares) / best(&loads),
        median(&bares, "cpu") / median(&loads, "cpu"),
        load * 1e3,
        bytes / median(&loads, "distinct"),
        median(&loads, "extra") / 1048576.0,
        median(&loads, "cpu") / (bytes / 1e9),
    );
}

/// One measurement in a process of its own, the page cache as the case wants it, checked.
fn spawn(case: &Case, dir: &Path, what: &str, balloon: &mut Balloon) -> Value {
    cache::prepare(dir, case.cold);
    let job = json!({
        "what": what, "dir": dir, "world": case.world, "rank": case.rank, "storage": case.storage, "io": case.io, "form": case.form.name(),
    });
    // Hot, the process before has just given back as much memory as this one wants.
    if case.cold { balloon.release_for(|| fresh(&job)) } else { fresh(&job) }
}

fn fresh(job: &Value) -> Value {
    let output = Command::new(env::current_exe().expect("this program has a path"))
        .env("SHARDWRIGHT_BENCH_JOB", job.to_string())
        .output()
        .expect("this program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a child answers in JSON")
}
