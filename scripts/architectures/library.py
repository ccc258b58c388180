"""The installed transformers, 4 or 5: the names that this package takes of it, building a class without data, and a model type's classes."""

import contextlib
import copy
import importlib
import signal
import sys
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto as autos
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

try:
    from transformers import PreTrainedConfig
    from transformers.initialization import no_init_weights
except ImportError:  # transformers 4
    from transformers import PretrainedConfig as PreTrainedConfig
    from transformers.modeling_utils import no_init_weights

__all__ = [
    "CONFIG_MAPPING",
    "CONFIG_MAPPING_NAMES",
    "MAJOR",
    "SECONDS",
    "PreTrainedConfig",
    "PreTrainedModel",
    "at_home",
    "base_of",
    "build",
    "by_use",
    "classes_of",
    "is_model",
    "modeling_files",
    "torch",
    "transformers",
]

MAJOR = int(transformers.__version__.split(".")[0])
SECONDS = 20  # for one build


class Slow(Exception):
    """A model takes too long to build."""


def build(cls, config):
    """The model on the meta device, with bfloat16 as the default dtype: what is float32 is so by the class's own choice."""

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


def classes_of(model_type):
    """{auto-mapping: class} of a model type."""
    out = {}
    for name, names in vars(autos).items():
        if name.startswith("MODEL_") and name.endswith("_MAPPING_NAMES") and model_type in names:
            found = names[model_type]
            out[name[len("MODEL_") : -len("_MAPPING_NAMES")]] = found[0] if isinstance(found, (list, tuple)) else found
    return out


def base_of(model_type):
    """The class of the base model of a type."""
    base = autos.MODEL_MAPPING_NAMES.get(model_type)
    return base[0] if isinstance(base, (list, tuple)) and base else base


def by_use(found):
    """The classes that LLaMA-Factory takes for model_class llm and cls, of all classes of a type."""

    def first(*keys):
        return next((found[k] for k in keys if k in found), None)

    return {"llm": first("FOR_IMAGE_TEXT_TO_TEXT", "FOR_MULTIMODAL_LM", "FOR_CAUSAL_LM"), "cls": first("FOR_TOKEN_CLASSIFICATION")}


def is_model(cls):
    """Whether this is a class of a model."""
    return isinstance(cls, type) and issubclass(cls, PreTrainedModel)


def modeling_files(module, config_class):
    """The modeling files of a model type as modules, that of its classes first."""
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


def at_home(config):
    """Whether a config's model type is listed, and the config is of its class."""
    return config.model_type in CONFIG_MAPPING_NAMES and type(config) is CONFIG_MAPPING[config.model_type]
