"""Configs that differ from one in a key, or in a few: what is tried to see what depends on a key."""

import contextlib
import copy
import re

from .configs import LAYER_COUNTS, has_layers_of_their_own, is_token, keys_in_parts, numbers_of, plain, put, unlisted
from .library import PreTrainedConfig

SMALL = 4  # a number where there was none
WORDS = ("layer_norm", "layer", "group", "gated-gelu", "relative_key", "rope", "conv", "none")
"""Tried as the value of each key that is a word."""
KINDS = (
    "full_attention", "sliding_attention", "chunked_attention", "linear_attention", "conv", "mamba", "attention", "recurrent", "moe", "mlp",
    "dense", "sparse", "hybrid",
)  # fmt: skip
"""Kinds of layers, tried in each list of words."""
GEMMA4 = [
    {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 704},
    {"use_double_wide_mlp": True, "num_kv_shared_layers": 1},
]
TOGETHER = {"gemma4_text": GEMMA4, "gemma4_unified_text": GEMMA4}
"""Keys that change a class of a model type only together."""
DIVIDES = re.compile("head|divi|group|multiple")
"""Names of keys that others are divided by, or rounded with: these may change nothing as long as they divide."""


def one_key(cls, config):
    """(key, its value before, after, config): configs that differ in one key; the value that a size may depend on comes first."""
    for key, value in {**plain(config), **unlisted(cls, config)}.items():
        if (
            isinstance(value, PreTrainedConfig)
            or key.endswith(("token_id", "token_index"))
            or (key.startswith("output_") and isinstance(value, bool))
        ):
            continue
        for new in other_values(config, key, value):
            with contextlib.suppress(Exception):
                yield key, value, new, with_key(config, key, value, new)
    if stages := getattr(config, "stage_names", None):
        other = copy.deepcopy(config)
        with contextlib.suppress(Exception):
            other.out_features = list(stages)  # a backbone that gives all stages has a normalisation for each
            yield "out_features", config.out_features, list(stages), other


def other_values(config, key, value):
    """What a key's value is changed to."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int) and value >= 1 and not is_token(key):
        may_be_off = re.search("rank|expert|dense|interval|step|shared|per_layer|nextn|mtp", key)
        return [2 * value, *(() if not may_be_off else [None] if "rank" in key else [0, 1])]
    if isinstance(value, int) and value <= 0:
        return [8 if value else 1]
    if value is None and (part := (config.sub_configs or {}).get(key)) is not None:
        with contextlib.suppress(Exception):
            return [part()]  # a part that models may have; one of any type is no config
        return []
    if value is None and not key.endswith(("id", "ids", "path", "theta")):
        return [True, SMALL, [0]]
    if isinstance(value, str) and not key.endswith(("act", "activation", "function", "type", "path", "token")):
        return [word for word in WORDS if word != value]
    if isinstance(value, float) and value >= 1 and re.search("ratio|mult|expan|factor|^scale$", key):
        return [2 * value]
    if isinstance(value, (list, tuple)) and value and all(type(v) is int and v > 0 for v in value):
        return [[2 * v for v in value]]
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value):
        # the kind of one layer, at the front and at the end
        return [[kind, *value[1:-1], kind] for kind in KINDS if kind not in value]
    return []


def with_key(config, key, old, new):
    """A config with one key changed; lists as long as the number of layers follow it."""
    other = copy.deepcopy(config)
    setattr(other, key, new)
    if ("layer" in key or key == "depth") and isinstance(old, int) and new == 2 * old:
        for name, items in plain(config).items():
            if isinstance(items, (list, tuple)) and len(items) == old:
                setattr(other, name, [*items, *items])
    if has_layers_of_their_own(config):
        with contextlib.suppress(Exception):  # a config that refuses the value is changed as it is
            other = type(config)(**plain(other))  # makes the layers' values of the other keys
    return other


def is_doubled(old, new):
    """Whether a key was changed to twice its number."""
    return isinstance(old, int) and not isinstance(old, bool) and isinstance(new, int) and new == 2 * old


def together(config):
    """(keys, None, their values, config): configs that differ in keys that change a class only together."""
    cross = {"is_decoder": True, "add_cross_attention": True}
    for keys in [*TOGETHER.get(config.model_type, []), *([cross] if cross.keys() <= plain(config).keys() else [])]:
        other = copy.deepcopy(config)
        for key, value in keys.items():
            setattr(other, key, value)
        yield ", ".join(keys), None, keys, other


def is_size(key, value):
    """Whether a key's value is a number that sizes may depend on."""
    return type(value) is int and value >= 1 and key not in LAYER_COUNTS and not is_token(key)


def one_key_of_a_part(config, deep):
    """(`part.key`, its value before, after, config): configs that differ in one number of a part; without `deep`, in a vocabulary's size."""
    for part, key, value in keys_in_parts(config):
        if isinstance(key, str) and is_size(key, value) and (deep or key == "vocab_size"):
            other = copy.deepcopy(config)
            with contextlib.suppress(Exception):
                put(other, f"{part}.{key}", 2 * value)
                yield f"{part}.{key}", value, 2 * value, other


def further(config, effective):
    """(key, config): configs with one key three times as large, of those that sizes depend on (`effective`) or that others are divided by."""
    for key, value in numbers_of(config).items():
        if is_size(key, value) and (key in effective or ("." not in key and DIVIDES.search(key))):
            for new in (3 * value, value + 1) if "channels" in key else (3 * value,):
                other = copy.deepcopy(config)
                with contextlib.suppress(Exception):
                    put(other, key, new)
                    yield key, other


def other_numbers(value):
    """Numbers in place of another; the doubled one first, as sizes often have to divide one another."""
    return [2 * value or 2, value + 2]
