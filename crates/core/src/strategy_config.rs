//! A strategy's section of the YAML as a type, and what it may know when it becomes a strategy.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    DType, Mesh, ModelFacts, PrecisionPolicy, ShardStrategy,
    diagnostic::{Diagnostic, Source},
};

/// The section `dist_config: {name: NAME, …}` of one strategy.
///
/// The doc comments of the fields are the reference that `shardwright strategies NAME` prints. Derive `Deserialize` with
/// `#[serde(default, deny_unknown_fields)]`; `name` itself never reaches the type.
pub trait StrategyConfig: DeserializeOwned + Serialize + Default + JsonSchema + 'static {
    /// What the YAML names: bare for the built-ins, `vendor/name` for all others.
    const NAME: &'static str;
    /// One line for `shardwright strategies`.
    const SUMMARY: &'static str;

    /// Files that the section names, which are read before [`StrategyConfig::build`] and handed over as [`BuildContext::files`].
    fn files(&self) -> Vec<String> {
        Vec::new()
    }

    /// Makes the strategy. Findings go to `cx`; an error among them means that the answer is never used.
    ///
    /// # Errors
    /// What makes it impossible to go on.
    fn build(self, cx: &mut BuildContext<'_>) -> Result<Built, Diagnostic>;
}

/// What a section becomes.
#[derive(Debug)]
#[non_exhaustive]
pub struct Built {
    /// Decides layout.
    pub strategy: Box<dyn ShardStrategy>,
    /// The strategy's own precision policy; `None` for that of the YAML's `bf16` (mixed precision as FSDP2 has it).
    pub precision: Option<Box<dyn PrecisionPolicy>>,
}

impl Built {
    /// A strategy under the YAML's own mixed precision.
    pub fn new(strategy: impl ShardStrategy + 'static) -> Self {
        Self { strategy: Box::new(strategy), precision: None }
    }

    /// With a precision policy of its own.
    #[must_use]
    pub fn with_precision(mut self, precision: impl PrecisionPolicy + 'static) -> Self {
        self.precision = Some(Box::new(precision));
        self
    }
}

/// What a section may depend on besides itself.
#[derive(Debug)]
#[non_exhaustive]
pub struct BuildContext<'a> {
    /// All ranks, as the YAML arranges them.
    pub mesh: &'a Mesh,
    /// What `config.json` says; `None` when it is not at hand.
    pub model: Option<&'a ModelFacts>,
    /// `shardwright.storage_dtype`: `None` for what the engine would do.
    pub storage: Option<StorageDtype>,
    /// The files that the section named, by the name it gave.
    pub files: &'a BTreeMap<String, Source>,
    /// Findings so far.
    pub diagnostics: Vec<Diagnostic>,
}

/// `shardwright.storage_dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageDtype {
    /// Each tensor's own.
    Checkpoint,
    /// One for all parameters.
    Fixed(DType),
}
