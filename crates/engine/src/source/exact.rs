//! Reads that end only when they have all their bytes, over short reads and interruptions, and that say where they failed.

use std::{io, thread, time::Duration};

/// Interrupted and would-block reads are tried again so often without a byte in between.
const MAX_RETRIES: u32 = 100;

/// Why a read does not have all its bytes; `offset` is that of the first one it lacks.
#[derive(Debug)]
pub(crate) enum ReadFailure {
    Failed {
        error: io::Error,
        offset: u64,
    },
    /// The file ended `missing` bytes too early.
    Ended {
        offset: u64,
        missing: u64,
    },
}

impl ReadFailure {
    /// Where it failed.
    pub(crate) fn offset(&self) -> u64 {
        match self {
            Self::Failed { offset, .. } | Self::Ended { offset, .. } => *offset,
        }
    }
}

/// Fills the buffer up to `needed` bytes at least, by `read(buffer, offset)`. Answers with the bytes read.
pub(crate) fn read_exact(
    read: impl Fn(&mut [u8], u64) -> io::Result<usize>,
    buffer: &mut [u8],
    offset: u64,
    needed: usize,
) -> Result<u64, ReadFailure> {
    let (mut done, mut retries) = (0, 0);
    while done < needed {
        let offset = offset + done as u64;
        match read(&mut buffer[done..], offset) {
            Ok(0) => return Err(ReadFailure::Ended { offset, missing: (needed - done) as u64 }),
            Ok(n) => (done, retries) = (done + n, 0),
            Err(e) if is_transient(&e) && retries < MAX_RETRIES => {
                retries += 1;
                if e.kind() == io::ErrorKind::WouldBlock {
                    thread::sleep(Duration::from_micros(u64::from(retries) * 50));
                }
            }
            Err(error) => return Err(ReadFailure::Failed { error, offset }),
        }
    }
    Ok(done as u64)
}

fn is_transient(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A file of 10 bytes that gives at most 3 a read, and fails so in each `every`th read.
    fn read(errno: i32, every: u32, needed: usize) -> Result<Vec<u8>, ReadFailure> {
        let calls = Cell::new(0u32);
        let mut buffer = vec![0; needed];
        let source = |to: &mut [u8], at: u64| {
            calls.set(calls.get() + 1);
            if calls.get().is_multiple_of(every) {
                return Err(io::Error::from_raw_os_error(errno));
            }
            let bytes: Vec<u8> = (0..10).skip(usize::try_from(at).unwrap()).take(to.len().min(3)).collect();
            to[..bytes.len()].copy_from_slice(&bytes);
            Ok(bytes.len())
        };
        read_exact(source, &mut buffer, 0, needed).map(|_| buffer)
    }

    #[test]
    fn interruptions_are_retried_and_bounded() {
        for errno in [libc::EINTR, libc::EAGAIN] {
            assert_eq!(read(errno, 2, 10).unwrap(), (0..10).collect::<Vec<u8>>());
            assert!(matches!(read(errno, 1, 10).unwrap_err(), ReadFailure::Failed { offset: 0, .. }));
        }
    }

    #[test]
    fn a_failure_says_where() {
        assert!(matches!(read(libc::EIO, 3, 10).unwrap_err(), ReadFailure::Failed { offset: 6, .. }));
        assert!(matches!(read(libc::EIO, 100, 12).unwrap_err(), ReadFailure::Ended { offset: 10, missing: 2 }));
    }
}
