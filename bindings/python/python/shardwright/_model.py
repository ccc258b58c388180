"""What a model has: its parameters and buffers by name, and where this rank's part of each lies in memory."""

from __future__ import annotations

import contextlib
import math
import mmap
import weakref
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ._errors import ConfigError, PlanError, UnsupportedError

if TYPE_CHECKING or torch.distributed.is_available():
    from torch.distributed.tensor import DTensor
else:

    class DTensor:
        """Of a torch without torch.distributed: nothing is one."""


WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
"""Parts of a name that come from wrapped modules: torch.compile, activation checkpointing."""


NamedModules = list[tuple[str, torch.nn.Module]]
"""A model's modules with the names of their places; one that is in several places is there several times."""


@dataclass(slots=True)
class Slot:
    """A parameter or persistent buffer, with all its names."""

    tensor: torch.Tensor
    names: list[str]
    buffer: bool = False
    adapter: bool = False
    modules: list[tuple[torch.nn.Module, str]] = field(default_factory=list)
    _shape: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor, over all ranks."""
        if self._shape is None:
            meta = self.tensor._spec.tensor_meta if type(self.tensor) is DTensor else None
            self._shape = tuple(meta.shape if meta is not None else getattr(self.tensor, "ds_shape", self.tensor.shape))
        return self._shape


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
    """The model within the wrappers of data parallelism, torch.compile, DeepSpeed and PEFT, else the model itself.

    Raises:
        UnsupportedError: FSDP1 has flattened the parameters.
    """
    while True:
        inner: Any = None
        if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            inner = model.get_base_model()  # type: ignore[operator]
        elif type(model).__name__ in _INNER:
            inner = model._modules.get(_INNER[type(model).__name__])
        if inner is None or inner is model:
            break
        model = inner
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise UnsupportedError("FSDP1 (FullyShardedDataParallel) flattens parameters, which are not filled; shard the model by fully_shard (FSDP2)")
    return model


_INNER = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "DeepSpeedEngine": "module",
    "OptimizedModule": "_orig_mod",
}
"""Wrappers by the names of their classes, and the attribute that is the model."""


def slots(model: torch.nn.Module, modules: NamedModules | None = None) -> tuple[list[Slot], list[Slot]]:
    """Parameters and persistent buffers, and buffers that no checkpoint has; a tensor with several names is one slot. `modules` are the model's."""
    kept: dict[int, Slot] = {}
    other: dict[int, Slot] = {}
    modules = named_modules(model) if modules is None else modules
    # PEFT puts a layer with adapters in the place of each that it adapts; the layer itself is inside of it.
    tuned = tuple(p + "." for p, m in modules if hasattr(m, "base_layer") and hasattr(m, "adapter_layer_names"))
    for prefix, module in modules:
        if not module._parameters and not module._buffers:
            continue
        if "._" in prefix or prefix.startswith("_"):
            for wrapper in WRAPPERS:
                if wrapper[:-1] in prefix:
                    prefix = (prefix + ".").replace(wrapper, "").removesuffix(".")
        dot = prefix + "." if prefix else ""
        adapter = bool(tuned) and dot.startswith(tuned) and ".base_layer." not in dot and dot not in tuned
        if tuned:
            dot = dot.replace(".base_layer.", ".")
        for name, tensor in module._parameters.items():
            if tensor is not None:
                if id(tensor) in kept:
                    _note(kept, tensor, dot + name, module, name, False, adapter)
                else:
                    kept[id(tensor)] = Slot(tensor, [dot + name], False, adapter, [(module, name)])
        for name, tensor in module._buffers.items():
            if tensor is not None:
                _note(other if name in module._non_persistent_buffers_set else kept, tensor, dot + name, module, name, True, False)
    return list(kept.values()), list(other.values())


def named_modules(model: torch.nn.Module) -> NamedModules:
    """`named_modules(remove_duplicate=False)`, without a generator in each module for each one above it."""
    if type(model).named_modules is not torch.nn.Module.named_modules:
        return list(model.named_modules(remove_duplicate=False))
    found: NamedModules = []

    def walk(prefix: str, module: torch.nn.Module) -> None:
        found.append((prefix, module))
        dot = prefix + "." if prefix else ""
        for name, child in module._modules.items():
            if child is not None:
                walk(dot + name, child)

    walk("", model)
    return found


def distinct(modules: NamedModules) -> list[torch.nn.Module]:
    """Each module once, as `list(model.modules())` has them."""
    return list({id(m): m for _, m in modules}.values())


def _fsdp_modules(modules: Iterable[torch.nn.Module]) -> list[Any]:
    """Those that `fully_shard` wrapped. It is their classes that are asked: a module looks for an attribute that it lacks in three dicts."""
    classes: dict[type, bool] = {}
    found = []
    for module in modules:
        cls = type(module)
        if cls not in classes:
            classes[cls] = hasattr(cls, "_get_fsdp_state") and hasattr(cls, "reshard")
        if classes[cls]:
            found.append(module)
    return found


def _note(found: dict[int, Slot], tensor: torch.Tensor, full: str, module: torch.nn.Module, name: str, buffer: bool, adapter: bool) -> None:
    slot = found.get(id(tensor))
    if slot is None:
        found[id(tensor)] = Slot(tensor, [full], buffer, adapter, [(module, name)])
    else:
        slot.names.append(full)
        slot.modules.append((module, name))


def refresh(slot: Slot) -> None:
    """Looks up the slot's tensor again, after `_apply`: buffers are other tensors then."""
    module, name = slot.modules[0]
    found = (module._buffers if slot.buffer else module._parameters)[name]
    if found is not None:
        slot.tensor = found


def reshard(modules: Iterable[torch.nn.Module]) -> None:
    """FSDP2 parameter groups that a forward left gathered hold plain parameters; their shards are what is filled."""
    for module in _fsdp_modules(modules):
        module.reshard()


def materialise(model: torch.nn.Module, modules: list[torch.nn.Module], device: torch.device | str | None, without: Container[int] = ()) -> set[int]:
    """Gives memory to every tensor of the model's modules that is on meta, but for those with the ids `without`, and returns the ids of those that
    got some. Parameters keep their identity, so ties and optimizers survive. With a model that had none at all and is not sharded, buffers that were
    built elsewhere go to the given `device` too: `init_empty_weights` builds them on the CPU."""
    # By id, for a tensor with several names; each with the device where it goes, and whether that is the CPU.
    parameters = {id(p): p for m in modules for p in m._parameters.values() if p is not None and p.is_meta and id(p) not in without}
    buffers = [(m, n, b) for m in modules for n, b in m._buffers.items() if b is not None and b.is_meta and id(b) not in without]
    if not parameters and not buffers:
        return set()
    groups, units = _groups(modules)
    on_cpu = {id(p.sharded_param) for g in groups for p in g.fsdp_params if getattr(p, "offload_to_cpu", False)}
    made: dict[int, torch.Tensor] = {}
    devices: dict[int, torch.device] = {}
    cpu = torch.device("cpu")
    given = None if device is None else torch.device(device)
    sharded = next((p for m in modules for p in m._parameters.values() if type(p) is DTensor), None)

    def where(tensor: torch.Tensor) -> torch.device:
        if id(tensor) in on_cpu:
            return cpu
        if given is not None:
            return given
        if type(tensor) is not DTensor and sharded is not None:
            tensor = sharded  # buffers, and parameters that were left out, run where the shards do
        mesh = tensor._spec.mesh if type(tensor) is DTensor else getattr(tensor, "device_mesh", None)
        if id(mesh) not in devices:
            devices[id(mesh)] = _device_of(tensor)
        return devices[id(mesh)]

    def give(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in moved:
            return moved[id(tensor)]
        if not tensor.is_meta or id(tensor) in without:
            return tensor
        if id(tensor) not in made:
            made[id(tensor)] = _empty_like(tensor, where(tensor))
        return made[id(tensor)]

    fresh = set(parameters)
    fresh.update(id(b) for _, _, b in buffers)
    moved: dict[int, torch.Tensor] = {}
    if given is not None and not units and _is_whole_and_empty(modules):
        elsewhere = [(m, n, b) for m in modules for n, b in m._buffers.items() if b is not None and not b.is_meta and b.device != given]
        moved.update((id(b), b.to(given)) for _, _, b in elsewhere)
        buffers += elsewhere
    # What `model._apply(give)` does, without the steps that only matter to parameters with values or gradients, which take torch several times as
    # long; not where a module has an `_apply` of its own, or torch another form than is known.
    known = {torch.nn.Module._apply, *units}
    grouped = [(g, p) for g in groups for p in g.fsdp_params]
    direct = _SWAPS and all(c._apply in known for c in {type(m) for m in modules}) and all(hasattr(p, "reset_sharded_param") for _, p in grouped)
    if direct and not any(p.grad is not None for p in parameters.values()):
        with torch.no_grad():
            places = [(p, where(p)) for p in parameters.values()]
            arena = _Arena(p for p, to in places if to is cpu or to.type == "cpu")
            for parameter, to in places:
                _give_memory(parameter, to, arena)
            for module, name, buffer in buffers:
                module._buffers[name] = give(buffer)
            for group, param in grouped:
                if not _resets_later(group, param):
                    param.reset_sharded_param()
        return fresh | {id(t) for t in made.values()}
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model._apply(give)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)
    # Parameters were swapped in place; buffers are new tensors.
    return fresh | {id(t) for t in made.values()}


def _is_whole_and_empty(modules: list[torch.nn.Module]) -> bool:
    """Whether no parameter has memory, and none is sharded."""
    parameters = [p for m in modules for p in m._parameters.values() if p is not None]
    return all(p.is_meta and type(p) is not DTensor and not hasattr(p, "ds_tensor") for p in parameters)


def _groups(modules: Iterable[torch.nn.Module]) -> tuple[list[Any], set[Any]]:
    """FSDP2's groups of parameters, and the `_apply` that it gives to modules."""
    groups: list[Any] = []
    applies: set[Any] = set()
    for module in _fsdp_modules(modules):
        state: Any = module._get_fsdp_state()
        found = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        groups += [g for g in found if g is not None]
        applies |= {c.__dict__["_apply"] for c in type(module).__mro__ if c.__name__ == "FSDPModule" and "_apply" in c.__dict__}
    return groups, applies


def _resets_later(group: Any, param: Any) -> bool:
    """Whether FSDP2 looks at this parameter again before it uses it, which it does in its first forward, and need not do so now: nothing is padded
    or pinned."""
    if getattr(group, "_reset_sharded_params", True) or getattr(param, "pin_memory", True):
        return False
    local = getattr(param.sharded_param, "_local_tensor", None)
    return local is not None and local.size() == getattr(param, "padded_sharded_param_size", None)


class _Arena:
    """Memory of many tensors on the CPU in one mapping, which the kernel backs with huge pages from its first touch on.

    Memory from torch's allocator has a header before each tensor. Touching it puts a small page there, and the huge page that would hold it and the
    tensors around is never made: touching fresh memory then takes several times as long as the read. Each tensor has a storage of its own; the
    mapping goes with the last of them.
    """

    ALIGNMENT = 64
    LEAST = 8 << 20

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        """Room for tensors on meta, or this rank's part of each."""
        self.wanted = sum(getattr(t, "_local_tensor", t).nbytes + self.ALIGNMENT for t in tensors)
        self.used = 0
        self.memory: mmap.mmap | None = None
        # Where torch fills new memory with NaN, so that what nobody writes is seen, it has to be torch that makes it.
        poisoned = torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory
        if hasattr(mmap, "MADV_HUGEPAGE") and not poisoned and self.wanted >= self.LEAST:
            self._map()

    def empty(self, like: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Contiguous memory for a plain tensor."""
        size = like.nbytes
        if self.memory is None or not size or device.type != "cpu" or self.used + size > self.wanted:
            return torch.empty(like.shape, dtype=like.dtype, device=device)
        made = torch.frombuffer(self.memory, dtype=like.dtype, count=like.numel(), offset=self.used).resize_as_(like)
        self.used += -(-size // self.ALIGNMENT) * self.ALIGNMENT
        return made

    def _map(self) -> None:
        # No such mapping, or a kernel without huge pages: torch allocates instead, and raises where there is no memory.
        with contextlib.suppress(OSError):
            memory = mmap.mmap(-1, self.wanted, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_HUGEPAGE)
            self.memory = memory


_SWAPS = hasattr(torch._C, "_swap_tensor_impl") and hasattr(torch.Tensor, "_use_count")
"""Whether this torch has what `_give_memory` takes from `torch.utils.swap_tensors`."""


def _give_memory(parameter: torch.Tensor, device: torch.device, arena: _Arena) -> None:
    """Gives memory to a parameter on meta; the object stays, and so do its attributes."""
    kind, memory = type(parameter), None
    value: torch.Tensor
    if kind is DTensor:
        local = parameter._local_tensor  # type: ignore[attr-defined]
        if type(local) is torch.Tensor and local.is_contiguous():
            memory = arena.empty(local, device)
            value = DTensor.__new__(DTensor, memory, parameter._spec, requires_grad=parameter.requires_grad)  # type: ignore
    elif kind is torch.nn.Parameter and parameter.is_contiguous():
        memory = value = arena.empty(parameter, device)
        value.requires_grad_(parameter.requires_grad)
    if memory is None or weakref.getweakrefs(parameter) or parameter._use_count() != 1:  # type: ignore[attr-defined]
        value = _empty_like(parameter, device).requires_grad_(parameter.requires_grad)
        if type(value) is torch.Tensor:
            value = torch.nn.Parameter(value, requires_grad=parameter.requires_grad)
        else:
            value._is_param = True  # type: ignore[attr-defined]
        torch.utils.swap_tensors(parameter, value)
        return
    # The last step of `swap_tensors`; the ones before it exchange classes and attributes, which are the same.
    torch._C._swap_tensor_impl(parameter, value)  # type: ignore[attr-defined]
    if kind is DTensor:
        parameter._local_tensor = memory  # type: ignore[attr-defined]


def _empty_like(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`torch.empty_like(tensor, device=device)` of a tensor on meta, which takes torch 100 µs of a plain one."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.is_contiguous() and tensor.layout is torch.strided
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device) if plain else torch.empty_like(tensor, device=device)


def _device_of(tensor: torch.Tensor) -> torch.device:
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None:
        return torch.get_default_device() if torch.get_default_device().type != "meta" else torch.device("cpu")
    if mesh.device_type == "cpu":
        return torch.device("cpu")
    return torch.device(mesh.device_type, getattr(torch, mesh.device_type).current_device())


Ranges = list[tuple[int, int]]


def part(slot: Slot, known: dict[Any, tuple[Ranges, tuple[int, ...]]] | None = None) -> Part:
    """Where this rank's part of a slot lies. Coordinates come from the tensor itself.

    `known` remembers ranges, with the shape of the part, by mesh, placements and shape: a model has few.
    """
    tensor = slot.tensor
    if type(tensor) is torch.nn.Parameter and not hasattr(tensor, "ds_tensor"):
        return Part(tensor, [(0, n) for n in tensor.shape])
    if type(tensor) is not DTensor:
        if hasattr(tensor, "ds_tensor"):
            return _partition(slot)
        if not hasattr(tensor, "placements"):
            return Part(tensor.detach(), [(0, n) for n in tensor.shape])
    spec: Any = tensor._spec  # type: ignore[attr-defined]
    key = (id(spec.mesh), spec.placements, slot.shape)
    found = known.get(key) if known is not None else None
    if found is None:
        ranges = _ranges(slot, spec)
        found = ranges, tuple(b - a for a, b in ranges)
        if known is not None:
            known[key] = found
    ranges, expected = found
    local = tensor._local_tensor  # type: ignore[attr-defined]
    if local.shape != expected:
        raise PlanError(f"tensor '{slot.name}': expected a local shape of {expected}, found {tuple(local.shape)}")
    return Part(local.detach() if local.requires_grad else local, ranges)


def _ranges(slot: Slot, spec: Any) -> Ranges:
    """The indices along each dim that a DTensor's placements give to this rank."""
    mesh, shape = spec.mesh, slot.shape
    at = mesh.get_coordinate()
    if at is None:
        raise PlanError(f"tensor '{slot.name}': this rank is not part of the tensor's mesh")
    ranges = [(0, n) for n in shape]
    for axis in _order(slot, spec):
        dim = spec.placements[axis].dim
        first, end = ranges[dim]
        chunk = -(-(end - first) // mesh.size(axis))
        begin = min(first + at[axis] * chunk, end)
        ranges[dim] = (begin, min(begin + chunk, end))
    return ranges


def _order(slot: Slot, spec: Any) -> list[int]:
    """The mesh axes that cut the tensor, in the order in which they do. That is the mesh's, but for `_StridedShard`: FSDP2 over tensor parallelism
    cuts what a later axis has cut already, and says by the split factor into how many parts."""
    order: list[int] = []
    strided: list[int] = []
    for axis, placement in enumerate(spec.placements):
        kind = type(placement).__name__
        if kind == "Replicate":
            continue
        if kind == "Shard":
            order.append(axis)
            continue
        if kind != "_StridedShard":
            raise UnsupportedError(f"tensor '{slot.name}': placement {kind} on mesh axis {axis}; supported are Shard and Replicate")
        later = [a for a in range(axis + 1, len(spec.placements)) if getattr(spec.placements[a], "dim", None) == placement.dim]
        parts = math.prod(spec.mesh.size(a) for a in later)
        if strided or placement.split_factor != parts or any(type(spec.placements[a]).__name__ != "Shard" for a in later):
            what = f"_StridedShard(dim={placement.dim}, split_factor={placement.split_factor}) on mesh axis {axis}"
            raise UnsupportedError(
                f"tensor '{slot.name}': placement {what}: expected a split factor of {parts}, as FSDP2 over tensor parallelism has"
            )
        strided.append(axis)
    return order + strided


def _partition_rank(tensor: Any) -> int:
    """This rank's number among those that share the parameter."""
    if hasattr(tensor, "ds_zero_partition_rank"):
        return int(tensor.ds_zero_partition_rank)
    import torch.distributed as dist  # DeepSpeed before 0.19.3 does not say it of a parameter

    return int(dist.get_rank(tensor.ds_process_group))


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
    size, rank = int(data.ds_numel), _partition_rank(tensor)
    first = min(rank * size, int(tensor.ds_numel))
    end = min(first + size, int(tensor.ds_numel))
    if data.numel() < size:
        raise PlanError(f"tensor '{slot.name}': its partition has no memory: expected {size} elements, found {data.numel()}")
    return Part(data.data.view(-1)[:size], [(0, n) for n in tensor.ds_shape], (first, end), size - (end - first))


LEVELS = 4
"""Modules that are asked to initialise a tensor: its own, and those above it."""


def initialise(model: torch.nn.Module, targets: list[Slot], seed: int, put: Callable[[Slot, torch.Tensor], None]) -> list[str]:
    """Runs the model's own initialisation for these slots, each as a whole tensor on the CPU, with a seed that depends on the name alone, so that
    every rank makes the same values; `put` takes each. Returns the names for which the model has no initialisation."""
    import zlib

    wanted = {id(s.tensor): s for s in targets}
    owners, parents = _owners(model)
    done: set[int] = set()
    for slot in targets:
        if id(slot.tensor) in done:
            continue
        module, _ = slot.modules[0]
        names = {n: wanted[id(t)] for n, t in [*module._parameters.items(), *module._buffers.items()] if t is not None and id(t) in wanted}
        at: torch.nn.Module | None = module
        # Some classes initialise what belongs to modules within them.
        for _ in range(1 if slot.adapter else LEVELS):
            if at is None:
                break
            clones: dict[int, torch.nn.Module] = {}
            clone = _clone(at, {id(s.tensor): s for s in names.values()}, clones)
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(seed ^ zlib.crc32(slot.name.encode()))
                if slot.adapter:
                    _adapt(slot, clone)
                else:
                    _run_init(owners.get(id(at)), clone)
            made = clones[id(module)]
            for name, target in names.items():
                value = made._parameters.get(name, made._buffers.get(name))
                if value is not None and _is_initialised(value):
                    put(target, value.detach())
                    done.add(id(target.tensor))
            # Buffers that are not initialised now are those of a class that computes them where it is built.
            names = {n: s for n, s in names.items() if id(s.tensor) not in done and not s.buffer}
            if not names:
                break
            at = parents.get(id(at))
    left = [s for s in targets if id(s.tensor) not in done]
    buffers = _built_anew(model) if any(s.buffer for s in left) else {}
    for slot in left:
        value = buffers.get(slot.name) if slot.buffer else None
        if value is not None and not value.is_meta and tuple(value.shape) == slot.shape:
            put(slot, value)
            done.add(id(slot.tensor))
    return [s.name for s in left if id(s.tensor) not in done]


def _is_initialised(value: torch.Tensor) -> bool:
    """Whether something has written to a tensor that `_clone` made, or took its place."""
    if value.is_meta:
        return False
    return not bool(torch.isnan(value).any()) if value.is_floating_point() else getattr(value, _UNTOUCHED, None) != value._version


_UNTOUCHED = "_shardwright_version"


def _built_anew(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The buffers of another model of this class, by name: transformers 4 computes them where it builds a model, and nowhere else."""
    config: Any = getattr(model, "config", None)
    kind = next((c for c in type(model).__mro__ if c.__module__.partition(".")[0] == "transformers"), None)
    if kind is None or config is None or not isinstance(model, kind):
        return {}
    try:
        from accelerate import init_empty_weights
    except ImportError:
        return {}
    dtype, before = getattr(config, "dtype", None), torch.get_default_dtype()
    try:
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            torch.set_default_dtype(dtype)  # as `from_pretrained` does
        with init_empty_weights(include_buffers=False), torch.random.fork_rng(devices=[]):
            return dict(kind(config).named_buffers(remove_duplicate=False))
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return {}  # a class that looks at values of parameters, which have none here
    finally:
        torch.set_default_dtype(before)


def _adapt(slot: Slot, clone: torch.nn.Module) -> None:
    """LoRA's default: A as a linear layer's, B zero, so that the adapter changes nothing at first. Other adapters stay as they are."""
    if ".lora_B." in slot.name or ".lora_embedding_A." in slot.name:
        for parameter in clone.parameters():
            parameter.zero_()
    elif ".lora_A." in slot.name and hasattr(clone, "reset_parameters"):
        clone.reset_parameters()  # type: ignore[operator]


def _owners(model: torch.nn.Module) -> tuple[dict[int, torch.nn.Module], dict[int, torch.nn.Module]]:
    """The nearest module above each one that initialises weights, as transformers' models do, and the one right above it."""
    owners: dict[int, torch.nn.Module] = {}
    parents: dict[int, torch.nn.Module] = {}

    def walk(module: torch.nn.Module, owner: torch.nn.Module | None) -> None:
        if hasattr(module, "_init_weights"):
            owner = module
        if owner is not None:
            owners.setdefault(id(module), owner)
        for child in module.children():
            parents.setdefault(id(child), module)
            walk(child, owner)

    walk(model, None)
    return owners, parents


def _clone(module: torch.nn.Module, wanted: dict[int, Slot], clones: dict[int, torch.nn.Module]) -> torch.nn.Module:
    """A copy of a module and those within, in which the wanted tensors are whole, on the CPU and NaN. What is done to other tensors is lost:
    parameters are on meta, buffers are copies, and all say that they are initialised. `clones` gets each by the module's id."""
    if id(module) in clones:
        return clones[id(module)]
    # Not the class's own `__new__`: that of an FSDP2 module makes the class without FSDP2.
    clone = clones[id(module)] = object.__new__(module.__class__)
    clone.__dict__ = dict(module.__dict__)

    def other(tensor: torch.Tensor, parameter: bool) -> torch.Tensor:
        slot = wanted.get(id(tensor))
        shape = tuple(getattr(tensor, "ds_shape", tensor.shape)) if slot is None else slot.shape
        made: torch.Tensor
        if slot is not None:
            made = torch.full(shape, math.nan if tensor.is_floating_point() else 0, dtype=tensor.dtype)
        elif parameter:
            made = torch.empty(shape, dtype=tensor.dtype, device="meta")
        else:
            made = tensor.detach().clone()
        if parameter:
            made = torch.nn.Parameter(made, requires_grad=False)
        if slot is None:
            made._is_hf_initialized = True  # type: ignore[attr-defined]
        else:
            setattr(made, _UNTOUCHED, made._version)
        return made

    for of, parameter in (("_parameters", True), ("_buffers", False)):
        clone.__dict__[of] = {n: None if t is None else other(t, parameter) for n, t in getattr(module, of).items()}
    clone.__dict__["_modules"] = {n: None if m is None else _clone(m, wanted, clones) for n, m in module._modules.items()}
    clone.__dict__["_is_hf_initialized"] = False
    return clone


def _run_init(owner: torch.nn.Module | None, clone: torch.nn.Module) -> None:
    if owner is not None:
        owner._init_weights(clone)  # type: ignore[operator]
    elif hasattr(clone, "reset_parameters"):
        clone.reset_parameters()  # type: ignore[operator]


def check_writable(slot: Slot, local: torch.Tensor) -> None:
    """Refuses memory that cannot be filled, before anything is written."""
    plain = local.layout is torch.strided and not local.is_meta and local.is_contiguous()
    if plain and local.untyped_storage().nbytes() >= (local.storage_offset() + local.numel()) * local.element_size():
        return  # what nearly all are
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
