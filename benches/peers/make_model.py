"""make_model.py dense|moe FOLDER: a checkpoint with random values in the hub's layout, bfloat16: a Qwen3 of 0.6B, or a Qwen3-MoE of 1.5 GB
whose experts lie in the files one by one."""
import sys

import torch
import transformers as T

kind, folder = sys.argv[1:]
shape = {"vocab_size": 151936, "hidden_size": 1024, "head_dim": 128, "num_attention_heads": 16, "num_key_value_heads": 8,
         "max_position_embeddings": 40960, "tie_word_embeddings": True, "dtype": torch.bfloat16}
if kind == "dense":
    config = T.Qwen3Config(intermediate_size=3072, num_hidden_layers=28, **shape)
else:
    config = T.Qwen3MoeConfig(num_hidden_layers=10, num_experts=32, num_experts_per_tok=4, moe_intermediate_size=512, intermediate_size=3072, **shape)
with torch.device("meta"):
    model = T.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
model.to_empty(device="cpu")
model.tie_weights()
torch.manual_seed(0)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
model.save_pretrained(folder, max_shard_size="450MB")
print(f"{folder}: {sum(p.nbytes for p in model.parameters()) / 1e9:.2f} GB")
