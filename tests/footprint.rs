//! What a load costs by the operating system's count: memory, bytes read, descriptors. Each measurement is a fresh process, for which this
//! program starts itself; hence no test harness.

use std::{env, path::Path, process::Command};

use serde_json::{Value, json};
use shardwright_core::{
    DType, Layout, Mesh, ModelMeta, Padding, Placement, PlanInput, Precision, PrecisionPolicy, Reshard, ShardPlan, TensorMeta,
    strategy::units_by,
};
use shardwright_engine::{
    Checkpoint, IoOptions, Loader,
    generate::{Content, Qwen3, write_checkpoint},
    memory::{available, process_memory},
};

const MIB: f64 = 1048576.0;

fn main() {
    if let Ok(job) = env::var("FOOTPRINT_JOB") {
        let job: Value = serde_json::from_str(&job).unwrap();
        let answer = if job["soak"].as_bool() == Some(true) { soak(&job) } else { load(&job) };
        println!("{answer}");
        return;
    }
    let filter = env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let tests: [(&str, fn()); 4] = [
        ("memory_beyond_the_shards_is_bounded_whatever_the_size", memory_beyond_the_shards_is_bounded_whatever_the_size),
        ("a_rank_reads_what_it_needs_and_no_more", a_rank_reads_what_it_needs_and_no_more),
        ("a_thousand_loads_leave_nothing_behind", a_thousand_loads_leave_nothing_behind),
        ("hundreds_of_files_need_few_descriptors_and_little_memory", hundreds_of_files_need_few_descriptors_and_little_memory),
    ];
    for (name, test) in tests.iter().filter(|t| t.0.contains(&filter)) {
        test();
        println!("test {name} ... ok");
    }
}

/// Anonymous peak less what the idle program has, less the shards: at most 32 MiB a rank, for two sizes of model, 2 and 64 ranks.
fn memory_beyond_the_shards_is_bounded_whatever_the_size() {
    for model in [Qwen3::B0_6, Qwen3::B1_7] {
        let dir = tempfile::TempDir::new().unwrap();
        model.write_sparse(dir.path()).unwrap();
        // World, the rank that is loaded (all without one), storage dtype.
        for (world, rank, storage) in [
            (2u32, Some(1), "bfloat16"),
            (64, Some(5), "float32"),
            (64, Some(5), "bfloat16"),
            (2, None, "bfloat16"),
            (64, None, "bfloat16"),
        ] {
            let needed =
                model.tensors().iter().map(|t| t.bytes().unwrap()).sum::<u64>() / if rank.is_some() { u64::from(world) } else { 1 };
            if available().is_some_and(|a| a.bytes < 3 * needed) {
                println!("skipped: {} on {world} ranks needs more memory than there is", model.name);
                continue;
            }
            let answer = child(&json!({ "dir": dir.path(), "world": world, "rank": rank, "storage": storage }));
            let ranks = if rank.is_some() { 1.0 } else { f64::from(world) };
            for count in ["peak", "anonymous"] {
                let extra = answer[count].as_f64().unwrap() / MIB / ranks;
                assert!(extra <= 32.0, "{} on {world} ranks, {storage}: {extra:.1} MiB a rank beyond the shards by {count}", model.name);
            }
            let shown = answer["peak"].as_f64().unwrap() / MIB;
            println!("{} rank {rank:?} of {world}, {storage}: {shown:.1} MiB beyond the shards at the peak", model.name);
        }
    }
}

/// By `rchar` of `/proc/self/io`, headers and config included: 2 % more than its shard for one rank, the files' size for all.
fn a_rank_reads_what_it_needs_and_no_more() {
    let dir = tempfile::TempDir::new().unwrap();
    Qwen3::B0_6.write_sparse(dir.path()).unwrap();
    for (world, rank) in [(8, Some(3)), (2, None), (8, None)] {
        let answer = child(&json!({ "dir": dir.path(), "world": world, "rank": rank, "storage": "bfloat16" }));
        let (read, needed) = (answer["rchar"].as_f64().unwrap(), answer["distinct"].as_f64().unwrap());
        assert!(read >= needed && read <= needed * 1.001 + 400_000.0, "world {world}, rank {rank:?}: {read} bytes read of {needed} needed");
        println!("rank {rank:?} of {world}: read {:.4} times what is needed", read / needed);
    }
}

fn a_thousand_loads_leave_nothing_behind() {
    let dir = tempfile::TempDir::new().unwrap();
    Qwen3::TINY.write(dir.path()).unwrap();
    let answer = child(&json!({ "dir": dir.path(), "soak": true }));
    assert_eq!(answer["files_before"], answer["files_after"], "descriptors leaked");
    assert_eq!(answer["threads_before"], answer["threads_after"], "threads leaked");
    let grown = answer["grown"].as_f64().unwrap() / MIB;
    assert!(grown < 4.0, "anonymous memory grew by {grown:.1} MiB in 1,000 loads");
    println!("1,000 loads: anonymous memory grew by {grown:.2} MiB");
}

/// 100,000 tensors in 200 files, one rank of 512, with 64 descriptors allowed.
fn hundreds_of_files_need_few_descriptors_and_little_memory() {
    let dir = tempfile::TempDir::new().unwrap();
    let tensors: Vec<TensorMeta> = (0..100_000).map(|i| TensorMeta::new(format!("layers.{i:06}.weight"), DType::BF16, [512u64])).collect();
    write_checkpoint(dir.path(), &tensors, 500 * 1024, Content::Sparse).unwrap();
    let answer = child(&json!({ "dir": dir.path(), "world": 512, "rank": 77, "storage": "float32", "files": 64 }));
    assert_eq!(answer["shard"], json!(100_000 * 4));
    let peak = answer["peak"].as_f64().unwrap() / MIB;
    assert!(peak < 96.0, "{peak:.1} MiB for 100,000 tensors on 512 ranks");
    println!("100,000 tensors in 200 files, rank 77 of 512: {peak:.1} MiB beyond the shard");
}

fn child(job: &Value) -> Value {
    let output = Command::new(env::current_exe().unwrap()).env("FOOTPRINT_JOB", job.to_string()).output().unwrap();
    assert!(output.status.success(), "{job}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[derive(Debug)]
struct Storage(DType);

impl PrecisionPolicy for Storage {
    fn decide(&self, _param: &TensorMeta, _trainable: bool) -> Precision {
        Precision::uniform(self.0)
    }
}

/// `torch.chunk` on dim 0.
fn plan(model: &ModelMeta, world: u32, storage: DType) -> ShardPlan {
    let mesh = Mesh::replicate_shard(1, world).unwrap();
    let axis = mesh.all_ranks();
    let place = |t: &TensorMeta| {
        let layout = Layout::Dim { dim: 0, chunk: t.shape[0].div_ceil(u64::from(world)) };
        Ok(Placement { axis, layout, padding: Padding::ToFirst })
    };
    let mut plan = PlanInput::new(model, &mesh, &Storage(storage)).plan_tensors("chunks", place).unwrap();
    plan.units = units_by(&plan.tensors, Reshard::Never, |_| "");
    plan
}

fn load(job: &Value) -> Value {
    if let Some(files) = job["files"].as_u64() {
        // SAFETY: sets a limit of this process.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &libc::rlimit { rlim_cur: files, rlim_max: files }) };
    }
    let idle = process_memory().unwrap();
    let read_before = rchar();
    let checkpoint = Checkpoint::open(Path::new(job["dir"].as_str().unwrap())).unwrap();
    let world = u32::try_from(job["world"].as_u64().unwrap()).unwrap();
    let plan = plan(checkpoint.model(), world, DType::from_spelling(job["storage"].as_str().unwrap()).unwrap());
    let ranks: Vec<u32> = job["rank"].as_u64().map_or_else(|| (0..world).collect(), |r| vec![u32::try_from(r).unwrap()]);
    let io = IoOptions { force: true, ..IoOptions::default() };
    let loaded = Loader::new(&plan, &checkpoint).ranks(&ranks).io(io).load().unwrap();
    let (stats, now) = (loaded.stats, process_memory().unwrap());
    let held = stats.shard_bytes + stats.padding_bytes;
    let signed = |n: u64| i64::try_from(n).unwrap();
    json!({
        "peak": signed(now.peak) - signed(idle.resident) - signed(held),
        "anonymous": signed(now.anonymous) - signed(idle.anonymous) - signed(held),
        "rchar": rchar() - read_before, "distinct": stats.bytes_read, "shard": stats.shard_bytes,
    })
}

fn soak(job: &Value) -> Value {
    let checkpoint = Checkpoint::open(Path::new(job["dir"].as_str().unwrap())).unwrap();
    let plan = plan(checkpoint.model(), 4, DType::F32);
    let entries = |dir: &str| std::fs::read_dir(dir).unwrap().count();
    let once = || {
        Checkpoint::open(checkpoint.dir()).unwrap();
        assert_eq!(Loader::new(&plan, &checkpoint).load().unwrap().ranks.len(), 4);
    };
    (0..50).for_each(|_| once());
    let before = (entries("/proc/self/fd"), entries("/proc/self/task"), process_memory().unwrap().anonymous);
    (0..1000).for_each(|_| once());
    let after = (entries("/proc/self/fd"), entries("/proc/self/task"), process_memory().unwrap().anonymous);
    json!({
        "files_before": before.0, "files_after": after.0, "threads_before": before.1, "threads_after": after.1,
        "grown": i64::try_from(after.2).unwrap() - i64::try_from(before.2).unwrap(),
    })
}

fn rchar() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    text.lines().find_map(|l| l.strip_prefix("rchar: ")).unwrap().trim().parse().unwrap()
}
