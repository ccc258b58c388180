//! DLPack: a tensor's memory handed to another library (torch, CuPy, JAX) without a copy, as `DLManagedTensor` of DLPack 0.x and 1.x.
//!
//! The structs have the layout that `dlpack.h` fixes. Wrapping the pointer into a Python capsule named `dltensor` is the caller's.

use std::{any::Any, ffi::c_void, ptr::NonNull};

use shardwright_core::DType;

/// `DLDevice`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Device {
    /// `DLDeviceType`.
    pub kind: i32,
    /// The device's number; 0 for host memory.
    pub id: i32,
}

impl Device {
    /// `kDLCPU`.
    pub const CPU: i32 = 1;
    /// `kDLCUDA`.
    pub const CUDA: i32 = 2;
}

/// `DLDataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct DataType {
    /// `DLDataTypeCode`.
    pub code: u8,
    /// Bits of an element.
    pub bits: u8,
    /// 1.
    pub lanes: u16,
}

impl DataType {
    /// DLPack's name for a dtype; `None` for those whose elements are smaller than a byte, which libraries disagree upon.
    pub fn of(dtype: DType) -> Option<Self> {
        let code = match dtype {
            DType::I8 | DType::I16 | DType::I32 | DType::I64 => 0,
            DType::U8 | DType::U16 | DType::U32 | DType::U64 => 1,
            DType::F16 | DType::F32 | DType::F64 => 2,
            DType::BF16 => 4,
            DType::C64 => 5,
            DType::Bool => 6,
            DType::F8E4M3 => 10,
            DType::F8E5M2 => 12,
            DType::F8E8M0 => 14,
            _ => return None,
        };
        u8::try_from(dtype.bits()).ok().map(|bits| Self { code, bits, lanes: 1 })
    }
}

/// `DLTensor`.
#[derive(Debug)]
#[repr(C)]
pub struct Tensor {
    /// The memory; null where the tensor is empty.
    pub data: *mut c_void,
    /// Where it is.
    pub device: Device,
    /// Number of dims.
    pub ndim: i32,
    /// The element type.
    pub dtype: DataType,
    /// Sizes of the dims.
    pub shape: *mut i64,
    /// Elements from one index to the next, by dim.
    pub strides: *mut i64,
    /// Bytes from `data` to the first element.
    pub byte_offset: u64,
}

/// `DLManagedTensor`.
#[derive(Debug)]
#[repr(C)]
pub struct Raw {
    /// The tensor.
    pub tensor: Tensor,
    /// The exporter's own.
    pub manager: *mut c_void,
    /// Called by the consumer, once, when it needs the tensor no more.
    pub deleter: Option<unsafe extern "C" fn(*mut Raw)>,
}

/// What an exported tensor points to.
struct Manager {
    raw: Raw,
    shape: Box<[i64]>,
    strides: Box<[i64]>,
    _owner: Box<dyn Any + Send + Sync>,
}

/// An exported tensor that nobody has taken yet; freed on drop.
#[derive(Debug)]
pub struct ManagedTensor(NonNull<Raw>);

// SAFETY: the owner of the memory is `Send + Sync`, all else belongs to the tensor.
unsafe impl Send for ManagedTensor {}

impl ManagedTensor {
    /// A dense row-major tensor at `data`, which `owner` keeps alive.
    pub fn new(data: *mut c_void, device: Device, dtype: DataType, shape: &[u64], owner: impl Any + Send + Sync) -> Self {
        let shape: Box<[i64]> = shape.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect();
        let mut strides = vec![1i64; shape.len()].into_boxed_slice();
        for d in (1..shape.len()).rev() {
            strides[d - 1] = strides[d].saturating_mul(shape[d].max(1));
        }
        let tensor = Tensor {
            data: if shape.contains(&0) { std::ptr::null_mut() } else { data },
            device,
            ndim: i32::try_from(shape.len()).unwrap_or(i32::MAX),
            dtype,
            shape: std::ptr::null_mut(),
            strides: std::ptr::null_mut(),
            byte_offset: 0,
        };
        let raw = Raw { tensor, manager: std::ptr::null_mut(), deleter: Some(delete) };
        let manager = Box::into_raw(Box::new(Manager { raw, shape, strides, _owner: Box::new(owner) }));
        // SAFETY: just made, and nobody else's yet; the boxes' contents do not move.
        unsafe {
            (*manager).raw.tensor.shape = (*manager).shape.as_mut_ptr();
            (*manager).raw.tensor.strides = (*manager).strides.as_mut_ptr();
            (*manager).raw.manager = manager.cast();
            Self(NonNull::new_unchecked(&raw mut (*manager).raw))
        }
    }

    /// Hands it over: whoever takes the pointer calls its deleter once.
    pub fn into_raw(self) -> *mut Raw {
        let raw = self.0.as_ptr();
        std::mem::forget(self);
        raw
    }

    /// To look at.
    pub fn raw(&self) -> &Raw {
        // SAFETY: alive until `self` is dropped or handed over.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for ManagedTensor {
    fn drop(&mut self) {
        // SAFETY: not handed over, so this is the one call.
        unsafe { delete(self.0.as_ptr()) };
    }
}

/// The deleter: frees the tensor and lets go of its owner.
unsafe extern "C" fn delete(raw: *mut Raw) {
    if raw.is_null() {
        return;
    }
    // SAFETY: `manager` is the box that `new` leaked; the consumer calls this once.
    drop(unsafe { Box::from_raw((*raw).manager.cast::<Manager>()) });
}

#[cfg(test)]
mod tests {
    use std::{
        mem::{offset_of, size_of},
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use super::*;

    /// Offsets of `dlpack.h` on a 64-bit machine.
    #[test]
    fn the_structs_are_laid_out_as_in_dlpack_h() {
        assert_eq!((size_of::<Device>(), size_of::<DataType>(), size_of::<Tensor>(), size_of::<Raw>()), (8, 4, 48, 64));
        assert_eq!((offset_of!(DataType, code), offset_of!(DataType, bits), offset_of!(DataType, lanes)), (0, 1, 2));
        let tensor = [
            offset_of!(Tensor, data),
            offset_of!(Tensor, device),
            offset_of!(Tensor, ndim),
            offset_of!(Tensor, dtype),
            offset_of!(Tensor, shape),
            offset_of!(Tensor, strides),
            offset_of!(Tensor, byte_offset),
        ];
        assert_eq!(tensor, [0, 8, 16, 20, 24, 32, 40]);
        assert_eq!((offset_of!(Raw, tensor), offset_of!(Raw, manager), offset_of!(Raw, deleter)), (0, 48, 56));
    }

    #[derive(Clone)]
    struct Owner(Arc<AtomicUsize>);
    impl Drop for Owner {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn exported(shape: &[u64], data: &mut [f32]) -> (ManagedTensor, Arc<AtomicUsize>) {
        let freed = Arc::new(AtomicUsize::new(0));
        let device = Device { kind: Device::CPU, id: 0 };
        let dtype = DataType::of(DType::F32).unwrap();
        (ManagedTensor::new(data.as_mut_ptr().cast(), device, dtype, shape, Owner(Arc::clone(&freed))), freed)
    }

    #[test]
    fn a_consumer_reads_shape_strides_and_data_and_frees_the_owner_once() {
        let mut data: Vec<f32> = (0u8..24).map(f32::from).collect();
        let (tensor, freed) = exported(&[2, 3, 4], &mut data);
        let raw = tensor.into_raw();
        // SAFETY: the pointers are those of a live tensor of 3 dims and 24 elements; its deleter is called once.
        unsafe {
            let t = &(*raw).tensor;
            assert_eq!((t.ndim, t.dtype, t.device.kind), (3, DataType { code: 2, bits: 32, lanes: 1 }, 1));
            assert_eq!(std::slice::from_raw_parts(t.shape, 3), [2, 3, 4]);
            assert_eq!(std::slice::from_raw_parts(t.strides, 3), [12, 4, 1]);
            assert_eq!(*t.data.cast::<f32>().add(23), 23.0);
            assert_eq!(freed.load(Ordering::Relaxed), 0);
            (*raw).deleter.unwrap()(raw);
        }
        assert_eq!(freed.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_nobody_takes_is_freed_and_empty_tensors_have_no_memory() {
        let (tensor, freed) = exported(&[0, 5], &mut []);
        assert!(tensor.raw().tensor.data.is_null());
        drop(tensor);
        assert_eq!(freed.load(Ordering::Relaxed), 1);
        let (scalar, _) = exported(&[], &mut [1.0]);
        assert_eq!(scalar.raw().tensor.ndim, 0);
    }

    #[test]
    fn every_dtype_of_whole_bytes_has_a_code() {
        for &dtype in DType::ALL {
            assert_eq!(DataType::of(dtype).is_some(), dtype.bits() >= 8, "{dtype}");
        }
    }
}
