//! The CUDA driver as the rest of the engine sees it. `driver/cuda.rs` calls the real one; without the feature `cuda`, `driver/absent.rs`
//! stands in its place: the same names, of which no value can exist, and a [`probe`] that says why.

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(feature = "cuda")]
mod cuda;

#[cfg(not(feature = "cuda"))]
pub use self::absent::probe;
#[cfg(not(feature = "cuda"))]
pub(crate) use self::absent::{Gpu, RawEvent, RawStream};
#[cfg(feature = "cuda")]
pub use self::cuda::probe;
#[cfg(feature = "cuda")]
pub(crate) use self::cuda::{Gpu, RawEvent, RawStream};

/// What the kernels' PTX is made for: Volta and newer.
pub(super) const NEEDED_CAPABILITY: (u32, u32) = (7, 0);

/// What helps where a device has too little memory.
pub(crate) const MORE_ROOM: &str = "more ranks, a smaller storage dtype, a smaller ring, or ending what else uses the device";

/// A driver that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Driver {
    /// The CUDA version that it is for: major, minor.
    pub version: (u32, u32),
    /// The devices that it shows this process, at least one.
    pub devices: Vec<DeviceInfo>,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its number among those that this process sees.
    pub ordinal: u32,
    /// Its name.
    pub name: String,
    /// Its memory in bytes.
    pub total_bytes: u64,
    /// Its compute capability: major, minor.
    pub capability: (u32, u32),
}
