//! What the machine is like, as far as the choice of how to read depends on it.

use std::path::Path;

use crate::memory::available;

/// Facts of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    /// Cores that this process may use: affinity and control groups count.
    pub(super) cores: usize,
    /// Bytes of memory that can be had, by machine and control groups.
    pub(super) memory: Option<u64>,
    /// Where the checkpoint lies.
    pub(super) file_system: FileSystem,
}

/// What a file system makes a reader wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileSystem {
    /// Nothing: its files are in memory.
    Memory,
    /// A network, or another process: much must be under way at once.
    Remote,
    /// A disk, as far as is known.
    Disk,
}

impl Machine {
    /// This one, with that file's file system.
    pub(super) fn here(file: Option<&Path>) -> Self {
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: available().map(|a| a.bytes),
            file_system: file.and_then(magic).map_or(FileSystem::Disk, FileSystem::of_magic),
        }
    }
}

impl FileSystem {
    /// By the number that statfs(2) gives each kind.
    fn of_magic(magic: u32) -> Self {
        match magic {
            // tmpfs, ramfs, hugetlbfs
            0x0102_1994 | 0x8584_58f6 | 0x9584_58f6 => Self::Memory,
            // NFS, SMB, CIFS, SMB2, FUSE, Lustre, Ceph, 9p, GPFS, BeeGFS, AFS
            0x6969 | 0x517b | 0xff53_4d42 | 0xfe53_4d42 | 0x6573_5546 | 0x0bd0_0bd0 | 0x00c3_6400 | 0x0102_1997 | 0x4750_4653
            | 0x1983_0326 | 0x5346_414f => Self::Remote,
            _ => Self::Disk,
        }
    }
}

#[cfg(target_os = "linux")]
fn magic(file: &Path) -> Option<u32> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(file.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path ends with a NUL and outlives the call, which fills `stat` where it returns 0.
    let stat = unsafe { if libc::statfs(path.as_ptr(), stat.as_mut_ptr()) == 0 { stat.assume_init() } else { return None } };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of 32 bits in a field of the system's width")]
    Some(stat.f_type as u32)
}

#[cfg(not(target_os = "linux"))]
fn magic(_file: &Path) -> Option<u32> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_known_by_their_numbers() {
        let kinds = [0x0102_1994, 0x6969, 0xff53_4d42, 0xef53, 0x5846_5342].map(FileSystem::of_magic);
        assert_eq!(kinds, [FileSystem::Memory, FileSystem::Remote, FileSystem::Remote, FileSystem::Disk, FileSystem::Disk]);
        // What the system says of a file system that every Linux has.
        assert_eq!(magic(Path::new("/proc")), cfg!(target_os = "linux").then_some(0x9fa0));
        assert_eq!(magic(Path::new("/no/such/file")), None);
    }
}
