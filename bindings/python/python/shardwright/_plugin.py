"""Strategies and precision policies in Python: what a class has to look like, and how the engine calls it. Without torch."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from . import _native
from ._errors import ConfigError, PlanError, ShardwrightError

Class = TypeVar("Class", bound=type)

GROUP = "shardwright.plugins"
PLUGIN_FLAG = "--plugin"

KINDS: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


@dataclass(frozen=True)
class TensorMeta:
    """A tensor of the model: its name, dtype by torch's name, and whole shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Placement(dict[str, Any]):
    """Where a tensor lies; made by `PlanInput`'s methods."""


@dataclass
class PlanInput:
    """What a plan may depend on: parameters and buffers, and the mesh by axis, such as `{"mp_replicate": 1, "mp_shard": 8}`."""

    parameters: list[TensorMeta]
    buffers: list[TensorMeta]
    mesh: dict[str, int]
    _draft: dict[str, Any] = field(repr=False)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        size = 1
        for n in self.mesh.values():
            size *= n
        return size

    def _placement(self, kind: str, tensor: TensorMeta, axis: str | None, number: int = 0) -> Placement:
        try:
            made = _native.placement(kind, json.dumps(self._draft["mesh"]), list(tensor.shape), axis, number)
        except PlanError as error:
            raise refuse(tensor, str(error)) from None
        return Placement(json.loads(made))

    def replicated(self, tensor: TensorMeta) -> Placement:
        """Whole on every rank."""
        return self._placement("replicated", tensor, None)

    def chunked(self, tensor: TensorMeta, dim: int = 0, axis: str | None = None) -> Placement:
        """One dim cut as `torch.chunk` cuts it, over an axis of the mesh or all ranks, buffers padded to the first."""
        return self._placement("chunked", tensor, axis, dim)

    def flat(self, tensor: TensorMeta, axis: str | None = None) -> Placement:
        """Equal runs of the flattened tensor, padded."""
        return self._placement("flat", tensor, axis)

    def owned(self, tensor: TensorMeta, coordinate: int, axis: str | None = None) -> Placement:
        """Whole on one coordinate of the axis, nothing on the others."""
        return self._placement("owned", tensor, axis, coordinate)

    def plan(
        self,
        place: Callable[[TensorMeta], Placement],
        group_of: Callable[[TensorMeta], str] | None = None,
        reshard_after_forward: bool = True,
    ) -> Plan:
        """A plan: `place` is asked for each parameter, `group_of` for the module that it is gathered with, "" being the root; buffers are whole."""
        plan = json.loads(json.dumps(self._draft))
        groups: dict[str, list[int]] = {}
        by_name = {t.name: t for t in self.parameters}
        for i, tensor in enumerate(plan["tensors"]):
            meta = by_name.get(tensor["name"])
            if meta is None:
                continue
            tensor["placement"] = dict(place(meta))
            groups.setdefault(group_of(meta) if group_of is not None else "", []).append(i)
        how = "to_shards" if reshard_after_forward else "never"
        order = sorted(groups, key=lambda name: name == "")
        plan["units"] = [{"name": name, "tensors": groups[name], "reshard_after_forward": how} for name in order]
        return Plan(plan)


class Plan(dict[str, Any]):
    """What `PlanInput.plan` made."""


class Refusal(PlanError):
    """A tensor that a strategy cannot place."""

    def __init__(self, tensor: str, reason: str) -> None:
        super().__init__(f"tensor '{tensor}': {reason}")
        self.tensor, self.reason = tensor, reason


def refuse(tensor: TensorMeta, reason: str) -> Refusal:
    """The error to raise for a tensor that a strategy cannot place."""
    return Refusal(tensor.name, reason)


def _options(cls: Any) -> dict[str, inspect.Parameter]:
    parameters = {} if cls.__init__ is object.__init__ else dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
    for name, parameter in parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) or parameter.default is parameter.empty:
            raise ConfigError(f"{cls.__name__}.__init__: '{name}' needs a default: each argument is an option of the YAML's section")
    return parameters


def _register(kind: str, name: str, cls: Any, method: str) -> None:
    if not callable(getattr(cls, method, None)):
        raise ConfigError(f"{cls.__name__} has no method '{method}'")
    options = _options(cls)
    defaults = {n: p.default for n, p in options.items()}
    properties = {}
    for option, default in defaults.items():
        properties[option] = {"default": default, **({"type": KINDS[type(default)]} if type(default) in KINDS else {})}
    schema = {"type": "object", "description": inspect.getdoc(cls) or "", "properties": properties, "additionalProperties": False}
    summary = (inspect.getdoc(cls) or f"{cls.__name__}, in Python").splitlines()[0]
    try:
        file, line = inspect.getsourcefile(cls) or "<python>", inspect.getsourcelines(cls)[1]
    except (OSError, TypeError):
        file, line = "<python>", 0
    try:
        text = json.dumps(defaults), json.dumps(schema)
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}.__init__: a default is not plain data: {error}") from error
    _native.register(kind, name, summary, cls, *text, file, line)


def strategy(name: str) -> Callable[[Class], Class]:
    """Registers a class as the strategy `vendor/name`, which `dist_config: {name: vendor/name, …}` then chooses.

    The arguments of `__init__` are the section's options, each with a default; `plan(self, input)` takes a `PlanInput` and returns
    `input.plan(…)`. What it returns goes through the same validation as any plan. A name that is registered already is replaced.

    Raises:
        ConfigError: the name is not of the form vendor/name, or the class does not fit.
    """

    def register(cls: Class) -> Class:
        _register("strategy", name, cls, "plan")
        return cls

    return register


def precision(name: str) -> Callable[[Class], Class]:
    """Registers a class as the precision policy `vendor/name`, which `shardwright: {precision: {name: vendor/name, …}}` then chooses.

    `decide(self, tensor, trainable)` takes a `TensorMeta` and returns torch's name of one dtype, or of three: storage, compute, reduce.

    Raises:
        ConfigError: the name is not of the form vendor/name, or the class does not fit.
    """

    def register(cls: Class) -> Class:
        _register("policy", name, cls, "decide")
        return cls

    return register


# ---- packages that bring their own


def take_plugins(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The modules that `--plugin` names, and the other arguments.

    Raises:
        ConfigError: the flag has no value.
    """
    modules, rest = [], []
    left = iter(arguments)
    for argument in left:
        if argument == "--":
            rest += [argument, *left]
        elif argument == PLUGIN_FLAG:
            module = next(left, "")
            if not module or module.startswith("-"):
                raise ConfigError(f"{PLUGIN_FLAG} needs a value: a module's name or a .py file")
            modules.append(module)
        elif argument.startswith(PLUGIN_FLAG + "="):
            modules.append(argument.partition("=")[2])
        else:
            rest.append(argument)
    return modules, rest


def load_module(name: str) -> None:
    """Imports a module, or a file that ends in .py, whose classes register themselves.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        if not name.endswith(".py"):
            here = os.getcwd()
            if here not in sys.path and "" not in sys.path:
                sys.path.append(here)
            importlib.import_module(name)
            return
        path = Path(name)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ImportError("not a Python module")
        module = importlib.util.module_from_spec(spec)
        # Where `inspect` looks for the source of its classes.
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
    except ShardwrightError as error:
        raise ConfigError(f"{PLUGIN_FLAG} {name}: {error}") from error
    except Exception as error:
        raise ConfigError(f"{PLUGIN_FLAG} {name}: cannot be imported: {type(error).__name__}: {error}") from error


_installed: list[str] | None = None


def load_installed(warn: Callable[[str], None]) -> list[str]:
    """Imports, once a process, what installed packages name as entry points of the group `shardwright.plugins`. One that fails is a warning:
    another package must not keep the command from working. Returns their names."""
    global _installed
    if _installed is None:
        _installed = []
        for entry in importlib.metadata.entry_points(group=GROUP):
            try:
                entry.load()
            except Exception as error:
                warn(f"plugin '{entry.name}' ({entry.value}) cannot be imported: {type(error).__name__}: {error}")
            else:
                _installed.append(entry.name)
    return _installed


def _fits(value: Any, default: Any) -> bool:
    if default is None or value is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    return isinstance(value, type(default))


# ---- called by the engine


def make(cls: Any, name: str, section: str) -> Any:
    """An object of a registered class, from the section's options."""
    options = json.loads(section)
    for option, parameter in _options(cls).items():
        if option in options and not _fits(options[option], parameter.default):
            kind = KINDS.get(type(parameter.default), "other value")
            raise ConfigError(f"{name}: {option}: expected a value of type {kind}, found {options[option]!r}")
    return cls(**options)


def plan(strategy: Any, draft: str) -> str:
    """A strategy's plan, as the engine takes it."""
    found = json.loads(draft)
    tensors: dict[str, list[TensorMeta]] = {"parameter": [], "buffer": []}
    for t in found["tensors"]:
        tensors[t["kind"]].append(TensorMeta(t["name"], t["source"], tuple(t["shape"])))
    mesh = found["mesh"]
    axes = mesh["axes"] if isinstance(mesh, Mapping) else mesh
    given = PlanInput(tensors["parameter"], tensors["buffer"], {a["name"]: a["size"] for a in axes}, found)
    try:
        made = strategy.plan(given)
    except Refusal as refusal:
        return json.dumps({"refused": refusal.tensor, "reason": refusal.reason})
    if not isinstance(made, dict):
        raise TypeError(f"plan() returned {type(made).__name__}, expected what input.plan() returns")
    return json.dumps(made)


def decide(policy: Any, name: str, dtype: str, shape: Sequence[int], trainable: bool) -> tuple[str, str, str]:
    """A policy's answer, as the engine takes it."""
    answer = policy.decide(TensorMeta(name, dtype, tuple(shape)), trainable)
    names = (answer,) * 3 if isinstance(answer, str) or not isinstance(answer, Sequence) else tuple(answer)
    if len(names) != 3:
        raise TypeError(f"decide() returned {answer!r}, expected one dtype or three: storage, compute, reduce")
    storage, compute, reduce = (str(n).removeprefix("torch.") for n in names)
    return storage, compute, reduce
