//! What one fresh process does: one load, or one bare loop over the same bytes.

use std::{fs::File, ops::Range, path::Path, time::Instant};

use serde_json::{Value, json};
use shardwright_cast::caster;
use shardwright_core::{
    Assembly, DType, Mesh, Model, ModelMeta, Piece, PlanInput, Precision, PrecisionPolicy, Region, ShardPlan, TensorMeta, piece::Loop,
    plan_checked,
};
use shardwright_engine::{
    CancelToken, Checkpoint, IoOptions, Loader, ReadMethod,
    architecture::ModelOptions,
    load::{Destination, Item, Part, fill},
    memory::process_memory,
};

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
    let form = text("form");
    let checkpoint = match form.as_str() {
        "stacked" => stacked(checkpoint),
        "transposed" => transposed(checkpoint),
        _ => checkpoint,
    };
    let mesh = Mesh::replicate_shard(1, world).expect("a mesh");
    let policy = Storage(storage);
    let plan = plan_checked(&shardwright_fsdp2::Fsdp2::default(), &PlanInput::new(checkpoint.model(), &mesh, &policy)).expect("a plan");
    let (opening, opening_cpu) = (opening.elapsed().as_secs_f64(), cpu_seconds() - opening_cpu);
    let ranks: Vec<u32> = match job["rank"].as_u64() {
        Some(rank) => vec![u32::try_from(rank).expect("a rank")],
        None => (0..world).collect(),
    };
    let mut answer = match text("what").as_str() {
        "load" if form == "caller's" => into(&plan, &checkpoint, ranks[0], &text("io")),
        "load" | "arenas" => load(&plan, &checkpoint, &ranks, &text("io")),
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

/// Experts as the model's class has them.
fn stacked(checkpoint: Checkpoint) -> Checkpoint {
    let found = checkpoint.find_model(&ModelOptions::new("llm")).expect("a model");
    assert!(
        found.class.is_some() && found.model.assemblies.iter().any(|a| matches!(a, Assembly::Pieces(_))),
        "its experts are not stacked"
    );
    checkpoint.assemble(found.model).expect("a model of these tensors")
}

/// Every matrix the other way round.
fn transposed(checkpoint: Checkpoint) -> Checkpoint {
    let made = |(source, meta): (u32, &TensorMeta)| match meta.shape.as_slice() {
        &[rows, columns] => {
            let loops = vec![
                Loop { size: columns, source_stride: 1, target_stride: rows },
                Loop { size: rows, source_stride: columns, target_stride: 1 },
            ];
            let piece = Piece { source, source_offset: 0, target_offset: 0, loops };
            (TensorMeta::new(meta.name.clone(), meta.dtype, [columns, rows]), Assembly::Pieces(vec![piece]))
        }
        _ => (meta.clone(), Assembly::Whole(source)),
    };
    let (tensors, assemblies) = (0u32..).zip(checkpoint.sources()).map(made).unzip();
    let meta = ModelMeta::new(tensors, checkpoint.model().facts.clone()).expect("names that are there once");
    checkpoint.assemble(Model { meta, assemblies, ..Model::default() }).expect("pieces that tile the parameters")
}

/// One rank into memory that was mapped before, as a foreign runtime's tensors are; mapping it is counted.
fn into(plan: &ShardPlan, checkpoint: &Checkpoint, rank: u32, io: &str) -> Value {
    let io = options(io);
    let (before, cpu) = (process_memory().expect("/proc").anonymous, cpu_seconds());
    let started = Instant::now();
    let part = |tensor: &shardwright_core::TensorPlan| {
        let region = tensor.region(rank);
        let (local, offsets) = (region.local_shape(&tensor.shape).expect("a box"), region.offsets(&tensor.shape).expect("a box"));
        let bytes = tensor.precision.storage.bytes(local.iter().product()).expect("a size");
        (offsets.iter().zip(&local).map(|(at, size)| *at..at + size).collect::<Vec<_>>(), bytes)
    };
    let parts: Vec<_> = plan.tensors.iter().map(part).collect();
    let total: u64 = parts.iter().map(|(_, bytes)| bytes.next_multiple_of(64)).sum();
    let mut address = bare::map(usize::try_from(total).expect("memory")) as usize;
    let mut items = Vec::new();
    for (index, (tensor, (ranges, bytes))) in plan.tensors.iter().zip(parts).enumerate() {
        items.push(Item {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            assembly: checkpoint.assembled().assemblies[index].clone(),
            rounded: None,
            part: Part::Box(ranges),
            to: Destination { address, bytes, dtype: tensor.precision.storage },
        });
        address += usize::try_from(bytes.next_multiple_of(64)).expect("memory");
    }
    // SAFETY: disjoint parts of a mapping that nothing else uses.
    let stats = unsafe { fill(checkpoint, &items, &io, None, &CancelToken::new()) }.expect("a load");
    let seconds = started.elapsed().as_secs_f64();
    let anonymous = process_memory().expect("/proc").anonymous;
    let extra = anonymous as f64 - before as f64 - total as f64;
    json!({ "seconds": seconds, "read": stats.bytes_read, "distinct": stats.bytes_needed, "cpu": cpu_seconds() - cpu, "extra": extra })
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

/// The bytes that these ranks need, merged. All ranks of a model that is assembled need all of the files' tensors.
fn ranges(plan: &ShardPlan, checkpoint: &Checkpoint, ranks: &[u32]) -> Vec<(usize, Range<u64>)> {
    let mut ranges = Vec::new();
    let assembled = checkpoint.assembled().assemblies.iter().any(|a| matches!(a, Assembly::Pieces(_)));
    if assembled {
        let place = |source: usize| checkpoint.location(source);
        ranges.extend((0..checkpoint.sources().len()).map(place).map(|at| (at.file, at.offset..at.offset + at.bytes)));
    }
    for (t, tensor) in plan.tensors.iter().enumerate().filter(|_| !assembled) {
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
