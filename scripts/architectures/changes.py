"""Configs that differ from one in a key, or in a few: what is tried to see what depends on a key."""

import contextlib
import copy
import re

from .configs import LAYER_COUNTS, has_layers_of_their_own, is_token, numbers_of, plain, put, unlisted
from .library import PreTrainedConfig

SMALL = 4
WORDS = ("layer_norm", "layer", "group", "gated-gelu", "relative_key", "rope", "conv", "none")
"""Values of keys that are words, tried on each."""
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
"""Keys that change a class only together."""
DIVIDES = re.compile("head|divi|group|multiple")
"""Names of keys that others are divided by, and rounded with: such a one may change nothing as long as it divides."""


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
                    if (
                        ("layer" in key or key == "depth")
                        and isinstance(items, (list, tuple))
                        and isinstance(value, int)
                        and len(items) == value
                        and new == 2 * value
                    ):
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
            if (
                isinstance(key, str)
                and type(value) is int
                and value >= 1
                and key not in LAYER_COUNTS
                and not is_token(key)
                and (deep or key == "vocab_size")
            ):
                other = copy.deepcopy(config)
                with contextlib.suppress(Exception):
                    put(other, f"{part}.{key}", 2 * value)
                    yield f"{part}.{key}", value, 2 * value, other


def further(config, effective):
    """(key, config): configs with one key three times as large, of those that sizes were seen to depend on or that others are divided by."""
    for key, value in numbers_of(config).items():
        if (
            type(value) is int
            and value >= 1
            and (key in effective or "." not in key and DIVIDES.search(key))
            and not is_token(key)
            and key not in LAYER_COUNTS
        ):
            for new in (3 * value, value + 1) if "channels" in key else (3 * value,):
                other = copy.deepcopy(config)
                with contextlib.suppress(Exception):
                    put(other, key, new)
                    yield key, other


def other_numbers(value):
    """Numbers in a key's place; the doubled one first, as sizes often have to divide one another."""
    return [2 * value or 2, value + 2]
