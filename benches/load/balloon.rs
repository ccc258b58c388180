//! Memory that is really there. A virtual machine may give free pages back to its host within seconds, and touching them again is then tens
//! of times slower. So nearly all free memory is held, touched, between measurements; what a measurement gets was let go of a moment ago.

use std::fs;

use crate::bare::map;

/// Bytes let go of for one measurement: the largest case takes 6.4 GiB in float32 and, cold, 3.2 GiB of page cache.
const GIVEN: usize = 12 << 30;
/// Bytes that stay free, so that the page cache does not have to give way.
const SPARE: usize = 1 << 30;
const PART: usize = 256 << 20;
const PAGE: usize = 4096;

/// Touched memory.
#[derive(Default)]
pub(crate) struct Balloon(Vec<Part>);

struct Part {
    start: *mut u8,
    bytes: usize,
}

impl Balloon {
    /// Takes all free memory but for a spare.
    fn inflate(&mut self) {
        while free() > SPARE + PART {
            self.0.push(Part::touched(PART));
        }
    }

    /// Runs `what` just after as much memory as it needs was let go of.
    pub(crate) fn release_for<T>(&mut self, what: impl FnOnce() -> T) -> T {
        self.inflate();
        drop(Part::touched(free().saturating_sub(SPARE / 4))); // the spare too has been touched a moment ago
        self.0.truncate(self.0.len().saturating_sub(GIVEN / PART));
        let answer = what();
        self.inflate();
        answer
    }
}

impl Part {
    fn touched(bytes: usize) -> Self {
        let start = map(bytes);
        for at in (0..bytes).step_by(PAGE) {
            // SAFETY: inside the mapping.
            unsafe { start.add(at).write_volatile(1) };
        }
        Self { start, bytes }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // SAFETY: the mapping that `touched` made, which nobody else has.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

/// Bytes that hold nothing at all, by the system's count.
fn free() -> usize {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = info.lines().find_map(|l| l.strip_prefix("MemFree:")?.trim().strip_suffix("kB")?.trim().parse::<usize>().ok());
    kib.unwrap_or(0) << 10
}
