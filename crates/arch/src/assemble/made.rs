//! What assembling takes, and what comes out of it.

use std::collections::BTreeMap;

use shardwright_core::{DType, Globs};

use crate::{contract::Assembly, own::Architecture};

/// Which of a model type's classes is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Use {
    /// `model_class: llm`.
    #[default]
    Llm,
    /// `model_class: cls`.
    Cls,
    /// `model_class: other`.
    Other,
}

/// What is asked for besides the checkpoint.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// The class.
    pub class: Use,
    /// Checkpoint tensors that are left out.
    pub exclude: &'a Globs,
    /// A tied weight is a parameter of every parameter group that has it, as under FSDP2.
    pub tied_in_each_group: bool,
    /// Where names that config.json ties are stored each: whether the tensors are the same, as transformers 5 compares them. Without it they are tied.
    pub same: Option<Same<'a>>,
    /// The first part of transformers' version: before 5, experts are not stacked and most names stay.
    pub transformers: u32,
    /// An architecture of the user's own, which comes before the built-in data.
    pub own: Option<&'a Architecture>,
}

/// Whether two tensors of the checkpoint, by index, have the same bytes.
#[derive(Clone, Copy)]
pub struct Same<'a>(pub &'a dyn Fn(u32, u32) -> bool);

impl std::fmt::Debug for Same<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Same")
    }
}

/// One parameter or buffer of the model.
#[derive(Clone, Debug)]
pub struct Made {
    /// Its name.
    pub name: String,
    /// Its element type in the checkpoint.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<u64>,
    /// What the class says it is; `None` where nothing is known.
    pub buffer: Option<bool>,
    /// Kept in float32 by every engine (`_keep_in_fp32_modules_strict`).
    pub keep_fp32: bool,
    /// Not rounded to the model's dtype: the class makes it in float32.
    pub fp32: bool,
    /// How it is made.
    pub assembly: Assembly,
    /// The module that FSDP wraps and it is in; empty for the root, `None` where nothing is known.
    pub block: Option<String>,
    /// It is an `nn.Embedding`'s.
    pub embedding: bool,
}

/// A checkpoint tensor that fills nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unused {
    /// Index of the tensor.
    pub source: u32,
    /// Why.
    pub reason: Reason,
}

/// Why a tensor is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The class has nothing of that name.
    NotInTheModel,
    /// The class says that checkpoints may have it.
    Ignored,
    /// A buffer that the class makes anew.
    MadeAnew,
    /// It is of an element that the list does not have: the list, the index, its length.
    Beyond(String, u64, u64),
    /// It is of a module that is of another kind by config.json: the module, the keys that decide.
    OtherKind(String, String),
    /// The class lacks it as config.json has it: what that says.
    Off(String),
    /// Tied to a tensor that is stored as well.
    TiedTo(String),
    /// Another tensor has the same name in the model.
    Twice(String),
    /// The user left it out.
    Excluded,
}

/// A parameter that nothing fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its name.
    pub name: String,
    /// Its shape, where config.json gives it.
    pub shape: Option<Vec<u64>>,
    /// What config.json says, where a key of it switches the parameter on.
    pub switch: Option<String>,
}

/// Why the checkpoint cannot be this model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// A shape that config.json contradicts.
    #[error("'{name}' is {found:?}, but config.json makes it {expected} ({from})")]
    Shape {
        /// The parameter.
        name: String,
        /// In the checkpoint.
        found: Vec<u64>,
        /// By config.json.
        expected: String,
        /// The keys.
        from: String,
    },
    /// A conversion that fails.
    #[error("'{name}' cannot be made from '{source_name}' and {more} more as transformers would: {why}")]
    Conversion {
        /// The parameter.
        name: String,
        /// The first tensor.
        source_name: String,
        /// How many others.
        more: usize,
        /// What fails.
        why: String,
    },
    /// Tensors of one parameter in several dtypes.
    #[error("'{name}' is made from tensors of several dtypes: '{first}' is {a}, '{second}' is {b}")]
    Dtypes {
        /// The parameter.
        name: String,
        /// One source.
        first: String,
        /// Its dtype.
        a: DType,
        /// Another.
        second: String,
        /// Its dtype.
        b: DType,
    },
}

/// The model as its class has it.
#[derive(Clone, Debug, Default)]
pub struct Assembled {
    /// `Qwen3MoeForCausalLM`, where the architecture is known.
    pub class: Option<String>,
    /// Its model type.
    pub model_type: Option<String>,
    /// The version of transformers whose data decided.
    pub version: Option<String>,
    /// Parameters and buffers, sorted by name.
    pub tensors: Vec<Made>,
    /// Tensors that fill nothing, by index.
    pub unused: Vec<Unused>,
    /// What nothing fills.
    pub missing: Vec<Missing>,
    /// Other names of a parameter, with its own.
    pub aliases: Vec<(String, String)>,
    /// Names that config.json ties to another, and are not: the checkpoint has both, with other values.
    pub untied: Vec<(String, String)>,
    /// What does not fit; the engine fails on the first.
    pub misfits: Vec<Misfit>,
    /// `getattr(config, "tie_word_embeddings", True)`.
    pub ties_embeddings: bool,
    /// Keys of a sub-config that is LLaMA-Factory's model (`thinker`).
    pub within: Option<String>,
    /// Modules that config.json makes of another kind than the checkpoint's tensors are, with the keys that decide.
    pub other_kinds: BTreeMap<String, String>,
}

impl Assembled {
    /// The module of another kind than the checkpoint's that a parameter is of, with the keys of config.json that decide.
    pub fn other_kind(&self, name: &str) -> Option<(&str, &str)> {
        let found = name.match_indices('.').find_map(|(end, _)| self.other_kinds.get_key_value(&name[..end]));
        found.map(|(path, keys)| (path.as_str(), keys.as_str()))
    }
}
