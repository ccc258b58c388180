//! What the machine is like, as far as the choice of how to read depends on it.

use crate::memory::available;

/// Facts of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    /// Cores that this process may use: affinity and control groups count.
    pub(super) cores: usize,
    /// Bytes of memory that can be had, by machine and control groups.
    pub(super) memory: Option<u64>,
}

impl Machine {
    /// This one.
    pub(super) fn here() -> Self {
        Self { cores: std::thread::available_parallelism().map_or(1, usize::from), memory: available().map(|a| a.bytes) }
    }
}
