//! Writes down what was decided, each value with where it is from. Nothing is decided here.

use serde_json::Value as Json;
use shardwright_core::{
    DType, Mesh, ModelFacts,
    document::{Document, Origin},
    strategy_config::{BuiltPolicy, Dialect, Mixed, Training},
    tree::Node,
};

use super::Resolver;
use crate::{
    checks,
    draft::Draft,
    keys::{KEYS, Kind, Values},
    settings::Settings,
};

impl Resolver<'_> {
    #[expect(clippy::too_many_arguments, reason = "it writes everything down, once")]
    pub(super) fn write(
        &mut self,
        draft: &Draft,
        values: &Values,
        settings: &Settings,
        training: &Training,
        mesh: &Mesh,
        name: &str,
        precision: &BuiltPolicy,
        shown: bool,
    ) {
        let d = &mut self.document;
        let dialect = match draft.dialect {
            Dialect::LlamaFactory => "llamafactory",
            Dialect::Accelerate => "accelerate",
        };
        d.set(&["dialect"], dialect, Origin::rule("decided by the file's keys", [] as [&str; 0]));
        write_model(d, draft, values, self.supplied.model.as_ref());
        let section = draft.strategy.as_ref().map(|s| &s.section);
        let name_origin = section.map_or(Origin::Default, |s| Origin::Written(s.name_at.clone()));
        d.set(&["strategy", "name"], name, name_origin);
        let config = draft.strategy.as_ref().filter(|_| !shown).map_or_else(|| Json::Object(Default::default()), |s| s.config.to_json());
        d.set_section(&["strategy", "config"], &config, section.map(|s| &s.body));
        let s = &precision.summary;
        let origin = || Origin::rule(s.rule.clone(), s.from.iter().cloned());
        for (key, value) in [("storage", &s.storage), ("compute", &s.compute), ("reduce", &s.reduce), ("output", &s.output)] {
            d.set(&["precision", key], value.clone(), origin());
        }
        d.set(&["precision", "rule"], s.rule.clone(), Origin::rule(s.why.clone(), s.from.iter().cloned()));
        d.set(&["mesh", "world_size"], training.world_size.value, training.world_size.origin.clone());
        for axis in mesh.axes() {
            let key = format!("{}_size", axis.name);
            let origin = match values.uint(&key).origin {
                Origin::Default if axis.name == shardwright_core::mesh::MP_SHARD => {
                    Origin::rule("world_size / mp_replicate_size", ["/mesh/world_size", "/mesh/mp_replicate"])
                }
                origin => origin,
            };
            d.set(&["mesh", &axis.name], axis.size, origin);
        }
        d.set(&["mesh", "dp"], training.dp_size.value, training.dp_size.origin.clone());
        d.set(&["mesh", "cp"], training.cp_size.value, training.cp_size.origin.clone());
        write_batch(d, training);
        if let Some(root) = &draft.original {
            for entry in root.entries().iter().filter(|e| !matches!(e.key.as_str(), "shardwright" | "dtype" | "torch_dtype")) {
                d.set_node(&["training", &entry.key], &entry.value);
            }
            let mixed = match training.mixed.value {
                Mixed::No => "no",
                Mixed::Bf16 => "bf16",
                Mixed::Fp16 => "fp16",
            };
            // Beside a DeepSpeed file accelerate has no such key.
            let has_file = root.find(&["deepspeed_config", "deepspeed_config_file"]).is_some_and(|n| n.as_str() != Some("none"));
            if root.get("mixed_precision").and_then(Node::as_str) != Some("fp8") && !has_file {
                d.set(&["training", "mixed_precision"], mixed, training.mixed.origin.clone());
            }
        }
        let flat = draft.original.is_none();
        for key in KEYS.iter().filter(|k| flat && k.kind != Kind::Section) {
            let value = values.json(key.name);
            d.set(&["training", key.name], value.value, value.origin);
        }
        if flat {
            let dtype = training.model_dtype.value.map(DType::torch_name);
            d.set(&["training", "dtype"], dtype, training.model_dtype.origin.clone());
        }
        for key in KEYS.iter().filter(|k| flat && k.kind == Kind::Section && k.name != "dist_config") {
            match draft.sections.get(key.name) {
                None => d.set(&["training", key.name], Json::Null, Origin::Default),
                Some(section) => {
                    d.set(&["training", key.name, "name"], section.name.clone(), Origin::Written(section.name_at.clone()));
                    for inner in checks::keys_of(key.name, &section.name) {
                        d.set(&["training", key.name, inner.name], inner.default(), Origin::Default);
                    }
                    for entry in section.body.entries() {
                        d.set_node(&["training", key.name, &entry.key], &entry.value);
                    }
                }
            }
        }
        if flat && draft.sections.contains_key("optim_config") {
            let rate = values.json("learning_rate").value;
            d.set(&["training", "optim_config", "lr"], rate, Origin::rule("learning_rate decides", ["/training/learning_rate"]));
        }
        let json = serde_json::to_value(settings).unwrap_or(Json::Null);
        d.set_section(&["shardwright"], &json, draft.root.get("shardwright"));
        if let Some(policy) = draft.root.find(&["shardwright", "precision"]) {
            d.set_node(&["shardwright", "precision"], policy);
        }
    }
}

fn write_model(d: &mut Document, draft: &Draft, values: &Values, facts: Option<&ModelFacts>) {
    let model = values.text("model");
    let name = Some(draft.model()).filter(|name| !name.is_empty());
    d.set(&["model", "name"], name, model.origin);
    let known = |value: Json| match (facts, value) {
        (None, _) => (Json::Null, Origin::rule("the model's config.json is not at hand", [] as [&str; 0])),
        (Some(_), Json::Null) => (Json::Null, Origin::rule("the model's config.json does not say", [] as [&str; 0])),
        (Some(_), value) => (value, Origin::rule("the model's config.json", ["/model/name"])),
    };
    let facts = facts.cloned().unwrap_or_default();
    for (key, value) in [
        ("architecture", facts.architecture.into()),
        ("model_type", facts.model_type.into()),
        ("hidden_size", facts.hidden_size.into()),
        ("num_layers", facts.num_layers.into()),
        ("tie_word_embeddings", facts.tie_word_embeddings.into()),
        ("dtype", facts.dtype.map(DType::torch_name).into()),
    ] {
        let (value, origin) = known(value);
        d.set(&["model", key], value, origin);
    }
}

fn write_batch(d: &mut Document, training: &Training) {
    let micro = &training.micro_batch_size;
    let step = u64::from(training.dp_size.value).saturating_mul(micro.value);
    let (global, global_origin) = match training.global_batch_size.value {
        Some(global) => (global, training.global_batch_size.origin.clone()),
        None => (step, Origin::rule("dp_size * micro_batch_size", ["/mesh/dp", "/batch/micro"])),
    };
    if training.batch_is_unknown() {
        let later = || Origin::rule("the data loader decides when training starts", [] as [&str; 0]);
        d.set(&["batch", "micro"], Json::Null, later());
        d.set(&["batch", "accumulation"], Json::Null, later());
        return d.set(&["batch", "global"], Json::Null, later());
    }
    d.set(&["batch", "micro"], micro.value, micro.origin.clone());
    let rule = Origin::rule("global / (dp * micro)", ["/batch/global", "/mesh/dp", "/batch/micro"]);
    d.set(&["batch", "accumulation"], global / step.max(1), rule);
    d.set(&["batch", "global"], global, global_origin);
}
