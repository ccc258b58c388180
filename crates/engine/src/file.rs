//! One file, looked at and opened with care: a regular one, of bounded size, known again by its stamp.

use std::{
    ffi::CString,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use crate::{
    error::{EngineError, ErrorKind, Result},
    filenames::JOURNAL,
};

/// What identifies a file's content without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stamp {
    /// Size in bytes.
    pub size: u64,
    /// Time of the last change, in seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Device and inode.
    pub inode: (u64, u64),
}

impl Stamp {
    /// The stamp that this metadata shows.
    pub fn of(meta: &Metadata) -> Self {
        Self { size: meta.len(), mtime: (meta.mtime(), meta.mtime_nsec()), inode: (meta.dev(), meta.ino()) }
    }
}

/// Compares what a file was with what it is.
pub(crate) fn unchanged(path: &Path, was: Stamp, is: Stamp) -> Result<()> {
    let error = |what: &str| EngineError::new(ErrorKind::Checkpoint, what).file(path);
    if was.inode != is.inode {
        return Err(error("the file was replaced while it was being read")
            .expected(format_args!("inode {}", was.inode.1))
            .found(is.inode.1));
    }
    if was.size != is.size {
        return Err(error("the file's size changed while it was being read").expected(format_args!("{} bytes", was.size)).found(is.size));
    }
    if was.mtime != is.mtime {
        return Err(error("the file was written to while it was being read"));
    }
    Ok(())
}

/// Opens a file that must be one: a pipe would be waited for without end, so nothing is waited for before the file is known to be none.
pub(crate) fn open_regular(path: &Path) -> Result<(File, Metadata)> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|e| cannot_open(path, e))?;
    let meta = file.metadata().map_err(|e| EngineError::io("cannot look at the file", path, e))?;
    if !meta.is_file() {
        return Err(EngineError::new(ErrorKind::Checkpoint, "not a regular file").file(path));
    }
    Ok((file, meta))
}

/// All of a regular file of at most `most` bytes.
pub(crate) fn read_bounded(path: &Path, most: u64, too_long: &str) -> Result<Vec<u8>> {
    let (file, meta) = open_regular(path)?;
    let refuse =
        |found| EngineError::new(ErrorKind::Checkpoint, too_long).file(path).expected(format_args!("at most {most} bytes")).found(found);
    if meta.len() > most {
        return Err(refuse(meta.len()));
    }
    let mut bytes = Vec::new();
    // It may have grown since.
    file.take(most + 1).read_to_end(&mut bytes).map_err(|e| EngineError::io("cannot read the file", path, e))?;
    if bytes.len() as u64 > most { Err(refuse(bytes.len() as u64)) } else { Ok(bytes) }
}

/// Missing is a fault of the checkpoint, all else of the operating system.
pub(crate) fn cannot_open(path: &Path, error: io::Error) -> EngineError {
    let kind = if error.kind() == io::ErrorKind::NotFound { ErrorKind::Checkpoint } else { ErrorKind::Io };
    EngineError::new(kind, "cannot open the file").file(path).cause(error)
}

/// Refuses the directory of a conversion that was killed.
pub(crate) fn check_finished(dir: &Path) -> Result<()> {
    match dir.join(JOURNAL).exists() {
        false => Ok(()),
        true => {
            let what = "a conversion was killed here, and its files are not all complete; the same conversion again takes it up";
            Err(EngineError::new(ErrorKind::Checkpoint, what).file(dir))
        }
    }
}

/// The names in a directory, sorted; those that are not UTF-8 are none of a checkpoint's.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Refuses to write `needed` bytes into a directory, which need not exist yet, where its disk has less room.
pub(crate) fn check_space(dir: &Path, needed: u64, what: &str) -> Result<()> {
    let mut at = dir;
    while !at.exists() {
        at = at.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    }
    match free_space(at) {
        Ok(free) if free < needed => Err(EngineError::new(ErrorKind::Io, format!("not enough space for {what}"))
            .file(dir)
            .expected(format_args!("{needed} bytes free"))
            .found(free)),
        _ => Ok(()), // where the system does not say, writing will
    }
}

/// Bytes that this user may still write on the disk of a directory.
fn free_space(dir: &Path) -> io::Result<u64> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a NUL and outlives the call, which fills `stat` where it returns 0.
    let stat = unsafe {
        if libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        stat.assume_init()
    };
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
