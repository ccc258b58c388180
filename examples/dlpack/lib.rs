//! Shards for other languages without a copy: a C library that loads one rank and hands its tensors out as DLPack.
//!
//! `cargo build --release --example dlpack` makes it; `torch_shards.py` beside this file is its user.

use std::{
    error::Error,
    ffi::{CStr, CString, c_char},
    path::Path,
};

use shardwright::{
    core::{Mesh, PlanInput, Precision, PrecisionPolicy, ShardStrategy, TensorMeta, plan_checked},
    engine::{
        Checkpoint, Loader,
        device::{
            DeviceOptions, DeviceRequest, Devices, choose,
            dlpack::{ManagedTensor, Raw},
            probe,
        },
    },
    fsdp2::Fsdp2,
    zero3::Zero3,
};

/// What a rank holds: names, and the tensors that nobody has taken yet. Each keeps its memory alive by itself.
#[derive(Debug)]
pub struct Shards(Vec<(CString, Option<ManagedTensor>)>);

/// Every tensor in the dtype of its file.
#[derive(Debug)]
struct AsStored;

impl PrecisionPolicy for AsStored {
    fn decide(&self, param: &TensorMeta, _trainable: bool) -> Precision {
        Precision::uniform(param.dtype)
    }
}

fn load(model: &str, strategy: &str, (rank, world_size): (u32, u32), device: &str) -> Result<Shards, Box<dyn Error>> {
    let strategy: &dyn ShardStrategy = match strategy {
        "fsdp2" => &Fsdp2::default(),
        "zero3" => &Zero3::default(),
        other => return Err(format!("unknown strategy '{other}', expected fsdp2 or zero3").into()),
    };
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let mesh = Mesh::replicate_shard(1, world_size)?;
    let plan = plan_checked(strategy, &PlanInput::new(checkpoint.model(), &mesh, &AsStored))?;
    let loader = Loader::new(&plan, &checkpoint).ranks(&[rank]);
    let indices = 0..plan.tensors.len();
    let tensors: Vec<_> = match choose(device.parse::<DeviceRequest>()?, probe, None, &[rank])?.ordinals {
        None => {
            let loaded = loader.load()?;
            indices.map(|i| loaded.ranks[0].dlpack(i)).collect()
        }
        Some(ordinals) => {
            let loaded = loader.load_to(&Devices::open(&ordinals)?, DeviceOptions::default())?;
            indices.map(|i| loaded.ranks[0].dlpack(i)).collect()
        }
    };
    let names = plan.tensors.iter().map(|t| CString::new(t.name.as_str()));
    Ok(Shards(names.zip(tensors).map(|(name, tensor)| Ok((name?, tensor))).collect::<Result<_, std::ffi::NulError>>()?))
}

/// Loads rank `rank` of `world_size` under `strategy` (fsdp2, zero3) onto `device` (cpu, cuda, cuda:K, auto). Where that fails it answers
/// with null and puts the reason into `error`, cut to `size` bytes with their final NUL.
///
/// # Safety
/// The texts end with a NUL, and `error` has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shards_load(
    model: *const c_char,
    strategy: *const c_char,
    rank: u32,
    world_size: u32,
    device: *const c_char,
    error: *mut c_char,
    size: usize,
) -> *mut Shards {
    // SAFETY: by the caller.
    let [model, strategy, device] = [model, strategy, device].map(|text| unsafe { CStr::from_ptr(text) }.to_string_lossy());
    match load(&model, &strategy, (rank, world_size), &device) {
        Ok(shards) => Box::into_raw(Box::new(shards)),
        Err(why) => {
            let why = why.to_string();
            if let Some(room) = size.checked_sub(1) {
                let bytes = why.len().min(room);
                // SAFETY: `error` has room for `size` bytes, one more than are copied.
                unsafe {
                    error.copy_from_nonoverlapping(why.as_ptr().cast(), bytes);
                    error.add(bytes).write(0);
                }
            }
            std::ptr::null_mut()
        }
    }
}

/// Number of tensors.
///
/// # Safety
/// `shards` is from [`shards_load`] and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shards_len(shards: *const Shards) -> usize {
    // SAFETY: by the caller.
    unsafe { &*shards }.0.len()
}

/// A tensor's name, alive as long as the shards; null where there is no such tensor.
///
/// # Safety
/// As [`shards_len`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shards_name(shards: *const Shards, index: usize) -> *const c_char {
    // SAFETY: by the caller.
    unsafe { &*shards }.0.get(index).map_or(std::ptr::null(), |t| t.0.as_ptr())
}

/// A tensor, to be put into a capsule named `dltensor`; whoever takes it calls its deleter, before or after the shards are freed. Null
/// where there is none, where DLPack has no such dtype, and the second time.
///
/// # Safety
/// As [`shards_len`], and no other thread uses the shards meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shards_take(shards: *mut Shards, index: usize) -> *mut Raw {
    // SAFETY: by the caller.
    let tensor = unsafe { &mut *shards }.0.get_mut(index).and_then(|t| t.1.take());
    tensor.map_or(std::ptr::null_mut(), ManagedTensor::into_raw)
}

/// Lets go of the names and of the tensors that nobody took.
///
/// # Safety
/// `shards` is from [`shards_load`] and not freed yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shards_free(shards: *mut Shards) {
    // SAFETY: by the caller.
    drop(unsafe { Box::from_raw(shards) });
}
