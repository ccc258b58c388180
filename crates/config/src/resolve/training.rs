//! What the YAML says about the run, as far as sections may depend on it.

use shardwright_core::{
    DType,
    diagnostic::Diagnostic,
    document::{Origin, Sourced},
    strategy_config::{Dialect, Init, Mixed, Training, Tuning},
    text::short,
    tree::Node,
};

use super::Resolver;
use crate::{
    accelerate,
    draft::{DS_ACCELERATOR, Draft, variable},
    keys::Values,
    settings::Settings,
};

impl Resolver<'_> {
    pub(super) fn training(&mut self, draft: &Draft, values: &Values, settings: &Settings, world: Sourced<u32>) -> Training {
        let pair = [("cp_size", &values.uint("cp_size")), ("dp_size", &values.uint("dp_size"))];
        let (cp, dp) = self.product(&world, pair);
        let dp_origin = match &values.uint("dp_size").origin {
            Origin::Written(at) => Origin::Written(at.clone()),
            _ => Origin::rule("world_size / cp_size", ["/mesh/world_size", "/mesh/cp"]),
        };
        let mixed = match &draft.original {
            None => {
                let bf16 = values.bool("bf16");
                Sourced { value: if bf16.value { Mixed::Bf16 } else { Mixed::No }, origin: bf16.origin }
            }
            Some(root) => {
                let (value, at) = accelerate::mixed(root, &mut self.diagnostics);
                Sourced { value, origin: at.map_or(Origin::Default, Origin::Written) }
            }
        };
        let known = draft.dialect == Dialect::LlamaFactory;
        let only = |value: Sourced<Option<f64>>| if known { value } else { Sourced::default(None) };
        let setting = |key: &str| draft.root.find(&["shardwright", key]).map_or(Origin::Default, |n| Origin::Written(n.at.clone()));
        let micro = values.uint("micro_batch_size");
        let mut training = Training::default();
        training.dialect = draft.dialect;
        training.mixed = mixed;
        training.tuning = self.tuning(draft, settings);
        training.model_dtype = self.model_dtype(values);
        training.init = self.init(draft);
        training.dp_size = Sourced { value: dp, origin: dp_origin };
        training.cp_size = Sourced { value: cp, origin: values.uint("cp_size").origin };
        training.micro_batch_size = Sourced { value: micro.value.unwrap_or(1), origin: micro.origin };
        training.global_batch_size = values.uint("global_batch_size");
        training.max_grad_norm = only(values.float("max_grad_norm"));
        training.learning_rate = only(values.float("learning_rate"));
        let deepspeed = settings.engines.deepspeed.map_or_else(Default::default, |version| version.0);
        training.deepspeed = Sourced { value: deepspeed, origin: setting("engines") };
        training.zero3_fp16 = Sourced { value: settings.zero3_fp16, origin: setting("zero3_fp16") };
        let environment = &draft.sources[2];
        let on_cpu = variable(environment, DS_ACCELERATOR).filter(|at| environment.text[at.span.clone()].ends_with("=cpu"));
        training.deepspeed_on_cpu = Sourced { value: on_cpu.is_some(), origin: on_cpu.map_or(Origin::Default, Origin::Written) };
        training.world_size = world;
        training
    }

    pub(super) fn tuning(&mut self, draft: &Draft, settings: &Settings) -> Sourced<Tuning> {
        if settings.inference {
            let at = draft.root.find(&["shardwright", "inference"]).map(|n| n.at.clone());
            return Sourced { value: Tuning::Inference, origin: at.map_or(Origin::Default, Origin::Written) };
        }
        let Some(section) = draft.sections.get("peft_config") else { return Sourced::default(Tuning::Full) };
        let value = match section.name.as_str() {
            "lora" => Tuning::Lora,
            "freeze" => {
                Tuning::Freeze { cast_trainable: section.body.get("cast_trainable_params_to_fp32").and_then(Node::as_bool).unwrap_or(true) }
            }
            other => {
                let message = format!("peft_config.name: expected lora or freeze, found '{}'", short(other));
                self.error("config-value", message, Some(section.name_at.clone()));
                Tuning::Full
            }
        };
        Sourced { value, origin: Origin::Written(section.name_at.clone()) }
    }

    pub(super) fn model_dtype(&mut self, values: &Values) -> Sourced<Option<DType>> {
        let (new, old) = (values.text("dtype"), values.text("torch_dtype"));
        if let (Some(_), Some(_), Some(at), Some(first)) = (&new.value, &old.value, old.location(), new.location()) {
            self.diagnostics.push(
                Diagnostic::error("dtype-twice", "torch_dtype is the older spelling of dtype, and both are given")
                    .at(at)
                    .and(first, "dtype here"),
            );
        }
        let written = if new.value.is_some() { new } else { old };
        let Some(text) = &written.value else { return Sourced::default(None) };
        let dtype = DType::from_spelling(text).filter(|d| d.is_float());
        if dtype.is_none() && text != "auto" {
            let message = format!("dtype: expected auto, float32, bfloat16 or float16, found '{}'", short(text));
            self.error("config-value", message, written.location());
        }
        Sourced { value: dtype, origin: written.origin }
    }

    pub(super) fn init(&mut self, draft: &Draft) -> Sourced<Init> {
        let Some(section) = draft.sections.get("init_config") else { return Sourced::default(Init::Default) };
        let value = match section.name.as_str() {
            "init_on_meta" => Init::Meta,
            "init_on_rank0" => Init::Rank0,
            "init_on_default" => Init::Default,
            other => {
                let message =
                    format!("init_config.name: expected init_on_meta, init_on_rank0 or init_on_default, found '{}'", short(other));
                self.error("config-value", message, Some(section.name_at.clone()));
                Init::Default
            }
        };
        Sourced { value, origin: Origin::Written(section.name_at.clone()) }
    }
}
