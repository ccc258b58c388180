"""Tiny models of real classes, saved in the hub's layout: dense, tied, experts that the class stacks, persistent buffers."""

from __future__ import annotations

import transformers as T

BASE = {
    "vocab_size": 131,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


def configs():
    moe = {"moe_intermediate_size": 10, "num_experts_per_tok": 2}
    mla = {k: v for k, v in BASE.items() if k != "head_dim"} | {"num_key_value_heads": 4}
    mla |= {"q_lora_rank": 16, "kv_lora_rank": 12, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    return {
        "qwen3": T.Qwen3Config(**BASE, tie_word_embeddings=False),
        "qwen3-tied": T.Qwen3Config(**BASE, tie_word_embeddings=True),
        "qwen3_moe": T.Qwen3MoeConfig(**BASE, **moe, num_experts=5),
        "mixtral": T.MixtralConfig(**BASE, num_experts_per_tok=2, num_local_experts=5),
        "minimax": T.MiniMaxConfig(**BASE, num_experts_per_tok=2, num_local_experts=5, block_size=16),
        "phi3": T.Phi3Config(**{k: v for k, v in BASE.items() if k != "head_dim"}, pad_token_id=0),
        "gpt_oss": T.GptOssConfig(**BASE, num_experts_per_tok=2, num_local_experts=5),
        "deepseek_v3": T.DeepseekV3Config(**mla, **moe, n_routed_experts=8, n_group=2, topk_group=1, first_k_dense_replace=1),
    }


def save(folder):
    """Saves every model in bfloat16 under `folder`, in several files."""
    import torch

    for name, config in configs().items():
        torch.manual_seed(0)
        config.dtype = torch.bfloat16
        model = T.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
        with torch.no_grad():
            for tensor in [*model.parameters(), *(b for n, b in model.named_buffers() if n in model.state_dict())]:
                tensor.copy_(torch.randn(tensor.shape).to(tensor.dtype))
        model.save_pretrained(folder / name, max_shard_size="100KB")
