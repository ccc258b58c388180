"""Reading and setting the keys of a config, and of its parts: the configs inside of it."""

import ast
import contextlib
import inspect
import re
import sys

from .library import PreTrainedConfig

IGNORED_KEYS = {
    "transformers_version", "architectures", "id2label", "label2id", "return_dict", "output_hidden_states", "output_attentions", "problem_type",
    "dtype", "torch_dtype", "chunk_size_feed_forward", "is_encoder_decoder", "use_cache", "gradient_checkpointing", "name_or_path",
}  # fmt: skip
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depth")
"""Keys that say how many layers there are."""


def plain(config):
    """A config's own keys and values, but those that no parameter depends on."""
    return {k: v for k, v in vars(config).items() if not k.startswith("_") and k not in IGNORED_KEYS}


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
    # to lack the key is the same as to have it true
    for key in re.findall(r'True if not hasattr\(config, "(\w+)"\) else config\.', source):
        if not hasattr(config, key):
            out.setdefault(key, True)
    return out


def with_parts(config):
    """A config and its parts, and theirs."""
    yield config
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            yield from with_parts(part)


def parts_of(config):
    """{key: config} of a config's parts that its class lists."""
    return {k: v for k in (config.sub_configs or {}) if isinstance(v := getattr(config, k, None), PreTrainedConfig)}


def keys_in_parts(config):
    """(part, key, value) of a config's parts, whether these are configs or dicts."""
    for part, of in plain(config).items():
        keys = of if isinstance(of, dict) else plain(of) if isinstance(of, PreTrainedConfig) else {}
        for key, value in keys.items():
            yield part, key, value


def numbers_of(config):
    """A config's own keys, and `part.key` of its parts."""
    return {**plain(config), **{f"{part}.{key}": value for part, key, value in keys_in_parts(config)}}


def put(config, key, value):
    """Sets a key, or `part.key`."""
    *parts, key = key.split(".")
    for part in parts:
        config = getattr(config, part)
    if isinstance(config, dict):
        config[key] = value
    else:
        setattr(config, key, value)


def has_layers_of_their_own(config):
    """Whether some layers have other values of some keys than the config has, in transformers 5."""
    return getattr(config, "is_heterogeneous", False)


def is_token(key):
    """Whether a key's number is that of a token, and not how many there are."""
    return "token" in key and not re.search("(^|[.])num_", key)
