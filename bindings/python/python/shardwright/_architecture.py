"""From a checkpoint's tensors to a model's parameters: by the conversions of the installed transformers, or by shardwright's architecture data where
they cannot be read. The conversions of versions other than the data's are checked against it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from . import _native
from ._errors import ShardwrightError
from ._trace import Piece, Recipe, Traced, is_of_transformers, own_class, trace

logger = logging.getLogger("shardwright")


def recipes_of(
    model: Any,
    opened: _native.Checkpoint,
    tensors: Mapping[str, Sequence[int]],
    conversions: Sequence[Any] | None,
    state: Mapping[str, Any],
) -> Traced:
    """How each parameter and persistent buffer of `state`, the model's `state_dict()`, is made of the checkpoint's tensors, given as shapes by name.

    `conversions` takes the place of what transformers has for the model.
    """
    if conversions is not None or not is_of_transformers(model):
        return trace(model, tensors, conversions, state)
    try:
        traced = trace(model, tensors, None, state, opened.config_text)
    except ShardwrightError:
        raise
    except Exception as why:
        return _by_data(model, opened, state, why)
    if _native.architecture_version(_installed()) != _version():
        _compare(model, opened, traced)
    return traced


def _version() -> str:
    import transformers

    return str(transformers.__version__)


def _installed() -> str:
    """The installed transformers' version, its first two parts."""
    return ".".join(_version().split(".")[:2])


def _data(model: Any, opened: _native.Checkpoint) -> Any:
    try:
        config = json.loads(model.config.to_json_string(use_diff=False))
    except (AttributeError, TypeError, ValueError):  # a config that is not transformers', or that JSON cannot hold
        config = json.loads(opened.config_text or "{}")
    config["architectures"] = [own_class(model).__name__]
    return opened.recipes(json.dumps(config), _installed())


def _by_data(model: Any, opened: _native.Checkpoint, state: Mapping[str, Any], why: Exception) -> Traced:
    """What the architecture data says of the model."""
    of = _native.architecture_version(_installed())
    name = own_class(model).__name__
    found, made, unused, aliases = _data(model, opened)
    if found is None:
        logger.warning("transformers %s: no conversions are known for %s: its weights are taken under their own names", _version(), name)
    elif _installed().startswith("4."):
        logger.info("transformers %s has no conversions: weights are named as in the architecture data of %s", _version(), of)
    else:
        logger.warning("the conversions of transformers %s have another form than is known (%s): those of %s are used", _version(), why, of)
    prefix = getattr(model, "base_model_prefix", "") + "."

    def here(name: str) -> str:
        """The name in this model, which may be the other's base or have it inside."""
        if name in state or prefix == ".":
            return name
        other = name.removeprefix(prefix) if name.startswith(prefix) else prefix + name
        return other if other in state else name

    out = Traced(ties={here(alias): here(to) for alias, to in aliases})
    for name, shape, assembly, float32 in made:
        source, pieces = (assembly, None) if isinstance(assembly, str) else (None, assembly)
        recipe = Recipe(tuple(shape), source, pieces, float32=float32)
        name = here(name)
        if name in state:
            out.recipes[name] = recipe
        else:
            out.unexpected += [(source, name) for source in sorted(recipe.sources())]
    out.unexpected += [(n, n) for n in unused if n not in out.ties]
    return out


def _compare(model: Any, opened: _native.Checkpoint, traced: Traced) -> None:
    """Logs where the installed transformers builds a parameter from other elements than the tested version. It never fails a load."""
    try:
        found, made, _, _ = _data(model, opened)
    except Exception as error:
        logger.debug("not compared with the architecture data: %s", error)
        return
    if found != own_class(model).__name__:
        return
    both = ((name, traced.recipes[name], shape, assembly) for name, shape, assembly, _ in made if name in traced.recipes)
    other = [name for name, recipe, shape, assembly in both if not _same(recipe, shape, assembly)]
    if other:
        logger.warning(
            "transformers %s builds %d parameter(s) from other elements than %s, the tested version, '%s' the first; the installed one is followed",
            _version(),
            len(other),
            _native.architecture_version(_installed()),
            other[0],
        )


def _same(traced: Recipe, shape: list[int], assembly: str | list[Piece]) -> bool:
    if traced.group is not None:
        return True  # computed, not moved
    if traced.shape != tuple(shape):
        return False
    if traced.source is not None or isinstance(assembly, str):
        return traced.source == assembly

    def in_order(pieces: list[Piece]) -> list[Piece]:
        return sorted(((name, source, target, list(loops)) for name, source, target, loops in pieces), key=lambda piece: piece[2])

    return in_order(traced.pieces or []) == in_order(assembly)
