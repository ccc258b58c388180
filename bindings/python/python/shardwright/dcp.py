"""A storage reader for `torch.distributed.checkpoint.load`: safetensors checkpoints, each rank's bytes, read in parallel.

    dcp.load(state_dict, storage_reader=SafetensorsReader("path/to/checkpoint"))

It takes the place of torch's `HuggingFaceStorageReader`, as in torchtitan's and NeMo Automodel's adapters. Names are the checkpoint's.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.distributed.checkpoint import Metadata, StorageReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, ChunkStorageMetadata, TensorProperties, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from . import _device, _native
from ._errors import PlanError, UnsupportedError
from ._fill import CODES, STAGING_BYTES, Codes, _name, _neighbours
from ._hub import open_checkpoint


class SafetensorsReader(StorageReader):
    """Reads checkpoints of any format that `fill` takes for `dcp.load`, safetensors above all.

    Targets may be sharded in any way, of another dtype, on another device and not contiguous.

    Args:
        path: a directory, a file, or a hub id in the local cache.
        threads: threads that read; by default chosen for the machine.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        self.path, self.threads = path, threads
        self._opened: _native.Checkpoint | None = None

    @property
    def opened(self) -> _native.Checkpoint:
        """The checkpoint, whose headers are read when it is first asked for."""
        if self._opened is None:
            self._opened = open_checkpoint(self.path)
        return self._opened

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is not None:
            self.path, self._opened = checkpoint_id, None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        found: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        for name, dtype, shape in self.opened.tensors():
            kind = getattr(torch, dtype, None)
            if kind is None:
                raise UnsupportedError(f"tensor '{name}': this torch has no dtype {dtype}")
            size = torch.Size(shape)
            chunk = ChunkStorageMetadata(offsets=torch.Size([0] * len(shape)), sizes=size)
            found[name] = TensorStorageMetadata(properties=TensorProperties(dtype=kind), size=size, chunks=[chunk])
        return Metadata(state_dict_metadata=found)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        tensors = {name: (dtype, shape) for name, dtype, shape in self.opened.tensors()}
        direct: dict[int | None, list[Any]] = {}
        committed: list[tuple[Any, torch.Tensor]] = []
        staged: list[tuple[Any, torch.Tensor, torch.Tensor, Any]] = []
        size = 0
        codes = Codes({name: dtype for name, (dtype, _) in tensors.items()}, lambda: {request.storage_index.fqn for request in plan.items})
        for request in plan.items:
            name = request.storage_index.fqn
            if name not in tensors:
                raise PlanError(f"the checkpoint has no tensor '{name}'")
            dtype, shape = tensors[name]
            target = planner.resolve_tensor(request).detach()
            ranges = [(o, o + n) for o, n in zip(request.storage_offsets, request.lengths, strict=True)]
            if tuple(target.shape) != tuple(request.lengths):
                raise PlanError(f"tensor '{name}': expected a target of shape {tuple(request.lengths)}, found {tuple(target.shape)}")
            if dtype in CODES:
                codes.refuse(name, name, _name(target.dtype), integers=False)
            memory = target
            if not _device.in_place(target) or not _native.casts(dtype, _name(target.dtype)):
                kind = target.dtype if _native.casts(dtype, _name(target.dtype)) else getattr(torch, dtype)
                memory = torch.empty(target.shape, dtype=kind)
            item = (name, shape, name, None, ranges, None, memory.data_ptr(), memory.numel() * memory.element_size(), _name(memory.dtype))
            if memory is target:
                direct.setdefault(_device.index(target), []).append(item)
                committed.append((request, target))
            else:
                staged.append((request, target, memory, item))
                size += memory.numel() * memory.element_size()
                if size >= STAGING_BYTES:
                    self._copy(staged, planner)
                    staged, size = [], 0
        for device, items in direct.items():
            _device.settle(device)
            _native.fill(self.opened, items, device=device, threads=self.threads, local_processes=_neighbours())
        for request, target in committed:
            planner.commit_tensor(request, target)
        self._copy(staged, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _copy(self, staged: list[tuple[Any, torch.Tensor, torch.Tensor, Any]], planner: LoadPlanner) -> None:
        _native.fill(self.opened, [item for *_, item in staged], threads=self.threads, local_processes=_neighbours())
        for request, target, memory, _ in staged:
            target.copy_(memory)
            planner.commit_tensor(request, target)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return os.path.exists(checkpoint_id)
