//! Calls the CUDA driver: finds it at run time, asks what it has, and works on one device. Nothing here decides what is copied or cast.

use std::{
    collections::BTreeMap,
    ffi::{CString, c_uint, c_void},
    ptr::NonNull,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use cudarc::driver::{
    result::{self, DriverError},
    sys,
};

use super::{DeviceInfo, Driver, MORE_ROOM};
use crate::{
    device::kernels::{self, Kernel},
    error::{EngineError, ErrorKind, Result},
};

/// The kernels' PTX is version 8.0, which drivers read from CUDA 12.0 on.
const NEEDED: (u32, u32) = (12, 0);
/// How long a wait asks without a pause, and for how long it sleeps then: a block's copy takes some 40 µs, and a worker has others under way.
const SPIN: Duration = Duration::from_micros(20);
const NAP: Duration = Duration::from_micros(10);

/// Looks for a usable driver and its devices.
///
/// # Errors
/// Why there is none, as a sentence that fits behind "but": no library, a driver that is too old or does not start, no device.
pub fn probe() -> Result<Driver, String> {
    // SAFETY: opens the library and closes it again; what CUDA's library does when it is opened is harmless.
    if !unsafe { sys::is_culib_present() } {
        return Err("there is no CUDA driver (libcuda.so.1 is not found)".into());
    }
    let mut version = 0;
    // SAFETY: the library is there, and this call may come before all others.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(|e| format!("the CUDA driver does not answer: {}", describe(e)))?;
    let version = u32::try_from(version).map_or((0, 0), |v| (v / 1000, v % 1000 / 10));
    if version < NEEDED {
        let ((a, b), (c, d)) = (version, NEEDED);
        return Err(format!("the CUDA driver is too old: expected one for CUDA {c}.{d} or newer, found {a}.{b}"));
    }
    let hidden = || std::env::var("CUDA_VISIBLE_DEVICES").map_or(String::new(), |v| format!(" (CUDA_VISIBLE_DEVICES is '{v}')"));
    result::init().map_err(|e| match e.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => format!("the CUDA driver shows no device{}", hidden()),
        _ => format!("the CUDA driver does not start: {}", describe(e)),
    })?;
    let count = result::device::get_count().map_err(|e| format!("the CUDA driver does not count its devices: {}", describe(e)))?;
    let devices = (0..u32::try_from(count).unwrap_or(0)).map(info).collect::<Result<Vec<_>, _>>();
    let devices = devices.map_err(|e| format!("the CUDA driver does not describe its devices: {}", describe(e)))?;
    if devices.is_empty() {
        return Err(format!("the CUDA driver shows no device{}", hidden()));
    }
    Ok(Driver { version, devices })
}

fn info(ordinal: u32) -> Result<DeviceInfo, DriverError> {
    let device = result::device::get(ordinal.cast_signed())?;
    // SAFETY: the device was just given.
    let total = unsafe { result::device::total_mem(device)? };
    // SAFETY: as above.
    let number = |attribute| unsafe { result::device::get_attribute(device, attribute) }.map(|n| u32::try_from(n).unwrap_or(0));
    let major = number(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = number(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(DeviceInfo { ordinal, name: result::device::get_name(device)?, total_bytes: total as u64, capability: (major, minor) })
}

/// The driver's name for an error and what it says of it.
fn describe(error: DriverError) -> String {
    let name = error.error_name().map_or_else(|_| format!("error {}", error.0 as u32), |n| n.to_string_lossy().into_owned());
    error.error_string().map_or_else(|_| name.clone(), |text| format!("{name}, {}", text.to_string_lossy()))
}

/// A device's queue of work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawStream(sys::CUstream);
/// A mark in a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawEvent(sys::CUevent);
// SAFETY: handles of the driver, which any thread may use.
unsafe impl Send for RawStream {}
// SAFETY: as above.
unsafe impl Sync for RawStream {}
// SAFETY: as above.
unsafe impl Send for RawEvent {}
// SAFETY: as above.
unsafe impl Sync for RawEvent {}

impl RawStream {
    pub(crate) fn as_ptr(self) -> *mut c_void {
        self.0.cast()
    }
}

/// An open device: its primary context, shared with every library of this process, and the kernels that were asked for.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(crate) ordinal: u32,
    pub(crate) name: String,
    device: sys::CUdevice,
    context: sys::CUcontext,
    kernels: Mutex<BTreeMap<Kernel, (sys::CUmodule, sys::CUfunction)>>,
}

// SAFETY: handles of the driver, which any thread may use once the context is current there; every method sees to that.
unsafe impl Send for Gpu {}
// SAFETY: as above; the kernels are behind a lock.
unsafe impl Sync for Gpu {}

impl Gpu {
    pub(crate) fn open(driver: &Driver, ordinal: u32) -> Result<Self> {
        let Some(info) = driver.devices.get(ordinal as usize) else {
            let error = EngineError::new(ErrorKind::Device, format!("there is no device {ordinal}"));
            return Err(error.expected(format_args!("a number below {}", driver.devices.len())));
        };
        let opened = result::device::get(ordinal.cast_signed()).and_then(|device| {
            // SAFETY: the device was just given.
            unsafe { result::primary_ctx::retain(device) }.map(|context| (device, context))
        });
        let (device, context) = opened
            .map_err(|e| EngineError::new(ErrorKind::Device, format!("cannot open device {ordinal} ({})", info.name)).found(describe(e)))?;
        Ok(Self { ordinal, name: info.name.clone(), device, context, kernels: Mutex::default() })
    }

    /// Calls the driver with this device's context current.
    fn call<T>(&self, what: &str, call: impl FnOnce() -> Result<T, DriverError>) -> Result<T> {
        self.raw_call(call).map_err(|e| self.error(what).found(describe(e)))
    }

    /// As [`Gpu::call`], and the thread has the context back that it had before: a library's user may be at work on another device. One that
    /// is gone by then is no reason to lose what the call made.
    fn raw_call<T>(&self, call: impl FnOnce() -> Result<T, DriverError>) -> Result<T, DriverError> {
        let before = result::ctx::get_current()?.unwrap_or(std::ptr::null_mut());
        if before == self.context {
            return call();
        }
        // SAFETY: the context is retained for as long as `self` lives.
        unsafe { result::ctx::set_current(self.context) }?;
        let answer = call();
        // SAFETY: it was current a moment ago; none is null.
        if unsafe { result::ctx::set_current(before) }.is_err() {
            // SAFETY: null takes the context off the thread.
            let _ = unsafe { result::ctx::set_current(std::ptr::null_mut()) };
        }
        answer
    }

    fn error(&self, what: &str) -> EngineError {
        EngineError::new(ErrorKind::Device, format!("device {} ({}): cannot {what}", self.ordinal, self.name))
    }

    /// Free and total bytes.
    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        self.call("ask for free memory", result::mem_get_info).map(|(free, total)| (free as u64, total as u64))
    }

    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64> {
        // SAFETY: the memory is only ever written before it is read.
        self.raw_call(|| unsafe { result::malloc_sync(bytes) }).map_err(|e| {
            let error = self.error(&format!("allocate {bytes} bytes"));
            // Somebody else took what the preflight saw, or the driver's own needs did.
            let free = (e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY).then(|| self.memory().ok()).flatten();
            match free {
                Some((free, total)) => error
                    .expected(format_args!("{bytes} bytes in one piece; {MORE_ROOM} would help"))
                    .found(format_args!("{free} free of {total} ({})", describe(e))),
                None => error.found(describe(e)),
            }
        })
    }

    /// Whether the device's memory has these bytes, as far as the driver tells: it is asked of the first and the last one.
    pub(crate) fn holds(&self, address: u64, bytes: usize) -> Result<bool> {
        let on_it = |at: u64| {
            let mut ordinal: i32 = -1;
            let what = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
            // SAFETY: writes one number; the address is not followed.
            let answer = unsafe { sys::cuPointerGetAttribute((&raw mut ordinal).cast(), what, at) };
            match answer {
                sys::CUresult::CUDA_ERROR_INVALID_VALUE => Ok(false), // memory that the driver does not know
                answer => answer.result().map(|()| u32::try_from(ordinal) == Ok(self.ordinal)),
            }
        };
        let last = address.saturating_add((bytes as u64).saturating_sub(1));
        self.call("tell whose memory it is", || Ok(on_it(address)? && on_it(last)?))
    }

    /// Gives back what [`Gpu::allocate`] gave.
    ///
    /// # Safety
    /// Nothing uses the memory any more, and it is not given back twice.
    pub(crate) unsafe fn release(&self, address: u64) {
        // SAFETY: by the caller. A failure to free cannot be helped.
        let _ = self.call("free memory", || unsafe { result::free_sync(address) });
    }

    /// Locks the pages of host memory, so that copies from it need no copy before; false where the driver or the system does not do that.
    ///
    /// # Safety
    /// The range is mapped, and stays so until [`Gpu::unregister`].
    pub(crate) unsafe fn register(&self, start: NonNull<u8>, bytes: usize) -> Result<bool> {
        self.call(&format!("pin {bytes} bytes of host memory"), || {
            // SAFETY: by the caller; flags 0.
            let answer = unsafe { sys::cuMemHostRegister_v2(start.as_ptr().cast(), bytes, 0) };
            match answer {
                sys::CUresult::CUDA_ERROR_NOT_SUPPORTED
                | sys::CUresult::CUDA_ERROR_NOT_PERMITTED
                | sys::CUresult::CUDA_ERROR_OPERATING_SYSTEM => Ok(false),
                answer => answer.result().map(|()| true),
            }
        })
    }

    /// Undoes what [`Gpu::register`] did.
    ///
    /// # Safety
    /// As [`Gpu::release`].
    pub(crate) unsafe fn unregister(&self, start: NonNull<u8>) {
        // SAFETY: by the caller.
        let _ = self.call("unpin memory", || unsafe { sys::cuMemHostUnregister(start.as_ptr().cast()) }.result());
    }

    /// Page-locked host memory of the driver's. Not write-combined: the pipeline reads files into it, and direct reads and casts may read it.
    pub(crate) fn pin(&self, bytes: usize) -> Result<NonNull<u8>> {
        let what = format!("pin {bytes} bytes of host memory");
        // SAFETY: plain memory; flags 0.
        let start = self.call(&what, || unsafe { result::malloc_host(bytes, 0) })?;
        NonNull::new(start.cast()).ok_or_else(|| self.error(&what))
    }

    /// Gives back what [`Gpu::pin`] gave.
    ///
    /// # Safety
    /// As [`Gpu::release`].
    pub(crate) unsafe fn unpin(&self, start: NonNull<u8>) {
        // SAFETY: by the caller.
        let _ = self.call("unpin memory", || unsafe { result::free_host(start.as_ptr().cast()) });
    }

    /// A stream that does not wait for the default stream.
    pub(crate) fn create_stream(&self) -> Result<RawStream> {
        self.call("create a stream", || result::stream::create(result::stream::StreamKind::NonBlocking)).map(RawStream)
    }

    /// # Safety
    /// The stream is of this device and not destroyed twice.
    pub(crate) unsafe fn destroy_stream(&self, stream: RawStream) {
        // SAFETY: by the caller.
        let _ = self.call("destroy a stream", || unsafe { result::stream::destroy(stream.0) });
    }

    /// Waits for all of a stream's work.
    pub(crate) fn synchronize(&self, stream: RawStream) -> Result<()> {
        // SAFETY: streams are alive as long as their owners, who hand them out.
        self.call("finish its work", || unsafe { result::stream::synchronize(stream.0) })
    }

    /// An event without a clock, and without an interrupt: one for each block, which `CU_EVENT_BLOCKING_SYNC` asks for, costs more than the copy.
    pub(crate) fn create_event(&self) -> Result<RawEvent> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint;
        let mut event = std::ptr::null_mut();
        // SAFETY: writes one handle.
        self.call("create an event", || unsafe { sys::cuEventCreate(&raw mut event, flags) }.result())?;
        Ok(RawEvent(event))
    }

    /// # Safety
    /// The event is of this device and not destroyed twice.
    pub(crate) unsafe fn destroy_event(&self, event: RawEvent) {
        // SAFETY: by the caller.
        let _ = self.call("destroy an event", || unsafe { result::event::destroy(event.0) });
    }

    /// Marks what the stream has to do so far.
    pub(crate) fn record(&self, event: RawEvent, stream: RawStream) -> Result<()> {
        // SAFETY: both are alive as long as their owners, who hand them out.
        self.call("record an event", || unsafe { result::event::record(event.0, stream.0) })
    }

    /// Waits until everything before the mark is done: asks again and again, and sleeps in between where it takes longer than a block's copy.
    pub(crate) fn wait(&self, event: RawEvent) -> Result<()> {
        const NOT_YET: DriverError = DriverError(sys::CUresult::CUDA_ERROR_NOT_READY);
        self.call("finish a copy or a cast", || {
            let started = Instant::now();
            loop {
                // SAFETY: as in `record`.
                match unsafe { result::event::query(event.0) } {
                    Err(NOT_YET) if started.elapsed() < SPIN => std::hint::spin_loop(),
                    Err(NOT_YET) => std::thread::sleep(NAP),
                    answer => return answer,
                }
            }
        })
    }

    /// Starts a copy to the device.
    ///
    /// # Safety
    /// Both ranges are valid, and stay so and unchanged until the stream has come past the copy.
    pub(crate) unsafe fn copy_in(&self, to: u64, from: &[u8], stream: RawStream) -> Result<()> {
        // SAFETY: by the caller.
        self.call("copy to the device", || unsafe { result::memcpy_htod_async(to, from, stream.0) })
    }

    /// Starts a copy from the device.
    ///
    /// # Safety
    /// As [`Gpu::copy_in`].
    pub(crate) unsafe fn copy_out(&self, to: &mut [u8], from: u64, stream: RawStream) -> Result<()> {
        // SAFETY: by the caller.
        self.call("copy from the device", || unsafe { result::memcpy_dtoh_async(to, from, stream.0) })
    }

    /// Starts to fill memory.
    ///
    /// # Safety
    /// The range is valid until the stream has come past it.
    pub(crate) unsafe fn fill(&self, to: u64, byte: u8, bytes: usize, stream: RawStream) -> Result<()> {
        // SAFETY: by the caller.
        self.call("fill memory", || unsafe { result::memset_d8_async(to, byte, bytes, stream.0) })
    }

    /// Makes sure that a kernel is compiled for this device.
    pub(crate) fn prepare(&self, kernel: Kernel) -> Result<()> {
        self.function(kernel).map(drop)
    }

    fn function(&self, kernel: Kernel) -> Result<sys::CUfunction> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&(_, function)) = kernels.get(&kernel) {
            return Ok(function);
        }
        let name = kernel.name();
        let what = format!("compile kernel {name}");
        let text = |s: String| CString::new(s).map_err(|_| self.error(&what));
        let (ptx, entry) = (text(kernels::module(&name).ok_or_else(|| self.error(&what))?)?, text(name)?);
        // SAFETY: the text ends with a NUL.
        let module = self.call(&what, || unsafe { result::module::load_data(ptx.as_ptr().cast()) })?;
        // SAFETY: the module was just loaded.
        let function = self.call(&what, || unsafe { result::module::get_function(module, entry) }).inspect_err(|_| {
            // SAFETY: nobody else knows the module.
            let _ = unsafe { result::module::unload(module) };
        })?;
        kernels.insert(kernel, (module, function));
        Ok(function)
    }

    /// Starts a kernel over `count` tiles that lie at `tiles`, its block at `block`, both on the device.
    ///
    /// # Safety
    /// The tiles are valid: sources inside the block, whose start and end lie at multiples of 16, destinations in device memory that
    /// nothing else uses meanwhile. All of it stays so until the stream has come past.
    pub(crate) unsafe fn launch(&self, kernel: Kernel, block: u64, tiles: u64, count: u32, stream: RawStream) -> Result<()> {
        let function = self.function(kernel)?;
        let (mut block, mut tiles) = (block, tiles);
        let mut parameters = [(&raw mut block).cast::<c_void>(), (&raw mut tiles).cast()];
        let threads = (kernels::THREADS, 1, 1);
        // SAFETY: the parameters are the kernel's two addresses; the rest by the caller.
        let launched = || unsafe { result::launch_kernel(function, (count, 1, 1), threads, 0, stream.0, &mut parameters) };
        self.call("launch a kernel", launched)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let kernels = std::mem::take(self.kernels.get_mut().unwrap_or_else(PoisonError::into_inner));
        for (module, _) in kernels.into_values() {
            // SAFETY: the kernels' last user is gone with `self`.
            let _ = self.call("unload a kernel", || unsafe { result::module::unload(module) });
        }
        // SAFETY: retained once, by `open`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}
