"""shardwright for Python: each rank's shards, straight into FSDP2 and ZeRO-3 models. Importing it does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._api import (
    Converted,
    Differences,
    Loaded,
    Plan,
    RankShards,
    Resolution,
    Shard,
    Tensor,
    TensorPlan,
    convert,
    diff,
    load,
    plan,
    resolve,
)
from ._errors import (
    CancelledError,
    CheckpointError,
    ConfigError,
    DeviceError,
    ExistsError,
    IoError,
    MismatchError,
    OutOfMemoryError,
    PlanError,
    ShardwrightError,
    UnsupportedError,
    WorldError,
)
from ._files import Inspection, OptimizerInfo, TensorInfo, Verified, inspect, verify
from ._native import VERSION as __version__
from ._native import Checkpoint
from ._plugin import Placement, PlanInput, TensorMeta, precision, refuse, strategy

if TYPE_CHECKING:
    from ._fill import LoadReport, fill
    from ._optimizer import fill_optimizer

__all__ = [
    "CancelledError",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "Converted",
    "DeviceError",
    "Differences",
    "ExistsError",
    "Inspection",
    "IoError",
    "LoadReport",
    "Loaded",
    "MismatchError",
    "OptimizerInfo",
    "OutOfMemoryError",
    "Placement",
    "Plan",
    "PlanError",
    "PlanInput",
    "RankShards",
    "Resolution",
    "Shard",
    "ShardwrightError",
    "Tensor",
    "TensorInfo",
    "TensorMeta",
    "TensorPlan",
    "UnsupportedError",
    "Verified",
    "WorldError",
    "__version__",
    "convert",
    "diff",
    "fill",
    "fill_optimizer",
    "inspect",
    "load",
    "plan",
    "precision",
    "refuse",
    "resolve",
    "strategy",
    "verify",
]

_TORCH = {"fill": "_fill", "LoadReport": "_fill", "fill_optimizer": "_optimizer"}
_MODULES = {"accelerate", "dcp", "deepspeed", "llamafactory", "testkit", "transformers"}


def __getattr__(name: str) -> Any:
    """What needs torch, or another library, is imported when it is first asked for."""
    from importlib import import_module

    if name in _TORCH:
        return getattr(import_module(f".{_TORCH[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
