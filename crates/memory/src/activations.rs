//! What a forward pass keeps for the backward pass, by architecture. Counted from transformers' modules as they run eagerly, operation by
//! operation: what autograd saves, not what a fused kernel could do without.

use serde::Serialize;
use serde_json::Value as Json;
use shardwright_core::ModelMeta;

use crate::settings::Settings;

/// Numbers of `config.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// Width of the residual stream.
    pub hidden: u64,
    /// Width of the feed-forward layer.
    pub intermediate: u64,
    /// Attention heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Entries of the vocabulary.
    pub vocab: u64,
    /// Experts that see a token.
    pub experts_per_token: u64,
    /// Width of an expert.
    pub expert_intermediate: u64,
    /// The activation function's name.
    pub activation: String,
    /// The class ends in a head over the vocabulary.
    pub has_logits: bool,
}

impl Facts {
    /// Reads them; a number that is not there is 0.
    pub fn from_config(config: &Json) -> Self {
        let number = |keys: &[&str]| {
            let places = [config, &config["text_config"]];
            keys.iter().find_map(|k| places.iter().find_map(|c| c[k].as_u64())).unwrap_or(0)
        };
        let hidden = number(&["hidden_size", "n_embd", "d_model", "dim"]);
        let heads = number(&["num_attention_heads", "n_head", "num_heads", "n_heads"]);
        let kv_heads = match number(&["num_key_value_heads"]) {
            0 => heads,
            n => n,
        };
        let head_dim = match number(&["head_dim"]) {
            0 => hidden.checked_div(heads).unwrap_or(0),
            n => n,
        };
        let class = config["architectures"][0].as_str().unwrap_or_default();
        let intermediate = match number(&["intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size"]) {
            0 => hidden.saturating_mul(4),
            n => n,
        };
        let activation = ["hidden_act", "hidden_activation", "activation_function"]
            .iter()
            .find_map(|k| config[k].as_str().or_else(|| config["text_config"][k].as_str()))
            .unwrap_or_default()
            .to_owned();
        Self {
            hidden,
            intermediate,
            heads,
            kv_heads,
            head_dim,
            vocab: number(&["vocab_size"]),
            experts_per_token: number(&["num_experts_per_tok", "moe_topk", "top_k"]),
            expert_intermediate: number(&["moe_intermediate_size", "expert_ffn_hidden_size"]),
            activation,
            has_logits: ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM"].iter().any(|end| class.ends_with(end)),
        }
    }
}

/// How a block computes, read off the names of its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Architecture {
    facts: Facts,
    gated: bool,
    rms: bool,
    qk_norm: bool,
    experts: bool,
    known: bool,
    /// Elements that the matrices of an average block take in and give out, for architectures that no formula fits.
    matrix_io: u64,
}

/// Bytes of one block for a whole micro batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Block {
    /// What the attention half keeps.
    pub attention: u64,
    /// What the feed-forward half keeps.
    pub feed_forward: u64,
    /// What checkpointing keeps instead of both.
    pub input: u64,
    /// Temporary tensors of the forward pass, beside what is kept.
    pub forward: u64,
    /// Temporary tensors of the backward pass.
    pub backward: u64,
}

impl Architecture {
    /// The architecture of a model; `config` is its `config.json`.
    pub fn new(model: &ModelMeta, config: &Json) -> Self {
        let facts = Facts::from_config(config);
        let has = |part: &str| model.tensors.iter().any(|t| t.name.contains(part));
        let norm_bias = model.tensors.iter().any(|t| t.name.contains("norm") && t.name.ends_with(".bias") && t.shape.len() == 1);
        let blocks = crate::sizes::count_blocks(model.tensors.iter().map(|t| t.name.as_str()));
        let in_blocks = model.tensors.iter().filter(|t| crate::sizes::block_of(&t.name).is_some() && t.shape.len() >= 2);
        let matrix_io: u64 =
            in_blocks.map(|t| t.shape[t.shape.len() - 1].saturating_add(t.shape[t.shape.len() - 2])).fold(0, u64::saturating_add);
        let layer_norm =
            norm_bias || ["gpt2", "bert", "opt", "bloom", "gpt_neox"].contains(&model.facts.model_type.as_deref().unwrap_or_default());
        Self {
            gated: has("gate_proj") || has("gate_up_proj") || has(".w3.") || has("feed_forward.w3"),
            rms: !layer_norm,
            qk_norm: has("q_norm"),
            experts: has("experts") && facts.experts_per_token > 0,
            known: facts.hidden > 0 && facts.heads > 0 && blocks > 0 && (has("attn") || has("attention")),
            matrix_io: matrix_io.checked_div(blocks).unwrap_or(0),
            facts,
        }
    }

    /// Whether a formula fits, or the sizes of the matrices stand in for one.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// The formula in words, with this model's numbers left as names.
    pub fn formula(&self) -> String {
        if !self.known {
            return "tokens × a × (inputs + outputs of every matrix of a block)".to_owned();
        }
        let norm = if self.rms { "norm(n) = (4 + 2a)·n" } else { "norm(n) = 2a·n" };
        let feed_forward = match (self.experts, self.gated, self.factor()) {
            (true, ..) => "a·k·(3h + 4i)".to_owned(),
            (_, true, _) => "4a·i".to_owned(),
            (_, _, factor) => format!("{factor}a·i"),
        };
        let qk = if self.qk_norm { " + (4 + a)·d·(heads + kv)" } else { "" };
        format!(
            "tokens × (2·norm(h) + a·d·(2·heads + 2·kv) + 4·heads{qk} + {feed_forward}), {norm}; \
             eager attention adds tokens × heads × seq × (4, and a where a is 2); a = bytes of the compute dtype"
        )
    }

    /// How many tensors of the feed-forward width an ungated activation keeps: transformers' NewGELU is written out in Python.
    fn factor(&self) -> u64 {
        if self.facts.activation == "gelu_new" { 5 } else { 2 }
    }

    /// One block under these settings; `width` is that of the compute dtype.
    pub(crate) fn block(&self, settings: &Settings, width: u64) -> Block {
        let (tokens, a, f) = (settings.tokens(), width, &self.facts);
        let times = |per_token: u64| tokens.saturating_mul(per_token);
        if !self.known {
            let all = times(a.saturating_mul(self.matrix_io));
            let input = times(a.saturating_mul(f.hidden));
            return Block { attention: all / 2, feed_forward: all - all / 2, input, forward: 0, backward: all / 4 };
        }
        let norm = |n: u64| if self.rms { (4 + 2 * a) * n } else { 2 * a * n };
        let (q, kv) = (f.heads.saturating_mul(f.head_dim), f.kv_heads.saturating_mul(f.head_dim));
        let qk_norm = if self.qk_norm { (4 + a) * (q + kv) } else { 0 };
        let scores = if settings.eager_attention {
            let each = 4 + if a == 4 { 0 } else { a };
            f.heads.saturating_mul(settings.seq_len).saturating_mul(each)
        } else {
            4 * f.heads
        };
        let attention = norm(f.hidden) + a * (2 * q + 2 * kv) + qk_norm + scores;
        let (i, k) = (f.intermediate, f.experts_per_token);
        let expert = if f.expert_intermediate > 0 { f.expert_intermediate } else { i };
        let feed_forward = match (self.experts, self.gated) {
            (true, _) => a * k * (3 * f.hidden + 4 * expert),
            (_, true) => 4 * a * i,
            _ => self.factor() * a * i,
        };
        let wide = if self.experts { k * expert } else { i };
        Block {
            attention: times(attention),
            feed_forward: times(norm(f.hidden) + feed_forward),
            input: times(a * f.hidden),
            forward: times(2 * a * f.hidden),
            backward: times(a * (2 * wide + 2 * f.hidden)),
        }
    }

    /// Bytes of the logits: in the compute dtype, and in the float32 that the loss is computed in.
    pub(crate) fn logits(&self, settings: &Settings, width: u64) -> (u64, u64) {
        if !self.facts.has_logits {
            return (0, 0);
        }
        let entries = settings.tokens().saturating_mul(self.facts.vocab);
        (entries.saturating_mul(width), entries.saturating_mul(4))
    }

    /// Bytes of the final norm and of the embedding's output.
    pub(crate) fn outside(&self, settings: &Settings, width: u64) -> u64 {
        settings.tokens().saturating_mul((4 + 2 * width).saturating_mul(self.facts.hidden))
    }
}
