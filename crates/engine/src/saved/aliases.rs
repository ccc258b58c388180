//! Names under which a model has a tensor a second time: tied weights, which a checkpoint stores once but a model's `state_dict()` lists
//! twice. torch and transformers look for every name, so torch's format stores the tensor under each.

use shardwright_core::{ModelMeta, Name, ShardPlan};

use crate::checkpoint::Checkpoint;

/// A second name of a tensor of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The second name.
    pub name: Name,
    /// Index of the tensor in the plan.
    pub tensor: usize,
}

/// Output embeddings and the input embeddings that they are tied to, by usual names: a guess for classes that no data describes.
const TIED: [(&str, &str); 9] = [
    ("lm_head.weight", "model.embed_tokens.weight"),
    ("lm_head.weight", "model.language_model.embed_tokens.weight"),
    ("lm_head.weight", "model.decoder.embed_tokens.weight"),
    ("lm_head.weight", "transformer.wte.weight"),
    ("lm_head.weight", "shared.weight"),
    ("encoder.embed_tokens.weight", "shared.weight"),
    ("decoder.embed_tokens.weight", "shared.weight"),
    ("embed_out.weight", "gpt_neox.embed_in.weight"),
    ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
];

/// Classes with an output embedding end so.
const HEADS: [&str; 5] = ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining"];

/// The second names of the tied weights of the model's class; of a class that is not known, what its `config.json` says.
pub(crate) fn of_checkpoint(checkpoint: &Checkpoint) -> Vec<(Name, Name)> {
    let model = checkpoint.assembled();
    let known = model.meta.modules.is_some() || !model.aliases.is_empty();
    if known { model.aliases.clone() } else { aliases(&model.meta) }
}

/// The tied weights of a model of an unknown class as its `config.json` says: a class with an output embedding, embeddings tied (transformers' default), and
/// no tensor of its own in the checkpoint.
fn aliases(model: &ModelMeta) -> Vec<(Name, Name)> {
    let facts = &model.facts;
    let head = facts.architecture.as_deref().is_some_and(|class| HEADS.iter().any(|end| class.ends_with(end)));
    if !head || facts.tie_word_embeddings == Some(false) {
        return Vec::new();
    }
    let has = |name: &str| model.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).is_ok();
    let tied = TIED.into_iter().filter(|(alias, tensor)| has(tensor) && !has(alias));
    tied.map(|(alias, tensor)| (alias.into(), tensor.into())).collect()
}

/// These pairs of a second name and a tensor's name, by index, sorted; a name that is taken, or of no tensor, is an error.
pub(crate) fn of_plan<'n>(plan: &ShardPlan, pairs: impl IntoIterator<Item = (&'n str, &'n str)>) -> Result<Vec<Alias>, String> {
    let mut pairs = pairs.into_iter().peekable();
    if pairs.peek().is_none() {
        return Ok(Vec::new());
    }
    let indices: std::collections::BTreeMap<&str, usize> = plan.tensors.iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
    let index = |(alias, tensor): (&str, &str)| match (indices.get(alias), indices.get(tensor)) {
        (None, Some(&tensor)) => Ok(Alias { name: alias.into(), tensor }),
        (Some(_), _) => Err(format!("tensor '{alias}' is not a second name of '{tensor}': the plan has both")),
        (None, None) => Err(format!("'{alias}' is a second name of '{tensor}', which the plan does not have")),
    };
    let mut aliases = pairs.map(index).collect::<Result<Vec<_>, _>>()?;
    aliases.sort_by(|a, b| a.name.cmp(&b.name));
    match aliases.windows(2).find(|pair| pair[0].name == pair[1].name) {
        Some(pair) => Err(format!("'{}' is a second name twice", pair[0].name)),
        None => Ok(aliases),
    }
}

#[cfg(test)]
mod tests {
    use shardwright_core::{DType, ModelFacts, TensorMeta};

    use super::*;

    fn tied(config: &str, names: &[&str]) -> Vec<String> {
        let facts = ModelFacts::from_config(&serde_json::from_str(config).unwrap());
        let tensors = names.iter().map(|n| TensorMeta::new(*n, DType::F32, [2])).collect();
        aliases(&ModelMeta::new(tensors, facts).unwrap()).iter().map(|(a, t)| format!("{a} = {t}")).collect()
    }

    #[test]
    fn tied_embeddings_have_two_names() {
        let llama = r#"{"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true}"#;
        assert_eq!(tied(llama, &["model.embed_tokens.weight"]), ["lm_head.weight = model.embed_tokens.weight"]);
        assert_eq!(tied(llama, &["lm_head.weight", "model.embed_tokens.weight"]), Vec::<String>::new());
        assert_eq!(tied(&llama.replace("true", "false"), &["model.embed_tokens.weight"]), Vec::<String>::new());
        assert_eq!(tied(r#"{"architectures": ["LlamaModel"]}"#, &["model.embed_tokens.weight"]), Vec::<String>::new());
        assert_eq!(tied(r#"{"architectures": ["T5ForConditionalGeneration"]}"#, &["shared.weight"]).len(), 3);
    }
}
