"""accelerate's FSDP2 with shardwright: wrap, fill, then `prepare`, in the order that accelerate leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ._errors import ConfigError
from ._fill import fill
from ._optimizer import parameters_aside


def prepare(
    accelerator: Any,
    model: torch.nn.Module,
    checkpoint: Any,
    *others: Any,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    wrap: Callable[[torch.nn.Module], Any] | None = None,
    **options: Any,
) -> Any:
    """Wraps a model that was built on meta, fills it, and prepares it with the rest.

    accelerate returns a model that is sharded already as it is, but its wrap policies do not find the renamed classes, and it maps optimizer
    parameters by address, which empty shards share and older versions do not find. So the model is wrapped here, the optimizer is made after it,
    and its parameters are kept from the mapping.

    Args:
        accelerator: an `Accelerator` with an FSDP2 plugin.
        model: on meta, for example built in `accelerate.init_empty_weights()`.
        checkpoint: as for `shardwright.fill`.
        others: what else `accelerator.prepare` takes, data loaders and schedulers; not optimizers.
        optimizer: makes the optimizer from the filled model's parameters.
        wrap: applies `fully_shard`; by default to each module of a class in `_no_split_modules`, then to the model, on the accelerator's mesh.
        options: as for `shardwright.fill`.

    Returns:
        What `accelerator.prepare` returns: the model, the optimizer if there is one, then the others.
    """
    if any(isinstance(o, torch.optim.Optimizer) for o in others):
        raise ConfigError("give optimizer=lambda parameters: …, so that the optimizer is made after the model is sharded")
    if not any(hasattr(p, "placements") for p in model.parameters()):
        (wrap or _wrap(accelerator))(model)
    options.setdefault("device", accelerator.device)
    fill(model, checkpoint, **options)
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and getattr(plugin, "auto_wrap_policy", None) is not None:
        # The model is wrapped; a policy would look for class names that `fully_shard` has changed.
        plugin.auto_wrap_policy = None
    if optimizer is None:
        return accelerator.prepare(model, *others)
    made = optimizer(model.parameters())
    with parameters_aside(made):
        return accelerator.prepare(model, made, *others)


def _wrap(accelerator: Any) -> Callable[[torch.nn.Module], None]:
    def wrap(model: torch.nn.Module) -> None:
        from torch.distributed.fsdp import fully_shard

        plugin = getattr(accelerator.state, "fsdp_plugin", None)
        options: dict[str, Any] = {}
        mesh = getattr(accelerator, "torch_device_mesh", None)
        if mesh is not None:
            dims = getattr(getattr(accelerator, "parallelism_config", None), "fsdp_dim_names", None)
            options["mesh"] = mesh[tuple(dims)] if dims else mesh
        for name in ("reshard_after_forward", "mixed_precision_policy"):
            value = getattr(plugin, name, None)
            if value is not None:
                options["mp_policy" if name == "mixed_precision_policy" else name] = value
        classes = set(getattr(model, "_no_split_modules", None) or ())
        for module in list(model.modules()):
            if type(module).__name__ in classes:
                fully_shard(module, **options)
        fully_shard(model, **options)

    return wrap
