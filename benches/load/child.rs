//! What one fresh process does: one load, or one bare loop over the same bytes.

use std::{fs::File, ops::Range, path::Path, time::Instant};

use serde_json::{Value, json};
use shardwright_cast::caster;
use shardwright_core::{DType, Mesh, PlanInput, Precision, PrecisionPolicy, Region, ShardPlan, TensorMeta, plan_checked};
use shardwright_engine::{Checkpoint, IoOptions, Loader, ReadMethod, memory::process_memory};

use crate::bare;

#[derive(Debug)]
struct Storage(DType);

impl PrecisionPolicy for Storage {
    fn decide(&self, _param: &TensorMeta, _trainable: bool) -> Precision {
        Precision::uniform(self.0)
    }
}

/// Runs a job of the parent's.
pub(crate) fn run(job: &Value) -> Value {
    let text = |key: &str| job[key].as_str().expect("a text").to_owned();
    let world = u32::try_from(job["world"].as_u64().expect("a world size")).expect("a world size");
    let storage = DType::from_spelling(&text("storage")).expect("a dtype");
    let (opening, opening_cpu) = (Instant::now(), cpu_seconds());
    let checkpoint = Checkpoint::open(Path::new(&text("dir"))).expect("a checkpoint");
    let mesh = Mesh::replicate_shard(1, world).expect("a mesh");
    let policy = Storage(storage);
    let plan = plan_checked(&shardwright_fsdp2::Fsdp2::default(), &PlanInput::new(checkpoint.model(), &mesh, &policy)).expect("a plan");
    let (opening, opening_cpu) = (opening.elapsed().as_secs_f64(), cpu_seconds() - opening_cpu);
    let ranks: Vec<u32> = match job["rank"].as_u64() {
        Some(rank) => vec![u32::try_from(rank).expect("a rank")],
        None => (0..world).collect(),
    };
    let mut answer = match text("what").as_str() {
        "load" => load(&plan, &checkpoint, &ranks, &text("io")),
        "sequential" => sequential(&plan, &checkpoint, &ranks),
        _ => bare_loop(&plan, &checkpoint, &ranks, storage),
    };
    answer["opening"] = opening.into();
    answer["opening_cpu"] = opening_cpu.into();
    answer
}

fn load(plan: &ShardPlan, checkpoint: &Checkpoint, ranks: &[u32], io: &str) -> Value {
    let io = options(io);
    let (before, cpu) = (process_memory().expect("/proc").anonymous, cpu_seconds());
    let started = Instant::now();
    let loaded = Loader::new(plan, checkpoint).ranks(ranks).io(io).load().expect("a load");
    let seconds = started.elapsed().as_secs_f64();
    let anonymous = process_memory().expect("/proc").anonymous;
    let distinct: u64 = ranges(plan, checkpoint, ranks).iter().map(|(_, r)| r.end - r.start).sum();
    let stats = loaded.stats;
    json!({
        "seconds": seconds, "read": stats.bytes_read, "distinct": distinct, "cpu": cpu_seconds() - cpu,
        "extra": anonymous as f64 - before as f64 - (stats.shard_bytes + stats.padding_bytes) as f64,
    })
}

/// Words such as `direct`, `readahead`, `threads=1`.
fn options(words: &str) -> IoOptions {
    let mut io = IoOptions::default();
    for word in words.split_whitespace() {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let number = || value.parse().ok();
        match name {
            "direct" => io.method = Some(ReadMethod::Direct),
            "mmap" => io.method = Some(ReadMethod::Mmap),
            "readahead" => io.readahead = Some(true),
            "threads" => io.threads = number(),
            "depth" => io.queue_depth = number(),
            "block" => io.block_size = number(),
            _ => panic!("unknown word '{word}'"),
        }
    }
    io
}

fn bare_loop(plan: &ShardPlan, checkpoint: &Checkpoint, ranks: &[u32], storage: DType) -> Value {
    let files: Vec<File> = checkpoint.files().iter().map(|f| File::open(&f.path).expect("a file")).collect();
    let widen = if storage == DType::F32 { (2, 1) } else { (1, 1) };
    let cast = (storage == DType::F32).then(|| caster(DType::BF16, DType::F32).expect("a cast"));
    let (pieces, total) = bare::pieces(&ranges(plan, checkpoint, ranks), widen);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = cpu_seconds();
    let started = Instant::now();
    let memory = bare::run(&files, &pieces, total, widen, cast, threads);
    let seconds = started.elapsed().as_secs_f64();
    std::hint::black_box(memory);
    json!({ "seconds": seconds, "cpu": cpu_seconds() - cpu })
}

fn sequential(plan: &ShardPlan, checkpoint: &Checkpoint, ranks: &[u32]) -> Value {
    let files: Vec<File> = checkpoint.files().iter().map(|f| File::open(&f.path).expect("a file")).collect();
    let (cpu, started) = (cpu_seconds(), Instant::now());
    bare::sequential(&files, &ranges(plan, checkpoint, ranks));
    json!({ "seconds": started.elapsed().as_secs_f64(), "cpu": cpu_seconds() - cpu })
}

/// A region that is cut along one dim at most, as runs of row-major elements.
fn runs(region: &Region, shape: &[u64]) -> Vec<Range<u64>> {
    let numel = |dims: &[u64]| dims.iter().product::<u64>();
    match region {
        Region::Whole => std::iter::once(0..numel(shape)).collect(),
        Region::Flat { range } => std::iter::once(range.clone()).collect(),
        Region::Dim { dim, range } => {
            let (inner, step) = (numel(&shape[dim + 1..]), numel(&shape[*dim..]));
            (0..numel(&shape[..*dim])).map(|row| row * step + range.start * inner..row * step + range.end * inner).collect()
        }
        _ => Vec::new(),
    }
}

/// The bytes that these ranks need, merged.
fn ranges(plan: &ShardPlan, checkpoint: &Checkpoint, ranks: &[u32]) -> Vec<(usize, Range<u64>)> {
    let mut ranges = Vec::new();
    for (t, tensor) in plan.tensors.iter().enumerate() {
        let (at, size) = (checkpoint.location(t), tensor.source.bits() / 8);
        for &rank in ranks {
            let runs = runs(&tensor.region(rank), &tensor.shape);
            ranges.extend(runs.into_iter().map(|r| (at.file, at.offset + r.start * size..at.offset + r.end * size)));
        }
    }
    ranges.sort_by_key(|(file, r)| (*file, r.start));
    let mut merged: Vec<(usize, Range<u64>)> = Vec::new();
    for (file, range) in ranges {
        match merged.last_mut() {
            Some((f, last)) if *f == file && range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push((file, range)),
        }
    }
    merged
}

fn cpu_seconds() -> f64 {
    // SAFETY: getrusage fills the struct that it is given.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
