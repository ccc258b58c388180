"""The extension module: shardwright's engine."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

VERSION: str

class Stats(TypedDict):
    bytes_read: int
    bytes_needed: int
    threads: int
    seconds: float

class Checkpoint:
    """A checkpoint whose headers were read and checked."""

    @staticmethod
    def open(path: str | os.PathLike[str]) -> Checkpoint: ...
    @property
    def dir(self) -> Path: ...
    @property
    def config_text(self) -> str | None: ...
    @property
    def warnings(self) -> list[str]: ...
    def files(self) -> list[tuple[Path, int]]: ...
    def tensors(self) -> list[tuple[str, str, list[int]]]: ...

Loop = tuple[int, int, int]
Piece = tuple[str, int, int, Sequence[Loop]]
Item = tuple[str, Sequence[int], str | Sequence[Piece], str | None, Sequence[tuple[int, int]], tuple[int, int] | None, int, int, str]

def casts(from_: str, to: str) -> bool: ...
def fill(
    checkpoint: Checkpoint,
    items: Sequence[Item],
    *,
    threads: int | None = None,
    block_size: int | None = None,
    direct: bool = False,
    local_processes: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Stats: ...
def inspect(checkpoint: Checkpoint) -> str: ...
def verify(dir: str | os.PathLike[str], against: Checkpoint | None = None, *, progress: Callable[[int, int], object] | None = None) -> str: ...

class Resolution:
    """What a config means."""

    findings: str
    @property
    def ok(self) -> bool: ...
    def json(self) -> str: ...
    def explain(self, key: str) -> str: ...
    def lock(self) -> str: ...

class Tensor:
    """What a rank holds of a tensor."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> list[int]: ...
    @property
    def global_shape(self) -> list[int]: ...
    @property
    def region(self) -> str: ...
    @property
    def memory(self) -> tuple[int, int]: ...
    def __dlpack__(
        self, *, stream: object = None, max_version: object = None, dl_device: tuple[int, int] | None = None, copy: bool | None = None
    ) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

class Shards:
    """One rank's shards."""

    @property
    def rank(self) -> int: ...
    @property
    def bytes_read(self) -> int: ...
    def names(self) -> list[str]: ...
    def tensor(self, index: int) -> Tensor: ...

class Plan:
    """A proven plan, with the checkpoint that it is for."""

    @property
    def notes(self) -> list[str]: ...
    @property
    def rank(self) -> int | None: ...
    @property
    def world_size(self) -> int: ...
    def json(self) -> str: ...
    def shards(self, rank: int) -> str: ...
    def load(
        self,
        ranks: Sequence[int] | None = None,
        *,
        threads: int | None = None,
        force: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> tuple[list[Shards], float]: ...

def resolve(config: str | os.PathLike[str], overrides: Sequence[str] = (), *, world_size: int | None = None) -> Resolution: ...
def plan(config: str | os.PathLike[str], overrides: Sequence[str] = (), *, rank: int | None = None, world_size: int | None = None) -> Plan: ...
def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: str,
    *,
    ranks: int = 1,
    dtype: str | None = None,
    params_only: bool = False,
    max_file_size: int | None = None,
    sub_group_size: int | None = None,
    config: str | os.PathLike[str] | None = None,
    ties: Sequence[tuple[str, str]] = (),
    dry_run: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> str: ...
def diff(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    common: bool = False,
    ties: Sequence[tuple[str, str]] = (),
    progress: Callable[[int, int], object] | None = None,
) -> str: ...
def world() -> tuple[int | None, int | None]: ...
def main(arguments: Sequence[str]) -> int: ...
