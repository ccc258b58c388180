//! Shards on a GPU: which device a rank takes, the driver, memory that frees itself, the kernels, and what a user is given.
//!
//! CUDA is opened at run time: without it, or built without the feature `cuda`, everything here answers with the reason, and nothing panics. How bytes get to the device is the
//! load pipeline's business (`load/pipeline/to_device.rs`).

mod choose;
pub mod dlpack;
pub(crate) mod driver;
pub(crate) mod kernels;
pub(crate) mod memory;
pub(crate) mod pool;
pub(crate) mod ring;
mod shards;

use std::sync::Arc;

#[doc(hidden)]
pub use self::kernels::module as kernel_module;
pub use self::{
    choose::{DeviceChoice, DeviceRequest, choose},
    driver::{DeviceInfo, Driver, probe},
    ring::{DeviceOptions, Downcast},
    shards::{DeviceLoaded, DeviceShards, DeviceTensorView},
};
use crate::error::Result;

/// Open devices, one for each rank to be loaded; several ranks may share one.
///
/// They keep the ring of the last load, pinned and on each device, for the next one: drop them, or ask with [`Devices::release_ring`], to
/// give it back.
#[derive(Clone, Debug)]
pub struct Devices {
    pub(crate) pool: Arc<pool::Pool>,
    pub(crate) gpus: Vec<Arc<driver::Gpu>>,
    /// By rank, in the order of the ranks: index into `gpus`.
    pub(crate) by_rank: Vec<usize>,
}

impl Devices {
    /// Opens the devices of these ordinals, one for each rank; an ordinal may occur several times.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind::Device) where there is no driver or no such device, or where it does not open.
    pub fn open(ordinals: &[u32]) -> Result<Self> {
        let driver = probe().map_err(|why| crate::EngineError::new(crate::ErrorKind::Device, why))?;
        let mut distinct = ordinals.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let gpus = distinct.iter().map(|&o| driver::Gpu::open(&driver, o).map(Arc::new)).collect::<Result<Vec<_>>>()?;
        let by_rank = ordinals.iter().map(|o| distinct.partition_point(|d| d < o)).collect();
        Ok(Self { pool: Arc::default(), gpus, by_rank })
    }

    /// Gives the ring of earlier loads back to host and devices.
    pub fn release_ring(&self) {
        self.pool.clear();
    }

    /// Free and total bytes of each distinct device, by ordinal.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind::Device) where the driver does not say.
    pub fn memory(&self) -> Result<Vec<(u32, u64, u64)>> {
        self.gpus.iter().map(|g| g.memory().map(|(free, total)| (g.ordinal, free, total))).collect()
    }
}
