//! What accelerate wraps, which is not what LLaMA-Factory wraps. Source: `accelerate/utils/fsdp_utils.py`, `fsdp2_prepare_model`, accelerate
//! 1.15.
//!
//! Modules that the policy names are a parameter group each, the deepest first; then the input embeddings, the last norm with the output head
//! (and with the embeddings where they are tied), and the rest as the root. The last two stay gathered after forward.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shardwright_core::{PlanError, PlanInput, Reshard, TensorKind, strategy::modules};

use crate::groups::{GroupRules, ties_embeddings};

/// `wrap` of the section: what an accelerate YAML becomes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Wrap {
    /// Which modules are a parameter group each beside embeddings, head and root: `layers`, `size`, `none`.
    pub policy: Policy,
    /// Under `layers`: only modules of these classes, known by what transformers calls them.
    pub classes: Vec<String>,
    /// Under `size`: modules with more parameters than this.
    pub min_num_params: u64,
}

/// accelerate's `fsdp_auto_wrap_policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// `TRANSFORMER_BASED_WRAP`.
    Layers,
    /// `SIZE_BASED_WRAP`.
    Size,
    /// `NO_WRAP`, accelerate's default.
    #[default]
    None,
}

/// What a class's modules are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Elements of a list of blocks, in the vision tower or outside of it.
    Block { vision: bool },
    /// Children of blocks by one of these names.
    Child(&'static [&'static str]),
}

/// Ends of class names in transformers, and the children that are of such a class; longer ends first.
#[rustfmt::skip]
const ENDS: &[(&str, &[&str])] = &[
    ("SparseMoeBlock", &["mlp", "block_sparse_moe", "feed_forward"]),
    ("MoeBlock", &["mlp", "block_sparse_moe", "feed_forward"]),
    ("TextMoe", &["feed_forward", "mlp"]),
    ("MoE", &["mlp", "feed_forward"]),
    ("MLP", &["mlp"]),
    ("FeedForward", &["feed_forward", "ffn"]),
    ("Attention", &["self_attn", "attention", "attn"]),
];

/// Ends of class names of blocks.
const BLOCKS: &[&str] = &["DecoderLayer", "EncoderLayer", "Block", "Layer"];

impl Class {
    fn of(name: &str) -> Option<Self> {
        if let Some((_, children)) = ENDS.iter().find(|(end, _)| name.ends_with(end)) {
            return Some(Self::Child(children));
        }
        BLOCKS.iter().any(|end| name.ends_with(end)).then(|| Self::Block { vision: name.contains("Vision") || name.contains("Visual") })
    }
}

/// Classes whose modules are not known by name.
pub(crate) fn unknown_classes(wrap: &Wrap) -> Vec<&str> {
    wrap.classes.iter().map(String::as_str).filter(|class| Class::of(class).is_none()).collect()
}

/// The parameter groups of one model.
#[derive(Debug)]
pub(crate) struct Wrapped<'a> {
    rules: GroupRules<'a>,
    wrap: &'a Wrap,
    classes: Vec<Class>,
    /// Elements of each module, under `size`.
    sizes: BTreeMap<&'a str, u64>,
    /// Modules of the last group, and its name.
    tail: Vec<&'a str>,
    tail_name: String,
    embeddings: Option<&'a str>,
}

const INPUTS: &[&str] = &["embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "shared", "tokens_embed"];
const HEADS: &[&str] = &["lm_head", "embed_out"];
const NORMS: &[&str] = &["norm", "ln_f", "final_norm", "final_layernorm", "final_layer_norm", "norm_f", "ln_final"];

impl<'a> Wrapped<'a> {
    pub(crate) fn new(wrap: &'a Wrap, input: &PlanInput<'a>) -> Result<Self, PlanError> {
        let parameters = || input.model.tensors.iter().filter(|t| input.kind(t) == TensorKind::Parameter);
        let leaf = |module: &str| module.rsplit('.').next().unwrap_or_default().to_owned();
        let depth = |module: &&str| module.split('.').count();
        // The first of the least depth, so that a vision tower's embeddings are not the model's.
        let find = |names: &[&str], deepest: usize| {
            let owners = parameters().filter_map(|t| t.name.strip_suffix(".weight")).filter(|m| names.contains(&leaf(m).as_str()));
            owners.filter(|m| depth(m) <= deepest).min_by_key(depth)
        };
        let tied = ties_embeddings(&input.model.facts);
        let embeddings = find(INPUTS, usize::MAX);
        let mut tail: Vec<&str> = find(NORMS, 2).into_iter().collect();
        if tied {
            tail.extend(embeddings);
        }
        tail.extend(find(HEADS, usize::MAX));
        let mut sizes = BTreeMap::new();
        if wrap.policy == Policy::Size {
            for tensor in parameters() {
                for module in modules(&tensor.name) {
                    let sum: &mut u64 = sizes.entry(module).or_default();
                    *sum = sum.saturating_add(tensor.numel().unwrap_or(u64::MAX));
                }
            }
            let element = |module: &&str| leaf(module).bytes().all(|b| b.is_ascii_digit());
            let lists = sizes.keys().filter(|m| element(m)).filter_map(|m| m.rsplit_once('.')).map(|(list, _)| list);
            let too_large = lists.filter_map(|list| sizes.get_key_value(list)).find(|(_, size)| **size > wrap.min_num_params);
            if let Some((list, size)) = too_large {
                return Err(PlanError::Mesh(format!(
                    "SIZE_BASED_WRAP with fsdp_min_num_params {} wraps the list of modules '{list}', which has {size} parameters; fully_shard \
                     takes no list and the training fails: use TRANSFORMER_BASED_WRAP",
                    wrap.min_num_params
                )));
            }
        }
        let classes = wrap.classes.iter().filter_map(|class| Class::of(class)).collect();
        let tail_name = tail.join("+");
        Ok(Self { rules: GroupRules::for_model(input), wrap, classes, sizes, tail, tail_name, embeddings: embeddings.filter(|_| !tied) })
    }

    /// The parameter group that claims a parameter; empty for the root.
    pub(crate) fn group_of<'s>(&'s self, parameter: &'s str) -> &'s str {
        self.wrapped(parameter).unwrap_or_else(|| {
            let under = |module: &str| parameter.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
            match self.embeddings {
                Some(module) if under(module) => module,
                _ if self.tail.iter().any(|module| under(module)) => &self.tail_name,
                _ => "",
            }
        })
    }

    /// What happens to a parameter group after forward.
    pub(crate) fn reshard(&self, unit: &str, wanted: Reshard) -> Reshard {
        if unit.is_empty() || unit == self.tail_name { Reshard::Never } else { wanted }
    }

    fn wrapped<'s>(&'s self, parameter: &'s str) -> Option<&'s str> {
        match self.wrap.policy {
            Policy::None => None,
            Policy::Size => modules(parameter).find(|module| self.sizes.get(module).is_some_and(|size| *size > self.wrap.min_num_params)),
            Policy::Layers if self.wrap.classes.is_empty() => self.rules.block_of(parameter),
            Policy::Layers => {
                let block = self.rules.block_of(parameter)?;
                let is_vision = ["vision", "visual"].iter().any(|part| block.contains(part));
                modules(parameter).take_while(|module| module.len() >= block.len()).find(|module| {
                    self.classes.iter().any(|class| match class {
                        Class::Block { vision } => *module == block && is_vision == *vision,
                        Class::Child(names) => module.len() > block.len() && names.contains(&&module[block.len() + 1..]),
                    })
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use shardwright_core::{DType, Mesh, ModelFacts, ModelMeta, Precision, PrecisionPolicy, ShardStrategy, TensorMeta};

    use super::*;
    use crate::Fsdp2;

    #[derive(Debug)]
    struct AsIs;
    impl PrecisionPolicy for AsIs {
        fn decide(&self, param: &TensorMeta, _: bool) -> Precision {
            Precision::uniform(param.dtype)
        }
    }

    const NAMES: &[&str] = &[
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.norm.weight",
    ];

    /// Names of parameter groups with what they hold, in order.
    fn units(wrap: Wrap, tied: bool) -> Result<Vec<String>, String> {
        let facts = ModelFacts::from_config(&serde_json::json!({"model_type": "qwen3", "tie_word_embeddings": tied}));
        let names = NAMES.iter().filter(|n| !tied || **n != "lm_head.weight");
        let model = ModelMeta::new(names.map(|n| TensorMeta::new(*n, DType::F32, [4, 4])).collect(), facts).unwrap();
        let mesh = Mesh::replicate_shard(1, 2).unwrap();
        let plan = Fsdp2 { wrap: Some(wrap), ..Fsdp2::default() }.plan(&PlanInput::new(&model, &mesh, &AsIs)).map_err(|e| e.to_string())?;
        Ok(plan.groups.iter().map(|u| format!("{} {} {:?}", u.name, u.tensors.len(), u.reshard_after_forward)).collect())
    }

    fn of(policy: Policy, classes: &[&str], min_num_params: u64) -> Wrap {
        Wrap { policy, classes: classes.iter().map(|c| (*c).to_owned()).collect(), min_num_params }
    }

    /// As `fsdp2_prepare_model` of accelerate 1.15 calls `fully_shard` on a Qwen3 of transformers 5.24.
    #[test]
    fn units_are_what_accelerate_wraps() {
        let none = units(of(Policy::None, &[], 0), false).unwrap();
        assert_eq!(none, ["model.norm+lm_head 2 Never", "model.embed_tokens 1 ToShards", " 2 Never"]);
        assert_eq!(units(of(Policy::None, &[], 0), true).unwrap(), ["model.norm+model.embed_tokens 2 Never", " 2 Never"]);
        let layers = ["model.norm+lm_head 2 Never", "model.embed_tokens 1 ToShards", "model.layers.0 2 ToShards"];
        assert_eq!(units(of(Policy::Layers, &[], 0), false).unwrap(), layers);
        assert_eq!(units(of(Policy::Layers, &["Qwen3DecoderLayer"], 0), false).unwrap(), layers);
        assert_eq!(
            units(of(Policy::Layers, &["Qwen3MLP"], 0), false).unwrap(),
            ["model.norm+lm_head 2 Never", "model.embed_tokens 1 ToShards", "model.layers.0.mlp 1 ToShards", " 1 Never"]
        );
        assert_eq!(
            units(of(Policy::Layers, &["Qwen3Attention", "Qwen3DecoderLayer"], 0), false).unwrap()[2..],
            ["model.layers.0 1 ToShards", "model.layers.0.self_attn 1 ToShards"]
        );
    }

    #[test]
    fn a_size_that_lists_exceed_fails_as_fully_shard_does() {
        let error = units(of(Policy::Size, &[], 10), false).unwrap_err();
        assert!(error.contains("'model.layers', which has 32 parameters"), "{error}");
        assert_eq!(units(of(Policy::Size, &[], 1000), false), units(of(Policy::None, &[], 0), false));
    }
}
