//! Each rank's shards as [candle](https://github.com/huggingface/candle) tensors on the CPU.
//!
//! candle owns its memory as a `Vec` of elements. So the vectors are allocated here, shardwright reads and casts straight into them, and candle
//! takes them over: no byte is copied after it has left the file.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, WithDType};
use half::{bf16, f16};
use shardwright::{Destination, Plan, core::DType};

/// Anything that goes wrong, from either library.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What a rank holds, by the tensor's name.
pub type Shards = BTreeMap<String, Tensor>;

/// Loads the shards of the plan's ranks. A shard has its local shape; a flat partition, as ZeRO-3 cuts, has one dim and its padding.
///
/// # Errors
/// As [`Plan::load_into`], and for a dtype that candle does not have.
pub fn load(plan: &Plan) -> Result<BTreeMap<u32, Shards>, Error> {
    let mut parts = Vec::new();
    let mut unsupported = None;
    // SAFETY: each destination is a vector's own allocation, which stays where it is while `parts` grows.
    unsafe {
        plan.load_into(|wanted| {
            let dtype = wanted.tensor.precision.storage;
            let Some(mut memory) = Memory::new(dtype, wanted.bytes) else {
                unsupported = Some(format!("tensor '{}': candle has no dtype {dtype}", wanted.tensor.name));
                return None;
            };
            let address = memory.address();
            parts.push((wanted.rank, wanted.tensor.name.to_string(), wanted.local_shape.clone(), wanted.bytes, memory));
            Some(Destination { address, bytes: wanted.bytes, dtype })
        })
    }?;
    if let Some(why) = unsupported {
        return Err(why.into());
    }
    let mut ranks: BTreeMap<u32, Shards> = BTreeMap::new();
    for (rank, name, shape, bytes, memory) in parts {
        // SAFETY: the load has succeeded, so every byte of every destination is written, padding included.
        let tensor = unsafe { memory.into_tensor(bytes, shape) }?;
        ranks.entry(rank).or_default().insert(name, tensor);
    }
    Ok(ranks)
}

/// One element type of candle's, allocated and not yet written.
enum Memory {
    F64(Vec<f64>),
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    I64(Vec<i64>),
    U32(Vec<u32>),
    U8(Vec<u8>),
}

/// The same expression for each element type.
macro_rules! each {
    ($memory:expr, $vec:ident => $value:expr) => {
        match $memory {
            Memory::F64($vec) => $value,
            Memory::F32($vec) => $value,
            Memory::F16($vec) => $value,
            Memory::BF16($vec) => $value,
            Memory::I64($vec) => $value,
            Memory::U32($vec) => $value,
            Memory::U8($vec) => $value,
        }
    };
}

impl Memory {
    fn new(dtype: DType, bytes: u64) -> Option<Self> {
        fn of<T>(bytes: u64) -> Option<Vec<T>> {
            usize::try_from(bytes).ok().map(|bytes| Vec::with_capacity(bytes / size_of::<T>()))
        }
        Some(match dtype {
            DType::F64 => Self::F64(of(bytes)?),
            DType::F32 => Self::F32(of(bytes)?),
            DType::F16 => Self::F16(of(bytes)?),
            DType::BF16 => Self::BF16(of(bytes)?),
            DType::I64 => Self::I64(of(bytes)?),
            DType::U32 => Self::U32(of(bytes)?),
            DType::U8 => Self::U8(of(bytes)?),
            _ => return None,
        })
    }

    fn address(&mut self) -> usize {
        each!(self, vec => vec.as_mut_ptr().expose_provenance())
    }

    /// # Safety
    /// `bytes` bytes are written, as many as `new` was asked for.
    unsafe fn into_tensor(self, bytes: u64, shape: Option<Vec<u64>>) -> Result<Tensor, Error> {
        let bytes = usize::try_from(bytes)?;
        // SAFETY: by the caller.
        each!(self, vec => unsafe { tensor(vec, bytes, shape) })
    }
}

/// # Safety
/// The vector has room for `bytes` bytes, and they are written.
unsafe fn tensor<T: WithDType>(mut vec: Vec<T>, bytes: usize, shape: Option<Vec<u64>>) -> Result<Tensor, Error> {
    // SAFETY: by the caller.
    unsafe { vec.set_len(bytes / size_of::<T>()) };
    let shape = match shape {
        Some(shape) => shape.into_iter().map(usize::try_from).collect::<Result<Vec<_>, _>>()?,
        None => vec![vec.len()],
    };
    // FSDP2 pads every shard to the rows of the largest; a tensor of candle's has its own rows alone.
    vec.truncate(shape.iter().product());
    Ok(Tensor::from_vec(vec, shape, &Device::Cpu)?)
}
