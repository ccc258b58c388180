"""What a model has: its parameters and buffers by name, and where this rank's part of each lies in memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ._errors import ConfigError, PlanError, UnsupportedError

WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
"""Parts of a name that come from wrapped modules: torch.compile, activation checkpointing."""


@dataclass(slots=True)
class Slot:
    """A parameter or persistent buffer, with all its names."""

    tensor: torch.Tensor
    names: list[str]
    buffer: bool = False
    adapter: bool = False
    modules: list[tuple[torch.nn.Module, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor, over all ranks."""
        return tuple(getattr(self.tensor, "ds_shape", self.tensor.shape))


@dataclass(slots=True)
class Part:
    """The part of a tensor that this rank holds: a box of index ranges, or a range of the flattened tensor, and the memory for it.

    `padding` elements follow it and are zeroed.
    """

    local: torch.Tensor
    ranges: list[tuple[int, int]]
    flat: tuple[int, int] | None = None
    padding: int = 0

    def numel(self) -> int:
        if self.flat is not None:
            return self.flat[1] - self.flat[0]
        return math.prod(b - a for a, b in self.ranges)

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """This part of the whole tensor."""
        if self.flat is not None:
            return whole.reshape(-1)[self.flat[0] : self.flat[1]]
        for dim, (first, end) in enumerate(self.ranges):
            whole = whole.narrow(dim, first, end - first)
        return whole


def base_of(model: torch.nn.Module) -> torch.nn.Module:
    """The model under PEFT's wrapper, else the model itself."""
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        found: torch.nn.Module = model.get_base_model()  # type: ignore[operator]
        return found
    return model


def slots(model: torch.nn.Module) -> tuple[list[Slot], list[Slot]]:
    """Parameters and persistent buffers, and buffers that no checkpoint has; a tensor with several names is one slot."""
    kept: dict[int, Slot] = {}
    other: dict[int, Slot] = {}
    # PEFT puts a layer with adapters in the place of each that it adapts; the layer itself is inside of it.
    tuned = tuple(p + "." for p, m in model.named_modules(remove_duplicate=False) if hasattr(m, "base_layer") and hasattr(m, "adapter_layer_names"))
    for prefix, module in model.named_modules(remove_duplicate=False):
        for wrapper in WRAPPERS:
            if wrapper[:-1] in prefix:
                prefix = (prefix + ".").replace(wrapper, "").removesuffix(".")
        dot = prefix + "." if prefix else ""
        adapter = bool(tuned) and dot.startswith(tuned) and ".base_layer." not in dot and dot not in tuned
        if tuned:
            dot = dot.replace(".base_layer.", ".")
        for name, tensor in module._parameters.items():
            if tensor is not None:
                slot = kept.setdefault(id(tensor), Slot(tensor, [], adapter=adapter))
                slot.names.append(dot + name)
                slot.modules.append((module, name))
        for name, tensor in module._buffers.items():
            if tensor is not None:
                of = other if name in module._non_persistent_buffers_set else kept
                slot = of.setdefault(id(tensor), Slot(tensor, [], buffer=True))
                slot.names.append(dot + name)
                slot.modules.append((module, name))
    return list(kept.values()), list(other.values())


def refresh(slot: Slot) -> None:
    """Looks up the slot's tensor again, after `_apply`: buffers are other tensors then."""
    module, name = slot.modules[0]
    found = (module._buffers if slot.buffer else module._parameters)[name]
    if found is not None:
        slot.tensor = found


def reshard(model: torch.nn.Module) -> None:
    """FSDP2 units that a forward left gathered hold plain parameters; their shards are what is filled."""
    for module in model.modules():
        if hasattr(module, "reshard") and hasattr(module, "_get_fsdp_state"):
            module.reshard()


def _offloaded(model: torch.nn.Module) -> set[int]:
    """Parameters that FSDP2 keeps on the CPU."""
    found: set[int] = set()
    for module in model.modules():
        if hasattr(module, "_get_fsdp_state"):
            state: Any = module._get_fsdp_state()
            groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
            found |= {id(p.sharded_param) for g in groups if g is not None for p in g.fsdp_params if getattr(p, "offload_to_cpu", False)}
    return found


def materialise(model: torch.nn.Module, device: torch.device | str | None) -> set[int]:
    """Gives memory to every tensor on meta and returns the ids of those tensors. Parameters keep their identity, so ties and optimizers survive."""
    meta = [t for t in [*model.parameters(), *model.buffers()] if t.is_meta]
    if not meta:
        return set()
    on_cpu = _offloaded(model)
    made: dict[int, torch.Tensor] = {}
    devices: dict[int, torch.device] = {}

    def give(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_meta:
            return tensor
        if id(tensor) not in made:
            to: torch.device | str | None = "cpu" if id(tensor) in on_cpu else device
            if to is None:
                mesh = id(getattr(tensor, "device_mesh", None))
                if mesh not in devices:
                    devices[mesh] = _device_of(tensor)
                to = devices[mesh]
            made[id(tensor)] = _empty_like(tensor, to)
        return made[id(tensor)]

    if _give_directly(model, give):
        return {id(t) for t in meta} | {id(t) for t in made.values()}
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model._apply(give)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)
    # Parameters were swapped in place; buffers are new tensors.
    return {id(t) for t in meta} | {id(t) for t in made.values()}


def _give_directly(model: torch.nn.Module, give: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """What `model._apply(give)` does, without the steps that only matter to parameters with values or gradients, which take torch several
    times as long. False, and nothing is done, where a module has an `_apply` of its own, or torch another form than is known."""
    modules = list(model.modules())
    known: set[Any] = {torch.nn.Module._apply}
    sharded: list[Any] = []
    for module in modules:
        if hasattr(module, "_get_fsdp_state"):
            state: Any = module._get_fsdp_state()
            groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
            sharded += [p for g in groups if g is not None for p in g.fsdp_params]
            known |= {c.__dict__["_apply"] for c in type(module).__mro__ if c.__name__ == "FSDPModule" and "_apply" in c.__dict__}
        if type(module)._apply not in known:
            return False
    if not all(hasattr(p, "reset_sharded_param") for p in sharded) or any(p.is_meta and p.grad is not None for p in model.parameters()):
        return False
    with torch.no_grad():
        for module in modules:
            for parameter in module._parameters.values():
                if parameter is not None and parameter.is_meta:
                    value = give(parameter).requires_grad_(parameter.requires_grad)
                    if type(value) is torch.Tensor:
                        value = torch.nn.Parameter(value, requires_grad=parameter.requires_grad)
                    else:
                        value._is_param = True  # type: ignore[attr-defined]
                    # The object stays, so ties and optimizers survive.
                    torch.utils.swap_tensors(parameter, value)
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_meta:
                    module._buffers[name] = give(buffer)
        for parameter in sharded:
            parameter.reset_sharded_param()
    return True


def _empty_like(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`torch.empty_like(tensor, device=device)` of a tensor on meta, which takes torch 100 µs, and more of a DTensor."""
    local = getattr(tensor, "_local_tensor", None)
    if local is None:
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.is_contiguous() and tensor.layout is torch.strided
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device) if plain else torch.empty_like(tensor, device=device)
    if type(local) is torch.Tensor and local.is_contiguous() and local.layout is torch.strided:
        with contextlib.suppress(TypeError, AttributeError):
            memory = torch.empty(local.shape, dtype=local.dtype, device=device)
            return type(tensor)(memory, tensor._spec, requires_grad=False)  # type: ignore[call-arg, attr-defined]
    return torch.empty_like(tensor, device=device)


def _device_of(tensor: torch.Tensor) -> torch.device:
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None:
        return torch.get_default_device() if torch.get_default_device().type != "meta" else torch.device("cpu")
    if mesh.device_type == "cpu":
        return torch.device("cpu")
    return torch.device(mesh.device_type, getattr(torch, mesh.device_type).current_device())


def part(slot: Slot) -> Part:
    """Where this rank's part of a slot lies. Coordinates come from the tensor itself."""
    tensor = slot.tensor
    if hasattr(tensor, "ds_tensor"):
        return _partition(slot)
    if not hasattr(tensor, "placements"):
        return Part(tensor.detach(), [(0, n) for n in tensor.shape])
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    at = mesh.get_coordinate()
    if at is None:
        raise PlanError(f"tensor '{slot.name}': this rank is not part of the tensor's mesh")
    ranges = [(0, n) for n in tensor.shape]
    for axis, placement in enumerate(tensor.placements):
        kind = type(placement).__name__
        if kind == "Replicate":
            continue
        if kind != "Shard":
            raise UnsupportedError(f"tensor '{slot.name}': placement {kind} on mesh axis {axis}; supported are Shard and Replicate")
        dim = placement.dim
        first, end = ranges[dim]
        chunk = -(-(end - first) // mesh.size(axis))
        begin = min(first + at[axis] * chunk, end)
        ranges[dim] = (begin, min(begin + chunk, end))
    local = tensor._local_tensor.detach()  # type: ignore[attr-defined]
    if local.shape != tuple(b - a for a, b in ranges):
        found = tuple(local.shape)
        raise PlanError(f"tensor '{slot.name}': expected a local shape of {tuple(b - a for a, b in ranges)}, found {found}")
    return Part(local, ranges)


def _partition(slot: Slot) -> Part:
    """A ZeRO-3 partition: a range of the flattened parameter, padded at the end."""
    tensor: Any = slot.tensor
    data = tensor.ds_tensor
    if str(getattr(data, "final_location", None)).endswith("nvme"):
        raise UnsupportedError(f"tensor '{slot.name}': its partition is offloaded to NVMe; fill before, or offload to the CPU")
    if getattr(tensor, "ds_secondary_tensor", None) is not None:
        raise UnsupportedError(f"tensor '{slot.name}': zero_hpz_partition_size (hpZ) keeps a second copy of the partition, which is not filled")
    if hasattr(data, "ds_quant_scale"):
        raise UnsupportedError(f"tensor '{slot.name}': zero_quantized_weights stores codes instead of weights, which are not filled")
    size, rank = int(data.ds_numel), int(tensor.ds_zero_partition_rank)
    first = min(rank * size, int(tensor.ds_numel))
    end = min(first + size, int(tensor.ds_numel))
    if data.numel() < size:
        raise PlanError(f"tensor '{slot.name}': its partition has no memory: expected {size} elements, found {data.numel()}")
    return Part(data.data.view(-1)[:size], [(0, n) for n in tensor.ds_shape], (first, end), size - (end - first))


def initialise(model: torch.nn.Module, targets: list[Slot], seed: int, put: Callable[[Slot, torch.Tensor], None]) -> list[str]:
    """Runs the model's own initialisation for these slots, each as a whole tensor on the CPU, with a seed that depends on the name alone, so that
    every rank makes the same values; `put` takes each. Returns the names for which the model has no initialisation."""
    import zlib

    wanted = {id(s.tensor): s for s in targets}
    owners = _owners(model)
    done: set[int] = set()
    for slot in targets:
        if id(slot.tensor) in done:
            continue
        module, _ = slot.modules[0]
        names = {n: wanted[id(t)] for n, t in [*module._parameters.items(), *module._buffers.items()] if t is not None and id(t) in wanted}
        dtype = next((s.tensor.dtype for s in names.values() if s.tensor.is_floating_point()), torch.float32)
        clone = _clone(module, names, dtype)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed ^ zlib.crc32(slot.name.encode()))
            if slot.adapter and not _adapt(slot, clone):
                continue
            if not slot.adapter and not _run_init(owners.get(id(module)), clone):
                continue
        for name, target in names.items():
            value = clone._parameters.get(name, clone._buffers.get(name))
            if value is not None and not bool(torch.isnan(value).any() if value.is_floating_point() else False):
                put(target, value.detach())
                done.add(id(target.tensor))
    return [s.name for s in targets if id(s.tensor) not in done]


def _adapt(slot: Slot, clone: torch.nn.Module) -> bool:
    """LoRA's default: A as a linear layer's, B zero, so that the adapter changes nothing at first. Of other adapters it says False."""
    if ".lora_B." in slot.name or ".lora_embedding_A." in slot.name:
        for parameter in clone.parameters():
            parameter.zero_()
        return True
    if ".lora_A." in slot.name and hasattr(clone, "reset_parameters"):
        clone.reset_parameters()  # type: ignore[operator]
        return True
    return False


def _owners(model: torch.nn.Module) -> dict[int, torch.nn.Module]:
    """The nearest module above each one that initialises weights, as transformers' models do."""
    owners: dict[int, torch.nn.Module] = {}

    def walk(module: torch.nn.Module, owner: torch.nn.Module | None) -> None:
        if hasattr(module, "_init_weights"):
            owner = module
        if owner is not None:
            owners.setdefault(id(module), owner)
        for child in module.children():
            walk(child, owner)

    walk(model, None)
    return owners


def _clone(module: torch.nn.Module, names: dict[str, Slot], dtype: torch.dtype) -> torch.nn.Module:
    """A shallow copy of a module in which these tensors are whole, on the CPU and NaN, and all others say that they are initialised."""
    # Not the class's own `__new__`: that of an FSDP2 module makes the class without FSDP2.
    clone = object.__new__(module.__class__)
    clone.__dict__ = dict(module.__dict__)
    parameters, buffers = dict(module._parameters), dict(module._buffers)
    for of in (parameters, buffers):
        for name, tensor in of.items():
            if tensor is None:
                continue
            if name in names:
                kind = tensor.dtype
                whole = torch.full(names[name].shape, math.nan if kind.is_floating_point else 0, dtype=kind)
                of[name] = torch.nn.Parameter(whole, requires_grad=False) if of is parameters else whole
            else:
                tensor._is_hf_initialized = True  # type: ignore[union-attr]
    clone.__dict__["_parameters"], clone.__dict__["_buffers"] = parameters, buffers
    clone.__dict__["_is_hf_initialized"] = False
    return clone


def _run_init(owner: torch.nn.Module | None, clone: torch.nn.Module) -> bool:
    if owner is not None:
        owner._init_weights(clone)  # type: ignore[operator]
        return True
    if hasattr(clone, "reset_parameters"):
        clone.reset_parameters()  # type: ignore[operator]
        return True
    return False


def check_writable(slot: Slot, local: torch.Tensor) -> None:
    """Refuses memory that cannot be filled, before anything is written."""
    if local.is_meta:
        raise ConfigError(f"tensor '{slot.name}': on meta, it has no memory")
    needed = local.numel() * local.element_size()
    if needed and local.layout is torch.strided:
        storage = local.untyped_storage()
        last = local.storage_offset() + sum((n - 1) * s for n, s in zip(local.shape, local.stride(), strict=True)) + 1
        if storage.nbytes() < last * local.element_size():
            raise ConfigError(f"tensor '{slot.name}': its memory was freed: expected {needed} bytes, found {storage.nbytes()}")
    if any(n > 1 and s == 0 for n, s in zip(local.shape, local.stride(), strict=True)) if local.layout is torch.strided else False:
        raise ConfigError(f"tensor '{slot.name}': several of its elements share memory, as after expand(); give it memory of its own")
    if local.layout is not torch.strided:
        raise UnsupportedError(f"tensor '{slot.name}': layout {local.layout}; only strided tensors are filled")


def fsdp_units(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The modules that `fully_shard` wrapped."""
    for module in model.modules():
        if hasattr(module, "_get_fsdp_state"):
            yield module
