"""Memory on CUDA devices: whether the engine writes to it, and when it may."""

from __future__ import annotations

import functools
import logging

import torch

from . import _native

logger = logging.getLogger("shardwright")

STAGING_BYTES = 256 << 20
"""What the engine takes of a device while it fills, at most."""


def in_place(memory: torch.Tensor) -> bool:
    """Whether the engine writes to this memory itself: contiguous, and on the host or on a CUDA device that it can use."""
    if not memory.is_contiguous():
        return False
    return memory.is_cpu or (memory.is_cuda and _refused(memory.get_device()) is None)


def index(memory: torch.Tensor) -> int | None:
    """The device of memory that is written in place; None is the host."""
    return memory.get_device() if memory.is_cuda else None


def settle(device: int | None) -> None:
    """Waits for what is under way on a device: memory that torch hands out may still be in use by work that was started before. Where torch keeps
    nearly all of the device's memory to itself, it gives back what it does not use."""
    if device is None:
        return
    torch.cuda.synchronize(device)
    if torch.cuda.mem_get_info(device)[0] < STAGING_BYTES:
        torch.cuda.empty_cache()


@functools.cache
def _refused(device: int) -> str | None:
    """Why values go to a device by way of host memory, if they do."""
    why = "this torch is not built for CUDA" if torch.version.cuda is None else _native.device_refused(device)
    if why is not None:
        logger.info("device %d: values go there by way of host memory: %s", device, why)
    return why
