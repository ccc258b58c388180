"""`inspect` and `verify`: what files hold, and whether they are right. Without torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import _native
from ._errors import MismatchError
from ._hub import local_path, open_checkpoint
from ._progress import Bar


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint.

    `file` is empty where it lies in files of several ranks. `kind` is "parameter", "frozen" (the optimizer does not have it) or "buffer", and
    empty where the format does not tell.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    numel: int
    bytes: int
    file: str = ""
    kind: str = ""


@dataclass(frozen=True)
class OptimizerInfo:
    """The optimizer of a checkpoint: steps taken, names of its states such as "exp_avg", parameters that have some, and its groups."""

    step: float
    states: tuple[str, ...]
    parameters: int
    groups: tuple[dict[str, Any], ...] = field(repr=False)


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds, from its headers alone.

    `files` are sizes in bytes by name. `version`, `ranks` and `step` are None where the format does not tell; `tied` has names that are tied to
    another tensor; `notes` says what was assumed.
    """

    architecture: str | None
    files: dict[str, int]
    tensors: dict[str, TensorInfo]
    format: str = "safetensors"
    version: str | None = None
    ranks: int | None = None
    step: int | None = None
    optimizer: OptimizerInfo | None = None
    tied: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(t.bytes for t in self.tensors.values())

    def __repr__(self) -> str:
        kinds = sorted({t.dtype for t in self.tensors.values()})
        what = self.architecture or ("checkpoint" if self.format == "safetensors" else self.format)
        more = f", {self.ranks} rank{'s' if self.ranks > 1 else ''}" if self.ranks else ""
        more += f", step {self.step}" if self.step is not None else ""
        more += f", optimizer of {self.optimizer.parameters} parameters" if self.optimizer else ""
        size = f"{self.bytes / 1e6:.1f} MB of {', '.join(kinds)} in {len(self.files)} files"
        return f"Inspection({what}: {len(self.tensors)} tensors, {size}{more})"


@dataclass(frozen=True)
class Verified:
    """What a verification found."""

    files: int
    bytes: int
    elements: int
    problems: tuple[str, ...]
    more_problems: int
    unexpected: tuple[str, ...]
    bytes_with_checksums: int = 0

    def __bool__(self) -> bool:
        return not self.problems

    def raise_for_problems(self) -> None:
        """Raises `MismatchError` with everything that was found wrong."""
        if self.problems:
            more = f"\nand {self.more_problems} more" if self.more_problems else ""
            raise MismatchError("\n".join(self.problems) + more)


def inspect(checkpoint: str | os.PathLike[str] | _native.Checkpoint) -> Inspection:
    """Reads a checkpoint's headers.

    Args:
        checkpoint: a directory or a file of any format that `convert` takes, or a hub id.

    Raises:
        CheckpointError: it is missing or malformed.
    """
    path = checkpoint.dir if isinstance(checkpoint, _native.Checkpoint) else local_path(checkpoint)
    if _native.is_other_format(path):
        return _of_contents(json.loads(_native.inspect_contents(path)))
    found = json.loads(_native.inspect(open_checkpoint(checkpoint)))
    tensors = {t["name"]: TensorInfo(**{**t, "shape": tuple(t["shape"])}) for t in found["tensors"]}
    return Inspection(found["architecture"], {f["name"]: f["bytes"] for f in found["files"]}, tensors)


def _of_contents(found: dict[str, Any]) -> Inspection:
    def tensor(t: dict[str, Any]) -> TensorInfo:
        return TensorInfo(**{**t, "shape": tuple(t["shape"])}, numel=math.prod(t["shape"]))

    optimizer = found["optimizer"]
    if optimizer:
        optimizer = OptimizerInfo(**{**optimizer, "states": tuple(optimizer["states"]), "groups": tuple(optimizer["groups"])})
    rest = {key: found[key] for key in ("format", "version", "ranks", "step")}
    tensors = {t["name"]: tensor(t) for t in found["tensors"]}
    return Inspection(None, found["files"], tensors, **rest, optimizer=optimizer, tied=dict(found["tied"]), notes=tuple(found["notes"]))


def verify(
    directory: str | os.PathLike[str],
    against: str | os.PathLike[str] | _native.Checkpoint | None = None,
    *,
    ties: Mapping[str, str] | None = None,
    progress: bool | Callable[[int, int], object] = False,
) -> Verified:
    """Checks what `load --save` or `convert` wrote: files against the manifest or their own checksums, and with `against` each element.

    Args:
        directory: what `load --save` or `convert` wrote, or another checkpoint. Safetensors without a manifest have no checksums.
        against: the source, of any format that `load` takes.
        ties: tied names that the source does not record, alias to name; for what `convert` wrote.
        progress: True for a tqdm bar, or a callable that takes the bytes done and the bytes to do.

    Returns:
        A `Verified`, which is false if anything is wrong.

    Raises:
        CheckpointError: the directory is unfinished or malformed, a checksum differs, or the source is malformed.
    """
    bar = Bar(progress)
    try:
        if os.path.isdir(directory) and not _native.is_save(directory):
            path = against.dir if isinstance(against, _native.Checkpoint) else against
            source = local_path(path) if path is not None else None
            found = json.loads(_native.verify_contents(directory, source, ties=list((ties or {}).items()), progress=bar.report))
        else:
            opened = open_checkpoint(against) if against is not None else None
            found = json.loads(_native.verify(Path(directory), opened, progress=bar.report))
    finally:
        bar.close()
    return Verified(**{**found, "problems": tuple(found["problems"]), "unexpected": tuple(found["unexpected"])})
