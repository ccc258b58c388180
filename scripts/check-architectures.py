#!/usr/bin/env python3
"""Compares the architecture data with the installed transformers: classes are built under random configs, as transformers reads them from config.json.

    python scripts/check-architectures.py BINARY [--types llama,qwen3] [--configs 4] [--seed 1] [--flags] [--jobs 2]
    python scripts/check-architectures.py --record crates/arch/tests/whole.jsonl      writes the cases of WHOLE anew

Each model type's class is built small on the meta device, from its default config with some keys changed, and its parameters are written under the
names that transformers saves, as headers without data. `BINARY inspect --as-model` has to take every tensor and to miss none. A config that transformers
itself does not take is drawn anew. Prints what differs, and ends with 1 where a checkpoint was refused. Needs what make-architectures.py needs, which
it imports; under transformers 4 the data of 4 is checked.

--flags changes what switches parts on and off: booleans, zeros and keys that are null. Otherwise numbers, words and lists are changed as well.
"""

import argparse
import contextlib
import copy
import importlib.util
import json
import multiprocessing
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("make_architectures", HERE / "make-architectures.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)
torch, transformers = make.torch, make.transformers

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64", "int64": "I64", "int32": "I32", "uint8": "U8", "bool": "BOOL"}
MOST = 4e10  # elements of a model


def saved(model):
    """The tensors that save_pretrained would write, by their names in the file."""
    state, kept = model.state_dict(), set()
    if make.MAJOR < 5:
        groups = {}
        for name, p in model.named_parameters(remove_duplicate=False):
            groups.setdefault(id(p), []).append(name)
        for first, *others in groups.values():
            kept.update([first] if others else ())  # of a module that is in several places
            for name in others:
                state.pop(name, None)
    if make.MAJOR >= 5:
        tied = model.all_tied_weights_keys
    else:
        ties = getattr(model.config.get_text_config(decoder=True), "tie_word_embeddings", True)
        tied = (getattr(model, "_tied_weights_keys", None) or ()) if ties else ()
    for name in tied:
        if name not in kept:
            state.pop(name, None)
    if make.MAJOR >= 5:
        from transformers.core_model_loading import revert_weight_conversion

        state = revert_weight_conversion(model, state)
    return state


def class_for(model_type, config):
    """The class that is built: the language model's, else the base model; but one that takes such a config for its own. transformers itself does not
    load what another type's class saves under it: it writes names by one type's conversions and reads them by the other's."""
    found = make.classes_of(model_type)
    base = make.autos.MODEL_MAPPING_NAMES.get(model_type)
    names = [make.use(found)["llm"], base if isinstance(base, str) else base[0] if base else None, *found.values()]
    known = [getattr(transformers, name or "", None) for name in names]
    classes = [cls for cls in known if isinstance(cls, type) and issubclass(cls, make.PreTrainedModel)]
    return next((cls for cls in classes if getattr(cls, "config_class", None) is type(config)), classes[0] if classes else None)


def write(folder, state):
    """A safetensors file of these tensors, whose data is a hole."""
    head, at = {}, 0
    for name, tensor in state.items():
        kind = DTYPES.get(str(tensor.dtype).removeprefix("torch."))
        if kind:
            size = tensor.numel() * tensor.element_size()
            head[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
            at += size
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with (Path(folder) / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


def switches(value):
    return value is None or isinstance(value, bool) or type(value) is int and value <= 0


def other(rng, value):
    """Another value for a key; the same where there is none."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([2 * value, 3 * value, value + 1, value // 2]) if value > 0 else rng.choice([1, 2, 8])
    if value is None:
        return rng.choice([True, 4, 8, [0], [0, 2]])
    if isinstance(value, str):
        return rng.choice(make.WORDS)
    if isinstance(value, float) and value >= 1:
        return 2 * value
    if isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
        return rng.choice([[2 * v for v in value], [v + 1 for v in value], list(reversed(value))])
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value):
        at = rng.randrange(len(value))
        return [*value[:at], rng.choice([*value, *make.KINDS]), *value[at + 1 :]]
    return value


def changed(rng, config, flags):
    """(config, [(key, value)]) with some keys changed, of sub-configs too."""
    config, said = copy.deepcopy(config), []
    keys = [
        (of, key, value)
        for of in make.with_parts(config)
        for key, value in make.plain(of).items()
        if not isinstance(value, make.PreTrainedConfig) and key != "tie_word_embeddings" and not key.endswith(("token_id", "token_index"))
    ]
    rng.shuffle(keys)
    often = rng.choice([0.1, 0.25, 0.45])
    keys = [k for k in keys if switches(k[2]) and rng.random() < often] if flags else keys[: rng.randint(1, 5)]
    for of, key, value in keys:
        new = other(rng, value)
        if new != value:
            with contextlib.suppress(Exception):
                setattr(of, key, new)
                said.append((key, new))
    return config, said


def cut(config):
    """A config whose parts are cut short as well, and whose layers' own values are those of the layers that it has: for types of which no other draw is
    built. Parts that name layers of one another may not be cut."""
    config = copy.deepcopy(config)
    for key in getattr(config, "sub_configs", None) or ():
        if isinstance(part := getattr(config, key, None), make.PreTrainedConfig):
            setattr(config, key, cut(make.shrunk(part, make.LAYERS)))
    return type(config)(**make.plain(config)) if make.has_layers_of_their_own(config) else config


def one_type(task):
    model_type, args = task
    torch.set_num_threads(1)
    rng = random.Random(f"{args.seed} {model_type}")
    out = []
    try:
        small = make.evened(make.shrunk(make.default_config(model_type), make.LAYERS))
    except Exception:
        return out
    cls = class_for(model_type, small)
    if cls is None:
        return out
    version = ["--transformers", ".".join(transformers.__version__.split(".")[:2])]
    tries = 6 * args.configs
    for n in range(2 * tries):
        if len(out) == args.configs or n == tries and out:
            break
        if n == tries:
            small = cut(small)
        with tempfile.TemporaryDirectory() as folder:
            try:
                config, said = changed(rng, small, args.flags) if n != tries else (copy.deepcopy(small), [])
                config.architectures = [cls.__name__]
                config.save_pretrained(folder)
                model = make.build(cls, type(config).from_pretrained(folder))
                if sum(t.numel() for t in model.state_dict().values()) > (MOST if n < tries else 10 * MOST):
                    continue
            except Exception:
                continue
            try:
                state = saved(model)
            except Exception as error:
                out.append((model_type, "not written", said, f"{type(error).__name__}: {error}"))
                continue
            write(folder, state)
            run = subprocess.run([args.binary, "inspect", folder, "--as-model", "--format", "json", *version], capture_output=True, text=True)
            if run.returncode:
                out.append((model_type, "refused", said, run.stderr.strip().replace(folder, "")))
                continue
            counts = json.loads(run.stdout)["counts"]
            fine = not counts["missing"] and not counts["unused"]
            text = f"{counts['missing']} missing, {counts['unused']} unused"
            out.append((model_type, "same" if fine else "differs", said, text))
    return out


TINY = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2}
GEMMA4 = {**TINY, "num_hidden_layers": 18, "head_dim": 8, "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8}
GEMMA4_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
ZAMBA = {
    **TINY, "num_key_value_heads": 4, "n_mamba_heads": 4, "mamba_d_state": 8,
    "layers_block_type": ["hybrid", "linear_attention", "hybrid", "hybrid", "linear_attention", "hybrid"],
}  # fmt: skip
WHOLE = [
    ("bamba", {**TINY, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "attn_layer_indices": [1, 4]}),
    ("bert", {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2, "is_decoder": True, "add_cross_attention": True}),
    ("gemma4_text", {**GEMMA4, "num_kv_shared_layers": 6, "use_double_wide_mlp": True}),
    ("gemma4_text", {**GEMMA4, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}),
    ("gemma4_text", {**GEMMA4, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1}),
    ("gemma4", {"text_config": {**GEMMA4, "num_hidden_layers": 6}, "vision_config": GEMMA4_VISION}),
    ("jamba", {**TINY, "num_experts": 4, "attn_layer_period": 3, "attn_layer_offset": 1}),
    ("modernbert-decoder", {**TINY, "decoder_bias": False, "pad_token_id": 0}),
    ("t5", {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}),
    ("timm_wrapper", {"architecture": "resnet18"}),
    ("zamba", {**ZAMBA, "attention_head_dim": 16, "attention_hidden_size": 64}),
    ("zamba2", {**ZAMBA, "num_mem_blocks": 2, "adapter_rank": 4}),
]
"""Configs that one changed key does not reach, and others that were once taken for another model."""


def record(path):
    with open(path, "w") as file:
        for model_type, keys in WHOLE:
            with tempfile.TemporaryDirectory() as folder:
                config = make.CONFIG_MAPPING[model_type](**copy.deepcopy(keys))
                cls = class_for(model_type, config)
                config.architectures = [cls.__name__]
                config.save_pretrained(folder)
                said = json.loads((Path(folder) / "config.json").read_text())
            if model_type == "t5":
                said["tie_word_embeddings"] = False  # as files on the hub say, and the class does not heed
            state = saved(make.build(cls, config))
            tensors = {n: list(t.shape) for n, t in state.items()}
            file.write(json.dumps({"type": model_type, "config": said, "tensors": tensors}, separators=(",", ":")) + "\n")


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("binary", nargs="?")
    args.add_argument("--record", type=Path)
    args.add_argument("--types", help="these model types; by default all")
    args.add_argument("--configs", type=int, default=4, help="for each model type")
    args.add_argument("--seed", type=int, default=1)
    args.add_argument("--flags", action="store_true")
    args.add_argument("--jobs", type=int, default=2)
    args = args.parse_args()
    if args.record:
        return record(args.record)
    if not args.binary:
        sys.exit("which BINARY? target/debug/shardwright")
    types = args.types.split(",") if args.types else list(make.CONFIG_MAPPING_NAMES)
    found, built = {}, set()
    with multiprocessing.get_context("fork").Pool(args.jobs, maxtasksperchild=10) as pool:
        for rows in pool.imap_unordered(one_type, [(t, args) for t in types]):
            for model_type, kind, said, text in rows:
                found[kind] = found.get(kind, 0) + 1
                built.add(model_type)
                if kind != "same":
                    print(f"{kind}: {model_type} {said}: {text[:300]}", flush=True)
    if none := [t for t in types if t not in built]:
        print(f"not built under any of the configs drawn: {', '.join(none)}")
    print(", ".join(f"{n} {kind}" for kind, n in sorted(found.items())) or "nothing was built")
    sys.exit("refused" in found)


if __name__ == "__main__":
    main()
