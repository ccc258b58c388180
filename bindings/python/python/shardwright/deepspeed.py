"""DeepSpeed ZeRO-3: build without broadcasts, fill partitions in place, and give the masters the source's own precision."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from . import _native
from ._errors import ConfigError, PlanError, UnsupportedError
from ._fill import LoadReport, Options, _item, _native_fill, fill, kept_dtypes, options_of, resolve
from ._hub import open_checkpoint
from ._model import Part, Slot, part, slots
from ._progress import Bar as _Bar

logger = logging.getLogger("shardwright")

Model = TypeVar("Model", bound=torch.nn.Module)


def _read_config(config: dict[str, Any] | str | os.PathLike[str]) -> dict[str, Any]:
    if isinstance(config, dict):
        return config
    with open(config, encoding="utf-8") as file:
        try:
            found = json.load(file)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{os.fspath(config)}: not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{os.fspath(config)}: expected an object, found {type(found).__name__}")
    return found


def _check_config(config: dict[str, Any]) -> None:
    zero = config.get("zero_optimization") or {}
    stage = zero.get("stage", 0)
    if stage != 3:
        raise ConfigError(f"zero_optimization.stage: expected 3, found {stage!r}; with lower stages the model is whole: use shardwright.fill")
    if (zero.get("offload_param") or {}).get("device") == "nvme":
        raise UnsupportedError("zero_optimization.offload_param.device 'nvme': partitions on NVMe are not filled; 'cpu' is supported")
    if int(zero.get("zero_hpz_partition_size", 1) or 1) > 1:
        raise UnsupportedError("zero_optimization.zero_hpz_partition_size: secondary partitions are not filled; set it to 1")
    for key in ("zero_quantized_weights", "zero_quantized_nontrainable_weights"):
        if zero.get(key):
            raise UnsupportedError(f"zero_optimization.{key}: quantised partitions are not filled")
    if zero.get("mics_shard_size", -1) not in (-1, None):
        raise UnsupportedError("zero_optimization.mics_shard_size: MiCS has an Init of its own, which is not supported")


@contextlib.contextmanager
def zero_init(config: dict[str, Any] | str | os.PathLike[str], *, dtype: torch.dtype | None = None, group: Any = None) -> Iterator[None]:
    """A context in which modules are built partitioned, as with `deepspeed.zero.Init`, without broadcasting values that will be filled.

    RoPE frequencies keep their own dtype; buffers that a transformers model computes in torch's default dtype have the training dtype, as with
    `from_pretrained`. transformers initialises nothing and ties nothing; call `model.tie_weights()` afterwards.

    Args:
        config: a DeepSpeed config, or the path of one, with "zero_optimization.stage" 3.
        dtype: of the parameters; by default what the config says of bf16 and fp16.
        group: the data-parallel process group; by default all ranks.

    Raises:
        ConfigError: the stage is another one.
        UnsupportedError: offloading to NVMe, hpZ, quantised weights, MiCS.
    """
    read = _read_config(config)
    _check_config(read)
    import deepspeed
    import torch.distributed as dist

    if not dist.is_initialized() or not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)

    with contextlib.ExitStack() as stack:
        for name in ("no_init_weights", "no_tie_weights"):
            make = _of_transformers(name)
            if make is not None:
                stack.enter_context(make())
        stack.enter_context(arange_keeps_dtype())
        init = quiet_init_class()(config_dict_or_path=read, dtype=dtype, data_parallel_group=group)
        stack.enter_context(init)
        with contextlib.suppress(ImportError):
            stack.enter_context(_default_dtype(init.dtype))
        yield


def _of_transformers(name: str) -> Any:
    """A context of transformers for building models, from where its version has it; None where it has none."""
    for module in ("transformers.initialization", "transformers.modeling_utils"):
        with contextlib.suppress(ImportError):
            found = getattr(importlib.import_module(module), name, None)
            if found is not None:
                return found
    return None


@contextlib.contextmanager
def arange_keeps_dtype() -> Iterator[None]:
    """Keeps zero.Init from casting what `torch.arange` makes, of which RoPE's frequencies are computed. It is entered before zero.Init.

    transformers has a context for the same, but only in newer versions.
    """
    from deepspeed.runtime.zero import partition_parameters

    wrap = partition_parameters.zero_wrapper_for_fp_tensor_constructor

    def wrap_all_but_arange(make: Any, *args: Any, **kwargs: Any) -> Any:
        wrapped = wrap(make, *args, **kwargs)
        if make is not partition_parameters._orig_torch_arange:
            return wrapped

        @functools.wraps(make)
        def arange(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("device") is None:
                kwargs["device"] = wrapped(0).device  # integers are not cast
            return make(*args, **kwargs)

        return arange

    partition_parameters.zero_wrapper_for_fp_tensor_constructor = wrap_all_but_arange
    try:
        yield
    finally:
        partition_parameters.zero_wrapper_for_fp_tensor_constructor = wrap


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Sets torch's default dtype while a transformers model is constructed, as `from_pretrained` does: computed buffers have it."""
    from transformers import PreTrainedModel

    # DeepSpeed before 0.18 leaves the inherited constructor in each subclass as its own.
    constructor = inspect.unwrap(PreTrainedModel.__init__)
    classes: list[Any] = [c for c in _with_subclasses(PreTrainedModel) if "__init__" in vars(c) and inspect.unwrap(c.__init__) is constructor]
    begins, end = {c: c.__init__ for c in classes}, PreTrainedModel.post_init
    outermost: Any = None
    before = torch.get_default_dtype()

    def setting(begin: Any) -> Any:
        @functools.wraps(begin)
        def constructs(model: Any, *args: Any, **kwargs: Any) -> None:
            nonlocal outermost, before
            if outermost is None:
                outermost, before = model, torch.get_default_dtype()
                torch.set_default_dtype(dtype)
            begin(model, *args, **kwargs)

        return constructs

    @functools.wraps(end)
    def ends(model: Any) -> None:
        nonlocal outermost
        end(model)
        if model is outermost:
            outermost = None
            torch.set_default_dtype(before)

    for cls, begin in begins.items():
        cls.__init__ = setting(begin)
    PreTrainedModel.post_init = ends
    try:
        yield
    finally:
        PreTrainedModel.post_init = end
        for cls, begin in begins.items():
            cls.__init__ = begin
        if outermost is not None:  # its constructor failed, or ended without post_init
            torch.set_default_dtype(before)


def _with_subclasses(cls: Any) -> set[Any]:
    return {cls, *(c for sub in cls.__subclasses__() for c in _with_subclasses(sub))}


def quiet_init_class() -> Any:
    """`deepspeed.zero.Init` without the broadcast of each parameter: its values are about to be filled."""
    import deepspeed

    steps = ("_zero_init_param", "_convert_to_deepspeed_param")
    if not all(hasattr(deepspeed.zero.Init, step) for step in steps):
        logger.warning("deepspeed %s: zero.Init has no %s: parameters are broadcast first", deepspeed.__version__, " and ".join(steps))
        return deepspeed.zero.Init

    class QuietInit(deepspeed.zero.Init):
        def _zero_init_param(self, param: Any) -> None:
            self._convert_to_deepspeed_param(param)
            param.partition()

    return QuietInit


def build(
    factory: Callable[[], Model],
    checkpoint: str | os.PathLike[str] | _native.Checkpoint,
    config: dict[str, Any] | str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    group: Any = None,
    **options: Any,
) -> Model:
    """Builds a model under ZeRO-3 and fills its partitions; `factory` is called inside `zero_init`.

    Args:
        factory: builds the model; takes nothing.
        checkpoint: as for `shardwright.fill`.
        config: a DeepSpeed config, or the path of one, with "zero_optimization.stage" 3.
        dtype: of the parameters; by default what the config says of bf16 and fp16.
        group: the data-parallel process group; by default all ranks.
        options: as for `shardwright.fill`.

    Returns:
        The model, whose parameters have the whole shape as `ds_shape` and a flat partition as `ds_tensor`. The report of the fill is its
        `shardwright_report`.

    Raises:
        ConfigError, UnsupportedError: as `zero_init`.
        CheckpointError, PlanError: as `shardwright.fill`.
    """
    # Opened first: a checkpoint that cannot be read fails before anything is built.
    opened = open_checkpoint(checkpoint)
    with zero_init(config, dtype=dtype, group=group):
        model = factory()
    keep_float32_buffers(model)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    model.shardwright_report = fill_partitions(model, opened, **options)  # type: ignore[assignment]
    return model


def keep_float32_buffers(model: torch.nn.Module) -> None:
    """Buffers that the model's class keeps in float32, such as a router's bias, which zero.Init made in the training dtype."""
    patterns = kept_dtypes(model, torch.bfloat16)
    for name, buffer in list(model.named_buffers()):
        kept = next((d for p, d in patterns if p.search(name)), None)
        if kept is not None and buffer.is_floating_point() and buffer.dtype != kept:
            buffer.data = buffer.data.to(kept)


def fill_partitions(model: torch.nn.Module, checkpoint: str | os.PathLike[str] | _native.Checkpoint, **options: Any) -> LoadReport:
    """Fills the partitions of a model that `zero_init` or `deepspeed.zero.Init` built, padding zeroed, with no collective.

    Parameters that are gathered at the time, as the engine keeps small ones, are filled whole as well.

    Args:
        model: built in `zero_init`.
        checkpoint, options: as for `shardwright.fill`.

    Raises:
        ConfigError: no parameter of the model is partitioned.
        CheckpointError, PlanError, UnsupportedError: as `shardwright.fill`.
    """
    if not any(hasattr(p, "ds_tensor") for p in model.parameters()):
        raise ConfigError("no parameter of the model is partitioned: build it in shardwright.deepspeed.zero_init(config)")
    report = fill(model, checkpoint, **options)
    gathered = [
        s for s in slots(model)[0] if hasattr(s.tensor, "ds_tensor") and s.tensor.data.numel() == s.tensor.ds_numel and s.name in report.filled
    ]
    if gathered:
        _fill_into(model, checkpoint, {id(s.tensor): s.tensor.data for s in gathered}, report, options)
    return report


def _fill_into(model: torch.nn.Module, checkpoint: Any, memory: dict[int, torch.Tensor], report: LoadReport, options: dict[str, Any]) -> None:
    """Fills whole tensors that lie elsewhere than in their partitions."""
    from ._fill import read

    opened = open_checkpoint(checkpoint)
    chosen = options_of({**options, "unexpected": "ignore"})
    tensors = opened.tensors()
    _, jobs, _ = resolve(model, opened, tensors, slots(model)[0], chosen)
    with torch.no_grad():
        # A slot with a plain tensor is filled whole.
        plain = [(Slot(memory[id(s.tensor)], s.names), r) for s, r in jobs if id(s.tensor) in memory]
        read(model, opened, tensors, plain, report, chosen)


def fill_masters(engine: Any, checkpoint: str | os.PathLike[str] | _native.Checkpoint, **options: Any) -> LoadReport:
    """Sets the optimizer's fp32 masters from the checkpoint's own precision; DeepSpeed makes them from the rounded partitions.

    Call it after `deepspeed.initialize`. No collective; the bf16 partitions stay as they are, which are the masters rounded. Parameters whose
    source has the dtype of the partition have exact masters already and are not read again (`kept`).

    Args:
        engine: what `deepspeed.initialize` returned.
        checkpoint, options: as for `shardwright.fill`.

    Raises:
        ConfigError: no parameter of the model is partitioned.
        PlanError: DeepSpeed has no master for a tensor, or names or shapes do not fit.
        CheckpointError: the checkpoint is missing or malformed.
    """
    from deepspeed.utils import safe_set_local_fp32_param

    started = time.perf_counter()
    model = getattr(engine, "module", engine)
    opened = open_checkpoint(checkpoint)
    chosen = options_of({**options, "round_to": None, "unexpected": "ignore", "missing": "keep"})
    kept = [s for s in slots(model)[0] if hasattr(s.tensor, "ds_tensor")]
    if not kept:
        raise ConfigError("no parameter of the model is partitioned: fill_masters is for ZeRO-3 engines")
    tensors = opened.tensors()
    _, jobs, _ = resolve(model, opened, tensors, kept, chosen)
    dtypes = {name: dtype for name, dtype, _ in tensors}
    report = LoadReport()
    bar = _Bar(chosen.progress)
    batch: list[tuple[Slot, torch.Tensor, Any]] = []
    size = 0
    with torch.no_grad():
        for slot, recipe in jobs:
            if not slot.tensor.requires_grad:
                continue
            kinds = {dtypes[s] for s in recipe.sources()}
            exact = kinds == {str(slot.tensor.ds_tensor.dtype).removeprefix("torch.")}
            if exact or recipe.group is not None or len(kinds) != 1 or not _native.casts(next(iter(kinds)), "float32"):
                # Its masters are the partition's, in float32: what DeepSpeed has made already.
                report.kept.append(slot.name)
                continue
            where = part(slot)
            value = torch.empty(where.local.numel(), dtype=torch.float32)
            batch.append((slot, value, _item(slot, recipe, Part(value, where.ranges, where.flat, where.padding), value, None)))
            size += value.numel() * 4
            if size >= 64 << 20:
                _set_masters(opened, batch, report, chosen, bar, safe_set_local_fp32_param)
                batch, size = [], 0
        _set_masters(opened, batch, report, chosen, bar, safe_set_local_fp32_param)
    bar.close()
    report.seconds = time.perf_counter() - started
    return report


def _set_masters(opened: Any, batch: list[Any], report: LoadReport, options: Options, bar: _Bar, put: Any) -> None:
    if not batch:
        return
    _native_fill(opened, [item for _, _, item in batch], report, options, bar)
    for slot, value, _ in batch:
        try:
            put(slot.tensor, value.to(slot.tensor.ds_tensor.device))
        except (AttributeError, KeyError, ValueError) as error:
            raise PlanError(f"tensor '{slot.name}': DeepSpeed has no master for it: {error}; call fill_masters after deepspeed.initialize") from error
        report.filled.append(slot.name)
