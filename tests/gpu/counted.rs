//! What only a driver that fails on request, and counts, can show: on the fake, and on the one that stands in front of another.

use std::time::{Duration, Instant};

use shardwright::{
    core::{DType, Layout, Mesh, Padding, Placement},
    engine::{
        Checkpoint, EngineError, ErrorKind, IoOptions, Loader, ReadMethod,
        device::{DeviceOptions, Devices, Downcast, probe},
    },
};

use crate::{
    cases::{one_rank, planned},
    devices, driver,
    runner::skip,
    same_bits, simple,
    stand_in::StandIn,
    two_threads,
};

pub fn a_driver_that_fails_at_any_step_fails_the_load_and_leaves_nothing() {
    let _alone = driver();
    let Some(driver) = StandIn::find() else {
        skip("the machine's own driver does not fail on request; the one in front of it does");
    };
    let dir = tempfile::tempdir().unwrap();
    let plan = simple(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let last = u32::try_from(probe().unwrap().devices.len() - 1).unwrap();
    let before = driver.live();
    let load = |threads: usize| -> Result<(), EngineError> {
        let devices = Devices::open(&[last])?;
        let options = DeviceOptions { ring_bytes: 4 << 20, ..DeviceOptions::default() };
        let io = IoOptions { threads: Some(threads), ..IoOptions::default() };
        let loaded = Loader::new(&plan, &checkpoint).io(io).load_to(&devices, options)?;
        let calls = driver.calls();
        drop(loaded);
        driver.fail_at(calls); // what is freed is not to count
        Ok(())
    };
    for threads in [1, 3] {
        let mut failed = 0;
        for call in 1.. {
            driver.fail_at(call);
            let outcome = load(threads);
            driver.fail_at(0);
            // A worker that does not stop within a second is left behind; it frees what it holds when it ends.
            let patience = Instant::now();
            while driver.live() != before && patience.elapsed() < Duration::from_secs(60) {
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(driver.live(), before, "call {call} of {threads} threads: something is left");
            match outcome {
                Ok(()) => break,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Device, "call {call}: {error}");
                    let text = error.to_string();
                    assert!(text.contains("CUDA_ERROR_UNKNOWN") && text.contains(&format!("device {last}")), "call {call}: {error}");
                    failed += 1;
                }
            }
            assert!(call < 1000);
        }
        assert!(failed > 20, "{failed} steps failed");
    }
}

/// However large the shard, what else lies on the device is the ring's counterpart: a whole tensor, or the bytes before a cast, never are.
pub fn a_device_holds_the_shard_and_a_fixed_small_amount() {
    let _alone = driver();
    let Some(driver) = StandIn::find() else {
        skip("the machine's own driver does not keep count of its peak; the one in front of it does");
    };
    let beyond = [8u64, 32].map(|mib| {
        let dir = tempfile::tempdir().unwrap();
        let numel = mib << 19;
        let spec = ("w".to_owned(), DType::BF16, DType::F32, vec![numel], Placement::flat(one_rank(), &[numel]).unwrap());
        let plan = planned(dir.path(), &Mesh::replicate_shard(1, 1).unwrap(), &[spec], 0);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        driver.peak();
        Loader::new(&plan, &checkpoint).io(two_threads()).load_to(&devices("cuda:0", &[0]), DeviceOptions::default()).unwrap();
        driver.peak() - i64::try_from(numel * 4).unwrap()
    });
    assert_eq!(beyond[0], beyond[1]);
    assert!((1..=16 << 20).contains(&beyond[0]), "{beyond:?}");
}

/// A second load pins nothing and allocates nothing but its shards; what is kept goes with the devices, or when asked.
pub fn a_ring_is_kept_for_the_next_load() {
    let _alone = driver();
    let Some(driver) = StandIn::find() else {
        skip("the machine's own driver does not count; the one in front of it does");
    };
    let dir = tempfile::tempdir().unwrap();
    let plan = simple(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let before = driver.live();
    let devices = devices("cuda:0", &[0]);
    let load = |threads, ring_bytes| {
        driver.fail_at(0); // counts from here
        let io = IoOptions { threads: Some(threads), ..IoOptions::default() };
        let options = DeviceOptions { ring_bytes, ..DeviceOptions::default() };
        let loaded = Loader::new(&plan, &checkpoint).io(io).load_to(&devices, options).unwrap();
        same_bits(&plan, &checkpoint, &loaded, &format!("{threads} threads, ring of {ring_bytes}"));
        drop(loaded);
        driver.live()
    };
    let opened = driver.live();
    let kept = load(2, 64 << 20);
    assert_eq!(kept, opened + 2 + 2, "the ring, pinned and on the device, and two kernels");
    assert_eq!([load(2, 64 << 20), load(1, 64 << 20), load(2, 4 << 20), load(3, 64 << 20)], [kept; 4]);
    devices.release_ring();
    assert_eq!(driver.live(), kept - 2);
    load(2, 64 << 20);
    drop(devices);
    assert_eq!(driver.live(), before);
}

/// A row's part is its own block in the file; they cross together.
pub fn short_runs_cross_together() {
    let _alone = driver();
    let Some(driver) = StandIn::find() else {
        skip("the machine's own driver does not count; the one in front of it does");
    };
    const ROWS: u64 = 20_000;
    let mesh = Mesh::replicate_shard(1, 4).unwrap();
    let axis = mesh.axis("mp_shard").unwrap();
    for (to, downcast) in [(DType::BF16, Downcast::Host), (DType::F32, Downcast::Host), (DType::F8E4M3, Downcast::Host)] {
        let dir = tempfile::tempdir().unwrap();
        let columns = Placement::one(axis, Layout::Dim { dim: 1, chunk: 8 }, Padding::None);
        let plan = planned(dir.path(), &mesh, &[("w".to_owned(), DType::BF16, to, vec![ROWS, 32], columns)], 0);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        for method in [ReadMethod::Pread, ReadMethod::Direct] {
            let devices = devices("cuda:0", &[2]);
            driver.fail_at(0);
            let io = IoOptions { threads: Some(2), method: Some(method), ..IoOptions::default() };
            let options = DeviceOptions { downcast, ..DeviceOptions::default() };
            let loaded = Loader::new(&plan, &checkpoint).ranks(&[2]).io(io).load_to(&devices, options).unwrap();
            let calls = driver.calls();
            assert!(method == ReadMethod::Direct || calls < 300, "{calls} calls for {ROWS} runs to {to}");
            same_bits(&plan, &checkpoint, &loaded, &format!("columns to {to}, {method:?}"));
        }
    }
}

/// A worker reads on while what it sent is under way: as many blocks as it has slots, and no more.
pub fn reads_go_on_while_copies_and_casts_are_under_way() {
    let _alone = driver();
    let Some(driver) = StandIn::find().filter(|d| d.queued().is_some()) else {
        skip("only the fake driver tells what is under way; on a card the bench's ratio shows it");
    };
    const NUMEL: u64 = 16 << 20;
    for (to, calls_a_block) in [(DType::BF16, 1), (DType::F32, 2)] {
        let dir = tempfile::tempdir().unwrap();
        let spec = ("w".to_owned(), DType::BF16, to, vec![NUMEL], Placement::flat(one_rank(), &[NUMEL]).unwrap());
        let plan = planned(dir.path(), &Mesh::replicate_shard(1, 1).unwrap(), &[spec], 0);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        for threads in [1, 2] {
            driver.queued();
            let io = IoOptions { threads: Some(threads), ..IoOptions::default() };
            let loaded = Loader::new(&plan, &checkpoint).io(io).load_to(&devices("cuda:0", &[0]), DeviceOptions::default()).unwrap();
            let most = driver.queued().unwrap();
            let slots = 3 * i64::try_from(threads).unwrap() * calls_a_block;
            // Of a worker at least; another one may come too late to meet it.
            assert!((3 * calls_a_block..=slots).contains(&most), "{most} of {slots} with {threads} threads to {to}");
            same_bits(&plan, &checkpoint, &loaded, &format!("{threads} threads to {to}"));
        }
    }
}
