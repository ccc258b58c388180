//! The page cache: emptied or filled with a checkpoint's files, and checked.

use std::{fs::File, io::Read, os::fd::AsRawFd, path::Path};

/// Brings the files of a directory into the cache, or out of it.
pub(crate) fn prepare(dir: &Path, cold: bool) {
    for entry in dir.read_dir().expect("the checkpoint's directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|e| e != "safetensors") {
            continue;
        }
        let mut file = File::open(&path).expect("a checkpoint's file");
        for _ in 0..5 {
            let resident = resident(&file);
            if cold && resident < 0.01 || !cold && resident > 0.999 {
                break;
            }
            if cold {
                file.sync_all().expect("sync");
                // SAFETY: advice on an open file.
                unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
            } else {
                let mut buffer = vec![0; 4 << 20];
                while file.read(&mut buffer).expect("read") > 0 {}
                std::io::Seek::rewind(&mut file).expect("rewind");
            }
        }
        let share = resident(&file);
        assert!(if cold { share < 0.02 } else { share > 0.98 }, "{} is {share:.2} cached", path.display());
    }
}

/// The share of a file that is cached.
fn resident(file: &File) -> f64 {
    let len = usize::try_from(file.metadata().expect("metadata").len()).expect("a size");
    // SAFETY: a fresh mapping, of which no byte is touched; mincore fills one byte a page.
    unsafe {
        let map = libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(map, libc::MAP_FAILED);
        let mut pages = vec![0u8; len.div_ceil(4096)];
        assert_eq!(libc::mincore(map, len, pages.as_mut_ptr()), 0);
        libc::munmap(map, len);
        pages.iter().filter(|&&p| p & 1 == 1).count() as f64 / pages.len() as f64
    }
}
