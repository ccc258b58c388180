//! Loads to a device, timed by CUDA events, as a ratio to a pinned copy of the bytes that must cross, in the same run. Files are hot; ring
//! and kernels are those of an earlier load, but in the rows that say "first", which pin and compile too, as a process's only load does.
//!
//! `cargo bench --bench gpu`, or `-- bfloat16-float32` for one cast. BENCH_MIB sets the source bytes (4096, less on a small card), BENCH_DIR where
//! the file goes, PYTHON the interpreter whose torch is compared. Without a device it says so by name.

#[path = "../tests/gpu/cases.rs"]
#[expect(dead_code, reason = "the bench uses a part of the tests' cases")]
mod cases;

use std::{
    error::Error,
    ffi::{CString, c_void},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use cudarc::driver::{result, sys};
use shardwright::{
    core::{DType, Mesh, Placement, ShardPlan},
    engine::{
        Checkpoint, IoOptions, Loader,
        device::{DeviceOptions, Devices, Downcast, kernel_module, probe},
    },
};

const ROUNDS: usize = 5;
const MIB: u64 = 1 << 20;
/// The share of a pinned copy that is asked for.
const ASKED: f64 = 0.85;

fn main() -> Result<(), Box<dyn Error>> {
    let driver = match probe() {
        Ok(driver) => driver,
        Err(why) => {
            println!("skipped: gpu bench: no CUDA device: {why}");
            return Ok(());
        }
    };
    let devices = Devices::open(&[0])?;
    let asked: u64 = std::env::var("BENCH_MIB").ok().and_then(|v| v.parse().ok()).unwrap_or(4096);
    // The widest shard has twice the source's bytes; the rest is what copies and kernels are compared with, and the ring.
    let room = (devices.memory()?[0].1 / MIB * 4 / 5).saturating_sub(1024 + 256) / 2;
    let mib = asked.min(room).max(64) / 64 * 64;
    let clock = Clock::new()?;
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    println!(
        "{}, driver for CUDA {}.{}, {mib} MiB of source bytes, hot, ring and kernels kept from an earlier load, median of \
         {ROUNDS}; the pinned copy is of as many bytes as cross\n",
        driver.devices[0].name, driver.version.0, driver.version.1
    );
    println!(
        "| cast | downcast on | threads | GB/s crossing | pinned copy GB/s | ratio | ≥ {ASKED} | files GB/s | device GB/s | binds |\n\
         |---|---|---|---|---|---|---|---|---|---|"
    );
    for (from, to) in [(DType::BF16, DType::BF16), (DType::BF16, DType::F32), (DType::F8E4M3, DType::BF16), (DType::F32, DType::BF16)] {
        if only.as_ref().is_some_and(|only| *only != format!("{from}-{to}")) {
            continue;
        }
        let dir = tempfile::tempdir_in(std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, Into::into))?;
        let plan = plan(dir.path(), from, to, mib);
        let checkpoint = Checkpoint::open(dir.path())?;
        let downcasts = if to.bits() < from.bits() { &[Downcast::Host, Downcast::Device][..] } else { &[Downcast::Host] };
        let mut fastest = Vec::new();
        for &downcast in downcasts {
            let mut least = f64::INFINITY;
            let cast_there = from != to && (to.bits() > from.bits() || downcast == Downcast::Device);
            let device = if cast_there { Some(clock.kernel(from, to)?) } else { None };
            for threads in [1, 4, 8, 16] {
                let crossing = if downcast == Downcast::Host { mib * MIB * from.bits().min(to.bits()) / from.bits() } else { mib * MIB };
                let files = files_rate(&dir.path().join("model.safetensors"), threads)?;
                let copy = median(|| clock.pinned_copy(crossing))?;
                let options = DeviceOptions { downcast, ..DeviceOptions::default() };
                let io = IoOptions { threads: Some(threads), ..IoOptions::default() };
                let load = || Ok(Loader::new(&plan, &checkpoint).io(io.clone()).load_to(&devices, options)?);
                let load = median(|| clock.time(load).map(|(seconds, _freed_here)| seconds))?;
                let rate = |seconds: f64| crossing as f64 / seconds / 1e9;
                let ratio = copy / load;
                let limits = [
                    ("files", files * crossing as f64 / (mib * MIB) as f64), // of crossing bytes, as fast as files give them
                    ("bus", rate(copy)),
                    ("device", device.unwrap_or(f64::INFINITY)),
                ];
                let least_limit = limits.iter().min_by(|a, b| a.1.total_cmp(&b.1)).map_or(("bus", rate(copy)), |l| *l);
                let binds = match rate(load) / least_limit.1 {
                    share if share >= ASKED => least_limit.0.to_owned(),
                    share => format!("host ({share:.2} of {})", least_limit.0),
                };
                let device = device.map_or_else(|| "-".into(), |d| format!("{d:.1}"));
                let place = place(from, to, downcast);
                let verdict = if ratio >= ASKED { "met" } else { "NOT MET" };
                println!(
                    "| {from} → {to} | {place} | {threads} | {:.2} | {:.2} | {ratio:.2} | {verdict} | {files:.2} | {device} | {binds} |",
                    rate(load),
                    rate(copy)
                );
                least = least.min(load);
            }
            let first = median(|| {
                let devices = Devices::open(&[0])?;
                let options = DeviceOptions { downcast, ..DeviceOptions::default() };
                let load = || Ok(Loader::new(&plan, &checkpoint).load_to(&devices, options)?);
                clock.time(load).map(|(seconds, _freed_here)| seconds)
            })?;
            println!("| {from} → {to} | {} | first | {:.3} s | - | - | - | - | - | - |", place(from, to, downcast), first);
            fastest.push((least, downcast));
        }
        if from == to {
            rings(&clock, &devices, (&plan, &checkpoint), mib)?;
        }
        if let [host, device] = fastest[..] {
            let (cheaper, other) = if host.0 <= device.0 { (host, device) } else { (device, host) };
            println!(
                "| {from} → {to} | cheaper on the {:?} | any | {:.3} s, else {:.3} s | - | - | - | - | - | - |",
                cheaper.1, cheaper.0, other.0
            );
        }
        if from == DType::BF16 {
            torch(&dir.path().join("model.safetensors"), to);
        }
    }
    Ok(())
}

/// What rings of other sizes give: a smaller one has smaller blocks.
fn rings(clock: &Clock, devices: &Devices, (plan, checkpoint): (&ShardPlan, &Checkpoint), mib: u64) -> Result<(), Box<dyn Error>> {
    let cores = std::thread::available_parallelism()?.get();
    for threads in [4, 8, 16].into_iter().filter(|&n| n <= cores) {
        for ring_mib in [12, 16, 24, 256] {
            let options = DeviceOptions { ring_bytes: ring_mib << 20, ..DeviceOptions::default() };
            let io = IoOptions { threads: Some(threads), ..IoOptions::default() };
            let load = |devices: &Devices| Ok(Loader::new(plan, checkpoint).io(io.clone()).load_to(devices, options)?);
            let kept = median(|| clock.time(|| load(devices)).map(|(seconds, _freed_here)| seconds))?;
            let first = median(|| {
                let devices = Devices::open(&[0])?;
                clock.time(|| load(&devices)).map(|(seconds, _freed_here)| seconds)
            })?;
            let rate = (mib * MIB) as f64 / kept / 1e9;
            println!(
                "| ring of at most {ring_mib} MiB: {kept:.3} s, first {first:.3} s | - | {threads} | {rate:.2} | - | - | - | - | - | - |"
            );
        }
    }
    Ok(())
}

fn place(from: DType, to: DType, downcast: Downcast) -> String {
    if to.bits() < from.bits() { format!("{downcast:?}").to_lowercase() } else { "-".into() }
}

/// Tensors of 64 MiB and a little, whole on one rank.
fn plan(dir: &Path, from: DType, to: DType, mib: u64) -> ShardPlan {
    let numel = 64 * MIB * 8 / from.bits();
    let specs: Vec<_> = (0..mib.div_ceil(64))
        .map(|i| (format!("t{i:04}"), from, to, vec![numel], Placement::flat(cases::one_rank(), &[numel]).expect("a small shape")))
        .collect();
    // Data at a multiple of 8, as the reference implementation writes it.
    let pad = cases::header(&specs).0.len().next_multiple_of(8) - cases::header(&specs).0.len();
    let plan = cases::planned(dir, &Mesh::replicate_shard(1, 1).expect("one rank"), &specs, pad);
    // Or its way to the disk would disturb what is measured.
    std::fs::File::open(dir.join("model.safetensors")).and_then(|f| f.sync_all()).expect("the file can be synchronised");
    plan
}

/// GB/s at which so many threads read the file into touched memory; warms the cache.
fn files_rate(path: &Path, threads: usize) -> Result<f64, Box<dyn Error>> {
    let file = std::fs::File::open(path)?;
    let bytes = file.metadata()?.len();
    let pass = || -> std::io::Result<Duration> {
        let started = Instant::now();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads as u64)
                .map(|t| {
                    let file = &file;
                    scope.spawn(move || -> std::io::Result<()> {
                        let mut buffer = vec![1u8; 1 << 20];
                        let mut at = t * MIB;
                        while at < bytes {
                            file.read_at(&mut buffer, at)?;
                            at += threads as u64 * MIB;
                        }
                        Ok(())
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        Ok(started.elapsed())
    };
    pass()?;
    Ok(bytes as f64 / median(|| Ok(pass()?.as_secs_f64()))? / 1e9)
}

fn median(mut run: impl FnMut() -> Result<f64, Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let mut times = (0..ROUNDS).map(|_| run()).collect::<Result<Vec<_>, _>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[ROUNDS / 2])
}

/// Two events on a stream of our own.
struct Clock {
    stream: sys::CUstream,
    events: [sys::CUevent; 2],
}

impl Clock {
    fn new() -> Result<Self, Box<dyn Error>> {
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT);
        // SAFETY: the device's primary context, which the engine's `Devices` retains too.
        unsafe { result::ctx::set_current(result::primary_ctx::retain(result::device::get(0)?)?)? };
        Ok(Self { stream: result::stream::create(result::stream::StreamKind::NonBlocking)?, events: [event()?, event()?] })
    }

    /// Seconds between the events that stand before and behind the work, which has arrived when it returns; and what it made, which is not
    /// freed in that time.
    fn time<T>(&self, work: impl FnOnce() -> Result<T, Box<dyn Error>>) -> Result<(f64, T), Box<dyn Error>> {
        // SAFETY: events and stream live as long as the process.
        unsafe {
            result::event::record(self.events[0], self.stream)?;
            let made = work()?;
            result::event::record(self.events[1], self.stream)?;
            result::event::synchronize(self.events[1])?;
            Ok((f64::from(result::event::elapsed(self.events[0], self.events[1])?) / 1e3, made))
        }
    }

    /// GB/s of source bytes at which the kernel alone casts 256 MiB that lie on the device.
    fn kernel(&self, from: DType, to: DType) -> Result<f64, Box<dyn Error>> {
        const TILE: u64 = 8192;
        let name = |d: DType| d.safetensors_name().to_ascii_lowercase();
        let (a, b) = (from.bits() / 8, to.bits() / 8);
        let count = u32::try_from(256 * MIB / a / TILE)?;
        let entry = format!("cast_{}_{}", name(from), name(to));
        let (ptx, entry) = (CString::new(kernel_module(&entry).ok_or("no such kernel")?)?, CString::new(entry)?);
        // SAFETY: the tiles lie inside both buffers, which are given back, as the tiles are, after the last launch has been waited for; the
        // parameters are the kernel's two addresses.
        unsafe {
            let module = result::module::load_data(ptx.as_ptr().cast())?;
            let function = result::module::get_function(module, entry)?;
            let (mut source, target) =
                (result::malloc_sync(usize::try_from(256 * MIB)?)?, result::malloc_sync(usize::try_from(256 * MIB / a * b)?)?);
            let tiles = (0..u64::from(count)).flat_map(|i| [i * TILE * a, target + i * TILE * b, TILE]).flat_map(u64::to_le_bytes);
            let tiles: Vec<u8> = tiles.collect();
            let (host, mut list) = (result::malloc_host(tiles.len(), 0)?, result::malloc_sync(tiles.len())?);
            std::ptr::copy_nonoverlapping(tiles.as_ptr(), host.cast(), tiles.len());
            result::memset_d8_async(source, 0x40, usize::try_from(256 * MIB)?, self.stream)?;
            result::memcpy_htod_async(list, std::slice::from_raw_parts(host.cast::<u8>(), tiles.len()), self.stream)?;
            result::stream::synchronize(self.stream)?;
            let mut parameters = [(&raw mut source).cast::<c_void>(), (&raw mut list).cast()];
            let mut launch = || {
                let launch = || Ok(result::launch_kernel(function, (count, 1, 1), (256, 1, 1), 0, self.stream, &mut parameters)?);
                self.time(launch).map(|(seconds, ())| seconds)
            };
            let seconds = launch().and_then(|_compiled_and_warm| median(launch));
            result::stream::synchronize(self.stream)?;
            [source, target, list].into_iter().try_for_each(|at| result::free_sync(at))?;
            result::free_host(host)?;
            result::module::unload(module)?;
            Ok((256 * MIB) as f64 / seconds? / 1e9)
        }
    }

    /// Copies so many bytes, in pieces of 64 MiB from 512 MiB of pinned memory, which no CPU's cache holds: what the bus can do.
    fn pinned_copy(&self, bytes: u64) -> Result<f64, Box<dyn Error>> {
        let (piece, size) = (usize::try_from(64 * MIB)?, usize::try_from(512 * MIB)?);
        // SAFETY: both buffers have `size` bytes and are given back after the last copy has been waited for.
        unsafe {
            let (host, device) = (result::malloc_host(size, 0)?, result::malloc_sync(size)?);
            let from = std::slice::from_raw_parts(host.cast::<u8>(), size);
            let seconds = self.time(|| {
                let bytes = usize::try_from(bytes)?;
                for at in (0..bytes).step_by(piece) {
                    let (start, len) = (at % size, piece.min(bytes - at));
                    result::memcpy_htod_async(device + start as u64, &from[start..][..len], self.stream)?;
                }
                Ok(())
            });
            result::stream::synchronize(self.stream)?;
            result::free_sync(device)?;
            result::free_host(host)?;
            Ok(seconds?.0)
        }
    }
}

/// torch on the same file, where there is one that sees the device.
fn torch(file: &Path, to: DType) {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/gpu_torch.py");
    match Command::new(&python).arg(script).arg(file).args([to.torch_name(), "cuda"]).output() {
        Ok(output) if output.status.success() => print!("{}", String::from_utf8_lossy(&output.stdout)),
        Ok(output) => println!("skipped: torch with {python}: {}", String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("")),
        Err(e) => println!("skipped: torch: no {python}: {e}"),
    }
}
