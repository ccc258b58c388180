#!/usr/bin/env python3
"""Compares the architecture data with the installed transformers: classes are built under random configs, as transformers reads them from config.json.

    python scripts/check-architectures.py BINARY [--types llama,qwen3] [--configs 4] [--seed 1] [--flags | --switched] [--jobs 2]
    python scripts/check-architectures.py --record crates/arch/tests/whole.jsonl      writes the cases of WHOLE anew
    python scripts/check-architectures.py --switches crates/arch/tests/switches.jsonl      writes those of SWITCHES, with what from_pretrained reports
    python scripts/check-architectures.py --released crates/arch/tests/released.jsonl      writes its tensors anew; the configs are those of released models

Each model type's class is built small on the meta device, from its default config with some keys changed, and its parameters are written under the
names that transformers saves, as headers without data. `BINARY inspect --as-model` has to take every tensor and to miss none. A config that transformers
itself does not take is drawn anew. Prints what differs, and ends with 1 where a checkpoint was refused. Needs what make-architectures.py needs, and
imports its package; under transformers 4 the data of 4 is checked.

--flags changes what switches parts on and off: booleans, zeros and keys that are null. Otherwise numbers, words and lists are changed as well.
--switched changes such a key between the files and config.json, where that changes which parameters there are: "told" where all that is then missing or
unused is reported, "untold" where some is not, "wrong" where something else is.
"""

import argparse
import contextlib
import copy
import json
import multiprocessing
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from architectures.changes import KINDS, WORDS
from architectures.configs import has_layers_of_their_own, parts_of, plain, with_parts
from architectures.default_configs import LAYERS, default_config, evened, shrunk
from architectures.library import (
    CONFIG_MAPPING,
    CONFIG_MAPPING_NAMES,
    MAJOR,
    PreTrainedConfig,
    base_of,
    build,
    by_use,
    classes_of,
    is_model,
    torch,
    transformers,
)

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64", "int64": "I64", "int32": "I32", "uint8": "U8", "bool": "BOOL"}
MOST = 4e10  # elements of a model


def saved(model):
    """The tensors that save_pretrained would write, by their names in the file."""
    state, kept = model.state_dict(), set()
    if MAJOR < 5:
        groups = {}
        for name, p in model.named_parameters(remove_duplicate=False):
            groups.setdefault(id(p), []).append(name)
        for first, *others in groups.values():
            kept.update([first] if others else ())  # of a module that is in several places
            for name in others:
                state.pop(name, None)
    if MAJOR >= 5:
        tied = model.all_tied_weights_keys
    else:
        ties = getattr(model.config.get_text_config(decoder=True), "tie_word_embeddings", True)
        tied = (getattr(model, "_tied_weights_keys", None) or ()) if ties else ()
    for name in tied:
        if name not in kept:
            state.pop(name, None)
    if MAJOR >= 5:
        from transformers.core_model_loading import revert_weight_conversion

        state = revert_weight_conversion(model, state)
    return state


def class_for(model_type, config):
    """The class that is built: the language model's, else the base model; but one that takes such a config for its own. transformers itself does not
    load what another type's class saves under it: it writes names by one type's conversions and reads them by the other's."""
    found = classes_of(model_type)
    names = [by_use(found)["llm"], base_of(model_type), *found.values()]
    classes = [cls for name in names if is_model(cls := getattr(transformers, name or "", None))]
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
    return value is None or isinstance(value, bool) or (type(value) is int and value <= 0)


def other(rng, value):
    """Another value for a key; the same where there is none."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([2 * value, 3 * value, value + 1, value // 2]) if value > 0 else rng.choice([1, 2, 8])
    if value is None:
        return rng.choice([True, 4, 8, [0], [0, 2]])
    if isinstance(value, str):
        return rng.choice(WORDS)
    if isinstance(value, float) and value >= 1:
        return 2 * value
    if isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
        return rng.choice([[2 * v for v in value], [v + 1 for v in value], list(reversed(value))])
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value):
        at = rng.randrange(len(value))
        return [*value[:at], rng.choice([*value, *KINDS]), *value[at + 1 :]]
    return value


def changed(rng, config, flags):
    """(config, [(key, value)]) with some keys changed, of sub-configs too."""
    config, said = copy.deepcopy(config), []
    keys = [
        (of, key, value)
        for of in with_parts(config)
        for key, value in plain(of).items()
        if not isinstance(value, PreTrainedConfig) and key != "tie_word_embeddings" and not key.endswith(("token_id", "token_index"))
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
    for key, part in parts_of(config).items():
        setattr(config, key, cut(shrunk(part, LAYERS)))
    return type(config)(**plain(config)) if has_layers_of_their_own(config) else config


def report(args, folder, version):
    return subprocess.run([args.binary, "inspect", folder, "--as-model", "--format", "json", *version], capture_output=True, text=True)


def switched(model_type, args, cls, small, version):
    """Rows of configs of which one key is changed after the files were written."""
    rng, out = random.Random(f"{args.seed} {model_type}"), []
    for _ in range(12 * args.configs):
        if len(out) == args.configs:
            break
        with tempfile.TemporaryDirectory() as folder:
            try:
                config, said = changed(rng, small, True) if rng.random() < 0.5 else (copy.deepcopy(small), [])
                config.architectures = [cls.__name__]
                other_config = copy.deepcopy(config)
                keys = [
                    (of, key, value)
                    for of in with_parts(other_config)
                    for key, value in plain(of).items()
                    if switches(value) and key != "tie_word_embeddings" and not key.endswith(("token_id", "token_index"))
                ]
                of, key, value = rng.choice(keys)
                new = other(rng, value)
                setattr(of, key, new)
                config.save_pretrained(folder)
                model = build(cls, type(config).from_pretrained(folder))
                other_config.save_pretrained(folder)
                as_said = build(cls, type(config).from_pretrained(folder))
                has, wants, files, wanted = set(model.state_dict()), set(as_said.state_dict()), saved(model), saved(as_said)
                if has == wants or sum(t.numel() for t in model.state_dict().values()) > MOST:
                    continue
            except Exception:
                continue
            write(folder, files)
            run = report(args, folder, version)
            if run.returncode:
                continue  # a size that follows from the key as well
            found = json.loads(run.stdout)
            tied = {name for line in (getattr(as_said, "all_tied_weights_keys", None) or {},) for name in line}
            missing, unused = {m["name"] for m in found["missing"]}, {u["tensor"] for u in found["unused"]}
            true_missing, true_unused = wants - has - tied, set(files) - set(wanted)
            wrong = (missing - true_missing) | (unused - true_unused)
            untold = (true_missing - missing) | (true_unused - unused)
            kind = "wrong" if wrong else "untold" if untold else "told"
            out.append((model_type, kind, [*said, (key, value, new)], f"{len(wrong)} wrong, {len(untold)} untold: {sorted(wrong or untold)[:3]}"))
    return out


def one_type(task):
    model_type, args = task
    torch.set_num_threads(1)
    rng = random.Random(f"{args.seed} {model_type}")
    out = []
    try:
        small = evened(shrunk(default_config(model_type), LAYERS))
    except Exception:
        return out
    cls = class_for(model_type, small)
    if cls is None:
        return out
    version = ["--transformers", ".".join(transformers.__version__.split(".")[:2])]
    if args.switched:
        return switched(model_type, args, cls, small, version)
    tries = 6 * args.configs
    for n in range(2 * tries):
        if len(out) == args.configs or (n == tries and out):
            break
        if n == tries:
            small = cut(small)
        with tempfile.TemporaryDirectory() as folder:
            try:
                config, said = changed(rng, small, args.flags) if n != tries else (copy.deepcopy(small), [])
                config.architectures = [cls.__name__]
                config.save_pretrained(folder)
                model = build(cls, type(config).from_pretrained(folder))
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
            run = report(args, folder, version)
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
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
OPT = {"vocab_size": 96, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
CLIP = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
SWIN = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2, "image_size": 32}
MASKS = {
    "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 2,
    "encoder_feedforward_dim": 8, "dim_feedforward": 8, "num_queries": 4,
}  # fmt: skip
WHOLE = [
    ("albert", {"vocab_size": 96, "embedding_size": 8, "hidden_size": 32, "num_attention_heads": 5, "intermediate_size": 48, "num_hidden_layers": 2}),
    ("bamba", {**TINY, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "attn_layer_indices": [1, 4]}),
    ("blip-2", {"text_config": {"model_type": "opt", **OPT}, "vision_config": VISION, "qformer_config": {**CLIP, "encoder_hidden_size": 48}}),
    ("chinese_clip", {"text_config": CLIP, "vision_config": VISION}),
    ("dbrx", {"vocab_size": 96, "d_model": 32, "n_heads": 8, "n_layers": 2, "attn_config": {"kv_n_heads": 4, "rope_theta": 10000.0}, "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 2, "moe_top_k": 1}}),
    ("lightglue", {"descriptor_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 4}),
    ("mask2former", {**MASKS, "backbone_config": {**SWIN, "out_features": ["stage2", "stage4"]}}),
    ("radio", {**VISION, "video_temporal_patch_size": 2, "max_img_size": 28}),
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


DEEPSEEK = {
    **TINY, "num_key_value_heads": 4, "num_hidden_layers": 2, "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "q_lora_rank": 8,
}  # fmt: skip
LLAVA = {
    "text_config": {"model_type": "llama", **TINY, "num_hidden_layers": 1},
    "vision_config": {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
    "vision_feature_layer": -1, "image_token_index": 90,
}  # fmt: skip
LFM2_MOE = {
    **TINY, "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "num_dense_layers": 0, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "conv_L_cache": 3,
}  # fmt: skip
ENCODEC = {"num_filters": 4, "hidden_size": 8, "codebook_size": 8, "codebook_dim": 8, "upsampling_ratios": [2]}
GRANITE = {**TINY, "num_hidden_layers": 1, "num_local_experts": 2, "num_experts_per_tok": 1}
SWITCHES = [
    ("llama", {**TINY, "num_hidden_layers": 2}, {"attention_bias": True, "mlp_bias": True}),
    ("qwen3", {**TINY, "num_hidden_layers": 2, "head_dim": 8}, {"attention_bias": True}),
    ("granitemoe", GRANITE, {"attention_bias": True}),
    ("deepseek_v3", DEEPSEEK, {"q_lora_rank": None}),
    ("deepseek_v3", DEEPSEEK, {"attention_bias": True}),
    ("lfm2_moe", LFM2_MOE, {"use_expert_bias": False, "conv_bias": True}),
    ("gemma4_text", {**GEMMA4, "num_hidden_layers": 6}, {"hidden_size_per_layer_input": 0}),
    ("siglip_vision_model", VISION, {"vision_use_head": False}),
    ("llava", LLAVA, {"multimodal_projector_bias": False}),
    ("llava", LLAVA, {"vision_config.vision_use_head": True}),
    ("encodec", ENCODEC, {"use_conv_shortcut": False}),
]
"""Configs, and keys that switch parts of them on or off; the files of each config are loaded as the other, and without the keys."""


def with_keys(config, keys, absent=False):
    config = copy.deepcopy(config)
    for path, value in keys.items():
        *to, last = path.split(".")
        of = config
        for key in to:
            of = of[key]
        if absent:
            of.pop(last, None)
        else:
            of[last] = value
    return config


def record_switches(path):
    """A line for each pair of config.json and files: what `from_pretrained` misses, and what it does not expect."""
    with open(path, "w") as file:
        for model_type, keys, changes in SWITCHES:
            kinds = []
            for values in (keys, with_keys(keys, changes)):
                with tempfile.TemporaryDirectory() as folder:
                    config = CONFIG_MAPPING[model_type](**copy.deepcopy(values))
                    cls = class_for(model_type, config)
                    config.architectures = [cls.__name__]
                    config.save_pretrained(folder)
                    said = json.loads((Path(folder) / "config.json").read_text())
                kinds.append((said, cls(config)))
            for (_, model), said in [(kinds[0], kinds[1][0]), (kinds[1], kinds[0][0]), *((k, with_keys(k[0], changes, True)) for k in kinds)]:
                with tempfile.TemporaryDirectory() as folder:
                    model.save_pretrained(folder)
                    (Path(folder) / "config.json").write_text(json.dumps(said))
                    try:
                        report = type(model).from_pretrained(folder, output_loading_info=True)[1]
                    except RuntimeError:
                        continue  # a size that follows from the key as well
                    from safetensors import safe_open

                    with safe_open(Path(folder) / "model.safetensors", "pt") as stored:
                        tensors = {n: stored.get_slice(n).get_shape() for n in sorted(stored.keys())}
                row = {"type": model_type, "keys": sorted(changes), "config": said, "tensors": tensors}
                row |= {"missing": sorted(report["missing_keys"]), "unexpected": sorted(report["unexpected_keys"])}
                file.write(json.dumps(row, separators=(",", ":")) + "\n")
                print(model_type, *changes, len(tensors), "tensors,", len(row["missing"]), "missing,", len(row["unexpected"]), "unexpected", sorted(row["missing"])[:2], row["unexpected"][:2])


def record(path):
    with open(path, "w") as file:
        for model_type, keys in WHOLE:
            with tempfile.TemporaryDirectory() as folder:
                config = CONFIG_MAPPING[model_type](**copy.deepcopy(keys))
                cls = class_for(model_type, config)
                config.architectures = [cls.__name__]
                config.save_pretrained(folder)
                said = json.loads((Path(folder) / "config.json").read_text())
            if model_type == "t5":
                said["tie_word_embeddings"] = False  # as files on the hub say, and the class does not heed
            state = saved(build(cls, config))
            tensors = {n: list(t.shape) for n, t in state.items()}
            file.write(json.dumps({"type": model_type, "config": said, "tensors": tensors}, separators=(",", ":")) + "\n")


def record_released(path):
    """The tensors of each line's config.json, which is as its model was released, but for the number of layers and experts."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        config = CONFIG_MAPPING[row["config"]["model_type"]].from_dict(copy.deepcopy(row["config"]))
        state = saved(build(getattr(transformers, row["config"]["architectures"][0]), config))
        row["tensors"] = {n: list(t.shape) for n, t in state.items()}
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("binary", nargs="?")
    args.add_argument("--record", type=Path)
    args.add_argument("--switches", type=Path)
    args.add_argument("--released", type=Path)
    args.add_argument("--types", help="these model types; by default all")
    args.add_argument("--configs", type=int, default=4, help="for each model type")
    args.add_argument("--seed", type=int, default=1)
    args.add_argument("--flags", action="store_true")
    args.add_argument("--switched", action="store_true")
    args.add_argument("--jobs", type=int, default=2)
    args = args.parse_args()
    if args.record:
        return record(args.record)
    if args.switches:
        return record_switches(args.switches)
    if args.released:
        return record_released(args.released)
    if not args.binary:
        sys.exit("which BINARY? target/debug/shardwright")
    types = args.types.split(",") if args.types else list(CONFIG_MAPPING_NAMES)
    found, built = {}, set()
    with multiprocessing.get_context("fork").Pool(args.jobs, maxtasksperchild=10) as pool:
        for rows in pool.imap_unordered(one_type, [(t, args) for t in types]):
            for model_type, kind, said, text in rows:
                found[kind] = found.get(kind, 0) + 1
                built.add(model_type)
                if kind not in ("same", "told"):
                    print(f"{kind}: {model_type} {said}: {text[:300]}", flush=True)
    if none := [t for t in types if t not in built]:
        print(f"not built under any of the configs drawn: {', '.join(none)}")
    print(", ".join(f"{n} {kind}" for kind, n in sorted(found.items())) or "nothing was built")
    sys.exit("refused" in found)


if __name__ == "__main__":
    main()
