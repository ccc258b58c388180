//! Loads to a device against loads to host memory, bit for bit, on whatever driver there is; and all of it on a driver that is none.
//!
//! Without a device the tests are reported as ignored. The fake shows that the calls are right in kind and order, not that a card gives these
//! bits: that takes a card, and `scripts/gpu-check.sh`.

mod callers;
mod cases;
mod cli;
mod counted;
#[path = "../support/runner.rs"]
mod runner;
mod stand_in;
#[path = "../support/mod.rs"]
mod support;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use shardwright::{
    core::{Assembly, DType, Loop, Mesh, Model, Piece, Placement, ShardPlan, ShardStrategy, TensorMeta},
    engine::{
        CancelToken, Checkpoint, ErrorKind, IoOptions, Loader, ReadMethod,
        device::{DeviceLoaded, DeviceOptions, DeviceRequest, DeviceShards, Devices, Downcast, choose, dlpack, probe},
        generate::{Content, write_checkpoint},
        load::Progress,
    },
    fsdp2::Fsdp2,
    zero3::Zero3,
};

use crate::{
    cases::{every_layout, every_pair, one_rank, planned},
    runner::{skip, tests},
    stand_in::StandIn,
};

tests! {
    every_pair_of_dtypes_gives_the_hosts_bits_at_any_offset_and_size,
    every_layout_gives_the_hosts_bits_through_rings_of_any_size,
    what_is_rearranged_or_rounded_gives_the_hosts_bits,
    the_oracles_cases_give_the_hosts_bits,
    pointers_streams_and_dlpack_tensors_keep_their_memory_alive,
    a_load_that_fails_leaves_nothing_on_the_device,
    loads_at_once_through_the_same_devices_give_the_hosts_bits,
    each_rank_lies_on_its_device,
    too_little_memory_is_reported_with_the_numbers,
    a_threads_own_context_is_left_alone,
    all_of_it_passes_on_a_driver_that_is_none,
    a_driver_that_registers_no_memory_pins_its_own,
    a_driver_in_front_of_this_machines_fails_and_counts,
    callers::memory_on_a_device_gets_the_hosts_bits,
    callers::memory_that_is_not_on_the_device_is_refused,
    callers::a_fill_that_fails_at_any_step_leaves_nothing,
    cli::without_a_device_cuda_is_refused_and_auto_says_why_not,
    cli::a_report_of_a_load_to_a_device_has_the_hosts_digests,
    cli::a_driver_or_a_device_that_will_not_do_is_refused,
    cli::a_rank_under_a_launcher_takes_the_device_of_its_local_rank,
    counted::a_driver_that_fails_at_any_step_fails_the_load_and_leaves_nothing,
    counted::a_device_holds_the_shard_and_a_fixed_small_amount,
    counted::a_ring_is_kept_for_the_next_load,
    counted::short_runs_cross_together,
    counted::reads_go_on_while_copies_and_casts_are_under_way,
}

/// What the driver holds is counted for the whole process, so that one test at a time may use it.
static ALONE: Mutex<()> = Mutex::new(());

/// Each device's context, so that it is made once: that takes a card longer than most tests.
static CONTEXTS: OnceLock<Devices> = OnceLock::new();

/// The driver for one test, which is skipped without one.
fn driver() -> MutexGuard<'static, ()> {
    match probe() {
        Ok(driver) => {
            let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
            CONTEXTS.get_or_init(|| Devices::open(&driver.devices.iter().map(|d| d.ordinal).collect::<Vec<_>>()).unwrap());
            alone
        }
        Err(why) => skip(format!("no CUDA device: {why}")),
    }
}

/// As in one process that loads those ranks.
fn devices(request: &str, ranks: &[u32]) -> Devices {
    Devices::open(&choose(request.parse().unwrap(), probe, None, ranks).unwrap().ordinals.unwrap()).unwrap()
}

/// What is held of the driver: allocations, pinned memory, streams, events, kernels, contexts. Only a stand-in counts it; the free memory
/// that the machine's own driver tells is everybody's.
fn held() -> Option<i64> {
    StandIn::find().map(|driver| driver.live())
}

/// Fills much of each device's free memory with a pattern and lets go of it: what is then not written shows.
fn poison(devices: &Devices) {
    use cudarc::driver::result;
    for (ordinal, free, _) in devices.memory().unwrap() {
        let bytes = usize::try_from((free / 2).min(2 << 30)).unwrap();
        // SAFETY: an allocation of our own in the primary context, given back after the fill is done.
        unsafe {
            let device = result::device::get(i32::try_from(ordinal).unwrap()).unwrap();
            let before = result::ctx::get_current().unwrap().unwrap_or(std::ptr::null_mut());
            result::ctx::set_current(result::primary_ctx::retain(device).unwrap()).unwrap();
            let at = result::malloc_sync(bytes).unwrap();
            let stream = result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();
            result::memset_d8_async(at, 0xA5, bytes, stream).unwrap();
            result::stream::synchronize(stream).unwrap();
            result::stream::destroy(stream).unwrap();
            result::free_sync(at).unwrap();
            result::ctx::set_current(before).unwrap();
            result::primary_ctx::release(device).unwrap();
        }
    }
}

fn same_bits(plan: &ShardPlan, checkpoint: &Checkpoint, loaded: &DeviceLoaded<'_>, case: &str) {
    let ranks: Vec<u32> = loaded.ranks.iter().map(DeviceShards::rank).collect();
    let host = Loader::new(plan, checkpoint).ranks(&ranks).load().unwrap();
    let device = loaded.download().unwrap();
    for (host, device) in host.ranks.iter().zip(&device.ranks) {
        for (a, b) in host.iter().zip(device.iter()) {
            assert!(a.padded == b.padded, "{case}: rank {}, tensor {}: bits differ", host.rank(), a.name);
            assert_eq!(a.local_shape, b.local_shape);
        }
    }
    assert_eq!(host.stats.bytes_needed, device.stats.bytes_needed);
}

fn all(plan: &ShardPlan) -> Vec<u32> {
    (0..plan.mesh.world_size()).collect()
}

fn every_pair_of_dtypes_gives_the_hosts_bits_at_any_offset_and_size() {
    let _alone = driver();
    for (ranks, pad, downcast) in [(1, 0, Downcast::Host), (3, 1, Downcast::Device), (7, 5, Downcast::Host), (7, 2, Downcast::Device)] {
        let dir = tempfile::tempdir().unwrap();
        let (mesh, specs) = every_pair(ranks);
        let plan = planned(dir.path(), &mesh, &specs, pad);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let devices = devices("cuda", &all(&plan));
        poison(&devices);
        let loaded = Loader::new(&plan, &checkpoint).load_to(&devices, DeviceOptions { downcast, ..DeviceOptions::default() }).unwrap();
        same_bits(&plan, &checkpoint, &loaded, &format!("{ranks} ranks, {downcast:?}"));
    }
}

fn every_layout_gives_the_hosts_bits_through_rings_of_any_size() {
    let _alone = driver();
    let (mesh, specs) = every_layout();
    let dir = tempfile::tempdir().unwrap();
    let plan = planned(dir.path(), &mesh, &specs, 3);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    for threads in [1, 3] {
        for ring_bytes in [threads * (2 << 20), 256 << 20] {
            for method in [ReadMethod::Pread, ReadMethod::Direct, ReadMethod::Mmap] {
                for ranks in [&[0u32, 1, 2, 3, 4, 5][..], &[4], &[5, 0]] {
                    let request = if ranks.len() == 2 { "cuda:0" } else { "cuda" };
                    let devices = devices(request, ranks);
                    let io = IoOptions { threads: Some(threads), method: Some(method), queue_depth: Some(2), ..IoOptions::default() };
                    let options = DeviceOptions { ring_bytes, ..DeviceOptions::default() };
                    let loaded = Loader::new(&plan, &checkpoint).ranks(ranks).io(io).load_to(&devices, options).unwrap();
                    same_bits(&plan, &checkpoint, &loaded, &format!("{threads} threads, {ring_bytes}, {method:?}, {ranks:?} on {request}"));
                }
            }
        }
    }
}

/// Parameters that are transposed from their tensors, and values that are rounded through a third dtype, in all mixtures.
fn what_is_rearranged_or_rounded_gives_the_hosts_bits() {
    let _alone = driver();
    let (mesh, specs) = every_layout();
    let dir = tempfile::tempdir().unwrap();
    let mut plan = planned(dir.path(), &mesh, &specs, 1);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let mut model = Model::identity(checkpoint.model().clone());
    for (number, (tensor, assembly)) in plan.tensors.iter_mut().zip(&mut model.assemblies).enumerate() {
        if tensor.source.is_float() {
            tensor.rounded = [None, Some(DType::BF16), Some(DType::F16), Some(DType::F8E4M3)][number % 4];
        }
        if let ([rows, inner @ ..], 0 | 1 | 4) = (&*tensor.shape, number % 5)
            && *rows > 0
        {
            let columns: u64 = inner.iter().product();
            let loops = vec![
                Loop { size: *rows, source_stride: 1, target_stride: columns },
                Loop { size: columns, source_stride: *rows, target_stride: 1 },
            ];
            let source = u32::try_from(number).unwrap();
            *assembly = Assembly::Pieces(vec![Piece { source, source_offset: 0, target_offset: 0, loops }]);
        }
    }
    let checkpoint = checkpoint.assemble(model).unwrap();
    for downcast in [Downcast::Host, Downcast::Device] {
        for ranks in [&all(&plan)[..], &[3, 1]] {
            let devices = devices("cuda:0", ranks);
            poison(&devices);
            let options = DeviceOptions { downcast, ..DeviceOptions::default() };
            let last = Mutex::new((0, 0, Vec::new()));
            let progress = |p: &Progress<'_>| {
                let mut last = last.lock().unwrap();
                assert!(p.read >= last.0, "{} bytes after {}", p.read, last.0);
                *last = (p.read, p.total, p.ranks.to_vec());
            };
            let loaded = Loader::new(&plan, &checkpoint).ranks(ranks).progress(&progress).load_to(&devices, options).unwrap();
            same_bits(&plan, &checkpoint, &loaded, &format!("{ranks:?}, {downcast:?}"));
            let (read, total, of_ranks) = last.into_inner().unwrap();
            assert!(read == total && total > 0, "{read} of {total} bytes");
            assert!(of_ranks.iter().all(|rank| rank.done == rank.total), "{of_ranks:?}");
            assert!(loaded.ranks.iter().all(|rank| rank.stats().seconds > 0.0));
        }
    }
}

fn the_oracles_cases_give_the_hosts_bits() {
    let _alone = driver();
    let mut cases = 0;
    let strategies: [(&str, &dyn ShardStrategy); 2] = [("fsdp2", &Fsdp2::default()), ("zero3", &Zero3::default())];
    for (kind, strategy) in strategies {
        let mut files: Vec<_> = std::fs::read_dir(support::oracle(kind)).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        for file in files {
            let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
            let model = support::checkpoint(name.split('.').next().unwrap());
            if !model.exists() {
                continue; // the real model, which is fetched
            }
            let checkpoint = Checkpoint::open(&model).unwrap();
            let plan = cases::of_oracle(strategy, &name, checkpoint.model());
            let loaded = Loader::new(&plan, &checkpoint).load_to(&devices("cuda", &all(&plan)), DeviceOptions::default()).unwrap();
            same_bits(&plan, &checkpoint, &loaded, &format!("{kind} {name}"));
            cases += 1;
        }
    }
    assert!(cases > 40, "{cases} cases");
}

/// A bf16 tensor to load as float32 on one rank, and one that stays; a few hundred kilobytes each.
fn simple(dir: &std::path::Path) -> ShardPlan {
    let tensor = |name: &str, to| (name.to_owned(), DType::BF16, to, vec![150_000u64], Placement::flat(one_rank(), &[150_000]).unwrap());
    planned(dir, &Mesh::replicate_shard(1, 1).unwrap(), &[tensor("cast", DType::F32), tensor("kept", DType::BF16)], 0)
}

fn two_threads() -> IoOptions {
    IoOptions { threads: Some(2), ..IoOptions::default() }
}

fn pointers_streams_and_dlpack_tensors_keep_their_memory_alive() {
    let _alone = driver();
    let dir = tempfile::tempdir().unwrap();
    let plan = simple(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let before = held();
    let devices = devices("cuda:0", &[0]);
    let loaded = Loader::new(&plan, &checkpoint).io(two_threads()).load_to(&devices, DeviceOptions::default()).unwrap();
    let rank = &loaded.ranks[0];
    let view = rank.by_name("cast").unwrap();
    assert!(view.pointer != 0 && view.pointer.is_multiple_of(64) && !rank.stream().is_null());
    assert_eq!((view.dtype, view.bytes, view.padded_bytes, rank.device()), (DType::F32, 600_000, 600_000, 0));
    let index = plan.tensors.iter().position(|t| t.name == "cast").unwrap();
    let exported = rank.dlpack(index).unwrap();
    let tensor = &exported.raw().tensor;
    assert_eq!(tensor.data as u64, view.pointer);
    assert_eq!(tensor.device, dlpack::Device { kind: dlpack::Device::CUDA, id: 0 });
    assert_eq!((tensor.dtype, tensor.ndim), (dlpack::DataType { code: 2, bits: 32, lanes: 1 }, 1));
    drop(loaded);
    let with_export = held();
    let raw = exported.into_raw();
    // SAFETY: the consumer's one call.
    unsafe { (*raw).deleter.unwrap()(raw) };
    assert!(with_export.is_none() || held() < with_export);
    drop(devices);
    assert_eq!(held(), before);
}

fn a_load_that_fails_leaves_nothing_on_the_device() {
    let _alone = driver();
    let dir = tempfile::tempdir().unwrap();
    let plan = simple(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let devices = devices("cuda:0", &[0]);
    let load = |loader: Loader<'_, '_>| loader.io(two_threads()).load_to(&devices, DeviceOptions::default()).map(drop);
    load(Loader::new(&plan, &checkpoint)).unwrap(); // what the driver keeps for itself is there from here on
    let before = held();
    let cancelled = CancelToken::new();
    cancelled.cancel();
    assert_eq!(load(Loader::new(&plan, &checkpoint).cancel(&cancelled)).unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(held(), before);
    std::fs::OpenOptions::new().write(true).open(dir.path().join("model.safetensors")).unwrap().set_len(300_000).unwrap();
    let error = load(Loader::new(&plan, &checkpoint)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Checkpoint, "{error}");
    assert_eq!(held(), before);
}

/// Whoever asks first takes the ring that is kept; who comes second makes one of its own.
fn loads_at_once_through_the_same_devices_give_the_hosts_bits() {
    let _alone = driver();
    let dir = tempfile::tempdir().unwrap();
    let plan = simple(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let before = held();
    let devices = devices("cuda:0", &[0]);
    std::thread::scope(|scope| {
        for threads in [1, 2, 3, 5] {
            let (devices, plan, checkpoint) = (devices.clone(), &plan, &checkpoint);
            scope.spawn(move || {
                for round in 0..20 {
                    let io = IoOptions { threads: Some(threads), ..IoOptions::default() };
                    let options = DeviceOptions { ring_bytes: threads << 20, ..DeviceOptions::default() };
                    let loaded = Loader::new(plan, checkpoint).io(io).load_to(&devices, options).unwrap();
                    same_bits(plan, checkpoint, &loaded, &format!("{threads} threads, round {round}"));
                }
            });
        }
    });
    drop(devices);
    assert_eq!(held(), before);
    let none = Devices::open(&[]).unwrap();
    let error = Loader::new(&plan, &checkpoint).ranks(&[]).load_to(&none, DeviceOptions::default()).unwrap_err();
    assert!(error.to_string().contains("no ranks"), "{error}");
}

fn each_rank_lies_on_its_device() {
    let _alone = driver();
    let dir = tempfile::tempdir().unwrap();
    let (mesh, specs) = every_pair(3);
    let plan = planned(dir.path(), &mesh, &specs, 0);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let count = u32::try_from(probe().unwrap().devices.len()).unwrap();
    let loaded = Loader::new(&plan, &checkpoint).load_to(&devices("auto", &all(&plan)), DeviceOptions::default()).unwrap();
    let found: Vec<u32> = loaded.ranks.iter().map(DeviceShards::device).collect();
    assert_eq!(found, [0, 1 % count, 2 % count]);
    let local = choose(DeviceRequest::Cuda(None), probe, Some(count + 1), &[5]).unwrap();
    assert_eq!(local.ordinals, Some(vec![1 % count]));
}

/// More than any device has, in a file of holes: refused by the preflight; forced, refused by the driver. Both with the numbers.
fn too_little_memory_is_reported_with_the_numbers() {
    let _alone = driver();
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path(), &[TensorMeta::new("w", DType::BF16, [1u64 << 20, 1 << 19])], u64::MAX, Content::Sparse).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let plan = cases::of_oracle(&Fsdp2::default(), "huge.bfloat16.w1", checkpoint.model());
    let devices = devices("cuda:0", &[0]);
    for (force, needles) in [
        (false, ["do not fit onto device 0", "MiB for shards", "MiB free of", "would help"]),
        (true, ["device 0", "cannot allocate", "free of", "CUDA_ERROR_OUT_OF_MEMORY"]),
    ] {
        let before = held();
        let io = IoOptions { force, ..IoOptions::default() };
        let error = Loader::new(&plan, &checkpoint).io(io).load_to(&devices, DeviceOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(needles.iter().all(|n| error.to_string().contains(n)), "{needles:?} are not all in: {error}");
        assert_eq!(held(), before);
    }
}

/// A thread that works on another device, or on none, goes on so.
fn a_threads_own_context_is_left_alone() {
    let _alone = driver();
    use cudarc::driver::result::{ctx, device, primary_ctx};
    let dir = tempfile::tempdir().unwrap();
    let plan = simple(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let last = probe().unwrap().devices.len() - 1;
    let users = device::get(0).unwrap();
    // SAFETY: retained here, released below, current in this thread only.
    let own = unsafe { primary_ctx::retain(users).unwrap() };
    for context in [std::ptr::null_mut(), own] {
        // SAFETY: null, or the context retained above.
        unsafe { ctx::set_current(context).unwrap() };
        let devices = devices(&format!("cuda:{last}"), &[0]);
        let loaded = Loader::new(&plan, &checkpoint).io(two_threads()).load_to(&devices, DeviceOptions::default()).unwrap();
        let exported = loaded.ranks[0].dlpack(0).unwrap();
        loaded.download().unwrap();
        drop((loaded, devices, exported));
        assert_eq!(ctx::get_current().unwrap().unwrap_or(std::ptr::null_mut()), context);
    }
    // SAFETY: as retained above; nothing is left in it.
    unsafe {
        ctx::set_current(std::ptr::null_mut()).unwrap();
        primary_ctx::release(users).unwrap();
    }
}

/// On the fake, so that none of the above is skipped anywhere but where there is no C++ compiler.
fn all_of_it_passes_on_a_driver_that_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let fake = built("fake_cuda.cpp", dir.path());
    let output = stand_in::run(&fake, &["--skip", "all_of_it_passes", "--skip", "a_driver_in_front", "--skip", "registers_no_memory"], &[]);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains(" 0 ignored"), "{}\n{text}", output.status);
}

/// Where a driver registers no memory, what it allocates itself is used.
fn a_driver_that_registers_no_memory_pins_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let fake = built("fake_cuda.cpp", dir.path());
    let not = [("FAKE_CUDA_REGISTERS", std::path::Path::new("0"))];
    for test in ["every_layout", "a_driver_that_fails", "a_ring_is_kept", "callers::"] {
        let output = stand_in::run(&fake, &[test], &not);
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && text.contains(" 0 failed; 0 ignored"), "{test}: {}\n{text}", output.status);
    }
}

/// What needs a driver that fails and counts, with one that does in front of the machine's own; of the fake where there is no card.
fn a_driver_in_front_of_this_machines_fails_and_counts() {
    let (dir, behind) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let watched = built("watched_cuda.cpp", dir.path());
    let real = probe().ok().and_then(|_| stand_in::real());
    let on_a_card = real.is_some();
    let real = real.unwrap_or_else(|| built("fake_cuda.cpp", behind.path()));
    for test in [
        "a_driver_that_fails",
        "a_load_that_fails",
        "a_fill_that_fails",
        "a_device_holds",
        "pointers_streams",
        "a_ring_is_kept",
        "short_runs",
    ] {
        let output = stand_in::run(&watched, &[test], &[("WATCHED_CUDA", &real)]);
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && text.contains(" 1 passed; 0 failed; 0 ignored"), "{test}: {}\n{text}", output.status);
    }
    if !on_a_card {
        skip("no CUDA device: it stood in front of the fake driver, and passed there");
    }
}

/// A stand-in; the test is skipped where none can be built.
fn built(source: &str, dir: &std::path::Path) -> std::path::PathBuf {
    stand_in::build(source, dir).unwrap_or_else(|why| skip(why))
}
