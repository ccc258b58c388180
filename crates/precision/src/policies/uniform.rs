//! `uniform`: one dtype for storage, compute and reduction, as ZeRO-3 has it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shardwright_core::{
    DType,
    diagnostic::Diagnostic,
    strategy_config::{BuiltPolicy, PolicyConfig, PolicyContext},
};

use crate::{
    policies::mixed::{Loaded, Ruled},
    rules,
};

/// One dtype for everything.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UniformConfig {
    /// The dtype.
    pub dtype: DType,
}

impl Default for UniformConfig {
    fn default() -> Self {
        Self { dtype: DType::BF16 }
    }
}

impl PolicyConfig for UniformConfig {
    const NAME: &'static str = "uniform";
    const SUMMARY: &'static str = "one dtype for storage, compute and reduction, as ZeRO-3 has it";

    fn build(self, _: &mut PolicyContext<'_>) -> Result<BuiltPolicy, Diagnostic> {
        let case = rules::uniform("uniform", "shardwright.precision names one dtype", self.dtype);
        Ok(Ruled::built(case, Loaded::AsStored, ["/shardwright/precision/name"]))
    }
}

shardwright_core::register_precision!(UniformConfig);
