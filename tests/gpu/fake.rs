//! The driver that is none: built from `fake_cuda.cpp`, and the handles by which a test makes it fail and counts what it holds.

use std::{
    ffi::{CString, c_long},
    path::{Path, PathBuf},
    process::Command,
};

/// Set in the environment of tests that run on the fake: its path.
pub const PATH: &str = "SHARDWRIGHT_FAKE_CUDA";

/// Builds it as `libcuda.so.1` in `dir`; says why where it cannot.
pub fn build(dir: &Path) -> Result<PathBuf, String> {
    let (root, library) = (Path::new(env!("CARGO_MANIFEST_DIR")), dir.join("libcuda.so.1"));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let built = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-ffp-contract=off", "-Wno-unknown-pragmas", "-shared", "-fPIC"])
        .arg(format!("-I{}", root.join("crates/engine/tests/kernels").display()))
        .arg(format!("-DCAST_CU=\"{}\"", root.join("crates/engine/src/device/kernels/cast.cu").display()))
        .arg(root.join("tests/gpu/fake_cuda.cpp"))
        .arg("-o")
        .arg(&library)
        .arg("-ldl")
        .output()
        .map_err(|e| format!("no C++ compiler '{compiler}': {e}"))?;
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    // Where a machine has a real driver, the bare name would find that one first.
    std::os::unix::fs::symlink("libcuda.so.1", dir.join("libcuda.so")).map_err(|e| format!("no link in {}: {e}", dir.display()))?;
    Ok(library)
}

/// The fake that this process runs on.
pub struct Fake {
    fail_at: extern "C" fn(c_long),
    calls: extern "C" fn() -> c_long,
    live: extern "C" fn() -> c_long,
    peak: extern "C" fn() -> c_long,
}

impl Fake {
    /// `None` on a real driver.
    pub fn find() -> Option<Self> {
        let path = CString::new(std::env::var(PATH).ok()?).unwrap();
        // SAFETY: the fake's functions have these types; the library is never closed.
        unsafe {
            let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
            assert!(!library.is_null(), "{path:?} does not open");
            let devices = shardwright::engine::device::probe().expect("a driver").devices;
            assert!(devices[0].name.starts_with("Fake"), "a real driver was found instead: {devices:?}");
            let function = |name: &std::ffi::CStr| {
                let at = libc::dlsym(library, name.as_ptr());
                assert!(!at.is_null(), "{name:?}");
                at
            };
            Some(Self {
                fail_at: std::mem::transmute::<*mut libc::c_void, extern "C" fn(c_long)>(function(c"fakeCudaFailAt")),
                calls: std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> c_long>(function(c"fakeCudaCalls")),
                live: std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> c_long>(function(c"fakeCudaLive")),
                peak: std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> c_long>(function(c"fakeCudaPeak")),
            })
        }
    }

    /// Counts calls from here on, and makes that one fail; none for 0.
    pub fn fail_at(&self, call: i64) {
        (self.fail_at)(call);
    }

    /// Calls since then.
    pub fn calls(&self) -> i64 {
        (self.calls)()
    }

    /// The most bytes of device memory that were held at once since the last call.
    pub fn peak(&self) -> i64 {
        (self.peak)()
    }

    /// Allocations, pinned memory, streams, events, kernels and contexts that are not given back.
    pub fn live(&self) -> i64 {
        (self.live)()
    }
}
