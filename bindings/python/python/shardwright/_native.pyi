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
def main(arguments: Sequence[str]) -> int: ...
