//! What a save is a save of: the plan and the source's files, as one digest that its ranks agree on.

use serde_json::json;

use super::Saver;
use crate::{
    checkpoint::CheckpointFile,
    digest::{Sha256, sha256},
    error::{EngineError, ErrorKind, Result},
    manifest::VERSION,
};

/// Equal for two saves whose files may stand side by side: same plan, same source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SaveIdentity(pub(super) Sha256);

impl Saver<'_> {
    pub(super) fn identity(&self) -> Result<SaveIdentity> {
        let files = self.checkpoint.files().iter().map(|f| json!([f.name, f.stamp.size, content(f)])).collect::<Vec<_>>();
        let agreed = serde_json::to_vec(&json!([VERSION, self.format, self.plan, files]));
        let agreed = agreed.map_err(|e| EngineError::new(ErrorKind::Plan, format!("cannot write the plan: {e}")))?;
        Ok(SaveIdentity(sha256(&agreed)))
    }
}

/// What stands for a file's content without reading it: the digest that the Hugging Face cache names its blobs by (equal on every machine),
/// else the time of its last change.
fn content(file: &CheckpointFile) -> serde_json::Value {
    let blob = || {
        let real = file.path.canonicalize().ok()?;
        let blobs = real.parent()?.file_name()? == "blobs" && file.path.file_name() != real.file_name();
        let name = real.file_name()?.to_str()?;
        (blobs && name.parse::<Sha256>().is_ok()).then(|| name.to_owned())
    };
    match blob() {
        Some(digest) => json!(digest),
        None => json!([file.stamp.mtime.0, file.stamp.mtime.1]),
    }
}
