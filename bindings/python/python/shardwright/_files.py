"""`inspect` and `verify`: what files hold, and whether they are right. Without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import _native
from ._errors import MismatchError
from ._hub import open_checkpoint
from ._progress import Bar


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    numel: int
    bytes: int
    file: str


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds, from its headers alone."""

    architecture: str | None
    files: dict[str, int]
    tensors: dict[str, TensorInfo]

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(t.bytes for t in self.tensors.values())

    def __repr__(self) -> str:
        kinds = sorted({t.dtype for t in self.tensors.values()})
        what = self.architecture or "checkpoint"
        return f"Inspection({what}: {len(self.tensors)} tensors, {self.bytes / 1e6:.1f} MB of {', '.join(kinds)} in {len(self.files)} files)"


@dataclass(frozen=True)
class Verified:
    """What a verification found."""

    files: int
    bytes: int
    elements: int
    problems: tuple[str, ...]
    more_problems: int
    unexpected: tuple[str, ...]

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
        checkpoint: a directory of safetensors files, one such file, or a hub id.

    Raises:
        CheckpointError: it is missing or malformed.
    """
    found = json.loads(_native.inspect(open_checkpoint(checkpoint)))
    tensors = {t["name"]: TensorInfo(**{**t, "shape": tuple(t["shape"])}) for t in found["tensors"]}
    return Inspection(found["architecture"], {f["name"]: f["bytes"] for f in found["files"]}, tensors)


def verify(
    directory: str | os.PathLike[str],
    against: str | os.PathLike[str] | _native.Checkpoint | None = None,
    *,
    progress: bool | Callable[[int, int], object] = False,
) -> Verified:
    """Checks what `shardwright load --save` wrote: files against the manifest, and with `against` each element against the source.

    Args:
        directory: what `load --save` wrote.
        against: the source, of any format that `load` takes.
        progress: True for a tqdm bar, or a callable that takes the bytes done and the bytes to do.

    Returns:
        A `Verified`, which is false if anything is wrong.

    Raises:
        CheckpointError: the directory is not one of shards, or the source is malformed.
    """
    source = open_checkpoint(against) if against is not None else None
    bar = Bar(progress)
    try:
        found = json.loads(_native.verify(Path(directory), source, progress=bar.report))
    finally:
        bar.close()
    return Verified(**{**found, "problems": tuple(found["problems"]), "unexpected": tuple(found["unexpected"])})
