//! All-gather groups: which module's `fully_shard` call claims a parameter.
//!
//! LLaMA-Factory wraps every module of the class of element 0 of a ModuleList called `layers` or `blocks`; where a model has none, the
//! classes in its `_no_split_modules`; and each `nn.Embedding` if the embeddings are not tied. A checkpoint has names only, so the second
//! and third rule are tables here, read off transformers 5.23 by building each model on the meta device. The deepest claim wins.

use std::collections::BTreeSet;

use shardwright_core::{Globs, ModelFacts, Modules, PlanInput, TensorKind, strategy::modules};

/// Module paths, as suffixes with `N` for a number, that `_no_split_modules` names in models without `layers` or `blocks`.
const NO_SPLIT: &[(&[&str], &[&str])] = &[
    (&["gpt2", "gptj", "gpt_neo", "gpt_bigcode", "bloom", "falcon", "codegen"], &["h.N"]),
    (&["bert", "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "dinov2"], &["embeddings", "encoder.layer.N"]),
    (&["t5", "mt5", "umt5", "longt5"], &["encoder.block.N", "decoder.block.N"]),
    // Their ModuleList is called `layers` in the class, but not in the checkpoint.
    (&["vit", "beit"], &["encoder.layer.N"]),
];

/// Model types that do not tie their embeddings unless `config.json` says so. Every other one ties.
const UNTIED: &[&str] = &[
    "codegen",
    "deepseek_v2",
    "deepseek_v3",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt_neox",
    "gpt_oss",
    "gptj",
    "granite",
    "jamba",
    "llama",
    "llama4_text",
    "llava",
    "mamba2",
    "mistral",
    "mixtral",
    "olmo",
    "olmo2",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_5_vl",
    "qwen2_moe",
    "qwen2_vl",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "rembert",
    "rwkv",
    "stablelm",
];

/// Model types whose list holds blocks of two classes, and the child that tells an element of the second class: only elements of element
/// 0's class are wrapped, and what is left is the root's.
const MIXED_LISTS: &[(&str, &str)] = &[("jamba", "self_attn")];

/// Last path segments of modules that are `nn.Embedding`.
const EMBEDDINGS: &[&str] = &[
    "embed_in",
    "embed_positions",
    "embed_tokens",
    "embeddings",
    "h_position_embeddings",
    "position_embedding",
    "position_embeddings",
    "positions_embed",
    "relative_attention_bias",
    "shared",
    "tok_embeddings",
    "token_embedding",
    "token_type_embeddings",
    "tokens_embed",
    "w_position_embeddings",
    "word_embedding",
    "word_embeddings",
    "wpe",
    "wte",
    "x_position_embeddings",
    "y_position_embeddings",
];

/// What claims a parameter.
#[derive(Debug)]
pub struct GroupRules<'a> {
    blocks: Blocks<'a>,
    embeddings: bool,
    /// Elements of a mixed list that are not of element 0's class.
    unwrapped: BTreeSet<&'a str>,
}

#[derive(Debug)]
enum Blocks<'a> {
    /// Elements of lists called `layers` or `blocks`.
    Lists,
    /// Module paths of the table.
    Paths(&'static [&'static str]),
    /// The user's own, instead of every other rule.
    Globs(&'a Globs),
    /// The model's class says.
    Known(&'a Modules),
}

impl<'a> GroupRules<'a> {
    /// The rules for a model: the user's globs, else lists, else the table.
    pub fn for_model(input: &PlanInput<'a>) -> Self {
        if !input.units.is_empty() {
            return Self { blocks: Blocks::Globs(input.units), embeddings: false, unwrapped: BTreeSet::new() };
        }
        if let Some(modules) = &input.model.modules {
            return Self { blocks: Blocks::Known(modules), embeddings: !modules.ties_embeddings, unwrapped: BTreeSet::new() };
        }
        let facts = &input.model.facts;
        let parameters = || input.model.tensors.iter().filter(|t| input.kind(t) == TensorKind::Parameter);
        let blocks = if parameters().any(|t| list_element(&t.name).is_some()) { Blocks::Lists } else { Blocks::Paths(no_split(facts)) };
        let mark = MIXED_LISTS.iter().find(|(model_type, _)| facts.model_type.as_deref() == Some(model_type)).map(|(_, child)| *child);
        let unwrapped = mark.map(|child| parameters().filter_map(|t| element_with(&t.name, child)).collect()).unwrap_or_default();
        Self { blocks, embeddings: !ties_embeddings(facts), unwrapped }
    }

    /// The block that has the parameter, if one has.
    pub(crate) fn block_of<'n>(&self, parameter: &'n str) -> Option<&'n str> {
        match &self.blocks {
            Blocks::Lists => list_element(parameter).filter(|element| !self.unwrapped.contains(element)),
            Blocks::Paths(paths) => deepest(parameter, |module| paths.iter().any(|path| ends_with_path(module, path))),
            Blocks::Globs(globs) => deepest(parameter, |module| globs.matches(module)),
            Blocks::Known(known) => deepest(parameter, |module| known.blocks.contains(module)),
        }
    }

    /// The module that claims the parameter; empty for the root.
    pub fn group_of<'n>(&self, parameter: &'n str) -> &'n str {
        let block = self.block_of(parameter);
        let embedding = || {
            let (module, _) = parameter.rsplit_once('.').filter(|(_, leaf)| *leaf == "weight")?;
            let leaf = module.rsplit('.').next()?;
            let is_embedding = match &self.blocks {
                Blocks::Known(known) => known.embeddings.contains(module),
                _ => EMBEDDINGS.contains(&leaf),
            };
            (self.embeddings && is_embedding).then_some(module)
        };
        embedding().or(block).unwrap_or("")
    }
}

fn no_split(facts: &ModelFacts) -> &'static [&'static str] {
    let model_type = facts.model_type.as_deref().unwrap_or("");
    NO_SPLIT.iter().find(|(types, _)| types.contains(&model_type)).map_or(&[], |(_, paths)| paths)
}

/// `getattr(model.config, "tie_word_embeddings", True)`, where an absent key means the class's default.
pub(crate) fn ties_embeddings(facts: &ModelFacts) -> bool {
    facts.tie_word_embeddings.unwrap_or_else(|| facts.model_type.as_deref().is_none_or(|t| !UNTIED.contains(&t)))
}

fn is_number(segment: &str) -> bool {
    !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_digit())
}

fn deepest(parameter: &str, claims: impl Fn(&str) -> bool) -> Option<&str> {
    modules(parameter).find(|module| claims(module))
}

fn list_element(parameter: &str) -> Option<&str> {
    deepest(parameter, |module| {
        let mut segments = module.rsplit('.');
        segments.next().is_some_and(is_number) && matches!(segments.next(), Some("layers" | "blocks"))
    })
}

/// The list element that has `parameter` under a child of that name.
fn element_with<'n>(parameter: &'n str, child: &str) -> Option<&'n str> {
    let element = list_element(parameter)?;
    (parameter[element.len() + 1..].split('.').next() == Some(child)).then_some(element)
}

/// True where the last segments of `module` are those of `path`, in which `N` stands for a number.
fn ends_with_path(module: &str, path: &str) -> bool {
    let mut segments = module.rsplit('.');
    path.rsplit('.').all(|want| segments.next().is_some_and(|s| if want == "N" { is_number(s) } else { s == want }))
}

#[cfg(test)]
mod tests {
    use shardwright_core::{DType, Mesh, ModelMeta, Precision, PrecisionPolicy, TensorMeta};

    use super::*;

    #[derive(Debug)]
    struct AsIs;
    impl PrecisionPolicy for AsIs {
        fn decide(&self, param: &TensorMeta, _: bool) -> Precision {
            Precision::uniform(param.dtype)
        }
    }

    /// The parameter groups of a model of these parameters, as `group: parameter` lines.
    fn units(config: &str, globs: &[&str], names: &[&str]) -> Vec<String> {
        let facts = ModelFacts::from_config(&serde_json::from_str(config).unwrap());
        let model = ModelMeta::new(names.iter().map(|n| TensorMeta::new(*n, DType::F32, [2, 2])).collect(), facts).unwrap();
        let (mesh, globs) = (Mesh::replicate_shard(1, 2).unwrap(), Globs::new(globs.iter().copied()).unwrap());
        let mut input = PlanInput::new(&model, &mesh, &AsIs);
        input.units = &globs;
        let rules = GroupRules::for_model(&input);
        names.iter().map(|n| format!("{}: {n}", rules.group_of(n))).collect()
    }

    #[test]
    fn list_elements_and_untied_embeddings_are_units() {
        let names =
            ["model.embed_tokens.weight", "model.layers.10.mlp.up_proj.weight", "model.norm.weight", "visual.blocks.1.attn.qkv.weight"];
        assert_eq!(
            units(r#"{"model_type": "qwen2_vl"}"#, &[], &names),
            [
                "model.embed_tokens: model.embed_tokens.weight",
                "model.layers.10: model.layers.10.mlp.up_proj.weight",
                ": model.norm.weight",
                "visual.blocks.1: visual.blocks.1.attn.qkv.weight"
            ]
        );
        assert_eq!(units(r#"{"model_type": "qwen3", "tie_word_embeddings": true}"#, &[], &names)[0], ": model.embed_tokens.weight");
    }

    #[test]
    fn the_deepest_claim_wins() {
        let names = ["encoder.layers.0.blocks.1.w", "encoder.layers.0.downsample.w"];
        assert_eq!(
            units("{}", &[], &names),
            ["encoder.layers.0.blocks.1: encoder.layers.0.blocks.1.w", "encoder.layers.0: encoder.layers.0.downsample.w"]
        );
    }

    #[test]
    fn models_without_lists_are_in_the_table() {
        let bert = ["bert.embeddings.LayerNorm.weight", "bert.encoder.layer.3.output.dense.bias", "bert.pooler.dense.weight"];
        assert_eq!(
            units(r#"{"model_type": "bert"}"#, &[], &bert),
            [
                "bert.embeddings: bert.embeddings.LayerNorm.weight",
                "bert.encoder.layer.3: bert.encoder.layer.3.output.dense.bias",
                ": bert.pooler.dense.weight"
            ]
        );
        assert_eq!(units(r#"{"model_type": "gpt2"}"#, &[], &["h.0.ln_1.weight", "wte.weight"]), ["h.0: h.0.ln_1.weight", ": wte.weight"]);
        // torch gives electra, which names no class, one group: the root.
        assert_eq!(units(r#"{"model_type": "electra"}"#, &[], &["electra.encoder.layer.0.w"]), [": electra.encoder.layer.0.w"]);
    }

    #[test]
    fn globs_replace_every_rule() {
        let names = ["x.0.w", "x.1.w", "x.layers.0.w"];
        assert_eq!(units("{}", &["x.[0-9]"], &names), ["x.0: x.0.w", "x.1: x.1.w", ": x.layers.0.w"]);
    }
}
