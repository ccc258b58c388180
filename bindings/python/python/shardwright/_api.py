"""`resolve`, `plan`, `load`, `convert` and `diff`: the command line's own steps, with objects as results. Without torch."""

from __future__ import annotations

import builtins
import ctypes
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from . import _native
from ._errors import ConfigError, MismatchError
from ._hub import local_path
from ._plugin import load_installed
from ._progress import Bar

logger = logging.getLogger("shardwright")

AnyPath = str | os.PathLike[str]
Progress = bool | Callable[[int, int], object]
Overrides = Mapping[str, Any] | Sequence[str]


def _overrides(given: Overrides) -> list[str]:
    """`{"model": "x", "shardwright.io.threads": 2}`, or the command line's own `key=value`."""
    if isinstance(given, Mapping):
        return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()]
    if isinstance(given, str):
        raise ConfigError(f"overrides={given!r}: expected a dict, or a list of key=value")
    return [str(item) for item in given]


@dataclass(frozen=True)
class Resolution:
    """What a config means: every value, where each is from, and what is wrong or odd.

    `values` is the document that `shardwright resolve --format json` prints; `findings` are its errors and warnings with file, line and caret.
    """

    config: Path
    values: dict[str, Any] = field(repr=False)
    findings: str
    _native: _native.Resolution = field(repr=False)

    def __bool__(self) -> bool:
        return self._native.ok

    def __repr__(self) -> str:
        errors, warnings = len(self.values.get("errors") or ()), len(self.values.get("warnings") or ())
        return f"Resolution({self.config}: {'decided' if self else 'refused'}, {errors} errors, {warnings} warnings)"

    def raise_for_errors(self) -> Resolution:
        """Raises `ConfigError` with everything that is wrong, else returns itself."""
        if not self:
            raise ConfigError(self.findings)
        return self

    def __getitem__(self, key: str) -> Any:
        """The value at a dotted key, such as `resolution["mesh.mp_shard"]`."""
        at: Any = self.values
        for part in key.split("."):
            if not isinstance(at, Mapping) or part not in at:
                raise KeyError(key)
            at = at[part]
        return at

    def explain(self, key: str) -> str:
        """Where a value comes from, as `shardwright resolve --explain` says it. Raises `ConfigError` for a key that is not there."""
        return self._native.explain(key)

    def lock(self) -> dict[str, Any]:
        """The lock, as `shardwright resolve --lock` writes it."""
        locked: dict[str, Any] = json.loads(self._native.lock())
        return locked


def resolve(config: AnyPath, overrides: Overrides = (), *, world_size: int | None = None) -> Resolution:
    """Decides every value of a config: a LLaMA-Factory v1 YAML with the DeepSpeed JSON that it names, or an accelerate YAML.

    What is wrong inside of the config is in the result, which is false then; `raise_for_errors()` makes an exception of it.

    Args:
        config: the YAML's path.
        overrides: values that win over the file's, `{"model": "path"}` or `["model=path"]`.
        world_size: number of ranks; by default the launcher's, else 1.

    Raises:
        ConfigError: the file cannot be read.
        WorldError: ranks and world size are contradictory.
    """
    load_installed(logger.warning)
    done = _native.resolve(Path(config), _overrides(overrides), world_size=world_size)
    return Resolution(Path(config), json.loads(done.json()), done.findings, done)


@dataclass(frozen=True)
class Shard:
    """What one rank holds of one tensor. `shape` is None for a flat partition; `padded` counts elements with padding."""

    name: str
    region: Any
    shape: tuple[int, ...] | None
    numel: int
    padded: int


@dataclass(frozen=True)
class TensorPlan:
    """The plan of one tensor: dtypes by torch's names, placement as data."""

    name: str
    shape: tuple[int, ...]
    source: str
    kind: str
    trainable: bool
    placement: dict[str, Any]
    storage: str
    compute: str
    reduce: str


@dataclass(frozen=True)
class Plan:
    """A validated plan: where every tensor lies on every rank. Nothing has been read but headers."""

    strategy: str
    world_size: int
    rank: int | None
    tensors: dict[str, TensorPlan] = field(repr=False)
    groups: list[dict[str, Any]] = field(repr=False)
    warnings: list[str] = field(repr=False)
    _native: _native.Plan = field(repr=False)

    def __repr__(self) -> str:
        me = "all ranks" if self.rank is None else f"rank {self.rank}"
        return f"Plan({self.strategy}: {len(self.tensors)} tensors in {len(self.groups)} parameter groups over {self.world_size} ranks, for {me})"

    def shards(self, rank: int) -> dict[str, Shard]:
        """What a rank holds, by tensor. Raises `WorldError` for a rank beyond the world."""
        found = json.loads(self._native.shards(rank))
        return {s["name"]: Shard(**{**s, "shape": None if s["shape"] is None else tuple(s["shape"])}) for s in found}

    def load(self, ranks: Sequence[int] | None = None, *, threads: int | None = None, force: bool = False, progress: Progress = False) -> Loaded:
        """Loads these ranks' shards; by default this process's, or all of them. See `shardwright.load`."""
        bar = Bar(progress)
        try:
            made, seconds = self._native.load(None if ranks is None else list(ranks), threads=threads, force=force, progress=bar.report)
        finally:
            bar.close()
        loaded = Loaded([RankShards(shards) for shards in made], seconds)
        logger.info("%r", loaded)
        return loaded


def plan(config: AnyPath, overrides: Overrides = (), *, rank: int | None = None, world_size: int | None = None) -> Plan:
    """Resolves a config, opens the checkpoint that it names, plans, and validates the plan. Reads headers alone.

    Args:
        config, overrides: as for `resolve`.
        rank: this process's rank; by default the launcher's, else the plan is for all of them.
        world_size: number of ranks; by default the launcher's, else 1.

    Raises:
        ConfigError: the config is wrong, with file, line and caret.
        CheckpointError: the checkpoint is missing or malformed.
        PlanError: the strategy refuses the model or the mesh.
        WorldError: ranks and world size are contradictory.
    """
    load_installed(logger.warning)
    done = _native.plan(Path(config), _overrides(overrides), rank=rank, world_size=world_size)
    for note in done.notes:
        logger.warning("%s", note)
    found = json.loads(done.json())
    tensors = {
        t["name"]: TensorPlan(
            t["name"], tuple(t["shape"]), t["source"], t["kind"], t["trainable"], t["placement"], *(t["precision"][k] for k in PRECISION)
        )
        for t in found["tensors"]
    }
    return Plan(found["strategy"], done.world_size, done.rank, tensors, found["units"], list(done.notes), done)


PRECISION = ("storage", "compute", "reduce")

FORMATS = {
    "float64": "d",
    "float32": "f",
    "float16": "e",
    "int64": "q",
    "int32": "i",
    "int16": "h",
    "int8": "b",
    "uint64": "Q",
    "uint32": "I",
    "uint16": "H",
    "uint8": "B",
    "bool": "?",
}
"""Dtypes that memoryview and numpy have."""


class Tensor:
    """A shard in the memory that it was loaded into.

    `torch.from_dlpack(tensor)` and `numpy.asarray(tensor)` share that memory, which lives as long as any of them. bfloat16 and float8 go through
    DLPack; as a buffer they are bytes. Nobody should write to it while another view of it is read.
    """

    __slots__ = ("_native", "dtype", "global_shape", "kind", "name", "rank", "region", "shape")

    def __init__(self, native: _native.Tensor, rank: int) -> None:
        self._native, self.rank = native, rank
        self.name, self.kind, self.dtype = native.name, native.kind, native.dtype
        self.shape, self.global_shape = tuple(native.shape), tuple(native.global_shape)
        self.region: Any = json.loads(native.region)

    def __repr__(self) -> str:
        return f"Tensor({self.name}: {list(self.shape)} of {list(self.global_shape)}, {self.dtype}, rank {self.rank})"

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self._native.memory[1]

    def memoryview(self) -> builtins.memoryview:
        """A read-only view of the memory: of elements where Python has the dtype, else of bytes."""
        address, size = self._native.memory
        if not size:
            return memoryview(b"")
        memory: Any = type("Memory", (ctypes.c_ubyte * size,), {})
        array = memory.from_address(address)
        array.owner = self._native  # for as long as the view lives
        view: Any = memoryview(array).cast("B").toreadonly()
        kind = FORMATS.get(self.dtype)
        made: builtins.memoryview = view.cast(kind, self.shape) if kind and self.shape else view
        return made

    def __buffer__(self, flags: int) -> builtins.memoryview:
        """The buffer protocol, from Python 3.12 on."""
        return self.memoryview()

    @property
    def __array_interface__(self) -> dict[str, Any]:
        import sys

        address, size = self._native.memory
        order = "<" if sys.byteorder == "little" else ">"
        kinds = {"float": "f", "int": "i", "uint": "u", "bool": "b"}
        if self.dtype in FORMATS:
            letter = kinds[self.dtype.rstrip("0123456789")]
            width = {"bool": 1}.get(self.dtype) or int(self.dtype.lstrip("abcdefghijklmnopqrstuvwxyz")) // 8
            typestr, shape = ("|" if width == 1 else order) + f"{letter}{width}", self.shape
        else:
            typestr, shape = "|u1", (size,)
        return {"version": 3, "typestr": typestr, "shape": shape, "data": (address, True), "strides": None}

    def __dlpack__(self, **options: Any) -> Any:
        return self._native.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._native.__dlpack_device__()

    def torch(self) -> Any:
        """A torch tensor over the same memory."""
        import torch

        return torch.from_dlpack(self)


class RankShards(Mapping[str, Tensor]):
    """One rank's shards by name."""

    def __init__(self, native: _native.Shards) -> None:
        self._native = native
        self.rank, self.bytes_read = native.rank, native.bytes_read
        self._index = {name: i for i, name in enumerate(native.names())}

    def __getitem__(self, name: str) -> Tensor:
        return Tensor(self._native.tensor(self._index[name]), self.rank)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        return f"RankShards(rank {self.rank}: {len(self)} tensors, {self.bytes_read / 1e6:.1f} MB read)"


class Loaded(Sequence[RankShards]):
    """The loaded ranks, in the order in which they were asked for."""

    def __init__(self, ranks: list[RankShards], seconds: float) -> None:
        self.ranks, self.seconds = ranks, seconds

    def __getitem__(self, index: Any) -> Any:
        return self.ranks[index]

    def __len__(self) -> int:
        return len(self.ranks)

    @property
    def bytes_read(self) -> int:
        """Of files, for all of these ranks."""
        return sum(r.bytes_read for r in self.ranks)

    def __repr__(self) -> str:
        ranks = ", ".join(str(r.rank) for r in self.ranks[:8]) + (", …" if len(self.ranks) > 8 else "")
        return f"Loaded(ranks {ranks}: {self.bytes_read / 1e6:.1f} MB read in {self.seconds:.3f} s)"


def load(
    config: AnyPath,
    overrides: Overrides = (),
    *,
    rank: int | None = None,
    world_size: int | None = None,
    ranks: Sequence[int] | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress = False,
) -> Loaded:
    """Loads shards into memory of their own, as `shardwright load` does; to fill a model use `shardwright.fill`.

    Args:
        config, overrides: as for `resolve`.
        rank: this process's rank; by default the launcher's, else all ranks are loaded side by side.
        world_size: number of ranks; by default the launcher's, else 1.
        ranks: the ranks to load, in place of `rank`.
        threads: threads that read.
        force: load even where the predicted peak exceeds the memory there is.
        progress: True for a tqdm bar, or a callable that takes the bytes done and the bytes to do.

    Raises:
        ConfigError, CheckpointError, PlanError, WorldError: as `plan`.
        OutOfMemoryError: there is not enough memory.
        IoError: a read failed.
    """
    return plan(config, overrides, rank=rank, world_size=world_size).load(ranks, threads=threads, force=force, progress=progress)


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote, or would write: names and sizes of files, and what the target's format cannot carry.

    `verified` counts the elements that were compared with the source.
    """

    format: str
    target: Path
    files: dict[str, int] = field(repr=False)
    bytes: int
    source_bytes: int
    lost: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    written: bool
    verified: int = 0

    def __repr__(self) -> str:
        did = f"{self.seconds:.2f} s" if self.written else "nothing is written"
        lost = f", {len(self.lost)} not carried" if self.lost else ""
        noun = "file" if len(self.files) == 1 else "files"
        return f"Converted({self.format} to {self.target}: {self.bytes / 1e6:.1f} MB in {len(self.files)} {noun}, {did}{lost})"


def convert(
    source: AnyPath,
    target: AnyPath,
    to: Literal["hf", "hf-sharded", "dcp", "zero3", "zero3-universal"],
    *,
    ranks: int = 1,
    replicas: int = 1,
    dtype: str | None = None,
    params_only: bool = False,
    names: Literal["model", "hub"] | None = None,
    max_file_size: int | None = None,
    sub_group_size: int | None = None,
    tag: str | None = None,
    config: AnyPath | None = None,
    ties: Mapping[str, str] | None = None,
    verify: bool = False,
    dry_run: bool = False,
    progress: Progress = False,
) -> Converted:
    """Converts a checkpoint of any format to another one, in bounded memory and without torch.

    Args:
        source: safetensors, `torch.save` files, a distributed checkpoint, DeepSpeed ZeRO-1 to 3, or a universal checkpoint.
        target: a directory that does not exist yet.
        to: the format to write.
        ranks: ranks that the target's parts are for.
        replicas: groups of ranks that each hold the whole model, as under hybrid sharding; they divide the ranks.
        dtype: of the parameters, such as "bfloat16"; by default the source's.
        params_only: leave the optimizer out.
        names: whose names the tensors get, the model's class's or those of files on the hub (for "hf"); by default the source's.
        max_file_size: bytes of tensors in one file of "hf", at most.
        sub_group_size: DeepSpeed's, which must be the run's own.
        tag: the directory of DeepSpeed's files, which `latest` names: "pytorch_model" for accelerate and LLaMA-Factory; by default the
            source's, else `global_step` and the step.
        config: a directory whose config and tokenizer are copied to a Hugging Face target.
        ties: tied names that the checkpoint does not record, alias to name.
        verify: read the target back and compare every element with the source.
        dry_run: plan alone.
        progress: as for `load`.

    Raises:
        ConfigError: an option makes no sense.
        CheckpointError: the source is missing or malformed.
        ExistsError: the target exists.
        IoError: a read or a write failed.
        MismatchError: with `verify`, an element of the target is not the source's.
    """
    bar = Bar(progress)
    try:
        found = json.loads(
            _native.convert(
                local_path(source),
                Path(target),
                to,
                ranks=ranks,
                replicas=replicas,
                dtype=dtype,
                params_only=params_only,
                names=names,
                max_file_size=max_file_size,
                sub_group_size=sub_group_size,
                tag=tag,
                config=None if config is None else Path(config),
                ties=list((ties or {}).items()),
                verify=verify,
                dry_run=dry_run,
                progress=bar.report,
            )
        )
    finally:
        bar.close()
    files = {f["name"]: f["bytes"] for f in found.pop("files")}
    lost, notes = tuple(found.pop("lost")), tuple(found.pop("notes"))
    checked = found.pop("verified")
    if checked and not checked["right"]:
        raise MismatchError("\n".join(checked["problems"]) or "the target has no tensor of the source")
    verified: int = checked["elements"] if checked else 0
    return Converted(target=Path(target), files=files, lost=lost, notes=notes, written=not dry_run, verified=verified, **found)


@dataclass(frozen=True)
class Differences:
    """How two checkpoints differ; true where they do. `different` says how, by tensor."""

    equal: int
    cast: int
    elements: int
    different: dict[str, str]
    notes: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.different or self.notes)

    def __repr__(self) -> str:
        return f"Differences({self.equal} tensors are equal, {self.cast} of them after a cast; {len(self.different)} differ)"


def diff(first: AnyPath, second: AnyPath, *, common: bool = False, ties: Mapping[str, str] | None = None, progress: Progress = False) -> Differences:
    """Compares two checkpoints of any formats, element for element: shapes have to be equal, and values after a cast to the second one's dtype.

    Args:
        first, second: what `convert` takes as a source.
        common: leave out what only one of them has.
        ties: tied names that a checkpoint does not record, alias to name.
        progress: as for `load`.

    Raises:
        CheckpointError: one of them is missing or malformed.
        IoError: a read failed.
    """
    bar = Bar(progress)
    try:
        found = json.loads(_native.diff(local_path(first), local_path(second), common=common, ties=list((ties or {}).items()), progress=bar.report))
    finally:
        bar.close()
    return Differences(**{**found, "notes": tuple(found["notes"])})
