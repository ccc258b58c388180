//! `dist_config: {name: fsdp2, …}` as LLaMA-Factory has it: its keys, and what they mean for the layout.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shardwright_core::{
    Offload, Reshard,
    diagnostic::Diagnostic,
    mesh::MP_SHARD,
    strategy_config::{BuildContext, Built, Dialect, StrategyConfig},
    tree::{truth, truthiness},
};

use crate::{
    Fsdp2,
    layout::NAME,
    wrap::{Wrap, unknown_classes},
};

/// PyTorch FSDP2.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Fsdp2Config {
    /// Cut parameters again after the forward pass: true, false, or the number of ranks that they are cut over then.
    pub reshard_after_forward: ReshardAfterForward,
    /// Keep shards in host memory.
    #[serde(deserialize_with = "truth")]
    pub offload_params: bool,
    /// Pin that memory.
    #[serde(deserialize_with = "truth")]
    pub pin_memory: bool,
    /// A distributed checkpoint that is loaded instead of the model's own files.
    pub dcp_path: Option<String>,
    /// What accelerate wraps, where the YAML was accelerate's; null for what LLaMA-Factory wraps, which has no such key.
    pub wrap: Option<Wrap>,
}

impl Default for Fsdp2Config {
    fn default() -> Self {
        Self {
            reshard_after_forward: ReshardAfterForward(Reshard::ToShards),
            offload_params: false,
            pin_memory: true,
            dcp_path: None,
            wrap: None,
        }
    }
}

/// A boolean, or a number of ranks; null is true, as torch takes it but for the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReshardAfterForward(pub Reshard);

impl Serialize for ReshardAfterForward {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Reshard::ToRanks(ranks) => s.serialize_u32(ranks),
            reshard => s.serialize_bool(reshard != Reshard::Never),
        }
    }
}

impl<'de> Deserialize<'de> for ReshardAfterForward {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Reshard;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a boolean or a number of ranks")
            }
            fn visit_unit<E>(self) -> Result<Reshard, E> {
                Ok(Reshard::ToShards)
            }
            fn visit_bool<E>(self, v: bool) -> Result<Reshard, E> {
                Ok(if v { Reshard::ToShards } else { Reshard::Never })
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Reshard, E> {
                u32::try_from(v).ok().filter(|n| *n > 0).map(Reshard::ToRanks).ok_or_else(|| E::custom("expected at least one rank"))
            }
        }
        d.deserialize_any(Visitor).map(Self)
    }
}

impl JsonSchema for ReshardAfterForward {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ReshardAfterForward".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["boolean", "integer", "null"], "minimum": 1 })
    }
}

impl StrategyConfig for Fsdp2Config {
    const NAME: &'static str = NAME;
    const SUMMARY: &'static str = "PyTorch FSDP2: parameters cut on dim 0, storage and compute dtypes apart";

    fn build(self, cx: &mut BuildContext<'_>) -> Result<Built, Diagnostic> {
        if let Some(entry) = cx.section.entry("wrap").filter(|e| cx.training.dialect == Dialect::LlamaFactory && !e.value.is_null()) {
            let message = "unknown key 'wrap' in dist_config: LLaMA-Factory chooses itself what it wraps";
            let help = "leave it out; shardwright.units names other modules for the layout here";
            cx.diagnostics.push(Diagnostic::error("config-unknown-key", message).at(entry.at.clone()).help(help));
        }
        for key in ["offload_params", "pin_memory"] {
            if let Some(node) = cx.section.get(key).filter(|n| n.as_bool().is_none()) {
                cx.diagnostics.push(truthiness(&format!("dist_config.{key}"), node));
            }
        }
        let shard = cx.mesh.size_of(MP_SHARD);
        if let Reshard::ToRanks(ranks) = self.reshard_after_forward.0
            && !shard.is_multiple_of(ranks)
        {
            let message = format!("reshard_after_forward is {ranks}, expected a divisor of mp_shard_size, which is {shard}");
            return Err(Diagnostic::error("fsdp2-reshard", message).at(cx.at("reshard_after_forward")));
        }
        if self.offload_params && !self.pin_memory {
            let message = "offload_params without pin_memory copies to and from the device synchronously";
            cx.diagnostics.push(Diagnostic::warning("offload-unpinned", message).at(cx.at("pin_memory")));
        }
        let unknown = self.wrap.as_ref().map(unknown_classes).unwrap_or_default();
        if !unknown.is_empty() {
            let message = format!(
                "the wrap policy names {}, and which modules are of that class is not known: their parameters are laid out with the rest",
                unknown.join(", ")
            );
            let help = "name the modules under shardwright.units, such as 'model.layers.*.mlp'";
            cx.diagnostics.push(Diagnostic::warning("accelerate-wrap", message).at(cx.at("wrap")).help(help));
        }
        let offload = if self.offload_params { Offload::Cpu } else { Offload::None };
        Ok(Built::new(Fsdp2 { reshard_after_forward: self.reshard_after_forward.0, offload, wrap: self.wrap }))
    }
}

shardwright_core::register_strategy!(Fsdp2Config);
