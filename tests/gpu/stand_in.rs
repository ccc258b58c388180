//! Drivers that stand in for the machine's own: one that is none (`fake_cuda.cpp`), and one that stands in front of another
//! (`watched_cuda.cpp`). Both fail when a test tells them to, and count what they hold.

use std::{
    ffi::{CStr, CString, OsStr, c_long},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Set in the environment of tests that run on a stand-in: its path.
pub const PATH: &str = "SHARDWRIGHT_STAND_IN_CUDA";

/// Builds a stand-in's source as `libcuda.so.1` in `dir`; says why where it cannot.
pub fn build(source: &str, dir: &Path) -> Result<PathBuf, String> {
    let (root, library) = (Path::new(env!("CARGO_MANIFEST_DIR")), dir.join("libcuda.so.1"));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let built = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-ffp-contract=off", "-Wno-unknown-pragmas", "-shared", "-fPIC"])
        .arg(format!("-I{}", root.join("crates/engine/tests/kernels").display()))
        .arg(format!("-DCAST_CU=\"{}\"", root.join("crates/engine/src/device/kernels/cast.cu").display()))
        .arg(root.join("tests/gpu").join(source))
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

/// Runs this very program on a stand-in, with these arguments. What a real driver opens by name is found as before.
pub fn run(library: &Path, arguments: &[&str], variables: &[(&str, &Path)]) -> Output {
    let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let all =
        std::iter::once(library.parent().unwrap().to_owned()).chain(std::env::split_paths(&others).filter(|p| !p.as_os_str().is_empty()));
    Command::new(std::env::current_exe().unwrap())
        .arg("--test-threads=1")
        .args(arguments)
        .env("LD_LIBRARY_PATH", std::env::join_paths(all).unwrap())
        .env(PATH, library)
        .env_remove("CUDA_VISIBLE_DEVICES")
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

/// The file of the machine's own driver.
pub fn real() -> Option<PathBuf> {
    // SAFETY: opened as any user of it does, never closed; what `dladdr` gives lives as long as the library.
    unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        let function = if library.is_null() { library } else { libc::dlsym(library, c"cuInit".as_ptr()) };
        let mut info: libc::Dl_info = std::mem::zeroed();
        let found = !function.is_null() && libc::dladdr(function, &raw mut info) != 0 && !info.dli_fname.is_null();
        found.then(|| PathBuf::from(OsStr::from_bytes(CStr::from_ptr(info.dli_fname).to_bytes())))
    }
}

/// The stand-in that this process runs on.
pub struct StandIn {
    fail_at: extern "C" fn(c_long),
    calls: extern "C" fn() -> c_long,
    live: extern "C" fn() -> c_long,
    peak: extern "C" fn() -> c_long,
    queued: extern "C" fn() -> c_long,
}

impl StandIn {
    /// `None` on the machine's own driver.
    pub fn find() -> Option<Self> {
        let path = CString::new(std::env::var(PATH).ok()?).unwrap();
        // SAFETY: the stand-in's functions have these types; the library is never closed.
        unsafe {
            let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
            assert!(!library.is_null(), "{path:?} does not open");
            let function = |name: &CStr| {
                let at = libc::dlsym(library, name.as_ptr());
                assert!(!at.is_null(), "{name:?}");
                at
            };
            let found = Self {
                fail_at: std::mem::transmute::<*mut libc::c_void, extern "C" fn(c_long)>(function(c"testCudaFailAt")),
                calls: std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> c_long>(function(c"testCudaCalls")),
                live: std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> c_long>(function(c"testCudaLive")),
                peak: std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> c_long>(function(c"testCudaPeak")),
                queued: std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> c_long>(function(c"testCudaQueued")),
            };
            let before = found.live();
            let opened = shardwright::engine::device::Devices::open(&[0]).expect("a device");
            assert!(found.live() > before, "another driver was found instead");
            drop(opened);
            Some(found)
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
    /// The most copies and kernels that were under way at once since the last call; only the fake knows, which starts them as late as it may.
    pub fn queued(&self) -> Option<i64> {
        Some((self.queued)()).filter(|n| *n >= 0)
    }
}
