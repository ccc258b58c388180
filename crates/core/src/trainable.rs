//! Which parameters the optimizer changes.

use serde::{Deserialize, Serialize};

use crate::glob::Globs;

/// The set of trainable parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Trainable {
    /// Full fine-tuning.
    #[default]
    All,
    /// None of the checkpoint's own (LoRA, inference).
    None,
    /// Those whose name matches (freeze).
    Matching(Globs),
}

impl Trainable {
    /// Whether the parameter of that name is trainable.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Matching(globs) => globs.matches(name),
        }
    }
}
