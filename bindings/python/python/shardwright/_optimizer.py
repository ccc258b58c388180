"""`shardwright.fill_optimizer`: this rank's part of every optimizer state, read from a checkpoint of any format into the optimizer."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import _device, _native
from ._errors import PlanError, UnsupportedError
from ._fill import LoadReport, Options, _item, _listed, _native_fill
from ._model import Slot, base_of, distinct, named_modules, part, reshard, slots
from ._progress import Bar as _Bar
from ._trace import Recipe

logger = logging.getLogger("shardwright")


def fill_optimizer(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    checkpoint: str | os.PathLike[str],
    *,
    groups: bool = True,
    missing: str = "error",
    threads: int | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> LoadReport:
    """Fills an optimizer's states from a checkpoint that another trainer or another number of ranks saved: each rank reads its own bytes.

    DeepSpeed ZeRO checkpoints, universal ones and torch's distributed checkpoints are read where they lie. The model is whole or sharded by
    `fully_shard`, and its parameters are filled first, by `fill(model, checkpoint, round_to=None)`: what was trained in float32 goes on so.

    Args:
        model: the model whose parameters the optimizer has; it gives them their names.
        optimizer: an optimizer of torch's, made of the model's parameters.
        checkpoint: a directory.
        groups: whether the groups also take the checkpoint's hyperparameters, such as the learning rate, where they have such keys.
        missing: what becomes of a parameter without states in the checkpoint: "error", or "keep", which leaves its states as they are.
        threads: threads that read.
        progress: True for a tqdm bar, or a callable that takes the bytes done and the bytes to do.

    Returns:
        A `LoadReport` whose names are `PARAMETER.STATE`; `unexpected` are states of parameters that the optimizer does not have.

    Raises:
        CheckpointError: the checkpoint is malformed, or has no optimizer.
        PlanError: names or shapes do not fit.
        UnsupportedError: the model is sharded by DeepSpeed, whose engine loads its own checkpoints.
    """
    started = time.perf_counter()
    if missing not in ("error", "keep"):
        raise PlanError(f"missing={missing!r}: expected error or keep")
    opened, text = _native.open_optimizer(checkpoint)
    described = json.loads(text)
    states: dict[str, Any] = {state["param"]: state for state in described["states"]}
    shapes = {name: tuple(shape) for name, _, shape in opened.tensors()}
    reshard(distinct(named_modules(model)))
    by_id = {id(slot.tensor): slot for slot in slots(base_of(model))[0]}
    report = LoadReport()
    made: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    items: dict[int | None, list[Any]] = {}
    staged: list[tuple[torch.Tensor, torch.Tensor]] = []
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = []
    used: set[str] = set()
    for group in optimizer.param_groups:
        names: list[str] = []
        for parameter in group["params"]:
            slot = by_id.get(id(parameter))
            if slot is None:
                raise PlanError("the optimizer has a parameter that is none of the model's; make it of model.parameters() after the model is sharded")
            if hasattr(parameter, "ds_tensor"):
                raise UnsupportedError("the model is sharded by DeepSpeed: convert the checkpoint (--to zero3), and let its engine load that")
            found = next((name for name in slot.names if name in states), None)
            if found is None:
                report.missing.append(slot.name)
                continue
            names.append(found)
            used.add(found)
            values: dict[str, torch.Tensor] = {}
            for state in states[found]["names"]:
                name = f"{found}.{state}"
                if shapes[name] != slot.shape:
                    raise PlanError(f"'{name}': expected {slot.shape} as in the model, found {shapes[name]} in the checkpoint")
                values[state] = torch.zeros_like(parameter, requires_grad=False)
                where = part(Slot(values[state], [name]))
                memory = where.local
                if not _device.in_place(memory):
                    memory = torch.empty(memory.shape, dtype=memory.dtype)
                    staged.append((where.local, memory))
                recipe = Recipe(shape=slot.shape, source=name)
                item = _item(Slot(values[state], [name]), recipe, where, memory, None)
                items.setdefault(_device.index(memory), []).append(item)
                report.filled.append(name)
            on_device = group.get("capturable") or group.get("fused")
            values["step"] = torch.tensor(float(states[found]["step"]), dtype=torch.float32, device=parameter.device if on_device else "cpu")
            made.append((parameter, values))
        if groups:
            changes.append((group, _hyperparameters(described["groups"], names)))
    report.unexpected = sorted(f"{name}.{state}" for name in states.keys() - used for state in states[name]["names"])
    if report.missing and missing == "error":
        raise PlanError(f"the checkpoint has no states of {len(report.missing)} parameters: {_listed(report.missing)}; missing='keep' leaves theirs")
    if report.unexpected:
        logger.warning("the optimizer has no place for %d states: %s", len(report.unexpected), _listed(report.unexpected))
    bar = _Bar(progress)
    try:
        for device, of_device in items.items():
            _native_fill(opened, of_device, report, Options(threads=threads), bar, device)
    finally:
        bar.close()
    for target, memory in staged:
        target.copy_(memory)
    # Only now, when nothing can fail any more.
    for parameter, values in made:
        optimizer.state[parameter] = values
    for group, written in changes:
        group.update({key: tuple(value) if isinstance(group[key], tuple) else value for key, value in written.items() if key in group})
    report.seconds = time.perf_counter() - started
    logger.info("%r", report)
    return report


def _hyperparameters(groups: list[Any], names: list[str]) -> dict[str, Any]:
    """Those of the checkpoint's group that has these parameters; none where several have."""
    found = [group for group in groups if any(name in set(group["params"]) for name in names)]
    return dict(found[0]["values"]) if len(found) == 1 else {}


@contextlib.contextmanager
def parameters_aside(optimizer: torch.optim.Optimizer) -> Iterator[Callable[[Callable[[Any], Any]], None]]:
    """Takes an optimizer's parameters and their states out of it for a while. What it gives changes the parameters that are put back."""
    params, state = [group["params"] for group in optimizer.param_groups], optimizer.state
    optimizer.state = defaultdict(dict)
    for group in optimizer.param_groups:
        group["params"] = []
    renewed = params

    def put(renew: Callable[[Any], Any]) -> None:
        nonlocal renewed, state
        renewed = [[renew(p) for p in group] for group in params]
        state = defaultdict(dict, {renew(p): s for p, s in state.items()})

    try:
        yield put
    finally:
        optimizer.state = state
        for group, mine in zip(optimizer.param_groups, renewed, strict=True):
            group["params"] = mine
