"""Hub ids: what is not in the local cache is fetched by huggingface_hub, whose locks let one process of a machine download a file."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from . import _native
from ._errors import CheckpointError, ConfigError, ShardwrightError

logger = logging.getLogger("shardwright")

WANTED = ["config.json", "*.safetensors", "*.safetensors.index.json"]
OLDER = ["config.json", "pytorch_model*.bin", "pytorch_model.bin.index.json"]
"""What is fetched of a repository without safetensors."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def open_checkpoint(checkpoint: str | os.PathLike[str] | _native.Checkpoint) -> _native.Checkpoint:
    """A checkpoint from a path, a hub id, or one that is already open."""
    if isinstance(checkpoint, _native.Checkpoint):
        return checkpoint
    path = os.fspath(checkpoint)
    try:
        opened = _native.Checkpoint.open(path)
    except ShardwrightError as error:
        if not isinstance(error, (CheckpointError, ConfigError)) or not isinstance(path, str) or os.path.exists(path) or not _ID.fullmatch(path):
            raise
        opened = _native.Checkpoint.open(_fetched(path, error))
    for warning in opened.warnings:
        logger.warning("%s", warning)
    return opened


def local_path(name: str | os.PathLike[str]) -> Path:
    """The path itself, or where the files of a hub id are."""
    return Path(name) if os.path.exists(name) else Path(open_checkpoint(name).dir)


def _fetched(name: str, why: ShardwrightError) -> str:
    """The directory of a repository of the hub."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise why from None
    logger.info("fetching '%s' from the hub: %s", name, why)
    try:
        found = Path(snapshot_download(name, allow_patterns=WANTED))
        if not any(found.glob("*.safetensors")):
            found = Path(snapshot_download(name, allow_patterns=OLDER))
        return str(found)
    except Exception as error:
        # Offline, unknown, gated, or out of disk: it says so itself.
        raise CheckpointError(f"'{name}' is neither a path nor in the cache, and cannot be fetched from the hub: {error}") from error
