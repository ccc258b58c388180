//! What the machine is like, as far as the choice of how to read depends on it.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use crate::memory::available;

/// Facts of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    /// Cores that this process may use: affinity and control groups count.
    pub(super) cores: usize,
    /// Bytes of memory that can be had, by machine and control groups.
    pub(super) memory: Option<u64>,
    /// Bytes that the kernel reads ahead on the file system of the checkpoint.
    pub(super) read_ahead: Option<u64>,
}

impl Machine {
    /// This one, with that file's file system.
    pub(super) fn here(file: Option<&Path>) -> Self {
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: available().map(|a| a.bytes),
            read_ahead: file.and_then(read_ahead),
        }
    }
}

/// By the file's device, or by the disk of which that is a partition.
fn read_ahead(file: &Path) -> Option<u64> {
    let device = fs::metadata(file).ok()?.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let places = [
        format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"),
        format!("/sys/dev/block/{major}:{minor}/queue/read_ahead_kb"),
        format!("/sys/dev/block/{major}:{minor}/../queue/read_ahead_kb"),
    ];
    let text = places.iter().find_map(|p| fs::read_to_string(p).ok())?;
    text.trim().parse::<u64>().ok()?.checked_mul(1024)
}
