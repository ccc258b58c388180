//! Fills of memory on a device that the caller owns, as foreign runtimes have it, against fills of host memory.

use cudarc::driver::result;
use shardwright::{
    core::{Assembly, DType, Loop, Piece, Region},
    engine::{
        CancelToken, Checkpoint, EngineError, ErrorKind, IoOptions,
        device::{DeviceOptions, Devices, Downcast},
        load::{Destination, Item, Part, fill, fill_on_device},
    },
};

use crate::{
    cases::{every_layout, every_pair, planned},
    devices, driver, held,
    runner::skip,
    stand_in::StandIn,
    two_threads,
};

/// Memory on device 0, given back on drop.
struct Memory(u64, usize);

impl Memory {
    fn new(bytes: usize) -> Self {
        // SAFETY: an allocation of our own, given back on drop.
        unsafe {
            result::ctx::set_current(result::primary_ctx::retain(result::device::get(0).unwrap()).unwrap()).unwrap();
            let memory = Self(result::malloc_sync(bytes).unwrap(), bytes);
            memory.copy(|stream| result::memset_d8_async(memory.0, 0xA5, bytes, stream));
            memory
        }
    }

    fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.1];
        // SAFETY: both have so many bytes.
        self.copy(|stream| unsafe { result::memcpy_dtoh_async(&mut bytes, self.0, stream) });
        bytes
    }

    fn copy(&self, copy: impl FnOnce(cudarc::driver::sys::CUstream) -> Result<(), result::DriverError>) {
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();
        copy(stream).unwrap();
        // SAFETY: the stream was just made, and nothing else has it.
        unsafe {
            result::stream::synchronize(stream).unwrap();
            result::stream::destroy(stream).unwrap();
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated and retained by `new`; nothing of it is under way.
        unsafe {
            result::free_sync(self.0).unwrap();
            result::ctx::set_current(std::ptr::null_mut()).unwrap();
            result::primary_ctx::release(result::device::get(0).unwrap()).unwrap();
        }
    }
}

/// Parts of every tensor, one after the other at odd places, some with room behind them: the items, as if their memory began at 0, and its size.
fn items(checkpoint: &Checkpoint, plan: &shardwright::core::ShardPlan) -> (Vec<Item>, usize) {
    let (mut items, mut at) = (Vec::new(), 0);
    for (number, tensor) in plan.tensors.iter().enumerate() {
        let source = checkpoint.sources().iter().position(|s| s.name == tensor.name).unwrap();
        let source = u32::try_from(source).unwrap();
        for rank in 0..plan.mesh.world_size() {
            let region = tensor.region(rank);
            let part = match (&region, region.offsets(&tensor.shape), region.local_shape(&tensor.shape)) {
                (Region::Flat { range }, ..) => Part::Flat(range.clone()),
                (_, Some(offsets), Some(local)) => {
                    Part::Box(offsets.into_iter().zip(local).map(|(from, size)| from..from + size).collect())
                }
                _ => continue,
            };
            let assembly = match &*tensor.shape {
                [rows, columns] if number % 3 == 0 && rows * columns > 0 => Assembly::Pieces(vec![Piece {
                    source,
                    source_offset: 0,
                    target_offset: 0,
                    loops: vec![
                        Loop { size: *rows, source_stride: 1, target_stride: *columns },
                        Loop { size: *columns, source_stride: *rows, target_stride: 1 },
                    ],
                }]),
                _ => Assembly::Whole(source),
            };
            let dtype = tensor.precision.storage;
            let bytes = usize::try_from(dtype.bytes(region.numel(&tensor.shape)).unwrap()).unwrap() + [0, 0, 24][number % 3];
            items.push(Item {
                name: format!("{}.{rank}", tensor.name).as_str().into(),
                shape: tensor.shape.clone(),
                assembly,
                rounded: tensor.source.is_float().then_some([None, None, Some(DType::BF16), Some(DType::F16)][number % 4]).flatten(),
                part,
                to: Destination { address: at, bytes: bytes as u64, dtype },
            });
            at += bytes + 1 + number % 7;
        }
    }
    (items, at + 64)
}

fn at(items: &[Item], base: usize) -> Vec<Item> {
    let moved = |item: &Item| Item { to: Destination { address: base + 64 + item.to.address, ..item.to }, ..item.clone() };
    items.iter().map(moved).collect()
}

fn on_device(checkpoint: &Checkpoint, items: &[Item], devices: &Devices, memory: &Memory, downcast: Downcast) -> Result<(), EngineError> {
    let options = DeviceOptions { ring_bytes: 16 << 20, downcast };
    let items = at(items, usize::try_from(memory.0).unwrap());
    // SAFETY: every part lies inside the memory, which is this test's own.
    unsafe { fill_on_device(checkpoint, &items, (devices, options), &two_threads(), None, &CancelToken::new()) }.map(drop)
}

pub fn memory_on_a_device_gets_the_hosts_bits() {
    let _alone = driver();
    for (mesh, specs) in [every_layout(), every_pair(3)] {
        let dir = tempfile::tempdir().unwrap();
        let plan = planned(dir.path(), &mesh, &specs, 5);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let (items, bytes) = items(&checkpoint, &plan);
        assert!(items.len() > 200);
        let mut want = vec![0xA5u8; bytes + 64];
        let base = want.as_mut_ptr().expose_provenance();
        // SAFETY: every part lies inside the buffer, which is this test's own.
        unsafe { fill(&checkpoint, &at(&items, base), &IoOptions::default(), None, &CancelToken::new()) }.unwrap();
        for downcast in [Downcast::Host, Downcast::Device] {
            let devices = devices("cuda:0", &[0]);
            let memory = Memory::new(want.len());
            on_device(&checkpoint, &items, &devices, &memory, downcast).unwrap();
            let got = memory.read();
            let differs = got.iter().zip(&want).position(|(a, b)| a != b);
            let item = differs.map(|i| items.iter().rfind(|item| item.to.address + 64 <= i).map(|item| &item.name));
            assert_eq!(item, None, "{downcast:?}: byte {differs:?}");
        }
    }
}

pub fn memory_that_is_not_on_the_device_is_refused() {
    let _alone = driver();
    let dir = tempfile::tempdir().unwrap();
    let plan = crate::simple(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let (items, bytes) = items(&checkpoint, &plan);
    let (mut host, memory) = (vec![0xA5u8; bytes + 64], Memory::new(bytes));
    let devices = devices("cuda:0", &[0]);
    let before = held();
    for base in [host.as_mut_ptr().expose_provenance(), usize::try_from(memory.0).unwrap() + (1 << 40)] {
        let items = at(&items, base);
        // SAFETY: the call is to refuse it before the first byte.
        let error =
            unsafe { fill_on_device(&checkpoint, &items, (&devices, DeviceOptions::default()), &two_threads(), None, &CancelToken::new()) };
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Plan, "{error}");
        assert!(error.to_string().contains("is not on device 0") && error.to_string().contains("cast.0"), "{error}");
        assert_eq!(held(), before);
    }
    assert!(host.iter().all(|b| *b == 0xA5) && memory.read().iter().all(|b| *b == 0xA5));
}

pub fn a_fill_that_fails_at_any_step_leaves_nothing() {
    let _alone = driver();
    let Some(driver) = StandIn::find() else {
        skip("the machine's own driver does not fail on request; the one in front of it does");
    };
    let dir = tempfile::tempdir().unwrap();
    let plan = crate::simple(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let (items, bytes) = items(&checkpoint, &plan);
    let memory = Memory::new(bytes + 64);
    let devices = devices("cuda:0", &[0]);
    on_device(&checkpoint, &items, &devices, &memory, Downcast::Host).unwrap();
    devices.release_ring();
    let before = driver.live();
    let mut failed = 0;
    for call in 1..1000 {
        driver.fail_at(call);
        let outcome = on_device(&checkpoint, &items, &devices, &memory, Downcast::Host);
        driver.fail_at(0);
        devices.release_ring();
        assert_eq!(driver.live(), before, "call {call}: something is left");
        match outcome {
            Ok(()) => break,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Device, "call {call}: {error}");
                failed += 1;
            }
        }
    }
    assert!(failed > 15, "{failed} steps failed");
}
