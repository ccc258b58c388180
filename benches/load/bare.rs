//! The roofline: read these ranges, with a cast or without, with as many threads, into fresh memory that asks for huge pages. No plan, no
//! checks, nothing counted.

use std::{
    fs::File,
    mem::MaybeUninit,
    ops::Range,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicUsize, Ordering},
};

use shardwright_cast::Caster;

const BLOCK: usize = 512 << 10;
const TASK: usize = 8 << 20;
const HUGE: usize = 2 << 20;

/// Bytes of one file, and where they go.
pub(crate) struct Piece {
    pub(crate) file: usize,
    pub(crate) offset: u64,
    pub(crate) bytes: usize,
    pub(crate) to: usize,
}

/// Cuts ranges of files into pieces; answers with the bytes they take in memory too. `widen` is stored bytes by read bytes.
pub(crate) fn pieces(ranges: &[(usize, Range<u64>)], widen: (usize, usize)) -> (Vec<Piece>, usize) {
    let (mut pieces, mut to) = (Vec::new(), 0);
    for (file, range) in ranges {
        for start in range.clone().step_by(TASK) {
            let bytes = usize::try_from((range.end - start).min(TASK as u64)).expect("a task");
            pieces.push(Piece { file: *file, offset: start, bytes, to });
            to += bytes * widen.0 / widen.1;
        }
    }
    (pieces, to)
}

/// Reads them all.
pub(crate) fn run(files: &[File], pieces: &[Piece], total: usize, widen: (usize, usize), cast: Option<Caster>, threads: usize) -> *mut u8 {
    let memory = map(total) as usize;
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut staging = vec![0; BLOCK];
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (file, len) = (&files[piece.file], piece.bytes * widen.0 / widen.1);
                    // SAFETY: pieces are disjoint by construction, and inside the mapping.
                    let to = unsafe { std::slice::from_raw_parts_mut((memory + piece.to) as *mut MaybeUninit<u8>, len) };
                    match cast {
                        None => {
                            // SAFETY: anonymous memory is initialised.
                            let to = unsafe { &mut *(std::ptr::from_mut(to) as *mut [u8]) };
                            file.read_exact_at(to, piece.offset).expect("read");
                        }
                        Some(cast) => {
                            for at in (0..piece.bytes).step_by(BLOCK) {
                                let n = BLOCK.min(piece.bytes - at);
                                file.read_exact_at(&mut staging[..n], piece.offset + at as u64).expect("read");
                                cast(&staging[..n], &mut to[at * widen.0 / widen.1..][..n * widen.0 / widen.1]);
                            }
                        }
                    }
                }
            });
        }
    });
    memory as *mut u8
}

/// Reads ranges one after the other into one small buffer.
pub(crate) fn sequential(files: &[File], ranges: &[(usize, Range<u64>)]) {
    let mut buffer = vec![0; 1 << 20];
    for (file, range) in ranges {
        for start in range.clone().step_by(buffer.len()) {
            let n = usize::try_from((range.end - start).min(1 << 20)).expect("a block");
            files[*file].read_exact_at(&mut buffer[..n], start).expect("read");
        }
    }
}

pub(crate) fn map(len: usize) -> *mut u8 {
    // SAFETY: a fresh mapping, larger by what the alignment skips.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let map = libc::mmap(std::ptr::null_mut(), len + 2 * HUGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        assert_ne!(map, libc::MAP_FAILED);
        let start = map.cast::<u8>().add(map.align_offset(HUGE));
        libc::madvise(start.cast(), len.next_multiple_of(HUGE), libc::MADV_HUGEPAGE);
        start
    }
}
