//! A byte source for tests that fails, returns short, is interrupted or stalls, as the test asks.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::read_at::{Buffered, ReadAt};
use crate::file::Stamp;

/// What a source does from its `after`th read on (counted over all files).
pub(crate) struct Faults {
    pub(crate) after: u64,
    pub(crate) what: Misbehaviour,
    pub(crate) reads: AtomicU64,
    /// Whether it says that its bytes are cached.
    pub(crate) cached: bool,
    /// Bytes that were announced.
    pub(crate) announced: AtomicU64,
    /// Reads that stalled, and those of them that came back.
    pub(crate) stalled: AtomicU64,
    pub(crate) came_back: AtomicU64,
}

pub(crate) enum Misbehaviour {
    /// Fails with this error number.
    Fails(i32),
    /// Fails so for this many reads, then recovers.
    FailsFor(i32, u64),
    /// Gives at most this many bytes a read.
    Short(usize),
    /// Claims that the file ends.
    Ends,
    /// Gives at most this many bytes a read, this often; then fails once so, or says that the file ends, and goes on.
    ShortThen(usize, u64, Option<i32>),
    /// Gives at most this many bytes a read, each after a pause.
    Slow(usize, Duration),
    /// Does not come back for so long, then fails.
    Stalls(Duration),
    /// The first read does so; the others fail at once.
    StallsThenFails(Duration),
    /// Does this before the first of these reads, which goes well.
    Does(Box<dyn Fn() + Send + Sync>),
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "faults from read {} on", self.after)
    }
}

impl Faults {
    pub(crate) fn new(after: u64, what: Misbehaviour) -> Self {
        let [reads, announced, stalled, came_back] = [(); 4].map(|()| AtomicU64::new(0));
        Self { after, what, reads, cached: false, announced, stalled, came_back }
    }
}

#[derive(Debug)]
pub(crate) struct Faulty {
    pub(super) file: Buffered,
    pub(super) faults: std::sync::Arc<Faults>,
}

impl ReadAt for Faulty {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(late) = self.faults.reads.fetch_add(1, Ordering::Relaxed).checked_sub(self.faults.after) else {
            return self.file.read_at(buffer, offset);
        };
        match &self.faults.what {
            Misbehaviour::Fails(errno) => Err(io::Error::from_raw_os_error(*errno)),
            Misbehaviour::FailsFor(errno, times) if late < *times => Err(io::Error::from_raw_os_error(*errno)),
            Misbehaviour::FailsFor(..) => self.file.read_at(buffer, offset),
            Misbehaviour::Short(most) => {
                let len = buffer.len().min(*most);
                self.file.read_at(&mut buffer[..len], offset)
            }
            Misbehaviour::Ends => Ok(0),
            Misbehaviour::ShortThen(_, times, how) if late == *times => how.map_or(Ok(0), |errno| Err(io::Error::from_raw_os_error(errno))),
            Misbehaviour::ShortThen(most, ..) => {
                let len = buffer.len().min(*most);
                self.file.read_at(&mut buffer[..len], offset)
            }
            Misbehaviour::Slow(most, pause) => {
                std::thread::sleep(*pause);
                let len = buffer.len().min(*most);
                self.file.read_at(&mut buffer[..len], offset)
            }
            Misbehaviour::StallsThenFails(_) if late > 0 => Err(io::Error::from_raw_os_error(libc::EIO)),
            Misbehaviour::Stalls(time) | Misbehaviour::StallsThenFails(time) => {
                self.faults.stalled.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(*time);
                self.faults.came_back.fetch_add(1, Ordering::Relaxed);
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
            Misbehaviour::Does(it) => {
                if late == 0 {
                    it();
                }
                self.file.read_at(buffer, offset)
            }
        }
    }

    fn stamp(&self) -> io::Result<Stamp> {
        self.file.stamp()
    }

    fn is_cached(&self, _offset: u64) -> bool {
        self.faults.cached
    }

    fn announce(&self, _offset: u64, len: u64) {
        self.faults.announced.fetch_add(len, Ordering::Relaxed);
    }
}
