//! The cast kernels by themselves, at every SIMD level of this CPU: source GB/s, and the traffic (bytes read and written) as a share of
//! memcpy's in the same run.
//!
//! `cached` keeps both sides in the L2 cache, as the load pipeline's blocks do; `memory` is far larger than any cache and was touched
//! before. One thread. Fresh memory is the load bench's business.

use std::{
    cell::Cell,
    mem::MaybeUninit,
    time::{Duration, Instant},
};

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use shardwright_cast::{Caster, SimdLevel, caster, caster_at};
use shardwright_core::DType;

/// What loads cast, then the rest of the family once each way.
const PAIRS: [(DType, DType); 10] = [
    (DType::BF16, DType::F32),
    (DType::F32, DType::BF16),
    (DType::F16, DType::F32),
    (DType::F32, DType::F16),
    (DType::F16, DType::BF16),
    (DType::F64, DType::F32),
    (DType::F8E4M3, DType::BF16),
    (DType::BF16, DType::F8E4M3),
    (DType::F8E5M2, DType::F32),
    (DType::F32, DType::F8E5M2),
];
/// The two sizes of the wider side, in bytes.
const SIZES: [(&str, usize); 2] = [("cached", 256 << 10), ("memory", 64 << 20)];

struct Row {
    name: String,
    source: f64,
    traffic: f64,
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    for (place, wide) in SIZES {
        let mut group = criterion.benchmark_group(place);
        let mut rows = Vec::new();
        let copy = caster(DType::F32, DType::F32).expect("equal dtypes are copied");
        rows.extend(measure(&mut group, "memcpy".into(), copy, wide, wide));
        for (from, to) in PAIRS {
            let elements = wide as u64 / from.bits().max(to.bits());
            let bytes = |d: DType| usize::try_from(elements * d.bits()).expect("below the wider side's size");
            for &level in SimdLevel::ALL {
                if let Some(caster) = caster_at(level, from, to) {
                    rows.extend(measure(&mut group, format!("{from} to {to}, {level}"), caster, bytes(from), bytes(to)));
                }
            }
        }
        group.finish();
        print(place, &rows);
    }
}

/// The best of criterion's samples; `None` where a filter on the command line left it out.
fn measure(group: &mut BenchmarkGroup<'_, WallTime>, name: String, caster: Caster, from: usize, to: usize) -> Option<Row> {
    // Small positive normal numbers in every dtype: what weights look like to a kernel.
    let src = vec![0x2b_u8; from];
    let mut dst = vec![MaybeUninit::new(0u8); to];
    let best = Cell::new(f64::INFINITY);
    group.throughput(Throughput::Bytes(from as u64)).bench_function(&name, |b| {
        b.iter_custom(|iterations| {
            let start = Instant::now();
            for _ in 0..iterations {
                caster(std::hint::black_box(&src), std::hint::black_box(&mut dst));
            }
            let elapsed = start.elapsed();
            best.set(best.get().min(elapsed.as_secs_f64() / iterations as f64));
            elapsed
        });
    });
    let gigabytes = |bytes: usize| bytes as f64 / best.get() / 1e9;
    best.get().is_finite().then(|| Row { name, source: gigabytes(from), traffic: gigabytes(from + to) })
}

fn print(place: &str, rows: &[Row]) {
    if rows.is_empty() {
        return;
    }
    let memcpy = rows.iter().find(|r| r.name == "memcpy").map(|r| r.traffic);
    println!("\n{place:44} source GB/s   traffic GB/s   of memcpy's");
    for row in rows {
        let share = memcpy.map_or("-".into(), |m| format!("{:.2}", row.traffic / m));
        println!("{:44} {:11.1} {:14.1} {share:>13}", row.name, row.source, row.traffic);
    }
    println!();
}
