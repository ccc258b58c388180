//! How the model was found in a checkpoint's tensors.

use serde::{Deserialize, Serialize};
use shardwright_arch::Architecture;

/// What [`ModelOptions`](crate::architecture::ModelOptions) were and which data decided: enough to find the same model in the same checkpoint again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    /// The model's class: llm, cls or other.
    pub class: String,
    /// Patterns of the checkpoint tensors that are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// A tied weight is a parameter of each parameter group that has it.
    #[serde(default, rename = "tied_in_each_unit", alias = "tied_in_each_group")]
    pub tied_in_each_group: bool,
    /// Names that config.json ties stay apart where the checkpoint has both, with other values.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tied_if_equal: bool,
    /// The version of transformers that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transformers: Option<String>,
    /// The user's own architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
    /// Which data decided, such as `transformers 5.24.0`.
    pub source: String,
}
