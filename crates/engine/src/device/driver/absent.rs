//! In place of the driver where the engine is built without the feature `cuda`. Nothing here can be called: there is no [`Gpu`].

use std::{convert::Infallible, ffi::c_void, ptr::NonNull};

use super::Driver;
use crate::{device::kernels::Kernel, error::Result};

/// Looks for a usable driver and its devices.
///
/// # Errors
/// Always: this build has no support for CUDA.
pub fn probe() -> Result<Driver, String> {
    Err("this program was built without CUDA (cargo feature 'cuda')".into())
}

/// A device's queue of work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawStream(Infallible);
/// A mark in a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawEvent(Infallible);

impl RawStream {
    pub(crate) fn as_ptr(self) -> *mut c_void {
        match self.0 {}
    }
}

/// An open device, which does not exist.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(crate) ordinal: u32,
    pub(crate) name: String,
    never: Infallible,
}

impl Gpu {
    /// Fails as [`probe`] does: without a driver there is nothing to open.
    pub(crate) fn open(_: &Driver, _: u32) -> Result<Self> {
        let why = probe().map_or_else(|why| why, |_| String::new());
        Err(crate::EngineError::new(crate::ErrorKind::Device, why))
    }

    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        match self.never {}
    }

    pub(crate) fn holds(&self, _: u64, _: usize) -> Result<bool> {
        match self.never {}
    }

    pub(crate) fn allocate(&self, _: usize) -> Result<u64> {
        match self.never {}
    }

    /// # Safety
    /// Cannot be called.
    pub(crate) unsafe fn release(&self, _: u64) {
        match self.never {}
    }

    /// # Safety
    /// Cannot be called.
    pub(crate) unsafe fn register(&self, _: NonNull<u8>, _: usize) -> Result<bool> {
        match self.never {}
    }

    /// # Safety
    /// Cannot be called.
    pub(crate) unsafe fn unregister(&self, _: NonNull<u8>) {
        match self.never {}
    }

    pub(crate) fn pin(&self, _: usize) -> Result<NonNull<u8>> {
        match self.never {}
    }

    /// # Safety
    /// Cannot be called.
    pub(crate) unsafe fn unpin(&self, _: NonNull<u8>) {
        match self.never {}
    }

    pub(crate) fn create_stream(&self) -> Result<RawStream> {
        match self.never {}
    }

    /// # Safety
    /// Cannot be called.
    pub(crate) unsafe fn destroy_stream(&self, _: RawStream) {
        match self.never {}
    }

    pub(crate) fn synchronize(&self, _: RawStream) -> Result<()> {
        match self.never {}
    }

    pub(crate) fn create_event(&self) -> Result<RawEvent> {
        match self.never {}
    }

    /// # Safety
    /// Cannot be called.
    pub(crate) unsafe fn destroy_event(&self, _: RawEvent) {
        match self.never {}
    }

    pub(crate) fn record(&self, _: RawEvent, _: RawStream) -> Result<()> {
        match self.never {}
    }

    pub(crate) fn wait(&self, _: RawEvent) -> Result<()> {
        match self.never {}
    }

    /// # Safety
    /// Cannot be called.
    pub(crate) unsafe fn copy_in(&self, _: u64, _: &[u8], _: RawStream) -> Result<()> {
        match self.never {}
    }

    /// # Safety
    /// Cannot be called.
    pub(crate) unsafe fn copy_out(&self, _: &mut [u8], _: u64, _: RawStream) -> Result<()> {
        match self.never {}
    }

    /// # Safety
    /// Cannot be called.
    pub(crate) unsafe fn fill(&self, _: u64, _: u8, _: usize, _: RawStream) -> Result<()> {
        match self.never {}
    }

    pub(crate) fn prepare(&self, _: Kernel) -> Result<()> {
        match self.never {}
    }

    /// # Safety
    /// Cannot be called.
    pub(crate) unsafe fn launch(&self, _: Kernel, _: u64, _: u64, _: u32, _: RawStream) -> Result<()> {
        match self.never {}
    }
}

#[cfg(test)]
mod tests {
    use crate::device::{DeviceRequest, Devices, choose, probe};

    #[test]
    fn without_the_feature_a_gpu_is_refused_with_the_reason() {
        let error = choose("cuda:1".parse().unwrap(), probe, None, &[0]).unwrap_err().to_string();
        assert!(error.contains("device cuda:1 was asked for, but this program was built without CUDA"), "{error}");
        assert_eq!(choose(DeviceRequest::Auto, probe, None, &[0]).unwrap().ordinals, None);
        assert!(Devices::open(&[0]).unwrap_err().to_string().contains("built without CUDA"));
    }
}
