//! A prediction as data: what `shardwright plan --format json` prints, the page shows and the table sums up. Sizes are in bytes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ledger::{Category, Phase, Place};

/// The version of this format.
pub const SCHEMA: &str = "shardwright-plan-1";

/// Everything about a prediction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Prediction {
    /// `shardwright-plan-1`.
    pub schema: String,
    /// The version of shardwright that made it.
    pub version: String,
    /// The model.
    pub model: Model,
    /// The run's settings that memory depends on.
    pub run: Run,
    /// What each rank has.
    pub budget: Budget,
    /// The world that was asked for, then those it is compared with.
    pub worlds: Vec<World>,
    /// The formulas that the amounts are made by.
    pub formulas: Vec<Formula>,
    /// Decisions of the config, each with where it was made.
    pub decisions: Vec<Decision>,
    /// What was assumed because nothing says it.
    pub assumptions: Vec<String>,
}

/// The model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// As the config names it.
    pub name: String,
    /// `model_type` of its `config.json`.
    pub model_type: Option<String>,
    /// Elements of all parameters, adapters included.
    pub parameters: u64,
    /// Elements that are trained.
    pub trainable: u64,
    /// Tensors, by name.
    pub tensors: Vec<Tensor>,
}

/// A tensor of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its shape, in elements.
    pub shape: Vec<u64>,
}

/// The run's settings that memory depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// `adamw`, `adam_8bit`, `muon`, `sgd_momentum` or `sgd`.
    pub optimizer: String,
    /// Samples of one forward pass of one rank.
    pub micro_batch: u64,
    /// Forward passes of one optimizer step.
    pub accumulation: u64,
    /// Tokens of a sample.
    pub seq_len: u64,
    /// Activations are recomputed.
    pub activation_checkpointing: bool,
    /// `full`, `freeze`, `lora` or `inference`.
    pub tuning: String,
}

/// What each rank has; `null` where it was not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Memory of a device.
    pub device: Option<u64>,
    /// Host memory of a rank.
    pub host: Option<u64>,
}

/// One strategy on one world.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct World {
    /// The strategy's name.
    pub strategy: String,
    /// How it differs from what the config says; empty for the config itself.
    pub variant: String,
    /// Number of ranks.
    pub world_size: u32,
    /// Axes of the mesh, outermost first.
    pub mesh: Vec<Axis>,
    /// The fullest rank.
    pub peak: Peak,
    /// Whether the fullest rank fits; `null` where no memory was given.
    pub fits: Option<bool>,
    /// Ranks that hold the same, together.
    pub ranks: Vec<RankGroup>,
    /// Why some ranks hold more than others; `null` where all hold the same.
    pub uneven: Option<String>,
    /// Bytes that a rank moves in an optimizer step.
    pub traffic: Traffic,
    /// Parameter groups.
    pub units: Vec<ParamGroup>,
    /// Layouts and dtypes of tensors.
    pub layouts: Vec<Layout>,
    /// For each tensor of the model, an index into `layouts`.
    pub layout_of: Vec<u32>,
    /// Changes that save memory, the cheapest first.
    pub advice: Vec<Advice>,
}

/// An axis of the mesh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// Its name.
    pub name: String,
    /// Ranks along it.
    pub size: u32,
}

/// The highest point of the fullest rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Peak {
    /// On its device.
    pub device: u64,
    /// The phase of that point.
    pub phase: Phase,
    /// The first rank that reaches it.
    pub rank: u32,
    /// In host memory, of the rank that needs most.
    pub host: u64,
    /// On NVMe.
    pub nvme: u64,
}

/// Ranks that hold the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RankGroup {
    /// Ranges of ranks, first and last.
    pub ranks: Vec<[u32; 2]>,
    /// How many ranks these are.
    pub count: u32,
    /// The phases, in order.
    pub phases: Vec<PhaseRow>,
    /// For each parameter group, what the rank holds of it in the storage dtype, padding left out.
    pub units: Vec<u64>,
}

/// The highest point of a phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PhaseRow {
    /// The phase.
    pub phase: Phase,
    /// On the device.
    pub device: u64,
    /// In host memory.
    pub host: u64,
    /// On NVMe.
    pub nvme: u64,
    /// What these are made of; an item of 0 bytes is left out.
    pub items: Vec<Item>,
}

/// Bytes of one category in one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// Where it lies.
    pub place: Place,
    /// What it is used for.
    pub category: Category,
    /// How much it is.
    pub bytes: u64,
    /// The formula's id.
    pub formula: String,
}

/// Bytes that a rank moves in one optimizer step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// Sent to gather parameters.
    pub gather: u64,
    /// Sent to reduce gradients.
    pub reduce: u64,
    /// Between host and device.
    pub host_bus: u64,
    /// From and to NVMe.
    pub nvme: u64,
}

impl Traffic {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.gather.saturating_add(self.reduce).saturating_add(self.host_bus).saturating_add(self.nvme)
    }
}

/// A parameter group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParamGroup {
    /// The module's name; empty for the root.
    pub name: String,
    /// Indices into the model's tensors.
    pub tensors: Vec<u32>,
    /// Whole, in the storage dtypes.
    pub bytes: u64,
    /// Gathered, in the compute dtypes, padding included.
    pub gathered: u64,
}

/// How tensors are laid out, and in which dtypes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// `dim`: chunks of `ceil(shape[dim] / size)`; `flat`: elements in chunks of `ceil(numel / size)`; `whole`; `other`.
    pub rule: String,
    /// The dim of `dim`.
    pub dim: u32,
    /// A rank's place in its group is `rank / stride % size`.
    pub stride: u32,
    /// Ranks of a group.
    pub size: u32,
    /// The storage dtype.
    pub storage: String,
    /// The compute dtype.
    pub compute: String,
    /// The dtype of the gradient's reduction.
    pub reduce: String,
    /// Whether it is trained.
    pub trainable: bool,
    /// It stays gathered while training.
    pub persistent: bool,
    /// `device`, `host` or `nvme`.
    pub place: Place,
    /// A buffer of the model.
    pub buffer: bool,
}

/// A formula, and where it is from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Formula {
    /// What items refer to.
    pub id: String,
    /// The formula in words.
    pub text: String,
    /// The source that it was read from.
    pub source: String,
    /// How sure it is.
    pub certainty: Certainty,
}

/// How sure a formula is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Certainty {
    /// The engine allocates exactly this.
    Exact,
    /// Follows the engine's code; what is left out is small.
    Modelled,
    /// A guess.
    Assumed,
}

/// A decision of the config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// The key in the resolved document.
    pub key: String,
    /// Its value.
    pub value: String,
    /// File and line, a rule, or `default`.
    pub from: String,
}

/// A change that saves memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Advice {
    /// What to write.
    pub change: String,
    /// What it does.
    pub effect: String,
    /// Peak on the device then.
    pub device: u64,
    /// Peak in host memory then.
    pub host: u64,
    /// Whether that fits; `null` where no memory was given.
    pub fits: Option<bool>,
    /// More bytes moved by a rank in an optimizer step, or fewer.
    pub traffic: i64,
    /// More computation, as a share of a step: recomputing activations is about a third.
    pub computation: f64,
}

/// The JSON Schema of [`Prediction`].
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Prediction).to_value()
}
