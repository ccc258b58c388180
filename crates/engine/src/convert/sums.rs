//! Whether a checkpoint is whole by what its own files say. Opening it has validated headers, sizes and places; here the checksums of zips are,
//! which is all that such files have: safetensors have none.

use std::path::PathBuf;

use shardwright_formats::{ReadAt as _, Window, zip};

use crate::{
    contents::{Contents, Format, data::Bytes, dcp_items, malformed},
    error::{EngineError, ErrorKind, Result},
    load::CancelToken,
    parallel,
};

/// What [`check_sums`] found right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sums {
    /// Files that hold tensors.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes whose checksums match.
    pub summed: u64,
}

/// A zip: a file, or the bytes of one from an offset on.
struct Archive {
    path: PathBuf,
    part: Option<(u64, u64)>,
}

/// Reads every zip of a checkpoint, and validates every checksum that it states.
///
/// # Errors
/// [`ErrorKind::Checkpoint`] where one differs, [`ErrorKind::Io`] where a file cannot be read, [`ErrorKind::Cancelled`].
pub fn check_sums(contents: &Contents, watch: &(dyn Fn(u64) + Sync), cancel: &CancelToken) -> Result<Sums> {
    let mut found = Sums::default();
    for path in contents.files() {
        found.files += 1;
        found.bytes = found.bytes.saturating_add(Bytes::open(path)?.size());
    }
    let whole = || contents.files().map(|path| Archive { path: path.clone(), part: None }).collect();
    let archives: Vec<Archive> = match contents.format {
        Format::Safetensors => Vec::new(),
        Format::Dcp => dcp_items(&contents.path)?.into_iter().map(|(path, part)| Archive { path, part: Some(part) }).collect(),
        _ => whole(),
    };
    let go_on = |bytes| {
        watch(bytes);
        !cancel.is_cancelled()
    };
    let summed = parallel::map(&archives, |archive| {
        let bytes = Bytes::open(&archive.path)?;
        let (start, size) = archive.part.unwrap_or((0, bytes.size()));
        let cut = || EngineError::new(ErrorKind::Checkpoint, "the file is cut off").file(&archive.path);
        let window = Window::new(&bytes, start, size).ok_or_else(cut)?;
        if !zip::is_zip(&window) {
            return Ok(0); // torch's older format, which has no checksums
        }
        let malformed = malformed(&archive.path);
        let mut summed = 0u64;
        for member in zip::members(&window).map_err(&malformed)? {
            summed += zip::checked(&window, &member, &go_on).map_err(&malformed)?;
            if cancel.is_cancelled() {
                return Err(EngineError::new(ErrorKind::Cancelled, "the check was stopped"));
            }
        }
        Ok(summed)
    })?;
    found.summed = summed.into_iter().fold(0, u64::saturating_add);
    contents.files.check_unchanged()?;
    Ok(found)
}
