//! What a load costs by the operating system's count: memory, bytes read, descriptors. Each measurement is a fresh process, for which this
//! program starts itself; hence no test harness.

#[path = "support/runner.rs"]
#[expect(dead_code, unused_imports, unused_macros, reason = "this binary has a main function of its own")]
mod runner;

use std::{cell::Cell, env, path::Path, process::Command};

use libtest_mimic::Arguments;
use runner::skip;
use serde_json::{Value, json};
use shardwright_core::{
    DType, Layout, Mesh, ModelMeta, Padding, Placement, PlanInput, Precision, PrecisionPolicy, Reshard, ShardPlan, TensorMeta,
    strategy::groups_by,
};
use shardwright_engine::{
    CancelToken, Checkpoint, IoOptions, Loader, ReadMethod,
    convert::{Contents, Conversion, ConvertOptions, Target},
    generate::{Content, Qwen3, write_checkpoint},
    memory::{available, process_memory},
    save::Saver,
    verify::Verifier,
};

const MIB: f64 = 1048576.0;

fn main() {
    if let Ok(job) = env::var("FOOTPRINT_JOB") {
        let job: Value = serde_json::from_str(&job).unwrap();
        let answer = match (job["soak"].as_bool(), job["verify"].as_str(), job["convert"].as_str()) {
            (Some(true), ..) => soak(&job),
            (_, Some(dir), _) => verify(dir.as_ref()),
            (_, _, Some(target)) => convert(&job, target.as_ref()),
            _ => load(&job),
        };
        println!("{answer}");
        return;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1); // a measurement has the machine alone
    let tests: [(&str, fn()); 9] = [
        ("memory_beyond_the_shards_is_bounded_whatever_the_size", memory_beyond_the_shards_is_bounded_whatever_the_size),
        ("a_rank_reads_what_it_needs_and_no_more", a_rank_reads_what_it_needs_and_no_more),
        ("a_thousand_loads_leave_nothing_behind", a_thousand_loads_leave_nothing_behind),
        (
            "a_save_from_the_checkpoint_needs_little_memory_whatever_the_size",
            a_save_from_the_checkpoint_needs_little_memory_whatever_the_size,
        ),
        ("a_conversion_needs_little_memory_whatever_the_size", a_conversion_needs_little_memory_whatever_the_size),
        ("a_conversion_of_many_tensors_needs_little_memory_a_rank", a_conversion_of_many_tensors_needs_little_memory_a_rank),
        ("a_checkpoint_in_many_parts_needs_little_memory_a_part", a_checkpoint_in_many_parts_needs_little_memory_a_part),
        ("a_save_and_its_verification_need_little_memory_a_tensor", a_save_and_its_verification_need_little_memory_a_tensor),
        ("hundreds_of_files_need_few_descriptors_and_little_memory", hundreds_of_files_need_few_descriptors_and_little_memory),
    ];
    libtest_mimic::run(&arguments, tests.map(|(name, test)| runner::trial(name, test)).into()).exit()
}

/// The peak less what the idle program has, less the shards: at most 32 MiB for one rank, and for many in one process little more; about the
/// same for two sizes of model.
fn memory_beyond_the_shards_is_bounded_whatever_the_size() {
    let mut left_out = None;
    // World, the rank that is loaded (all without one), storage dtype.
    for (world, rank, storage) in
        [(2u32, Some(1), "bfloat16"), (64, Some(5), "float32"), (64, Some(5), "bfloat16"), (2, None, "bfloat16"), (64, None, "bfloat16")]
    {
        let mut extras = Vec::new();
        for model in [Qwen3::B0_6, Qwen3::B1_7] {
            let dir = tempfile::TempDir::new().unwrap();
            model.write_sparse(dir.path()).unwrap();
            let ranks = if rank.is_some() { u64::from(world) } else { 1 };
            let needed = model.tensors().iter().map(|t| t.bytes().unwrap()).sum::<u64>() / ranks;
            if available().is_some_and(|a| a.bytes < 3 * needed) {
                left_out = Some(format!("{} on {world} ranks needs more memory than there is", model.name));
                continue;
            }
            let answer = child(&json!({ "dir": dir.path(), "world": world, "rank": rank, "storage": storage }));
            // A huge page's rest for each arena.
            let most = 32.0 + if rank.is_some() { 0.0 } else { f64::from(world) };
            for count in ["peak", "anonymous"] {
                let extra = answer[count].as_f64().unwrap() / MIB;
                assert!(extra <= most, "{} rank {rank:?} of {world}, {storage}: {extra:.1} MiB beyond the shards by {count}", model.name);
            }
            let shown = answer["peak"].as_f64().unwrap() / MIB;
            println!("{} rank {rank:?} of {world}, {storage}: {shown:.1} MiB beyond the shards at the peak", model.name);
            extras.push(shown);
        }
        if let [small, large] = extras[..] {
            let rounding = 4.0 + if rank.is_some() { 0.0 } else { f64::from(world) };
            assert!((small - large).abs() <= rounding, "rank {rank:?} of {world}: {small:.1} and {large:.1} MiB grow with the model");
        }
    }
    if let Some(what) = left_out {
        skip(what);
    }
}

/// By `rchar` of `/proc/self/io`, headers and config included, against what the plan says that these ranks hold: 2 % more than its shard for
/// one rank; the tensors once for all ranks, and once for all replicas.
fn a_rank_reads_what_it_needs_and_no_more() {
    let dir = tempfile::TempDir::new().unwrap();
    Qwen3::B0_6.write_sparse(dir.path()).unwrap();
    let all: u64 = Qwen3::B0_6.tensors().iter().map(|t| t.bytes().unwrap()).sum();
    for (world, replicate, rank) in [(8, 1, Some(3)), (2, 1, None), (8, 1, None), (8, 2, None), (8, 2, Some(6))] {
        let answer = child(&json!({ "dir": dir.path(), "world": world, "replicate": replicate, "rank": rank, "storage": "bfloat16" }));
        let (read, needed) = (answer["rchar"].as_f64().unwrap(), answer["needed"].as_f64().unwrap());
        let needed = if rank.is_some() { needed } else { all as f64 };
        let most = if rank.is_some() { needed * 1.02 } else { needed + 400_000.0 };
        assert!(read >= needed && read <= most, "world {world}, replicas {replicate}, rank {rank:?}: {read} bytes read of {needed} needed");
        println!("rank {rank:?} of {world}, {replicate} replicas: read {:.4} times what is needed", read / needed);
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
    assert_eq!(answer["failed"], json!(500), "a quarter is cancelled, a quarter finds a file cut short");
    let maps = ["maps_before", "maps_after"].map(|m| answer[m].as_u64().unwrap());
    assert!(maps[1] <= maps[0] + 8, "mappings leaked: {} before, {} after", maps[0], maps[1]);
    println!("1,000 loads: anonymous memory grew by {grown:.2} MiB");
}

/// A whole world written from the checkpoint: less than 64 MiB beyond the idle program, for models of 128 MiB and of 512 MiB.
fn a_save_from_the_checkpoint_needs_little_memory_whatever_the_size() {
    for (world, rank) in [(4u32, None), (1, Some(0)), (16, None)] {
        for megabytes in [128u64, 512] {
            let dir = tempfile::TempDir::new().unwrap();
            let tensors: Vec<TensorMeta> = (0..4).map(|i| TensorMeta::new(format!("w{i}"), DType::BF16, [megabytes * 128, 1024])).collect();
            write_checkpoint(dir.path(), &tensors, u64::MAX, Content::Sparse).unwrap();
            let shards = dir.path().join("shards");
            let job = json!({ "dir": dir.path(), "world": world, "rank": rank, "storage": "bfloat16", "stream": shards });
            let peak = child(&job)["peak"].as_f64().unwrap() / MIB;
            println!("{megabytes} MiB on {world} ranks: {peak:.1} MiB beyond the idle program");
            assert!(peak < 64.0, "{megabytes} MiB on {world} ranks: {peak:.1} MiB beyond the idle program");
        }
    }
}

/// At most 128 MiB beyond the idle program for models of 0.3 and of 3 GB, cast or not, to and from files of `torch.save`; and about the same
/// for both.
fn a_conversion_needs_little_memory_whatever_the_size() {
    let mut left_out = None;
    let mut peaks = Vec::new();
    for megabytes in [300u64, 3000] {
        let dir = tempfile::TempDir::new().unwrap();
        let (source, cut) = (dir.path().join("model"), dir.path().join("dcp"));
        let tensors: Vec<TensorMeta> =
            (0..8).map(|i| TensorMeta::new(format!("w{i}.weight"), DType::BF16, [megabytes * 61, 1024])).collect();
        write_checkpoint(&source, &tensors, u64::MAX, Content::Sparse).unwrap();
        let jobs = [
            json!({ "source": source, "convert": cut, "to": "dcp", "ranks": 4 }),
            json!({ "source": cut, "convert": dir.path().join("hf"), "to": "hf", "ranks": 1, "dtype": "float8_e4m3fn" }),
            json!({ "source": cut, "convert": dir.path().join("sharded"), "to": "hf-sharded", "ranks": 3 }),
        ];
        // The large model goes one way to torch's files and one way from them: 4.5 GB on the disk.
        for (number, job) in jobs.iter().take(if megabytes == 300 { 3 } else { 2 }).enumerate() {
            if free(dir.path()).is_some_and(|free| free < megabytes * 2_000_000) {
                left_out = Some(format!("{megabytes} MB to {}: the disk has no room for it", job["to"]));
                break;
            }
            let answer = child(job);
            let peak = answer["peak"].as_f64().unwrap() / MIB;
            println!("{megabytes} MB to {} on {}: {peak:.1} MiB beyond the idle program", job["to"], job["ranks"]);
            assert!(peak <= 128.0, "{megabytes} MB: {peak:.1} MiB beyond the idle program, {job}");
            let read = answer["rchar"].as_f64().unwrap() / (megabytes as f64 * 1024.0 * 8.0 * 61.0 * 2.0);
            assert!((1.0..1.01).contains(&read), "{read} times the tensors' bytes are read, {job}");
            match megabytes {
                300 => peaks.push(peak),
                _ => assert!(peak <= peaks[number] + 4.0, "{:.1} MiB for 0.3 GB, {peak:.1} for 3 GB, {job}", peaks[number]),
            }
            if number > 0 {
                std::fs::remove_dir_all(job["convert"].as_str().unwrap()).unwrap();
            }
        }
    }
    if let Some(what) = left_out {
        skip(what);
    }
}

/// 20,000 tensors, for one rank and for eight: what a conversion holds of each rank's part is an entry of the metadata, of about 110 bytes, and a batch.
fn a_conversion_of_many_tensors_needs_little_memory_a_rank() {
    const TENSORS: u64 = 20_000;
    let dir = tempfile::TempDir::new().unwrap();
    let source = dir.path().join("model");
    let tensors: Vec<TensorMeta> =
        (0..TENSORS).map(|i| TensorMeta::new(format!("model.layers.{i:06}.mlp.down_proj.weight"), DType::BF16, [8u64, 64])).collect();
    write_checkpoint(&source, &tensors, u64::MAX, Content::Sparse).unwrap();
    let peak = |to: &str, ranks: u64| {
        let job = json!({ "source": source, "convert": dir.path().join(format!("{to}-{ranks}")), "to": to, "ranks": ranks });
        let peak = child(&job)["peak"].as_f64().unwrap();
        println!("{TENSORS} tensors to {to} on {ranks}: {:.1} MiB beyond the idle program", peak / MIB);
        peak
    };
    for (to, most) in [("dcp", 300.0), ("hf-sharded", 100.0)] {
        let (one, eight) = (peak(to, 1), peak(to, 8));
        let each = (eight - one) / (7 * TENSORS) as f64;
        assert!(eight <= 128.0 * MIB, "{to}: {:.1} MiB", eight / MIB);
        assert!(each <= most, "{to}: {each:.0} bytes for each tensor and rank");
    }
}

/// 4,000 tensors in a distributed checkpoint of one rank and of eight, converted and loaded: what is held of each part is where it lies, for a load
/// what it reads of it as well, and neither its pickle nor what was made on the way.
fn a_checkpoint_in_many_parts_needs_little_memory_a_part() {
    const TENSORS: u64 = 4_000;
    let dir = tempfile::TempDir::new().unwrap();
    let source = dir.path().join("model");
    let tensors: Vec<TensorMeta> =
        (0..TENSORS).map(|i| TensorMeta::new(format!("model.layers.{i:06}.mlp.down_proj.weight"), DType::BF16, [8u64, 8])).collect();
    write_checkpoint(&source, &tensors, u64::MAX, Content::Sparse).unwrap();
    let cut = [1u64, 8].map(|ranks| {
        let target = dir.path().join(format!("dcp-{ranks}"));
        child(&json!({ "source": source, "convert": target, "to": "dcp", "ranks": ranks }));
        target
    });
    let job = |to: &str, cut: &Path, out: &Path| match to {
        "a load" => json!({ "dir": cut, "world": 6, "rank": 0, "storage": "bfloat16" }),
        to => json!({ "source": cut, "convert": out.join(to), "to": to, "ranks": if to == "dcp" { 3 } else { 1 } }),
    };
    for (what, most) in [("hf", 250.0), ("dcp", 250.0), ("a load", 400.0)] {
        let [one, eight] = cut.each_ref().map(|cut| {
            let out = tempfile::TempDir::new().unwrap();
            child(&job(what, cut, out.path()))["peak"].as_f64().unwrap()
        });
        let each = (eight - one) / (7 * TENSORS) as f64;
        println!("{TENSORS} tensors in 1 part and in 8, {what}: {:.1} and {:.1} MiB, {each:.0} bytes a part", one / MIB, eight / MIB);
        assert!(each <= most, "{what}: {each:.0} bytes a part");
    }
}

/// 30,000 tensors, all four ranks: saving takes little beyond loading, and verification some 1 kB a tensor, plan included.
fn a_save_and_its_verification_need_little_memory_a_tensor() {
    const TENSORS: u64 = 30_000;
    let dir = tempfile::TempDir::new().unwrap();
    let tensors: Vec<TensorMeta> =
        (0..TENSORS).map(|i| TensorMeta::new(format!("model.layers.{i:06}.mlp.down_proj.weight"), DType::BF16, [8u64, 2])).collect();
    write_checkpoint(dir.path(), &tensors, u64::MAX, Content::Sparse).unwrap();
    let shards = dir.path().join("shards");
    let job = json!({ "dir": dir.path(), "world": 4, "rank": null, "storage": "bfloat16" });
    let mut saving = job.clone();
    saving["save"] = json!(shards);
    let peak = |job: &Value| child(job)["peak"].as_f64().unwrap() / TENSORS as f64;
    let (loaded, saved) = (peak(&job), peak(&saving));
    let verified = peak(&json!({ "verify": shards }));
    println!("bytes a tensor: {loaded:.0} to load, {saved:.0} with a save, {verified:.0} to verify");
    // Of each rank that is being saved: an index and a digest for each tensor.
    assert!(saved - loaded <= 400.0, "a save takes {:.0} bytes a tensor beyond a load", saved - loaded);
    // Of one rank at a time: its header, parsed, and the text in it that states the places. The buffers for digests do not grow.
    assert!(verified <= 1050.0, "verification takes {verified:.0} bytes a tensor");
}

/// 100,000 tensors in 200 files, one rank of 512, with 64 descriptors allowed.
fn hundreds_of_files_need_few_descriptors_and_little_memory() {
    let dir = tempfile::TempDir::new().unwrap();
    let tensors: Vec<TensorMeta> = (0..100_000).map(|i| TensorMeta::new(format!("layers.{i:06}.weight"), DType::BF16, [512u64])).collect();
    write_checkpoint(dir.path(), &tensors, 500 * 1024, Content::Sparse).unwrap();
    let measure = |dir: &Path, world: u32| {
        let answer = child(&json!({ "dir": dir, "world": world, "rank": 7, "storage": "float32", "files": 64 }));
        let peak = answer["peak"].as_f64().unwrap() / MIB;
        println!("{} in files of 500, rank 7 of {world}: {peak:.1} MiB beyond the shard", answer["tensors"]);
        (answer, peak)
    };
    let (answer, peak) = measure(dir.path(), 512);
    assert_eq!(answer["shard"], json!(100_000 * 4));
    assert!(peak < 96.0, "{peak:.1} MiB for 100,000 tensors on 512 ranks");
    let (_, fewer_ranks) = measure(dir.path(), 8);
    // A byte for each tensor and rank would be 48 MiB.
    assert!(peak < fewer_ranks + 16.0, "{fewer_ranks:.1} MiB on 8 ranks, {peak:.1} on 512: they grow with the world");
    let half = tempfile::TempDir::new().unwrap();
    write_checkpoint(half.path(), &tensors[..50_000], 500 * 1024, Content::Sparse).unwrap();
    let (_, fewer_tensors) = measure(half.path(), 512);
    assert!(peak < 2.2 * fewer_tensors, "{fewer_tensors:.1} MiB for 50,000 tensors, {peak:.1} for 100,000: more than linear");
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
fn plan(model: &ModelMeta, replicate: u32, world: u32, storage: DType) -> ShardPlan {
    let shards = world / replicate;
    let mesh = Mesh::replicate_shard(replicate, shards).unwrap();
    let axis = mesh.axis("mp_shard").unwrap();
    let place = |t: &TensorMeta| {
        let layout = Layout::Dim { dim: 0, chunk: t.shape[0].div_ceil(u64::from(shards)) };
        Ok(Placement::one(axis, layout, Padding::ToFirst))
    };
    let mut plan = PlanInput::new(model, &mesh, &Storage(storage)).plan_tensors("chunks", place).unwrap();
    plan.groups = groups_by(&plan.tensors, Reshard::Never, |_| "");
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
    let replicate = u32::try_from(job["replicate"].as_u64().unwrap_or(1)).unwrap();
    let plan = plan(checkpoint.model(), replicate, world, DType::from_spelling(job["storage"].as_str().unwrap()).unwrap());
    let ranks: Vec<u32> = job["rank"].as_u64().map_or_else(|| (0..world).collect(), |r| vec![u32::try_from(r).unwrap()]);
    let io = IoOptions { force: true, ..IoOptions::default() };
    if let Some(dir) = job["stream"].as_str() {
        let streamed = Saver::new(&plan, &checkpoint, dir).stream(&ranks, &io, false).unwrap();
        assert!(streamed.saved.missing.is_empty());
        return json!({ "peak": process_memory().unwrap().peak - idle.resident });
    }
    let loaded = Loader::new(&plan, &checkpoint).ranks(&ranks).io(io).load().unwrap();
    if let Some(dir) = job["save"].as_str() {
        let saved = Saver::new(&plan, &checkpoint, dir).save_loaded(&loaded).unwrap();
        assert!(saved.missing.is_empty());
    }
    let (stats, now) = (loaded.stats, process_memory().unwrap());
    let held = stats.shard_bytes + stats.padding_bytes;
    let needed: u64 = plan.tensors.iter().map(|t| t.source.bytes(t.valid_numel(ranks[0])).unwrap()).sum();
    let signed = |n: u64| i64::try_from(n).unwrap();
    json!({
        "peak": signed(now.peak) - signed(idle.resident) - signed(held),
        "anonymous": signed(now.anonymous) - signed(idle.anonymous) - signed(held),
        "rchar": rchar() - read_before, "needed": needed, "shard": stats.shard_bytes, "tensors": plan.tensors.len(),
    })
}

fn verify(dir: &Path) -> Value {
    let idle = process_memory().unwrap();
    let found = Verifier::open(dir).unwrap().run().unwrap();
    assert!(found.problems.is_empty(), "{:?}", found.problems);
    json!({ "peak": process_memory().unwrap().peak - idle.resident })
}

/// Bytes that the disk has left.
fn free(dir: &Path) -> Option<u64> {
    let output = Command::new("df").args(["-k", "--output=avail"]).arg(dir).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.lines().nth(1)?.trim().parse::<u64>().ok()? * 1024)
}

fn convert(job: &Value, target: &Path) -> Value {
    let idle = process_memory().unwrap();
    let read_before = rchar();
    let contents = Contents::open(job["source"].as_str().unwrap().as_ref()).unwrap();
    let mut options = ConvertOptions::new(match job["to"].as_str().unwrap() {
        "dcp" => Target::Dcp,
        "hf" => Target::Hf,
        _ => Target::HfSharded,
    });
    options.ranks = u32::try_from(job["ranks"].as_u64().unwrap()).unwrap();
    options.dtype = job["dtype"].as_str().map(|name| DType::from_spelling(name).unwrap());
    Conversion::plan(&contents, &options).unwrap().run(target, &|_| {}, &CancelToken::new()).unwrap();
    json!({ "peak": process_memory().unwrap().peak - idle.resident, "rchar": rchar() - read_before })
}

fn soak(job: &Value) -> Value {
    let checkpoint = Checkpoint::open(Path::new(job["dir"].as_str().unwrap())).unwrap();
    let plan = plan(checkpoint.model(), 1, 4, DType::F32);
    let entries = |dir: &str| std::fs::read_dir(dir).unwrap().count();
    // Cut short after its header was read, in the middle of a tensor.
    let cut = tempfile::TempDir::new().unwrap();
    Qwen3::TINY.write(cut.path()).unwrap();
    let broken = Checkpoint::open(cut.path()).unwrap();
    let file = &broken.files()[0];
    std::fs::OpenOptions::new().write(true).open(&file.path).unwrap().set_len(file.data_start + 1).unwrap();
    let cancelled = CancelToken::new();
    cancelled.cancel();
    let failed = Cell::new(0);
    // In turn: each way to read, one that is cancelled from the start, and one that meets a file that was cut.
    let once = |number: u32| {
        let methods = [ReadMethod::Pread, ReadMethod::Direct, ReadMethod::Mmap];
        let io = IoOptions { method: Some(methods[number as usize % 3]), ..IoOptions::default() };
        let loader = |checkpoint| Loader::new(&plan, checkpoint).io(io.clone());
        Checkpoint::open(checkpoint.dir()).unwrap();
        match number % 4 {
            0 => failed.set(failed.get() + u32::from(loader(&broken).load().is_err())),
            1 => failed.set(failed.get() + u32::from(loader(&checkpoint).cancel(&cancelled).load().is_err())),
            _ => assert_eq!(loader(&checkpoint).load().unwrap().ranks.len(), 4),
        }
    };
    // Until the allocator has all of its arenas, one for each of the threads that run at once, and glibc its stacks.
    (0..1000).for_each(once);
    failed.set(0);
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let maps_before = maps();
    let before = (entries("/proc/self/fd"), entries("/proc/self/task"), process_memory().unwrap().anonymous);
    (0..1000).for_each(once);
    let after = (entries("/proc/self/fd"), entries("/proc/self/task"), process_memory().unwrap().anonymous);
    json!({
        "files_before": before.0, "files_after": after.0, "threads_before": before.1, "threads_after": after.1,
        "maps_before": maps_before, "maps_after": maps(), "failed": failed.get(), "grown": i64::try_from(after.2).unwrap() - i64::try_from(before.2).unwrap(),
    })
}

fn rchar() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    text.lines().find_map(|l| l.strip_prefix("rchar: ")).unwrap().trim().parse().unwrap()
}
