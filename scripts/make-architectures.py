#!/usr/bin/env python3
"""Makes crates/arch/data/transformers.txt: what shardwright knows of transformers' architectures, read off transformers itself.

    python scripts/make-architectures.py [--out FILE] [--types llama,qwen3] [--jobs 2]
    python scripts/make-architectures.py --check [--types llama,qwen3]      which model types the installed transformers has otherwise

Every class of every model type is built on the meta device, from its default config and from configs that differ from it in one key; the module
trees are merged. Which keys change a size tells its formula, and which key is on or off in all configs that have a part, or lack it, tells its
condition; both are confirmed with configs that differ in several keys. The result is a text of one line a module class, sorted, so that a new version
of transformers shows as a diff. Needs torch and transformers, and timm, torchvision and scipy for the classes that need them. Takes ten minutes on a
quiet machine.

Lines, a name and JSON apart by a tab:
    %version        {"transformers": "5.24.0"}
    >KEY            conversions registered for a model type or a class: [kind, regex, sources, targets, more]
    :MODEL_TYPE     classes by use, the names of attributes, defaults of keys that sizes depend on, where nothing else
                    decides them, or how they derive from others, older names of these, keys that switch parts on with
                    their defaults, keys that it sets in its parts, the numbers of parts that config.json may lack as a
                    whole, and of which kind each layer is; `TYPE/KEY` is a part of a type that transformers does not list
    !CLASS          a model's class: its root module, prefix of the base model, dtypes, tied weights, parts that layers share, names that it ignores
    MODULE          a module: flags, parameters and buffers, children. What not every config has says when it is there: "key" (neither false, zero, null
                    nor empty), "key?" (not null), "!key", "!key?", or 0 where that is not one key's business; a child of two classes, when
                    it is of the first
"""

import argparse
import ast
import base64
import contextlib
import copy
import hashlib
import importlib
import inspect
import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

ROOT = Path(__file__).resolve().parent.parent

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402
from transformers.models.auto import modeling_auto as autos  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES  # noqa: E402

try:
    from transformers import PreTrainedConfig  # noqa: E402
    from transformers.initialization import no_init_weights  # noqa: E402
except ImportError:  # transformers 4
    from transformers import PretrainedConfig as PreTrainedConfig  # noqa: E402
    from transformers.modeling_utils import no_init_weights  # noqa: E402

MAJOR = int(transformers.__version__.split(".")[0])
SECONDS = 20  # for one build
LAYERS = 8 if MAJOR >= 5 else 5  # of a list, at most, where a default config has more
SMALL = 4


# ---- building ----------------------------------------------------------------------------------------------------------------------


class Slow(Exception):
    pass


def build(cls, config):
    """The model on the meta device, parameters in bfloat16: what is float32 all the same is so by the class's own choice."""

    def alarm(*_):
        raise Slow

    signal.signal(signal.SIGALRM, alarm)
    signal.alarm(SECONDS)
    old = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"), no_init_weights():
            return cls(copy.deepcopy(config))
    finally:
        torch.set_default_dtype(old)
        signal.alarm(0)


def plain(config):
    """A config's own keys."""
    return {k: v for k, v in vars(config).items() if not k.startswith("_") and k not in IGNORED_KEYS}


IGNORED_KEYS = {
    "transformers_version", "architectures", "id2label", "label2id", "return_dict", "output_hidden_states", "output_attentions", "problem_type",
    "dtype", "torch_dtype", "chunk_size_feed_forward", "is_encoder_decoder", "use_cache", "gradient_checkpointing", "name_or_path",
}  # fmt: skip


WORDS = ("layer_norm", "layer", "group", "gated-gelu", "relative_key", "rope", "conv", "none")
"""Values of keys that are words, tried on each."""
KINDS = (
    "full_attention", "sliding_attention", "chunked_attention", "linear_attention", "conv", "mamba", "attention", "recurrent", "moe", "mlp",
    "dense", "sparse", "hybrid",
)  # fmt: skip
"""Kinds of layers, tried in each list of words."""


def unlisted(cls, config):
    """Keys that a class reads with a default of its own, where the config does not have them."""
    try:
        source = inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError):
        return {}
    out = {}
    for key, default in re.findall(r'getattr\((?:self\.)?config, "(\w+)", ([^()]+)\)', source):
        with contextlib.suppress(Exception):
            value = ast.literal_eval(default)
            if not hasattr(config, key) and (value is None or isinstance(value, (bool, str))):
                out[key] = value
    # one that is not there and true would be the same
    for key in re.findall(r'True if not hasattr\(config, "(\w+)"\) else config\.', source):
        if not hasattr(config, key):
            out.setdefault(key, True)
    return out


def has_layers_of_their_own(config):
    """Whether some layers have other values of some keys than the config has, in transformers 5."""
    return getattr(config, "is_heterogeneous", False)


def is_token(key):
    """Whether a key's number is a token's, and not how many there are."""
    return "token" in key and not re.search("(^|[.])num_", key)


def configs(cls, config, deep):
    """(key, its value before, after, config): configs that differ in one key, those first that a size may depend on."""
    for key, value in {**plain(config), **(unlisted(cls, config) if deep else {})}.items():
        if isinstance(value, PreTrainedConfig) or key.endswith(("token_id", "token_index")) or key.startswith("output_") and isinstance(value, bool):
            continue
        tries = []
        if isinstance(value, bool):
            tries = [not value]
        elif isinstance(value, int) and value >= 1 and not is_token(key):
            tries = [2 * value]
            if deep and re.search("rank|expert|dense|interval|step|shared|per_layer|nextn|mtp", key):
                tries += [None] if "rank" in key else [0, 1]
        elif isinstance(value, int) and value <= 0 and deep:
            tries = [8 if value else 1]
        elif value is None and deep and (part := (config.sub_configs or {}).get(key)) is not None:
            with contextlib.suppress(Exception):
                tries = [part()]  # a part that models may have; of any type, it is no config
        elif value is None and deep and not key.endswith(("id", "ids", "path", "theta")):
            tries = [True, SMALL, [0]]
        elif isinstance(value, str) and deep and not key.endswith(("act", "activation", "function", "type", "path", "token")):
            tries = [word for word in WORDS if word != value]
        elif isinstance(value, float) and deep and value >= 1 and re.search("ratio|mult|expan|factor|^scale$", key):
            tries = [2 * value]
        elif deep and isinstance(value, (list, tuple)) and value and all(type(v) is int and v > 0 for v in value):
            tries = [[2 * v for v in value]]
        elif deep and isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value):
            # the kind of one layer, at the front and at the end
            tries = [[kind, *value[1:-1], kind] for kind in KINDS if kind not in value]
        for new in tries:
            other = copy.deepcopy(config)
            try:
                setattr(other, key, new)
                # lists as long as the number of layers follow it
                for name, items in plain(config).items():
                    if ("layer" in key or key == "depth") and isinstance(items, (list, tuple)) and isinstance(value, int) and len(items) == value and new == 2 * value:
                        setattr(other, name, [*items, *items])
                if has_layers_of_their_own(config):
                    with contextlib.suppress(Exception):  # a config that refuses the value is changed as it is
                        other = type(config)(**plain(other))  # it makes them of the other keys
            except Exception:
                continue
            yield key, value, new, other
    if deep and (stages := getattr(config, "stage_names", None)):
        other = copy.deepcopy(config)
        with contextlib.suppress(Exception):
            other.out_features = list(stages)  # a backbone that gives all stages has a normalisation for each
            yield "out_features", config.out_features, list(stages), other


ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MOE = {"num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
INDEXER = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_budget": 2048, "indexer_compress_ratio": 16}
LACKS = {
    "autoformer": {"prediction_length": 24},
    "informer": {"prediction_length": 24},
    "time_series_transformer": {"prediction_length": 24},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", *["sparse"] * 63], "num_experts_per_tok": 6}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", *["sparse"] * 63], "num_experts_per_tok": 6},
    "diffusion_gemma": {"text_config": MOE},
    "diffusion_gemma_text": MOE,
    "dots1": {"n_routed_experts": 128, "num_experts_per_tok": 6, "n_shared_experts": 2},
    "esm": {"vocab_size": 33},
    "granite4_vision": {"deepstack_layer_map": [[0, 0], [1, 1]], "downsample_rate": "1/4"},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "nougat": {"encoder": {"model_type": "donut-swin"}, "decoder": {"model_type": "mbart"}},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "chameleon": {"vocabulary_map": {"<image>": 4, "IMGIMGA": 5}},
    "emu3": {"vocabulary_map": {"<image>": 4, "<|extra_0|>": 5}},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
}
"""What a model type's default config does not say and its class wants."""
if MAJOR < 5:
    MROPE = {"rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20]}}
    LACKS |= {name: {"text_config": {"model_type": "llama", "vocab_size": 128260}} for name in ("idefics3", "smolvlm")}
    LACKS |= {name: {"use_pretrained_backbone": False} for name in ("detr", "conditional_detr", "dab-detr", "deformable_detr", "table-transformer")}
    LACKS["phi4_multimodal"] = {"vision_config": {}, "audio_config": {}}
    LACKS["qwen3_omni_moe"] = {
        "thinker_config": {"text_config": MROPE},
        "talker_config": {"text_config": {**MROPE, "shared_expert_intermediate_size": 1024}, "spatial_merge_size": 2},
    }
LACKS_AFTER = {
    "aya_vision": {"vision_config.num_attention_heads": 16},
    "dbrx": {"attn_config.rope_theta": 500000.0},
    "hunyuan_vl": {"text_config.head_dim": 128},
    "perception_lm": {
        "vision_config.architecture": "vit_pe_core_large_patch14_336",
        "vision_config.model_args": {"embed_dim": 1024, "depth": 4, "img_size": [448, 448], "ref_feat_shape": [32, 32], "global_pool": ""},
    },
    "bridgetower": {"contrastive_hidden_size": 512},
    "t5gemma2_decoder": {"dropout_rate": 0.0},
    "t5gemma2_encoder": {"text_config.dropout_rate": 0.0},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 1024},
}


def default_config(model_type):
    config = CONFIG_MAPPING[model_type](**LACKS.get(model_type, {}))
    for path, value in LACKS_AFTER.get(model_type, {}).items():
        *to, last = path.split(".")
        of = config
        for key in to:
            of = getattr(of, key, None)
        if of is not None:
            setattr(of, last, value)
    return config


def repaired(config):
    """A default config that no class takes, with what it lacks."""
    config = copy.deepcopy(config)
    lacks = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 10000.0}
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if isinstance(heads, int):
        lacks["num_key_value_heads"] = heads
        if isinstance(hidden, int):
            lacks["head_dim"] = hidden // heads
    n = getattr(config, "num_hidden_layers", None)
    if isinstance(n, int):
        lacks["layer_types"] = ["full_attention"] * n
    for key, value in lacks.items():
        if getattr(config, key, None) is None:
            setattr(config, key, value)
    if vars(config).get("is_decoder") is False:
        config.is_decoder = True
    for of in with_parts(config) if MAJOR < 5 else ():
        if vars(of).get("rope_scaling", 0) is None:
            of.rope_scaling = {"rope_type": "default"}
    return config


def with_parts(config):
    """A config and those inside of it."""
    yield config
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            yield from with_parts(part)


HEADS = {"vocab_size", "hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim", "embedding_size", "num_labels", "emb_dim"}
"""Keys that the sizes of a head may depend on; the rest of its class is the base model's class."""


def shrunk(config, most):
    """Long lists of layers cut short; keys that are as long as the number of layers follow."""
    config = copy.deepcopy(config)
    for of in (config, *(v for v in vars(config).values() if isinstance(v, PreTrainedConfig))) if MAJOR < 5 else ():
        # each expert is a module of its own there
        for key, n in plain(of).items():
            if "experts" in key and isinstance(n, int) and not isinstance(n, bool) and n > 8:
                setattr(of, key, 8)
    for key in ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depth"):
        n = vars(config).get(key)
        if isinstance(n, int) and n > most:
            setattr(config, key, most)
            for other, value in plain(config).items():
                if isinstance(value, (list, tuple)) and len(value) == n:
                    setattr(config, other, value[:most])
    return config


def evened(config):
    """Images that have an even number of patches along a side, and still have when the patches are doubled; heads that divide the hidden size."""
    config = copy.deepcopy(config)
    for of in with_parts(config):
        hidden, heads, groups = (vars(of).get(key) for key in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
        if type(hidden) is int and type(heads) is int and heads > 0 and hidden % heads and type(vars(of).get("head_dim")) is not int:
            fits = (n for n in (64, 32, 16, 8, 4) if hidden % (2 * n) == 0 and n % (groups if type(groups) is int and groups > 0 else 1) == 0)
            of.num_attention_heads = next(fits, heads)
        image, patch = vars(of).get("image_size"), vars(of).get("patch_size")
        if type(image) is int and type(patch) is int and patch and image % (2 * patch):
            of.image_size = 16 * patch
    return config


# ---- trees -------------------------------------------------------------------------------------------------------------------------


class Node:
    """A module, or what several of one class have in common: `params` name -> [kind, sizes, always], `children` name -> [variants, always, length]."""

    def __init__(self, cls):
        self.cls, self.flags, self.model = cls, "", None
        self.params, self.children = {}, {}
        self.first = {}  # of a child of two classes: when it is of the first

    def merge(self, other):
        """Of two configs or two elements of a list: what only one has is optional."""
        for mine, theirs in ((self.params, other.params), (self.children, other.children)):
            for name in [*mine, *theirs]:
                if name not in theirs:
                    mine[name][1] = False
                elif name not in mine:
                    mine[name] = theirs[name]
                    mine[name][1] = False
        for name, (_, always, shape) in other.params.items():
            mine = self.params[name]
            if mine is other.params[name]:
                continue
            mine[1] = mine[1] and always
            if shape is not None and mine[2] is not None:
                same = len(shape) == len(mine[2])
                mine[2] = [a if a == b else None for a, b in zip(mine[2], shape)] if same else None
        for name, (variants, always, length) in other.children.items():
            mine = self.children[name]
            if mine is other.children[name]:
                continue
            mine[1] = mine[1] and always
            for key, node in variants.items():
                if key not in mine[0]:
                    mine[0][key] = node
                elif isinstance(node, Node) and node is not mine[0][key]:
                    mine[0][key].merge(node)
            if length is not None and mine[2] != length:
                mine[2] = None
        return self


def tree(module, owner, references, path="", base=None):
    """A module's node. `owner` is the config of the model that it is part of; models with a config of their own are references."""
    node = Node(type(module).__name__)
    if isinstance(module, torch.nn.Embedding):
        node.flags += "E"
    for name, p in module._parameters.items():
        if p is not None:
            node.params[name] = ["p" if p.dtype != torch.float32 else "f", True, list(p.shape)]
    for name, b in module._buffers.items():
        if b is not None:
            saved = name not in module._non_persistent_buffers_set
            node.params[name] = [("B" if b.dtype == torch.float32 else "b") if saved else "n", True, list(b.shape)]
    if isinstance(module, PreTrainedModel):
        node.flags += "M"
        node.model = type(module).__name__
    for name, child in module._modules.items():
        if child is None:
            continue
        listed = isinstance(child, (torch.nn.ModuleList, torch.nn.Sequential)) and len(child) and all(k.isdigit() for k in child._modules)
        same = listed and (isinstance(child, torch.nn.ModuleList) or len(child) > 3 and len({type(c) for c in child}) == 1)
        if same:
            elements = Node(type(child).__name__)
            elements.flags = "L"
            for n, p in child._parameters.items():  # a parametrization is such a list
                if p is not None:
                    elements.params[n] = ["p" if p.dtype != torch.float32 else "f", True, list(p.shape)]
            merged = {}
            for i, element in enumerate(child):
                if element is None:
                    continue
                key, sub = variant(element, owner, references, f"{path}.{name}.{i}", base)
                if key in merged and isinstance(sub, Node):
                    merged[key].merge(sub)
                else:
                    merged.setdefault(key, sub)
            elements.children["*"] = [merged, True, None if any(element is None for element in child) else len(child)]
            node.children[name] = [{elements.cls: elements}, True, None]
        else:
            key, sub = variant(child, owner, references, f"{path}.{name}", base)
            node.children[name] = [{key: sub}, True, None]
    return node


def variant(module, owner, references, path, base=None):
    if isinstance(module, PreTrainedModel) and module.config is owner and type(module).__name__ == base:
        return f"@:{base}", None
    if type(module).__module__.split(".")[0] == "timm" and path.endswith("timm_model"):
        return "@:?", None  # a model of another library: every name fits
    if isinstance(module, PreTrainedModel) and module.config is not owner:
        config = module.config
        where = next((k for k in getattr(owner, "sub_configs", None) or {} if getattr(owner, k, None) is config), None)
        if where is None:
            where = next((k for k, v in vars(owner).items() if isinstance(v, PreTrainedConfig) and type(v) is type(config)), None)
        if where is not None and type(config) is not type(owner):
            references.add((type(module).__name__, type(config)))
            return f"@{where}:{type(module).__name__}", None
    node = tree(module, owner, references, path, base)
    return node.cls, node


def sizes(node, into, path=()):
    """Every size in a tree by its place."""
    for name, entry in node.params.items():
        for d, n in enumerate(entry[2] or ()):
            if n is not None:
                into[(*path, name, d)] = (n, entry, d)
    for name, child in node.children.items():
        if child[2] is not None:
            into[(*path, name, "len")] = (child[2], child, None)
        for key, sub in child[0].items():
            if isinstance(sub, Node):
                sizes(sub, into, (*path, name, key))
    return into


def entries(node, into, path=()):
    """Every parameter, buffer and child in a tree by its place, with how many dims it has."""
    for name, entry in node.params.items():
        into[(*path, name)] = len(entry[2] or ())
    for name, child in node.children.items():
        into[(*path, name)] = 0
        for key, sub in child[0].items():
            if isinstance(sub, Node):
                entries(sub, into, (*path, name, key))
    return into


def presence(node, into, path=(), alone=True):
    """What a tree of one config has, by its place: parameters, buffers and children (False where only some elements of a list have them), and the
    modules around them by their class, whose places have an even number of parts (False where other elements have one of another class)."""
    into[path] = alone
    for name, entry in node.params.items():
        into[(*path, name)] = entry[1]
    for name, child in node.children.items():
        into[(*path, name)] = child[1]
        for key, sub in child[0].items():
            into[(*path, name, key)] = len(child[0]) == 1
            if isinstance(sub, Node):
                presence(sub, into, (*path, name, key), len(child[0]) == 1)
    return into


def optional(node, into, path=()):
    """The entries of what not every config has, by place, and the nodes of what is of one of two classes, by the place of the first; elements of lists
    and buffers that no checkpoint has aside."""
    for name, entry in node.params.items():
        if not entry[1] and entry[0] != "n":
            into[(*path, name)] = entry
    for name, child in node.children.items():
        if not child[1] and name != "*":
            into[(*path, name)] = child
        if len(child[0]) == 2 and name != "*":
            into[(*path, name, next(iter(child[0])))] = node
        for key, sub in child[0].items():
            if isinstance(sub, Node):
                optional(sub, into, (*path, name, key))
    return into


# ---- a class -----------------------------------------------------------------------------------------------------------------------


GEMMA4 = [
    {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 704},
    {"use_double_wide_mlp": True, "num_kv_shared_layers": 1},
]
TOGETHER = {"gemma4_text": GEMMA4, "gemma4_unified_text": GEMMA4}
"""Keys that change a class only together."""


def together(config):
    """Configs with such keys."""
    cross = {"is_decoder": True, "add_cross_attention": True}
    for keys in [*TOGETHER.get(config.model_type, []), *([cross] if cross.keys() <= plain(config).keys() else [])]:
        other = copy.deepcopy(config)
        for key, value in keys.items():
            setattr(other, key, value)
        yield ", ".join(keys), None, keys, other


def of_parts(config, deep):
    """Configs that differ in one key of a part: `part.key`."""
    for part, of in plain(config).items():
        keys = of if isinstance(of, dict) else plain(of) if isinstance(of, PreTrainedConfig) else {}
        for key, value in keys.items():
            if isinstance(key, str) and type(value) is int and value >= 1 and key not in LAYER_COUNTS and not is_token(key) and (deep or key == "vocab_size"):
                other = copy.deepcopy(config)
                with contextlib.suppress(Exception):
                    put(other, f"{part}.{key}", 2 * value)
                    yield f"{part}.{key}", value, 2 * value, other


def names_sizes(config, key):
    """Whether a size's formula may have this key. A key of a part may be used if the part is not itself a model, or if the key is the vocabulary size:
    a sub-model's other sizes are compared in the sub-model, and what is made of them outside depends on more than integers."""
    part, _, inner = key.rpartition(".")
    if not part or inner == "vocab_size":
        return True
    of = getattr(config, part)
    if not isinstance(of, dict) and of.model_type and of.model_type in CONFIG_MAPPING_NAMES:
        return False
    with contextlib.suppress(Exception):
        return numbers_of(type(config).from_dict({part: {inner: SMALL}})).get(key) == SMALL  # else the whole model sets it
    return True


def put(config, key, value):
    """Sets a key, or one of a part."""
    *parts, key = key.split(".")
    for part in parts:
        config = getattr(config, part)
    if isinstance(config, dict):
        config[key] = value
    else:
        setattr(config, key, value)


def numbers_of(config):
    """A config's own keys, and those of its parts."""
    values = plain(config)
    for part, of in plain(config).items():
        keys = of if isinstance(of, dict) else plain(of) if isinstance(of, PreTrainedConfig) else {}
        values |= {f"{part}.{key}": value for key, value in keys.items()}
    return values


def describe(cls, config, deep, within=None):
    """(what the class says of itself, its tree, references to other models' classes)."""
    references = set()
    model = build(cls, config)
    set_in = overridden(model, config)
    config = model.config if type(model.config) is type(config) else config
    node = tree(model, model.config, references, base=within)
    if within is not None and not has_reference(node, f"@:{within}"):
        within, deep = None, True
    derived = {}
    if deep:
        config, derived = spelled_out(cls, config, sizes(node, {}), within)
    base = sizes(node, {})
    depends = {place: {} for place in base}
    defaults = {}
    others = []
    silent = unlisted(cls, config)
    rows = [({**silent, **plain(config)}, presence(node, {}))]
    for key, old, new, other in [*configs(cls, config, True), *(together(config) if deep else ()), *of_parts(config, deep)]:
        doubled = isinstance(old, int) and not isinstance(old, bool) and isinstance(new, int) and new == 2 * old
        if not deep and not (doubled and key in HEADS or isinstance(old, bool) or old is None and "vocab" in key or key == "out_features" or "." in key):
            continue
        try:
            try:
                m = build(cls, other)
            except Exception:
                other = type(config)(**plain(other))  # of which it makes what follows from the key
                m = build(cls, other)
            t = tree(m, m.config, references, base=within)
        except Exception:
            continue
        rows.append(({**silent, **plain(other)}, presence(t, {})))
        there, its = sizes(t, {}), entries(t, {})
        for place, (n, _, _) in base.items():
            if place not in there and (not doubled or has_layers_of_their_own(config)) and place[:-1] in its and place[-1] != "len":
                depends[place].setdefault(key, (0, 0))  # elements of a list differ in it
            if place in there and there[place][0] != n:
                # what a flag changes has no formula
                if doubled and names_sizes(config, key):
                    depends[place][key] = (old, there[place][0] - n)
                elif isinstance(old, bool) or not isinstance(old, int) or "." in key:
                    depends[place].setdefault(key, (0, 0))
                if key in vars(config):
                    defaults[key] = old
        others.append((other, t))
    solved = {place: solve(n, depends[place]) for place, (n, _, _) in base.items()}
    if deep:
        confirm(cls, config, solved, within)
        disprove(cls, config, solved, {key for of in depends.values() for key in of}, within)
    for place, (n, holder, d) in base.items():
        formula = solved[place]
        if d is not None and isinstance(formula, str) and misleads(formula):
            formula = None
        if d is None:
            holder[2] = formula
        else:
            holder[2][d] = formula
    known, of_two = entries(node, {}), []
    for other, t in others:
        there, more = sizes(t, {}), {place: dims for place, dims in entries(t, {}).items() if place not in known}
        formulas(t)
        new = {place: n for place, (n, _, _) in there.items() if place[:-1] in more}
        if deep and new:
            # what only such a config has, by what its own keys change
            known.update(more)
            solved, trees = solve_in(cls, other, new, references, within, rows)
            for place, formula in solved.items():
                _, holder, d = there[place]
                if formula is not None and d is None:
                    holder[2] = formula
                elif formula is not None:
                    holder[2] = holder[2] or [None] * more[place[:-1]]
                    holder[2][d] = formula
            of_two += trees
        node.merge(t)
    for t in of_two:
        formulas(t)
        node.merge(t)
    switches = {key: silent.get(key) for key in switched(cls, config, node, rows, within)}
    absent = []
    if within is not None:
        # the base model is built on its own elsewhere; what this class leaves out of it
        inner = next(((n, m) for n, m in model.named_modules() if n and type(m).__name__ == within and m.config is model.config), None)
        if inner is not None:
            alone = build(type(inner[1]), other_config(inner[1]))
            absent = lacks(*inner, alone)
    inside = ()
    for name, part in model.named_modules():
        # models of parts are built on their own elsewhere as well
        if not isinstance(part, PreTrainedModel) or type(part.config) is type(model.config) or name.startswith(inside):
            continue
        inside = (*inside, f"{name}.")
        with contextlib.suppress(Exception):
            absent += lacks(name, part, build(type(part), copy.deepcopy(part.config)))
    says = {
        "absent": absent,
        "root": node.cls,
        "type": config.model_type,
        "base": model.base_model_prefix,
        "tied": tied(cls, model),
        "tie": getattr(type(config)(), "tie_word_embeddings", None) if not needs_arguments(type(config)) else getattr(config, "tie_word_embeddings", None),
        "fp32": sorted(model._keep_in_fp32_modules_strict or ()),
        "fp32half": sorted(model._keep_in_fp32_modules or ()),
        "unexpected": sorted(str(p) for p in model._keys_to_ignore_on_load_unexpected or ()),
        "missing": sorted(str(p) for p in model._keys_to_ignore_on_load_missing or ()),
        "split": sorted(model._no_split_modules or ()),
    }
    if MAJOR < 5:
        says["mapping"] = mapping_before_5(cls)
    return {k: v for k, v in says.items() if v not in (None, [], "")}, node, references, (defaults, derived, switches, set_in)


def lacks(path, inside, alone):
    """The modules that a model in another one lacks, of those that it has alone, by their paths. Elements of lists are not named: how many there are
    is the config's."""
    has, out = inside.state_dict().keys(), []
    for name, module in alone.named_modules():
        keys = [f"{name}.{k}" for k in module.state_dict()] if name else []
        if keys and has.isdisjoint(keys) and not re.search(r"(^|\.)\d", name) and not name.startswith(tuple(f"{n}." for n in out)):
            out.append(name)
    return [f"{path}.{name}" for name in sorted(out)]


def overridden(model, config):
    """{sub-config: keys} that a model switches on or off itself in a part's config before it makes the part."""
    out = {}
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.config is not model.config:
            for name, part in vars(config).items():
                if isinstance(part, PreTrainedConfig) and type(part) is type(module.config):
                    was, now = plain(part), plain(module.config)
                    moved = {k for k in was if k in now and is_switch(was[k]) and (bool(was[k]) != bool(now[k]) or (was[k] is None) != (now[k] is None))}
                    out.setdefault(name, set()).update(moved)
    return {name: sorted(keys) for name, keys in out.items() if keys}


def solve_in(cls, config, places, references, within, rows):
    """({place: formula}, trees): formulas of those sizes of a model under a config that differs from the default in one key, and its trees with a flag
    changed as well."""
    depends, trees = {place: {} for place in places}, []
    silent = unlisted(cls, config)
    for key, old, new, other in configs(cls, config, True):
        doubled = isinstance(old, int) and not isinstance(old, bool) and isinstance(new, int) and new == 2 * old
        try:
            m = build(cls, other)
            t = tree(m, m.config, references, base=within)
        except Exception:
            continue
        rows.append(({**silent, **plain(other)}, presence(t, {})))
        there = sizes(t, {})
        if isinstance(old, bool):
            trees.append(t)
        for place, n in places.items():
            if place in there and there[place][0] != n:
                if doubled:
                    depends[place][key] = (old, there[place][0] - n)
                else:
                    depends[place].setdefault(key, (0, 0))
    solved = {place: solve(n, depends[place]) for place, n in places.items()}
    confirm(cls, config, solved, within)
    return {place: None if place[-1] != "len" and isinstance(f, str) and misleads(f) else f for place, f in solved.items()}, trees


NEVER_SWITCHES = {"tie_word_embeddings"}
MIXES = 6  # configs with several keys changed that conditions are confirmed with


def is_on(value, form):
    """Whether a key's value switches a part on: of the form "" any but false, zero, null and what is empty; of "?" any but null."""
    return value is not None if form else bool(value)


def is_switch(value):
    return value is None or isinstance(value, (bool, int, float, str, list, tuple))


def conditions(rows, places):
    """{place: [condition]}: "key", "!key", "key?" or "!key?", of those that are right about a place in all rows that have the module it is in."""
    by_signature = {}
    for place in places:
        module = place[:-1]
        # True, False where it is not there, None where some elements of a list have it
        states = tuple((there[place] or None) if place in there else False if module in there else "" for _, there in rows)
        by_signature.setdefault(states, []).append(place)
    out = {}
    for states, of in by_signature.items():
        known = [(values, state) for (values, _), state in zip(rows, states) if state != ""]
        found = []
        if {state for _, state in known} == {True, False}:
            keys = [k for k in known[0][0] if k not in NEVER_SWITCHES and all(k in values and is_switch(values[k]) for values, _ in known)]
            for key in keys:
                for form in ("", "?"):
                    answers = {is_on(values[key], form) == state for values, state in known}
                    if len(answers) == 1:
                        found.append(f"{'' if answers == {True} else '!'}{key}{form}")
        out.update(dict.fromkeys(of, found))
    return out


def key_of(condition):
    return condition.strip("!?")


def switched(cls, config, node, rows, within):
    """Writes into a tree which key decides whether what not every config has is there, and gives these keys. One key has to be right about every config
    that was built, of which some here have several keys changed."""
    places = optional(node, {})
    first = conditions(rows, places)
    keys = sorted({key_of(c) for found in first.values() for c in found})
    if not keys:
        return []
    rng, silent = random.Random(cls.__name__), unlisted(cls, config)

    def add(other):
        with contextlib.suppress(Exception):
            model = build(cls, other)
            rows.append(({**silent, **plain(other)}, presence(tree(model, model.config, set(), base=within), {})))
            return True
        return False

    def seen(key):
        """The values that a key had in configs that were built."""
        return list({repr(values[key]): values[key] for values, _ in rows if key in values and is_switch(values[key])}.values())

    for key in keys:
        had = seen(key)
        for value in [v for v in (0, 1, None) if repr(v) not in map(repr, had)] if any(type(v) is int for v in had) else ():
            other = copy.deepcopy(config)
            with contextlib.suppress(Exception):
                setattr(other, key, value)
                add(other)
    pools = {key: seen(key) for key in keys}
    rest = {key: values for key in plain(config) if key not in pools and len(values := seen(key)) > 1 and any(not v or v is True for v in values)}
    until, mixes = time.monotonic() + SECONDS, 0
    for n in range(4 * MIXES):
        if mixes == MIXES or time.monotonic() > until:
            break
        other = copy.deepcopy(config)
        with contextlib.suppress(Exception):
            for key, values in pools.items():
                setattr(other, key, rng.choice(values))
            for key, values in rest.items():
                if rng.random() < (0.3, 0.1, 0)[n % 3]:
                    setattr(other, key, rng.choice(values))
            for part in list(with_parts(other))[1:]:
                for key, value in plain(part).items():
                    if isinstance(value, bool) and rng.random() < 0.2:
                        setattr(part, key, not value)
            mixes += add(other)
    used = set()
    for place, found in conditions(rows, [place for place, found in first.items() if found]).items():
        module = place[:-1]
        if mixes < 2 or sum(module in there for _, there in rows) < 4 or len({key_of(c) for c in found}) != 1:
            continue
        if isinstance(places[place], Node):
            places[place].first[place[-2]] = found[0]
        else:
            places[place][1] = found[0]
        used.add(key_of(found[0]))
    return sorted(used)


WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim")
HEAD_COUNTS = ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads")
UNSAID = ("head_dim",)
"""Keys that a class takes where a config has them, and makes of others where it does not."""


def spelled_out(cls, config, base, within):
    """(the config with such a key written out, {key: formula}), where that changes no size and another value does."""
    values, derived = plain(config), {}
    for key in UNSAID:
        if type(values.get(key)) is int:
            continue
        pairs = [(a, b) for a in WIDTHS for b in HEAD_COUNTS if type(values.get(a)) is int and type(values.get(b)) is int and values[a] % values[b] == 0]
        for a, b in pairs[:2]:

            def of(changes):
                other = copy.deepcopy(config)
                for name, value in changes.items():
                    setattr(other, name, value)
                model = build(cls, other)
                return {place: n for place, (n, _, _) in sizes(tree(model, model.config, set(), base=within), {}).items()}

            n = values[a] // values[b]
            try:
                written = of({key: n})
                same = written == {place: size for place, (size, _, _) in base.items()} and of({key: 2 * n}) != written
                same = same and of({a: 2 * values[a]}) == of({a: 2 * values[a], key: 2 * n})
                same = same and of({b: 2 * values[b]}) == of({b: 2 * values[b], key: n // 2})
            except Exception:
                continue
            if same:
                config = copy.deepcopy(config)
                setattr(config, key, n)
                derived[key] = f"{a}/{b}"
                break
    return config, derived


def tied(cls, model):
    """Names of one parameter: alias -> first. transformers 5 has them as data; before, the model is asked."""
    keys = getattr(model, "_tied_weights_keys", None)
    if MAJOR >= 5:
        return keys if isinstance(keys, dict) else None
    if not keys:
        return None
    config = copy.deepcopy(model.config)
    for c in (config, *(v for v in vars(config).values() if isinstance(v, PreTrainedConfig))):
        c.tie_word_embeddings = True
    try:
        other = build(cls, config)
        other.tie_weights()
    except Exception:
        return None
    first, out = {}, {}
    for name, p in other.named_parameters(remove_duplicate=False):
        if first.setdefault(id(p), name) != name:
            out[name] = first[id(p)]
    return out


def other_config(model):
    return copy.deepcopy(model.config)


def has_reference(node, key):
    return any(k == key or isinstance(sub, Node) and has_reference(sub, key) for c in node.children.values() for k, sub in c[0].items())


def formulas(node):
    """Trees of other configs: their sizes are not formulas."""
    for entry in node.params.values():
        entry[2] = None
    for child in node.children.values():
        if child[2] is not None:
            child[2] = None
        for sub in child[0].values():
            if isinstance(sub, Node):
                formulas(sub)


def needs_arguments(config_class):
    try:
        config_class()
    except Exception:
        return True
    return False


GROWTH = {1: 1, 2: 3, -1: -0.5, -2: -0.75}
"""What doubling a key adds to a product in which it has this power, in parts of the product."""


def product(n, powers, depends):
    """A product of keys of these powers as text, where it is `n` up to a small whole factor."""
    up = sorted((k for k, p in powers.items() if p > 0), key=lambda k: depends[k][0])
    down = [k for k, p in powers.items() if p < 0]
    factors, value = [], 1
    up = [k for k in up for _ in range(powers[k])]
    for key in [k for k in down for _ in range(-powers[k])]:
        # a width is divided: the largest
        if not up or depends[up[-1]][0] % depends[key][0]:
            return None
        over = up.pop()
        factors.append(f"{over}/{key}")
        value *= depends[over][0] // depends[key][0]
    for key in up:
        factors.append(key)
        value *= depends[key][0]
    if n <= 0 or n % value or n // value > 4:
        return None
    return "*".join(([str(n // value)] if n != value else []) + sorted(factors))


def solve(n, depends):
    """A size as a number, "key", "3*key", "key+2", "2*key*other", "key/other", or None; or a tuple of what it may be, "key*other+key*third"."""
    if not depends:
        return n
    if any(not value for value, _ in depends.values()):
        return None
    if len(depends) == 1:
        (key, (value, more)) = next(iter(depends.items()))
        if more > 0 and more % value == 0 and not (more == 3 * n and value * value <= n):
            m = more // value
            text = key if m == 1 else f"{m}*{key}"
            rest = n - m * value
            return text if rest == 0 else f"{text}+{rest}" if rest > 0 else f"{text}{rest}"
    if all(more == n for _, more in depends.values()):
        whole = 1
        for value, _ in depends.values():
            whole *= value
        if n % whole == 0:
            c = n // whole
            return "*".join(([str(c)] if c != 1 else []) + list(depends))
    return one_product(n, depends) or two_products(n, depends)


def one_product(n, depends):
    """Powers, and one or two more, as of class tokens among patches."""
    for rest in (0, 1, 2):
        powers = {}
        for key, (_, more) in depends.items():
            powers[key] = next((p for p, growth in GROWTH.items() if more == growth * (n - rest)), None)
        if None not in powers.values() and (text := product(n - rest, powers, depends)):
            return text if not rest else f"{text}+{rest}"
    return None


def two_products(n, depends):
    """A sum of two products: None, or a tuple of all that it may be."""
    found = set()
    kinds = [(p, q) for p in (0, 1, -1) for q in (0, 1, -1) if p or q]
    if len(depends) > 5:
        return None
    for powers in itertools.product(kinds, repeat=len(depends)):
        # of a first product x: more = g*x + h*(n - x) for every key
        x = None
        for (_, more), (p, q) in zip(depends.values(), powers):
            g, h = GROWTH.get(p, 0), GROWTH.get(q, 0)
            if g == h:
                if more != h * n:
                    break
            else:
                one = (more - h * n) / (g - h)
                if x is not None and one != x:
                    break
                x = one
        else:
            if x is None or x != int(x) or not 0 < x < n:
                continue
            first = product(int(x), {k: p for k, (p, _) in zip(depends, powers) if p}, depends)
            second = product(n - int(x), {k: q for k, (_, q) in zip(depends, powers) if q}, depends)
            if first and second:
                found.add("+".join(sorted((first, second))))
    return tuple(sorted(found)) if 0 < len(found) <= 8 else None


def evaluate(formula, values):
    """A formula's number, as the Rust side has it; None where a key has none, or a quotient is not whole."""
    total = 0
    for term in re.split(r"\+|(?=-)", formula):
        amount = 1
        for factor in term.split("*"):
            over, _, under = factor.partition("/")
            parts = [int(k) if re.fullmatch(r"-?\d+", k) else values.get(k) for k in (over, under) if k]
            if any(type(part) is not int for part in parts) or len(parts) > 1 and (not parts[1] or parts[0] % parts[1]):
                return None
            amount *= parts[0] if len(parts) == 1 else parts[0] // parts[1]
        total += amount
    return total


def keys_of(formula):
    return set(re.findall(r"[A-Za-z_][\w.]*", formula)) if isinstance(formula, str) else set()


LAYER_COUNTS = {"num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depth"}


def misleads(formula):
    """Formulas of a dim that are none: the number of layers, which lists of other things are as long as, and windows, which some layers do without."""
    return formula.rpartition(".")[2] in LAYER_COUNTS or "window_size" in keys_of(formula)


def is_plain(formula):
    """Of one key, or a product: what single changes show is enough."""
    return not isinstance(formula, (str, tuple)) or isinstance(formula, str) and "/" not in formula and ("+" not in formula or len(keys_of(formula)) < 2)


def confirm(cls, config, solved, within):
    """Takes back formulas that hold for one key changed and not for two, and those that no such config was built for. Of several that a size may be
    the one stays that holds."""
    open_ones = {place: list(f) if isinstance(f, tuple) else [f] for place, f in solved.items() if not is_plain(f)}
    sets = {frozenset(keys_of(fs[0])) for fs in open_ones.values()}
    pairs = sorted({tuple(sorted(pair)) for keys in sets for pair in itertools.combinations(keys, 2)})[:24]
    seen = set()
    for pair in [*pairs, *((k,) for k in sorted({k for keys in sets if len(keys) == 1 for k in keys}))]:
        for times in ((2, 2), (2, 4), (3, 3)) if len(pair) == 2 else ((3,),):
            other = copy.deepcopy(config)
            try:
                for key, by in zip(pair, times):
                    put(other, key, by * numbers_of(other)[key])
                model = build(cls, other)
                there = sizes(tree(model, model.config, set(), base=within), {})
            except Exception:
                continue
            values = numbers_of(other)
            for place, formulas in open_ones.items():
                if place in there and formulas and len(keys_of(formulas[0]).intersection(pair)) == len(pair):
                    found = [evaluate(formula, values) for formula in formulas]
                    if None in found:
                        continue
                    seen.add(place)
                    open_ones[place] = [f for f, n in zip(formulas, found) if n == there[place][0]]
    for place, formulas in open_ones.items():
        solved[place] = formulas[0] if place in seen and len(formulas) == 1 else None


DIVIDES = re.compile("head|divi|group|multiple")
"""Names of keys that others are divided by, and rounded with: such a one may change nothing as long as it divides."""


def further(config, effective):
    """(key, config): configs with one key three times as large, of those that sizes were seen to depend on or that others are divided by."""
    for key, value in numbers_of(config).items():
        if type(value) is int and value >= 1 and (key in effective or "." not in key and DIVIDES.search(key)) and not is_token(key) and key not in LAYER_COUNTS:
            for new in (3 * value, value + 1) if "channels" in key else (3 * value,):
                other = copy.deepcopy(config)
                with contextlib.suppress(Exception):
                    put(other, key, new)
                    yield key, other


def disprove(cls, config, solved, effective, within):
    """Takes back formulas that such a config contradicts. One that holds as long as a key divides a width becomes "width/key*key", which is unknown
    where it does not."""
    rows = []
    for key, other in further(config, effective):
        with contextlib.suppress(Exception):
            model = build(cls, other)
            there = sizes(tree(model, model.config, set(), base=within), {})
            rows.append((key, numbers_of(other), {place: there[place][0] for place, formula in solved.items() if isinstance(formula, str) and place in there}))
    found = {}
    for place, formula in solved.items():
        if not isinstance(formula, str):
            continue
        seen = tuple(row[2].get(place) for row in rows)
        if (formula, seen) not in found:

            def wrong(text):
                return [key for (key, values, _), n in zip(rows, seen) if n is not None and evaluate(text, values) not in (None, n)]

            failed = wrong(formula)
            tries = [re.sub(rf"(?<![\w.]){re.escape(width)}(?![\w.])", f"{width}/{key}*{key}", formula) for key in failed for width in sorted(keys_of(formula) - {key})]
            found[formula, seen] = next((text for text in tries if not wrong(text)), None) if failed else formula
        solved[place] = found[formula, seen]


# ---- all classes -------------------------------------------------------------------------------------------------------------------


def classes_of(model_type):
    """The classes of a model type, by auto-mapping."""
    out = {}
    for name, names in vars(autos).items():
        if name.startswith("MODEL_") and name.endswith("_MAPPING_NAMES") and model_type in names:
            found = names[model_type]
            out[name[len("MODEL_") : -len("_MAPPING_NAMES")]] = found[0] if isinstance(found, (list, tuple)) else found
    return out


def use(found):
    """LLaMA-Factory's choice for model_class llm, cls and other."""
    first = lambda *keys: next((found[k] for k in keys if k in found), None)
    base = found.get("MAPPING") or vars(autos)["MODEL_MAPPING_NAMES"].get("")
    return {"llm": first("FOR_IMAGE_TEXT_TO_TEXT", "FOR_MULTIMODAL_LM", "FOR_CAUSAL_LM"), "cls": first("FOR_TOKEN_CLASSIFICATION"), "base": base}


def modules_beside(module, config_class):
    """A model type's modeling files, that of its classes first."""
    package = sys.modules.get(config_class.__module__.rpartition(".")[0])
    found = [module] if module is not None else []
    for path in sorted(Path(package.__file__).parent.glob("modeling_*.py")) if package is not None and package.__file__ else []:
        if any(word in path.stem for word in ("modeling_tf_", "modeling_flax_")):
            continue
        with contextlib.suppress(Exception):
            other = importlib.import_module(f"{package.__name__}.{path.stem}")
            if other not in found:
                found.append(other)
    return found


def older_names(cls):
    """Names of the keyword arguments that a config's class reads besides its own fields."""
    source = ""
    for c in cls.__mro__:
        if c is not PreTrainedConfig and issubclass(c, PreTrainedConfig):
            with contextlib.suppress(OSError, TypeError):
                source += inspect.getsource(c)
    return set(re.findall(r"""kwargs(?:\.(?:pop|get)\(|\[)\s*["'](\w+)""", source)) | set(re.findall(r"""["'](\w+)["'] (?:not )?in kwargs""", source))


def other_numbers(value):
    """Numbers in a key's place; the doubled one first, as sizes often have to divide one another."""
    return [2 * value or 2, value + 2]


def fixed(config, keys):
    """({key: value}, {older name: key}): of those keys the number that a config.json has that says neither the key nor its older name, whatever
    else it says. Keys that are made of others are left out."""
    cls = type(config)

    def read(says):
        with contextlib.suppress(Exception):
            return plain(cls.from_dict(copy.deepcopy(says)))
        return {}

    base = read({})
    out, older = {k: base[k] for k in keys if type(base.get(k)) is int and base[k] >= 1}, {}
    for key, value in {**dict.fromkeys(sorted(older_names(cls))), **base}.items():
        if isinstance(value, PreTrainedConfig):
            tries = [{k: new} for k, v in plain(value).items() if type(v) is int and v >= 1 for new in other_numbers(v)]
        elif isinstance(value, bool):
            tries = [not value]
        elif isinstance(value, int):
            tries = other_numbers(value)
        elif isinstance(value, (list, tuple)) and value:
            tries = [[*value, value[-1]], [*value, *value]]
        elif value is None:
            tries = [48, True, [48, 48]]
        else:
            continue
        for new in tries:
            there = read({key: new})
            for other in [k for k in out if k != key and k in there and there[k] != out[k]]:
                if key not in base and type(new) is int and there[other] == new:
                    older[key] = other
                elif older.get(key) != other:
                    del out[other]
    return out, {name: key for name, key in older.items() if key in out}


def said(config, keys):
    """({key: [value]}, {older name: key}) of keys that switch parts on: what the class has where config.json lacks the key, whatever else it says; []
    where another key decides. Keys that the class does not take as config.json says are left out."""
    cls = type(config)

    def read(says):
        with contextlib.suppress(Exception):
            return plain(cls.from_dict(copy.deepcopy(says)))
        return {}

    base, lacks = read({}), {}
    if not base and keys:
        lacks = copy.deepcopy(LACKS.get(config.model_type, {}))
        base = read(lacks)

    def other(value):
        if isinstance(value, PreTrainedConfig):
            return [{k: new} for k, v in plain(value).items() if not isinstance(v, PreTrainedConfig) for new in other(v)[:1]]
        if isinstance(value, bool):
            return [not value]
        if isinstance(value, (list, tuple)):
            return [[], [*value, *value]]
        return other_numbers(value)[:1] if type(value) is int else [True, 48] if value is None else list(WORDS) if isinstance(value, str) else []

    changes = [{k: new} for k, v in base.items() for new in other(v)]
    others = [(change, there) for change in changes if (there := read({**lacks, **change}))]
    names = [(name, value, there) for name in sorted(older_names(cls)) for value in (True, False, 48) if (there := read({**lacks, name: value}))]
    like = lambda a, b: is_on(a, "") == is_on(b, "") and (a is None) == (b is None)
    out, older = {}, {}
    for name in {name for name, *_ in names if name not in base}:
        if [of.get("tie_word_embeddings") for other, value, of in names if other == name and isinstance(value, bool)] == [True, False]:
            older[name] = "tie_word_embeddings"
    for key, silent in keys.items():
        default = base.get(key, silent)
        on = default if default and type(default) is not bool else 48 if any(type(of.get(key)) is int for _, of in others) else True
        tries = [v for v in (on, not default if isinstance(default, bool) else None, False if isinstance(default, bool) else 0) if v is not None]
        taken = [v for v in tries if like(read({**lacks, key: v}).get(key), v)]
        if len({bool(v) for v in taken}) < 2 and not (taken and default is None):
            continue
        if default is None and read({**lacks, key: None}).get(key) is not None:
            continue
        moved = [change for change, of in others if key not in change and not like(of.get(key, silent), default)]
        if any(not like(read({**lacks, **change, key: v}).get(key), v) for v in taken for change, _ in others if key not in change):
            continue
        for name, value, of in names:
            if name in base or like(of.get(key, silent), default):
                continue
            if of.get(key) == value and older.get(name, key) == key:
                older[name] = key
            else:
                moved.append(name)
        out[key] = [] if moved or not read({}) else [default if default is None or isinstance(default, (bool, int)) else bool(default)]
    return out, older


def forced_tie(cls, model_type):
    """`tie_word_embeddings` of a config that takes no other, whatever config.json says."""
    with contextlib.suppress(Exception):
        values = [getattr(cls.from_dict({**copy.deepcopy(LACKS.get(model_type, {})), "tie_word_embeddings": t}), "tie_word_embeddings", None) for t in (False, True)]
        if values[0] == values[1]:
            return values[0]
    return None


def derived_keys(config, keys):
    """{key: formula} of those keys that a config makes of others where config.json lacks them, or has null; "=formula" where it does so whatever
    config.json has."""
    cls = type(config)

    def read(says):
        with contextlib.suppress(Exception):
            return plain(cls.from_dict(copy.deepcopy(says)))
        return {}

    base, out = read({}), {}
    numbers = {k: v for k, v in base.items() if type(v) is int and v >= 1}
    reads = [({k: new}, read({k: new})) for k, v in numbers.items() for new in other_numbers(v)]
    for key in keys:
        n = base.get(key)
        if type(n) is not int or n < 1 or read({key: None}).get(key) != n:
            continue
        movers = [next(iter(says)) for says, there in reads if key not in says and there.get(key, n) != n]
        movers = [k for k in dict.fromkeys(movers) if base[k] >= 1]
        tries = [f"{c}*{a}" if c > 1 else a for a in movers for c in (1, 2, 3, 4)] + [f"{a}/{b}" for a in movers for b in movers if a != b]
        pairs = [{a: 2 * base[a], b: times * base[b]} for a in movers for b in movers if a < b for times in (1, 2)]
        all_reads = reads + [(says, read(says)) for says in pairs]
        for formula in tries:
            of = keys_of(formula)
            if of != set(movers):
                continue
            held = [evaluate(formula, there) == there[key] for says, there in all_reads if key in there and key not in says and evaluate(formula, there) is not None]
            if held and all(held) and evaluate(formula, base) == n:
                always = all(read({key: new}).get(key) == n for new in other_numbers(n))
                out[key] = f"={formula}" if always else formula
                break
    return out


def whole_parts(config):
    """{sub-config: numbers} of parts that config.json may lack as a whole: where the part then differs from one that says nothing."""
    cls = type(config)
    out = {}
    for name in config.sub_configs or {}:
        with contextlib.suppress(Exception):
            part = getattr(cls.from_dict({}), name)
            alone = plain(type(part).from_dict({}))
            there = {k: v for k, v in plain(part).items() if type(v) is int and v >= 1 and not k.endswith(("token_id", "token_index"))}
            flags = {k: v for k, v in plain(part).items() if v is None or v is True or isinstance(v, (bool, int)) and not v}
            flat = is_flat(cls, name, there)
            if part.model_type and not flat:
                out[name] = {k: v for k, v in {**there, **flags}.items() if k in there and alone.get(k) != v or k in flags and alone.get(k, 0) != v}
    return out


def is_flat(cls, name, numbers):
    """Whether the part takes its keys from the top of a config.json that lacks it, as older files have them."""

    def read(key, new):
        with contextlib.suppress(Exception):
            return plain(getattr(cls.from_dict({key: new}), name)).get(key)

    return any(read(k, new) == new for k, v in numbers.items() for new in other_numbers(v)[:1])


def flat_parts(config):
    """The sub-configs that older files have at the top, in part or whole: where each key of theirs that changes is read from there."""
    out = []
    for name in config.sub_configs or {}:
        with contextlib.suppress(Exception):
            part = getattr(type(config).from_dict({}), name)
            there = {k: v for k, v in plain(part).items() if type(v) is int and v > 1 and re.fullmatch("hidden_size|d_model|num_hidden_layers|intermediate_size", k)}
            if part.model_type and there and all(is_flat(type(config), name, {k: v}) for k, v in there.items()):
                out.append(name)
    return out


def decided(config):
    """{sub-config: keys} that the config of the whole model sets in its parts, where they have a default of their own; "=key" where it sets them
    whatever the part has."""
    cls = type(config)
    subs = {k: v for k in (config.sub_configs or {}) if isinstance(v := getattr(config, k, None), PreTrainedConfig) and v.model_type}
    out, flags, always = {}, {}, {}

    def look(says):
        with contextlib.suppress(Exception):
            whole = cls.from_dict(copy.deepcopy(says))
            for key, sub in subs.items():
                if key not in says:
                    continue  # made of the whole config's own defaults
                alone = plain(type(sub).from_dict(copy.deepcopy(says[key])))
                there = plain(getattr(whole, key))
                moved = {k for k, v in there.items() if type(alone.get(k)) is int and alone[k] != v}
                always.setdefault(key, set()).update(k for k in moved if type(says[key].get(k)) is int)
                of = flags.setdefault(key, set())
                of.update(k for k, v in there.items() if k in alone and (v is None) != (alone[k] is None) or isinstance(v, bool) and alone.get(k) != v)
                out.setdefault(key, set()).update(moved)

    minimal = {key: {"model_type": sub.model_type} for key, sub in subs.items()}
    look(minimal)
    for key in subs:
        look({key: minimal[key]})
        for k, v in plain(subs[key]).items():
            for new in [not v] if isinstance(v, bool) else [SMALL] if v is None else other_numbers(v) if type(v) is int and v >= 1 else ():
                look({**minimal, key: {**minimal[key], k: new}})
    for k, v in plain(config).items():
        for new in [not v] if isinstance(v, bool) else other_numbers(v) if type(v) is int and v >= 1 else ():
            look({**minimal, k: new})
    own = {key: {*fixed(subs[key], keys)[0], *flags.get(key, ()), *(f"={k}" for k in always.get(key, ()))} for key, keys in out.items()}
    return {key: sorted(keys) for key, keys in own.items() if keys}


# ---- kinds of layers ---------------------------------------------------------------------------------------------------------------

DEPTH = 6  # layers that are built to see which is of which kind
DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
OF_LAYERS = re.compile("layer|dense|sparse|step|interval|freq|period|offset|moe|block|attention")


def slots(model):
    """{(list, child): {index: class}}: of which class the elements of lists are, and their children."""
    out = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and not re.search(r"\.\d+(\.|$)", path):
            for i, element in enumerate(module):
                for name, child in [("", element), *element._modules.items()] if element is not None else ():
                    if child is not None:
                        out.setdefault((path, name), {})[i] = type(child).__name__
    return out


def singles(config):
    """{key: values of it that config.json may have}, of keys that are layers' business."""
    values = {k: v for k, v in plain(config).items() if OF_LAYERS.search(k) and k not in DEPTHS}
    out = {}
    for key, value in values.items():
        listed = isinstance(value, (list, tuple))
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 128:
            out[key] = [-1, 0, 1, 2, 3, 4]
        elif listed and value and all(isinstance(w, str) for w in value):
            known = list(dict.fromkeys(value))
            pairs = [(a, b) for a, b in itertools.permutations(dict.fromkeys([*known, *KINDS]), 2) if a in known or b in known]
            out[key] = [some for a, b in pairs for some in ([a, b] * (DEPTH // 2), [a, a] + [b] * (DEPTH - 2))]
            # a short one is repeated, or says how many layers there are; most classes take none
            out[key] += [some for a, b in itertools.permutations(known, 2) for some in ([a, b], [a, b, b, b], [a, a, b])]
        elif "layer" in key and (value is None or listed and all(isinstance(n, int) for n in value)):
            out[key] = [[], [1], [0, 3, 4]]
    return out


PREDICATE = re.compile(r"(i>=|i<=|i%|\(i\+1\)%|i!|i@|)(\w+)(?:\[(i|i%)\]=(.+)|=(\w+))?")


def holds(predicate, i, keys):
    """Whether a predicate of `kinds` is true of layer i; None where the keys do not say."""
    form, key, at, words, other = PREDICATE.fullmatch(predicate).groups()
    value = keys.get(key)
    if words is not None:
        i = i % len(value) if at == "i%" and value else i
        return value[i] in words.split("|") if value is not None and i < len(value) else None
    if other is not None:
        rest = keys.get(other)
        return None if value is None or value < 1 or rest is None else i % value == rest
    if form == "i!":
        return i not in (value or ())
    if form == "i@":
        return None if value is None else i in value
    if value is None or "%" in form and value < 1:
        return None
    return {"i>=": i >= value, "i<=": i <= value or value == -1, "i%": i % (value or 1) == 0, "(i+1)%": (i + 1) % (value or 1) == 0}[form]


def ties(model):
    """{other name: first name} of parameters and buffers that config.json's `tie_word_embeddings` makes one; before transformers 5, of those that are."""
    if MAJOR >= 5:
        for of in with_parts(model.config):
            of.tie_word_embeddings = True
        with contextlib.suppress(Exception):
            return model.get_expanded_tied_weights_keys(all_submodels=True)
        return {}
    first, out = {}, {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(p), name) != name:
            out[name] = first[id(p)]
    return out


IN_LIST = re.compile(r"([\w.]+?)\.(\d+)\.(\w+)\.([\w.]+)")


def shares(model):
    """{(list, child): ({index: index of the element that it shares the child with}, every index that has the child)}."""
    names = [n for of in (model.named_parameters, model.named_buffers) for n, _ in of(remove_duplicate=False)]
    of_all, has = ties(model), {}
    for path, i, child, rest in (m.groups() for m in map(IN_LIST.fullmatch, names) if m):
        to = IN_LIST.fullmatch(of_all.get(f"{path}.{i}.{child}.{rest}", ""))
        same = to is not None and to.group(1, 3, 4) == (path, child, rest)
        has.setdefault((path, child), {}).setdefault(int(i), set()).add(int(to.group(2)) if same else None)
    some = {slot: of for slot, of in has.items() if any(sources != {None} for sources in of.values())}
    return {slot: ({i: next(iter(s)) if len(s) == 1 else -1 for i, s in of.items() if s != {None}}, sorted(of)) for slot, of in some.items()}


def shared(found):
    """{"list.*.child": n}, of all that `shares` says of models with their configs: elements of the list that have the child share it with the one that
    has it n such elements before, so that there are n different ones. n is a number, or a key of config.json."""
    out = {}
    for path, child in sorted({slot for _, of in found for slot in of}):
        runs = [(config, *of[path, child]) for config, of in found if (path, child) in of]

        def fits(n):
            in_turn = lambda config, having: {i: having[k % count] for k, i in enumerate(having) if k >= count} if (count := n(config)) > 0 else None
            return all(chosen == in_turn(config, having) for config, chosen, having in runs)

        numbers = [n for n in (1, 2) if fits(lambda _: n)]
        keys = [k for k, v in runs[0][0].items() if type(v) is int and len({config.get(k) for config, *_ in runs}) > 1 and fits(lambda config: config.get(k) or 0)]
        if len(runs) > 1 and (numbers or keys):
            out[f"{path}.*.{child}"] = (numbers or keys)[0]
    return out


def kinds(cls, config):
    """(`kinds`, `shared`, `lengths`) of a model. `kinds` is {"one/other": [[predicate…]…]}: where one of two classes stands, it is the first at the layers of which all predicates of an alternative are true: of
    the first one whose keys config.json has. `"+CLASS.child"` and `"-CLASS.child"` say in this way where a layer has a part, or lacks it. Of more keys
    than are looked at together nothing is said."""
    depth = next((k for k in DEPTHS if isinstance(vars(config).get(k, getattr(type(config), k, None)), (int, property))), None)
    if depth is None:
        return {}, {}, {}
    seen, sharing = [], []

    def run(keys):
        keys = {depth: DEPTH, **keys}
        try:
            lacks = {k: v[:DEPTH] if isinstance(v, list) else v for k, v in LACKS.get(config.model_type, {}).items()}
            made = CONFIG_MAPPING[config.model_type](**copy.deepcopy({**lacks, **keys}))
            model = build(cls, made)
            seen.append((keys, slots(model)))
            sharing.append((plain(made), shares(model)))
        except Exception:
            return None
        return seen[-1][1]

    run({})
    one_key = {key: [(value, got) for value in values if (got := run({key: value})) is not None] for key, values in singles(config).items()}
    rules = rules_of(one_key, seen, run, lambda slots: slots)
    parts = rules_of(one_key, seen, run, lambda slots: parts_of_layers(slots, seen))
    if parts:
        # a flag may decide as well
        cases = [{}, *({key: value} for key, found in one_key.items() for value, _ in found[-2:] if isinstance(value, list))]
        for flag, value in [(k, v) for k, v in plain(config).items() if isinstance(v, bool)]:
            for keys in cases:
                run({**keys, flag: not value})
        runs = [(keys, parts_of_layers(found, seen)) for keys, found in seen]
        parts = {pair: of for pair, of in parts.items() if all(agrees(pair, of, keys, found) for keys, found in runs)}
    sharers = sorted((-max(len(having) for _, having in of.values()), i) for i, (_, of) in enumerate(sharing) if of)
    for keys in [seen[i][0] for _, i in sharers[:4]]:
        # a number may say how many different ones there are
        for key, value in itertools.product([k for k, values in singles(config).items() if type(values[0]) is int], (2, 3)):
            run({**keys, key: value})
    return {**rules, **parts}, shared(sharing), lengths(seen)


def lengths(seen):
    """{list: key} of lists of modules that are as long as a list of config.json, whatever else it says."""
    out = {}
    for path in sorted({path for _, found in seen for path, name in found if not name}):
        by_key = {}
        for keys, found in seen:
            for key, value in keys.items():
                if isinstance(value, list) and value and isinstance(value[0], str) and (path, "") in found:
                    by_key.setdefault(key, []).append((len(value), len(found[path, ""])))
        of = [key for key, pairs in by_key.items() if len(set(pairs)) > 1 and all(a == b for a, b in pairs)]
        if of:
            out[path] = of[0]
    return out


def lettered(config, keys):
    """{older name: (key, {letter: word})} of names for a list of words that have a letter for each."""
    out, cls = {}, type(config)
    for name in sorted(older_names(cls)):
        letters = getattr(config, name, None)
        if not isinstance(letters, str) or not letters:
            continue
        letters = "".join(dict.fromkeys(letters))
        for key in keys:
            words = [plain(cls.from_dict({name: some})).get(key) for some in (letters, letters[::-1])]
            if all(isinstance(w, list) and len(w) == len(letters) for w in words) and words[0] == words[1][::-1] and len(set(words[0])) == len(letters):
                out[name] = (key, dict(zip(letters, words[0])))
    return out


def agrees(pair, alternatives, keys, found):
    """Whether the first of the alternatives that config.json's keys decide is right about a model."""
    first = pair.split("/")[0]
    for layers in found.values():
        if not {first, pair.split("/")[1]} & set(layers.values()):
            continue
        for i, kind in layers.items():
            answers = (all_of([holds(p, i, keys) for p in predicates]) for predicates in alternatives)
            answer = next((a for a in answers if a is not None), None)
            if answer is not None and answer != (kind == first):
                return False
    return True


def parts_of_layers(slots, seen):
    """{(list, class, child): {index: "+CLASS.child" or "-CLASS.child"}}: where elements of a list have a child that one of their class has somewhere."""
    known = {}
    for _, found in seen:
        for (path, name), at in found.items():
            for i in at if name else ():
                known.setdefault(path, set()).add((found[path, ""][i], name))
    out = {}
    for path, parts in known.items():
        of = slots.get((path, ""), {})
        for cls, name in parts:
            there = slots.get((path, name), {})
            out[path, cls, name] = {i: f"{'+' if i in there else '-'}{cls}.{name}" for i, c in of.items() if c == cls}
    return out


def rules_of(one_key, seen, run, view):
    """`kinds` of what `view` makes of a model's layers."""
    effective, first = {}, view(seen[0][1]) if seen else None
    for key, found in one_key.items():
        found = [(value, view(got)) for value, got in found]
        differ = [value for i, (value, got) in enumerate(found) if got not in [g for _, g in found[:i]]]
        if len(differ) > 1:
            effective[key] = differ
        elif differ and any(got != first for _, got in found):
            # with another key it may be told apart
            effective[key] = [value for value, _ in found][-4:]
        elif not found and "period" in key:
            effective[key] = [2, 3, 4]  # which the default offset is too large for
    if len(effective) > 4:
        return {}
    for some in itertools.product(*([None, *(values[:4] if len(effective) < 4 else values[-3:])] for values in effective.values())):
        keys = {k: v for k, v in zip(effective, some) if v is not None}
        if len(keys) > 1:
            run(keys)
    seen = [(keys, view(found)) for keys, found in seen]
    pool, places = [], {}
    for key, values in effective.items():
        words = sorted({w for v in values if isinstance(v, list) for w in v if isinstance(w, str)})
        if words:
            repeated = any(i >= len(keys[key]) for keys, found in seen if key in keys for layers in found.values() for i in layers)
            places[key] = "i%" if repeated else "i"
            pool.append([f"{key}[{places[key]}]={word}" for word in words])
        elif isinstance(values[0], list):
            pool.append([f"i!{key}", f"i@{key}"])
        else:
            pool.append([f"{form}{key}" for form in ("i>=", "i<=", "(i+1)%", "i%")])
    tries = [list(p) for n in (1, 2, 3) for of in itertools.combinations(pool, n) for p in itertools.product(*of)]
    tries += [[f"i%{a}={b}"] for a, b in itertools.permutations([k for k, v in effective.items() if not isinstance(v[0], list)], 2)]
    tries.sort(key=lambda t: (not any("=" in p[3:] and "[" in p for p in t), len(t)))  # words decide where there are any
    out = {}
    for slot in sorted({slot for _, found in seen for slot in found}):
        runs = [(keys, found[slot]) for keys, found in seen if slot in found]
        classes = sorted({c for _, found in runs for c in found.values()})
        if len(classes) < 2:
            continue
        rules = {}
        for key, at in places.items():  # several words of one meaning, or several kinds
            by_word = {
                (keys[key][i % len(keys[key]) if at == "i%" else i], c)
                for keys, found in runs if isinstance(keys.get(key), list) for i, c in found.items() if at == "i%" or i < len(keys[key])
            }  # fmt: skip
            words = {name: sorted(w for w, c in by_word if c == name) for name in classes}
            if len(by_word) != len(dict(by_word)) or not all(words.values()):
                continue
            rule = lambda name: [[f"{key}[{at}]={'|'.join(words[name])}"]]
            if len(classes) > 2:
                rules = rules or {f"{name}/": rule(name) for name in classes}
            elif min(map(len, words.values())) > 1:
                name = min(classes, key=lambda name: (len(words[name]), name))
                rules.setdefault("/".join(sorted(classes, key=lambda c: c != name)), []).extend(rule(name))
        if len(classes) > 2:
            out.setdefault(tuple(classes), []).append(rules)
            continue
        decided = set()  # keys that alternatives before have, whose runs say nothing of later ones
        for predicates in tries:
            keys_of_it = {k for p in predicates for k in PREDICATE.fullmatch(p).group(2, 5) if k}
            answers = [([all_of([holds(p, i, keys) for p in predicates]) for i in found], list(found.values()), keys) for keys, found in runs]
            answers = [(answer, found) for answer, found, keys in answers if None not in answer and not decided & keys.keys()]
            if len({tuple(answer) for answer, _ in answers}) < 3:
                continue
            for name in classes:
                if all(a == (c == name) for answer, found in answers for a, c in zip(answer, found)):
                    rules.setdefault("/".join(sorted(classes, key=lambda c: c != name)), []).append(predicates)
                    decided |= keys_of_it
                    break
        out.setdefault(tuple(classes), []).append(rules)
    # of two classes that stand in for each other in several places, by one rule in all of them
    return {pair: rule for found in out.values() if all(f == found[0] for f in found) for pair, rule in found[0].items()}


def all_of(answers):
    return None if None in answers else all(answers)


def kinds_of(config, base):
    """`kinds`, `shared` and `lengths` of the base model of a type."""
    cls = getattr(transformers, base or "", None)
    known = isinstance(cls, type) and issubclass(cls, PreTrainedModel) and cls.config_class is type(config)
    return kinds(cls, config) if known else ({}, {}, {})


def at_home(config):
    """Whether a config's model type is listed, and the config is of its class."""
    return config.model_type in CONFIG_MAPPING_NAMES and type(config) is CONFIG_MAPPING[config.model_type]


def name_of(part, model_type, key):
    """The model type of a part of a model's config. Before 5 most are not listed, and some have the whole model's; these have a name of their own."""
    return part.model_type if at_home(part) else f"{model_type}/{key}"


def parts_of(config):
    """{key: config} of the parts that a model's config has, each of a class of its own."""
    return {k: v for k in (config.sub_configs or {}) if isinstance(v := getattr(config, k, None), PreTrainedConfig)}


def one_type(model_type):
    """Everything of a model type, and of parts that are not listed: [(type, its line, [(class, what it says, tree)], {class: why it failed})]."""
    torch.set_num_threads(1)
    try:
        config = default_config(model_type)
    except Exception as error:
        found = use(classes_of(model_type))
        return [(model_type, {}, [], {"config": f"{type(error).__name__}: {error}"})] if found else []
    return of_config(model_type, config)


def of_config(model_type, config):
    found = classes_of(model_type)
    base = autos.MODEL_MAPPING_NAMES.get(model_type)
    base = base[0] if isinstance(base, (list, tuple)) and base else base
    line = {"llm": use(found)["llm"], "cls": use(found)["cls"], "base": base}
    failed, out, described, overrides, used = {}, [], False, {}, set()
    attribute_map = {k: v for k, v in (config.attribute_map or {}).items()}
    line["attributes"] = attribute_map
    line["tie"] = getattr(config, "tie_word_embeddings", None)
    line["ties"] = forced_tie(type(config), model_type)
    parts = parts_of(config)
    line["sub"] = {k: name_of(v, model_type, k) for k, v in parts.items()}
    auto = sorted(k for k, v in (config.sub_configs or {}).items() if v.__name__ == "AutoConfig")
    if auto:
        line["auto"] = auto  # of the type that config.json says; others are of one type, whatever it says
    line["defaults"], line["derived"], line["switches"] = {}, {}, {}
    small, tiny = evened(shrunk(config, LAYERS)), shrunk(config, 2)
    names = list(dict.fromkeys([n for n in [base, *found.values()] if n]))
    module = None
    for name in names:
        cls = getattr(transformers, name, None)
        module = sys.modules.get(cls.__module__) if cls is not None else module
    if module is None:
        try:
            module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
        except ImportError:
            pass
    if model_type == "dinat" and module is not None:
        module.requires_backends = lambda *_: None  # natten computes; it has no parameters
    # the classes of its files besides: those that a composite model uses of it
    others = {}
    for file in modules_beside(module, type(config)):
        for name, cls in vars(file).items():
            if isinstance(cls, type) and issubclass(cls, PreTrainedModel) and cls.__module__ == file.__name__ and not name.endswith("PreTrainedModel"):
                others.setdefault(name, cls)
                if getattr(cls, "config_class", None) is type(config) and name not in names:
                    names.append(name)
    for name in names:
        cls = getattr(transformers, name, None) or others.get(name)
        if cls is None or not issubclass(cls, PreTrainedModel):
            continue
        own = getattr(cls, "config_class", None)
        if own is not type(config) and getattr(own, "model_type", "") in CONFIG_MAPPING_NAMES:
            continue  # another model type's
        deep = name == base or not described
        within = None if deep else base
        found, why = None, None
        # cut short, as it is, and with what it lacks
        for attempt in (lambda: small if deep else tiny, lambda: config, lambda: repaired(small)):
            try:
                found = describe(cls, attempt(), deep, within)
                break
            except Exception as error:
                why = why or f"{type(error).__name__}: {str(error)[:150]}"
        if found is None:
            failed[name] = why
            continue
        says, node, references, (defaults, unsaid, switches, set_in) = found
        for part, keys in set_in.items():
            overrides.setdefault(part, set()).update(keys)
        line["switches"].update({k: v for k, v in switches.items() if k not in line["switches"]})
        described = described or name == base
        used |= references
        line["defaults"].update({k: plain(config).get(k, v) for k, v in defaults.items()})
        for key, formula in unsaid.items():
            if line["derived"].setdefault(key, formula) != formula:
                line["derived"][key] = None
        out.append((name, says, node, references, defaults))
    rules, shared_of, as_long = kinds_of(config, base)
    letters = lettered(config, [key for key in plain(config) if f"{key}[i" in json.dumps(rules)])
    for node in [node for name, _, node, *_ in out if name == base]:
        for path, key in as_long.items():
            with contextlib.suppress(KeyError):
                of_length(node, path.split("."))[2] = f"#{key}"
    for says in [says for name, says, *_ in out if name == base and shared_of]:
        says["shared"] = shared_of
        lists = tuple(to.split("*")[0] for to in shared_of)
        says["tied"] = {k: v for k, v in says.get("tied", {}).items() if not v.removeprefix("^").startswith(lists)}
        line["defaults"].update({n: getattr(config, n) for n in shared_of.values() if isinstance(n, str)})
    keys = line["defaults"]
    line["derived"] = {**{k: f for k, f in line["derived"].items() if f}, **derived_keys(config, keys)}
    keys = {**keys, **{k: 0 for formula in line["derived"].values() for k in sorted(keys_of(formula))}}
    line["defaults"], line["older"] = fixed(config, [k for k in keys if k not in line["derived"]])
    line["older"].update({name: key for name, (key, _) in letters.items()})
    line["switches"], older = said(config, line["switches"])
    line["older"].update({name: key for name, key in older.items() if name not in line["older"]})
    line["sets"] = {part: sorted({*of.get(part, ()), *overrides.get(part, ())}) for of in [decided(config)] for part in sorted({*of, *overrides})}
    line["parts"] = whole_parts(config)
    line["flat"] = flat_parts(config)
    line["kinds"] = {pair: [[with_letters(p, letters) for p in all_of] for all_of in of] for pair, of in rules.items()}
    line = {k: v for k, v in line.items() if v not in (None, {}, [])}
    for says in [says for _, says, *_ in out if "/" in model_type]:
        says["type"] = model_type
    all_of_it = [(model_type, line, [(n, s, pack(t)) for n, s, t, _, _ in out], failed)]
    for key, part in parts.items():
        name = line["sub"][key]
        of_part = [] if at_home(part) else of_config(name, part)
        # those that are said to take the whole model's config, and take its part
        for of in sorted({of for of, kind in used if kind is type(part)}):
            cls = others.get(of)
            if cls is not None and getattr(cls, "config_class", None) is type(config):
                failed.pop(of, None)
                with contextlib.suppress(Exception):
                    says, node, _, _ = describe(cls, shrunk(part, LAYERS), True)
                    of_part.append((name, {}, [(of, {**says, "type": name}, pack(node))], {}))
        if any(classes for _, _, classes, _ in of_part):
            all_of_it += of_part
        elif not at_home(part):
            line["sub"] = {k: v for k, v in {**line["sub"], key: part.model_type}.items() if v}  # no model takes it
    if not line.get("sub"):
        line.pop("sub", None)
    return all_of_it


def with_letters(predicate, letters):
    """A predicate of a list's words that is one of their letters as well."""
    key, form, words = predicate.partition("[")[0], predicate.partition("]=")[0], predicate.partition("]=")[2]
    more = [letter for of, table in letters.values() if of == key and words for letter, word in table.items() if word in words.split("|")]
    return f"{form}]={'|'.join([*words.split('|'), *more])}" if more else predicate


def of_length(node, path):
    """The entry of a list's elements in a tree."""
    for name in path:
        node = next(iter(node.children[name][0].values()))
    return node.children["*"]


def pack(node):
    """A tree as plain lists: [class, flags, params, children]."""
    params = [[n, kind, always, shape] for n, (kind, always, shape) in node.params.items()]
    children = [[n, always, length, [[key, pack(sub) if isinstance(sub, Node) else None] for key, sub in variants.items()], node.first.get(n)]
                for n, (variants, always, length) in node.children.items()]  # fmt: skip
    return [node.cls, node.flags, params, children]


# ---- writing -----------------------------------------------------------------------------------------------------------------------


def when(always, first=()):
    """How a line says when something is there: always, where more than one key decides, or by a condition; and when it is of the first of two classes."""
    return [1 if always is True else always or 0, *first] if first or always is not True else []


class Table:
    """Modules by content. A class that is built in one way has its own name, one that is built in several a digest of each behind it, so that
    a new module changes no line but those of what it is part of."""

    def __init__(self):
        self.modules, self.lengths = {}, {}

    def add(self, packed):
        """Takes a tree in; its digest stands for it."""
        cls, flags, params, children = packed
        listed = []
        for name, always, length, variants, first in children:
            kinds = [(key, None if sub is None else self.add(sub)) for key, sub in variants]
            listed.append((name, tuple(kinds), length, always, *([first] if first else [])))
        values = tuple((n, kind, json.dumps(shape), always) for n, kind, always, shape in params)
        content = (cls, flags, values, tuple(listed))
        digest = base64.b32encode(hashlib.sha256(repr(content).encode()).digest()).decode().lower()
        self.modules[digest] = content
        return digest

    def name(self, digest):
        cls = self.modules[digest][0]
        return cls if not self.lengths[cls] else f"{cls}#{digest[: self.lengths[cls]]}"

    def lines(self):
        by_class = {}
        for digest, (cls, *_) in self.modules.items():
            by_class.setdefault(cls, []).append(digest)
        for cls, digests in by_class.items():
            enough = (n for n in range(3, 53) if len({d[:n] for d in digests}) == len(digests))
            self.lengths[cls] = 0 if len(digests) == 1 else next(enough)
        out = {}
        for digest, (_, flags, params, children) in self.modules.items():
            values = [[n, kind, json.loads(shape), *when(always)] for n, kind, shape, always in params]
            # A list has one child, which stands for every element.
            listed = [
                [n, [key if sub is None else self.name(sub) for key, sub in kinds], length, *when(always, first)]
                for n, kinds, length, always, *first in children
            ]
            out[self.name(digest)] = json.dumps([flags, values, listed], separators=(",", ":"))
        return out


def mapping_before_5(cls):
    """The renames that `from_pretrained` of transformers 4 does for a class: the first that matches, then no other."""
    from transformers import modeling_utils

    listed = any(name in cls.__name__.lower() for name in getattr(modeling_utils, "VLMS", ()))
    rows = list((getattr(cls, "_checkpoint_conversion_mapping", None) or {}).items()) if listed else []
    return [["First", f"(?P<g0>{pattern})", [pattern], [to], {}] for pattern, to in rows]


LEGACY_BEFORE_5 = [
    ["WeightRenaming", rf"(?P<g0>{source}$)", [source], [target], {}]
    for source, target in (
        ("LayerNorm.gamma", "LayerNorm.weight"),
        ("LayerNorm.beta", "LayerNorm.bias"),
        ("weight_g", "parametrizations.weight.original0"),
        ("weight_v", "parametrizations.weight.original1"),
    )
]


def conversions():
    """transformers' tables as data; before transformers 5 each class has its own."""
    if MAJOR < 5:
        return {"legacy": LEGACY_BEFORE_5}
    from transformers import conversion_mapping as tables
    from transformers import core_model_loading as loading

    out = {}
    for key, transforms in tables._build_checkpoint_conversion_mapping().items():
        rows = []
        for t in transforms:
            more = {}
            if isinstance(t, loading.WeightConverter):
                more["ops"] = [[type(op).__name__, {k: v for k, v in vars(op).items() if isinstance(v, (int, str, bool, list, tuple)) and v is not False}] for op in t.operations]
            if getattr(t, "offset", None) is not None:
                more["offset"] = t.offset
            pattern = t.compiled_sources.pattern
            if type(t).__name__ == "LayerPairCollapse":
                pattern = t.pattern.pattern
            rows.append([type(t).__name__, pattern, list(t.source_patterns), list(t.target_patterns), more])
        out[key] = rows
    return out


def read(path):
    """What a file of this script's says: {model type: (its line, its classes)}. The inverse of `write`."""
    rows = dict(line.split("\t", 1) for line in path.read_text().splitlines())
    packed = {}

    def unpack(name):
        if name not in packed:
            flags, params, children = json.loads(rows[name])
            listed = [
                [n, True if len(rest) < 3 or rest[2] == 1 else rest[2] or False, rest[1],
                 [[k.split("#")[0], None] if k.startswith("@") else [k.split("#")[0], unpack(k)] for k in rest[0]], rest[3] if len(rest) > 3 else None]
                for n, *rest in children
            ]
            packed[name] = [name.split("#")[0], flags, [[n, kind, more[0] or False if more else True, shape] for n, kind, shape, *more in params], listed]
        return packed[name]

    done = {key[1:]: (json.loads(row), []) for key, row in rows.items() if key[0] == ":"}
    for key, row in rows.items():
        if key[0] == "!":
            says = json.loads(row)
            if MAJOR < 5 and f">{key[1:]}" in rows:
                says["mapping"] = json.loads(rows[f">{key[1:]}"])  # the class's own
            done.setdefault(says["type"], ({}, []))[1].append((key[1:], says, unpack(says["root"])))
    return done


def write(path, done, tables):
    table, lines, classes_of_all = Table(), {"%version": json.dumps({"transformers": transformers.__version__})}, {}
    for key, rows in tables.items():
        lines[f">{key}"] = json.dumps(rows, separators=(",", ":"))
    for model_type in sorted(done):
        line, classes = done[model_type]
        if line:
            lines[f":{model_type}"] = json.dumps(line, separators=(",", ":"))
        for name, says, packed in classes:
            mapping = says.pop("mapping", None)
            if mapping:
                lines[f">{name}"] = json.dumps(mapping, separators=(",", ":"))
            # a class of several model types is its own one's
            if name not in classes_of_all or says["type"] == model_type:
                classes_of_all[name] = ({k: v for k, v in says.items() if k != "root"}, table.add(packed))
    modules = table.lines()
    for name, (says, digest) in classes_of_all.items():
        lines[f"!{name}"] = json.dumps({"root": table.name(digest), **says}, separators=(",", ":"))
    lines.update(modules)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{k}\t{v}\n" for k, v in sorted(lines.items())))
    print(f"{path}: {len(lines)} lines, {path.stat().st_size} bytes")


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--out", type=Path, help="crates/arch/data/transformers.txt, or transformers-4.txt for a transformers before 5")
    args.add_argument("--types", help="these model types alone are made; the others stay as the file has them")
    args.add_argument("--jobs", type=int, default=2)
    args.add_argument("--check", action="store_true", help="write nothing; name the model types that differ from the file, and exit with 1")
    args.add_argument("--state", type=Path, help="keeps what is done, a line a model type, and goes on from it")
    args = args.parse_args()
    out = args.out or ROOT / f"crates/arch/data/transformers{'' if MAJOR >= 5 else '-4'}.txt"
    types = args.types.split(",") if args.types else list(CONFIG_MAPPING_NAMES)
    done = {}
    if args.state and args.state.exists():
        done = {t: (line, classes) for t, line, classes in map(json.loads, args.state.read_text().splitlines())}
    todo = [t for t in types if t not in done]
    had = read(out) if args.types and out.exists() else {}
    with multiprocessing.get_context("fork").Pool(args.jobs, maxtasksperchild=20) as pool:
        for all_of_it in pool.imap_unordered(one_type, todo):
            for model_type, line, classes, failed in all_of_it:
                if model_type in had and model_type not in types:
                    done.setdefault(model_type, had[model_type])  # only what the whole model has of it is made anew
                add(done, model_type, line, classes, failed)
                for name, why in failed.items():
                    print(f"{model_type} {name}: {why}", file=sys.stderr, flush=True)
                print(f"{len(done)}/{len(types)} {model_type}: {len(classes)} classes", file=sys.stderr if args.check else sys.stdout, flush=True)
            if args.state:
                with args.state.open("a") as file:
                    file.write("".join(json.dumps([t, *done[t]]) + "\n" for t in dict.fromkeys(t for t, *_ in all_of_it)))
    if args.check:
        sys.exit(check(out, done))
    write(out, {**had, **done}, conversions())


def add(done, model_type, line, classes, failed):
    """Adds what was found of a type to what is known of it; some of a part's classes are found with the whole model's."""
    line_before, before = done.get(model_type, ({}, []))
    line = {**{k: v for k, v in line_before.items() if k != "none"}, **line}
    classes = [*[c for c in before if c[0] not in {name for name, *_ in classes}], *classes]
    if not classes:
        others = {line.get(k) for k in ("llm", "cls", "base")} - {None} if not failed else ()
        line = line if others else {**line, "none": reason(failed)}
    done[model_type] = (line, classes)


def check(path, done):
    """Says which model types a file has otherwise than the installed transformers."""
    had = json.loads(path.read_text().split("%version\t", 1)[1].split("\n", 1)[0])["transformers"]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        write(Path(folder) / path.name, done, {})  # as a file has it
        new_of, old, changed = read(Path(folder) / path.name), read(path), []

    def plain_data(model_type, line, classes):
        of = {n: ({k: v for k, v in says.items() if k not in ("root", "mapping")}, tree) for n, says, tree in classes if says["type"] == model_type}
        return json.loads(json.dumps([line, of]))

    for model_type in sorted(done):
        new = plain_data(model_type, *new_of[model_type])
        if model_type not in old:
            changed.append(f"{model_type}: new")
            continue
        (line_before, before), (line_now, now) = plain_data(model_type, *old[model_type]), new
        differs = sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
        if differs or line_before != line_now:
            changed.append(f"{model_type}: {', '.join(differs) or 'its keys'}")
    print(f"{path.name} is of transformers {had}, {transformers.__version__} is installed: {len(changed)} of {len(done)} model types differ")
    for line in changed:
        print(f"changed: {line}")
    return bool(changed)


def reason(failed):
    """Why nothing is known of a model type, in a line."""
    why = next(iter(failed.values()), "transformers has no class of its own for it")
    return " ".join(why.split())[:120]


if __name__ == "__main__":
    main()
