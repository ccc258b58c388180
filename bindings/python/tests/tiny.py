"""A tiny Qwen3 (dense, tied or mixture of experts) with a tokenizer, data, and configs: what LLaMA-Factory needs to train on a CPU."""

import json
from pathlib import Path

SHAPE = {
    "vocab_size": 1003,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "max_position_embeddings": 1024,
}

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

ZERO3 = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": False,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}


def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    text = [f"user asks {i} and the assistant answers {i * 7 % 101}, hello world, how are you today?" for i in range(300)]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(text, trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet))
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = TEMPLATE
    return made


def save_model(folder, kind="dense", dtype="bfloat16"):
    """Saves a model of that kind, in several files."""
    import torch
    import transformers as T

    torch.manual_seed(0)
    shape = {**SHAPE, "tie_word_embeddings": kind == "tied"}
    if kind == "moe":
        config = T.Qwen3MoeConfig(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=40, **shape)
    else:
        config = T.Qwen3Config(**shape)
    model = T.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size="200KB")
    tokenizer().save_pretrained(folder)


def save_data(folder):
    """Writes a data set in LLaMA-Factory's alpaca format."""
    folder = Path(folder)
    rows = [{"instruction": f"user asks {i}", "input": "", "output": f"the assistant answers {i * 7 % 101}, hello world"} for i in range(60)]
    (folder / "data.json").write_text(json.dumps(rows))
    (folder / "data.yaml").write_text("demo:\n  path: data.json\n  source: local\n  converter: alpaca\n")


def save_config(folder, name, model, engine, **more):
    """Writes a training config, and returns its path."""
    folder = Path(folder)
    (folder / "ds_zero3.json").write_text(json.dumps(ZERO3))
    config = {
        "model": str(model),
        "model_class": "llm",
        "flash_attn": "sdpa",
        "train_dataset": "data.yaml",
        "output_dir": f"out-{name}",
        "micro_batch_size": 1,
        "global_batch_size": 2,
        "cutoff_len": 128,
        "learning_rate": 1.0e-3,
        "bf16": True,
        "max_steps": 10,
        "logging_steps": 1,
        "batching_workers": 0,
        **more,
    }
    if engine == "fsdp2":
        config |= {"dist_config": {"name": "fsdp2"}, "init_config": {"name": "init_on_meta"}}
    else:
        config |= {"dist_config": {"name": "deepspeed", "config_file": "ds_zero3.json"}}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


def save_v0_config(folder, name, model, **more):
    """Writes a training config of LLaMA-Factory's v0 and the description of its data set, and returns the config's path."""
    folder = Path(folder)
    (folder / "ds_zero3.json").write_text(json.dumps(ZERO3))
    (folder / "dataset_info.json").write_text(json.dumps({"demo": {"file_name": "data.json"}}))
    config = {
        "model_name_or_path": str(model),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "dataset": "demo",
        "dataset_dir": str(folder),
        "template": "empty",
        "cutoff_len": 64,
        "output_dir": f"out-{name}",
        "per_device_train_batch_size": 1,
        "max_steps": 5,
        "logging_steps": 1,
        "learning_rate": 1.0e-3,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        **more,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(config))
    return path
