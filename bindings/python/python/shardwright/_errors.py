"""Exceptions, one class for each kind of failure. The text names file, tensor, rank, what was expected and what was found."""

from __future__ import annotations


class ShardwrightError(Exception):
    """Every failure that shardwright reports."""


class ConfigError(ShardwrightError, ValueError):
    """An option, a config file or an argument that makes no sense."""


class CheckpointError(ShardwrightError):
    """The checkpoint is missing, malformed, or changed while it was read."""


class PlanError(ShardwrightError):
    """The checkpoint's tensors do not fit the model, or a plan does not fit the request."""


class WorldError(ShardwrightError):
    """Ranks and world size are contradictory."""


class IoError(ShardwrightError, OSError):
    """The operating system refused to read or write."""


class OutOfMemoryError(ShardwrightError, MemoryError):
    """There is not enough memory."""


class ExistsError(ShardwrightError, FileExistsError):
    """Something is already there and may not be overwritten."""


class MismatchError(ShardwrightError):
    """A verification found other bytes."""


class DeviceError(ShardwrightError):
    """A device is missing, too small, or failed."""


class CancelledError(ShardwrightError):
    """The work was cancelled."""


class UnsupportedError(ShardwrightError, NotImplementedError):
    """Something that exists and that shardwright does not do, by name."""
