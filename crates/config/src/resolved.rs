//! A resolution as an input: what `--format yaml` or `json` gave can be resolved again, and nothing changes. Recognised by its own keys and
//! unpacked into the dialect that it was made of, with every value written out.

use shardwright_core::{
    DType, ModelFacts,
    document::{Document, Origin},
    replicate::REPLICATE,
    tree::{Node, Value},
};

/// Keys of a DeepSpeed config that `dist_config: {name: zero3}` has as its own; the others go under `other`.
#[rustfmt::skip]
const INLINE: &[&str] = &[
    "zero_optimization", "bf16", "fp16", "gradient_clipping", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
];

/// True for a document that `resolve` made.
pub(super) fn is_dialect(root: &Node) -> bool {
    ["strategy", "precision", "mesh", "batch", "training"].iter().all(|key| root.get(key).is_some_and(Node::is_map))
}

/// The flat keys of the dialect that it was made of.
pub(super) fn unpack(root: &Node) -> Node {
    let mut flat = root.get("training").cloned().unwrap_or_else(|| Node::map(Vec::new(), root.at.clone()));
    if let Some(settings) = root.entry("shardwright") {
        flat.set("shardwright", settings.at.clone(), settings.value.clone());
    }
    flat
}

/// `dist_config` written out.
pub(super) fn dist_config(root: &Node) -> Option<Node> {
    let strategy = root.get("strategy")?;
    if let Some(deepspeed) = root.get("deepspeed").filter(|n| n.is_map()) {
        let mut dist = Node::map(Vec::new(), deepspeed.at.clone());
        let mut other = Node::map(Vec::new(), deepspeed.at.clone());
        dist.set("name", deepspeed.at.clone(), Node::text("zero3", deepspeed.at.clone()));
        for entry in deepspeed.entries() {
            let to = if INLINE.contains(&entry.key.as_str()) { &mut dist } else { &mut other };
            to.set(&entry.key, entry.at.clone(), entry.value.clone());
        }
        dist.set("other", deepspeed.at.clone(), other);
        return Some(dist);
    }
    let name = strategy.entry("name").filter(|e| e.value.as_str() != Some(REPLICATE))?;
    let mut dist = strategy.get("config").filter(|n| n.is_map()).cloned().unwrap_or_else(|| Node::map(Vec::new(), strategy.at.clone()));
    dist.set("name", name.at.clone(), name.value.clone());
    Some(dist)
}

/// The model's facts, as they were at hand.
pub(super) fn facts(root: &Node) -> Option<ModelFacts> {
    let model = root.get("model")?;
    let text = |key: &str| model.get(key).and_then(Node::as_str).map(str::to_owned);
    let number = |key: &str| model.get(key).and_then(Node::as_integer).and_then(|i| u64::try_from(i).ok());
    let mut facts = ModelFacts::default();
    facts.architecture = text("architecture");
    facts.model_type = text("model_type");
    facts.hidden_size = number("hidden_size");
    facts.num_layers = number("num_layers");
    facts.tie_word_embeddings = model.get("tie_word_embeddings").and_then(Node::as_bool);
    facts.dtype = text("dtype").and_then(|t| DType::from_spelling(&t));
    (facts != ModelFacts::default()).then_some(facts)
}

/// What cannot follow again, because its reason is gone, is taken over: the name of the precision rule, and the section as it was written.
pub(super) fn carry_over(root: &Node, document: &mut Document) {
    let same = |key: &str| {
        let then = root.find(&["precision", key]).map(Node::to_json);
        then.as_ref() == document.get(&format!("/precision/{key}"))
    };
    if ["storage", "compute", "reduce", "output"].iter().all(|key| same(key))
        && let Some(rule) = root.find(&["precision", "rule"])
    {
        document.set(&["precision", "rule"], rule.to_json(), Origin::Written(rule.at.clone()));
    }
    // What the checkpoint said, where it is not at hand any more.
    for entry in root.get("model").map(Node::entries).unwrap_or_default() {
        if document.get(&format!("/model/{}", entry.key)).is_none() {
            document.set_node(&["model", &entry.key], &entry.value);
        }
    }
    if let Some(config) = root.find(&["strategy", "config"]) {
        document.remove(&["strategy", "config"]);
        match &config.value {
            Value::Map(entries) if entries.is_empty() => document.set(&["strategy", "config"], config.to_json(), Origin::Default),
            _ => document.set_node(&["strategy", "config"], config),
        }
    }
}
