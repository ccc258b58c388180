"""`from_pretrained` for FSDP2 under accelerate (`cpu_ram_efficient_loading`): the weights are read once `prepare` has sharded the model.

transformers loads the whole model on every rank, before accelerate shards it and broadcasts rank 0's. Here the model stays on meta until then, with a
note of its checkpoint; `Accelerator.prepare` shards it, each rank reads its own bytes, and what is not from the checkpoint (adapters, new heads) is
broadcast as accelerate does. A model that is needed whole before that, to resize its embeddings or to run, is loaded whole at that moment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ._errors import PlanError, UnsupportedError
from ._fill import LoadReport, Options, agreeing, fill_within, kept_dtypes, plan_of
from ._model import WRAPPERS, slots
from ._optimizer import parameters_aside

logger = logging.getLogger("shardwright")

NOTE = "_shardwright_deferred"
"""The attribute of a model that has not been loaded yet."""

_originals: dict[tuple[Any, str], Any] = {}
_version: int | None = None
"""Of FSDP, as the latest `TrainingArguments` say."""

WAS = "_shardwright_was_deferred"
"""The attribute of a model that has been loaded whole before it was sharded."""

_NOTED = "_shardwright_is_noted"
"""The attribute of a deferred model's tensors."""

_HELP = "for this model call shardwright.transformers.enable(fsdp2=False) before from_pretrained"
_READ = f"Accelerator.prepare, which reads the weights; {_HELP}"


class Deferred:
    """What a model that stays on meta will be loaded from."""

    def __init__(self, checkpoint: Any, conversions: Any, device: Any, dtype: Any) -> None:
        self.checkpoint = checkpoint
        self.conversions = conversions
        self.device = device
        self.dtype = dtype
        self.tensors: list[tuple[torch.Tensor, frozenset[str], Any]] = []
        """Those that will be filled, with their names and states when they were noted."""

    def note(self, model: torch.nn.Module) -> None:
        """Notes the tensors that will be filled, as they are now."""
        self.tensors = [(s.tensor, frozenset(s.names), _state(s.tensor)) for s in slots(model)[0] if s.tensor.is_meta]
        for tensor, _, _ in self.tensors:
            setattr(tensor, _NOTED, True)

    def check(self) -> None:
        """Raises where something that will be filled has been changed: the checkpoint's values would undo that."""
        for tensor, names, (version, dtype, storage) in self.tensors:
            # A cast gives it other memory; so does what is assigned to `.data`, but for its dtype.
            other = tensor.dtype == dtype and tensor.is_meta and tensor.untyped_storage()._cdata != storage._cdata
            if tensor._version != version or other:
                raise UnsupportedError(f"tensor '{min(names)}' was changed between from_pretrained and {_READ}")

    def check_places(self, model: torch.nn.Module, others: set[int]) -> None:
        """Raises where a tensor without values is not one that was noted, or is at another place: the checkpoint's values are by names. `others` are
        those of models within."""
        noted = {id(tensor): names for tensor, names, _ in self.tensors}
        for slot in slots(model)[0]:
            if slot.tensor.is_meta and id(slot.tensor) not in others and not slot.adapter and noted.get(id(slot.tensor)) != frozenset(slot.names):
                known = any(slot.name in names for names in noted.values())
                what = "moved or tied by hand" if id(slot.tensor) in noted else "replaced by one without values" if known else "made without values"
                raise UnsupportedError(f"tensor '{slot.name}' was {what} between from_pretrained and {_READ}")

    def options(self, device: Any, only: set[int], seed: int) -> Options:
        """How these tensors are filled. Buffers that no checkpoint has are there; what is not from the checkpoint has memory."""
        return Options(
            device=device,
            missing="init",
            unexpected="ignore",
            conversions=self.conversions,
            round_to=self.dtype,
            seed=seed % (1 << 32),
            only=only,
            transient=False,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Deferred:
        import copy

        self.check()
        made = Deferred(self.checkpoint, self.conversions, self.device, self.dtype)
        for tensor, names, _ in self.tensors:
            copied = copy.deepcopy(tensor, memo)
            made.tensors.append((copied, names, _state(copied)))
            setattr(copied, _NOTED, True)
        return made


def _state(tensor: torch.Tensor) -> tuple[int, torch.dtype, Any]:
    return tensor._version, tensor.dtype, tensor.untyped_storage()


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


def wanted() -> bool:
    """Whether accelerate is about to shard models by FSDP2 from rank 0's weights in this process."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or not _true("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        return False
    if importlib.util.find_spec("accelerate") is None:
        return False
    from accelerate.state import AcceleratorState

    plugin = AcceleratorState._shared_state.get("fsdp_plugin")
    if plugin is not None:
        return getattr(plugin, "fsdp_version", 1) == 2 and bool(getattr(plugin, "cpu_ram_efficient_loading", False))
    if _true("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION"):
        return os.environ["FSDP_VERSION"] == "2"
    return _version == 2


def _true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on", "y", "t")


def watch() -> None:
    """Looks at which FSDP the arguments of a `Trainer` ask for; it is nowhere else before the `Trainer` is made."""
    from transformers import TrainingArguments

    def post_init(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        global _version
        made = original(self, *args, **kwargs)
        asked = getattr(self, "fsdp_plugin_args", None)
        if isinstance(asked, dict) and "fsdp_version" in asked:
            _version = int(asked["fsdp_version"])
        return made

    _wrap(TrainingArguments, "__post_init__", post_init)


def install(older: bool = False) -> str | None:
    """Puts what is needed into accelerate and transformers, the `older` of which is 4, or returns why that cannot be done."""
    if any(of.__name__ == "Accelerator" for of, _ in _originals if isinstance(of, type)):
        return None
    import accelerate
    from accelerate.utils import fsdp_utils
    from transformers import PreTrainedModel, modeling_utils

    for of, name in (
        (accelerate.Accelerator, "_prepare_fsdp2"),
        (fsdp_utils, "fsdp2_load_full_state_dict"),
        (fsdp_utils, "fsdp2_prepare_model"),
        (accelerate.accelerator, "fsdp2_prepare_model"),
        *([(PreTrainedModel, _MOVE_OF_4)] if older else [(PreTrainedModel, "_finalize_model_loading"), (PreTrainedModel, _MOVE)]),
        (modeling_utils, "is_fsdp_enabled"),
        (modeling_utils, "is_local_dist_rank_0"),
    ):
        if not callable(getattr(of, name, None)):
            return f"{getattr(of, '__name__', of)} has no {name}"
    _wrap(accelerate.Accelerator, "_prepare_fsdp2", _prepare)
    _wrap(fsdp_utils, "fsdp2_load_full_state_dict", _load_full)
    _wrap(fsdp_utils, "fsdp2_prepare_model", _prepare_model)
    _wrap(accelerate.accelerator, "fsdp2_prepare_model", _prepare_model)
    _wrap(PreTrainedModel, "_finalize_model_loading", _finalize)
    _wrap(PreTrainedModel, "resize_token_embeddings", _resize)
    _wrap(PreTrainedModel, "save_pretrained", _resize)
    _wrap(PreTrainedModel, "to", _to)
    with contextlib.suppress(ImportError):
        from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState

        _wrap(FSDPState, "_lazy_init", _first_forward)
    if importlib.util.find_spec("peft") is not None:
        from peft.tuners.tuners_utils import BaseTuner

        _wrap(BaseTuner, "inject_adapter", _inject)
        for name in ("merge_adapter", "unmerge_adapter", "_unload_and_optionally_merge"):
            _wrap(BaseTuner, name, _merge)
    return None


def uninstall() -> None:
    """Puts everything back."""
    global _version
    for (of, name), original in _originals.items():
        setattr(of, name, original)
    _originals.clear()
    _version = None


def _wrap(of: Any, name: str, around: Callable[..., Any]) -> None:
    """Puts `around(original, …)` in the place of a method or function."""
    raw = of.__dict__.get(name)
    if raw is None or (of, name) in _originals:
        return
    original = raw.__func__ if isinstance(raw, staticmethod | classmethod) else raw

    @functools.wraps(original)
    def called(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    _originals[of, name] = raw
    setattr(of, name, type(raw)(called) if isinstance(raw, staticmethod | classmethod) else called)


def defer(model: torch.nn.Module, checkpoint: Any, config: Any, device: Any) -> LoadReport:
    """Leaves a model on meta, to be loaded later, on that device if it is needed whole. Names and shapes are compared now."""
    report = _defer(model, checkpoint, config.weight_mapping, device, config.dtype)
    if config.dtype is not None:
        kept = kept_dtypes(model, config.dtype)
        for name, tensor in _tensors(model).items():
            dtype = next((d for p, d in kept if p.search(name)), None)
            if dtype is not None and tensor.is_floating_point() and tensor.dtype != dtype:
                tensor.data = tensor.data.to(dtype)
    return report


def _defer(model: Any, checkpoint: Any, conversions: Any, device: Any, dtype: Any) -> LoadReport:
    _to_meta(model)
    options = Options(missing="keep", unexpected="ignore", conversions=conversions, round_to=None, defer=True)
    report = plan_of(model, checkpoint, options)
    # transformers 4 builds buffers with their values; these get the checkpoint's.
    for slot in slots(model)[0]:
        if slot.buffer and slot.name in report.filled and not slot.tensor.is_meta:
            for module, name in slot.modules:
                module._buffers[name] = slot.tensor.to("meta")
    model.__dict__[NOTE] = Deferred(checkpoint, report.conversions if conversions is not None else None, device, dtype)
    model.register_forward_pre_hook(_before_forward, with_kwargs=True)
    return report


def _to_meta(model: torch.nn.Module) -> None:
    """Takes their memory from parameters that a class makes on the CPU wherever it is built."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                empty = torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
                module._parameters[name] = made.setdefault(id(parameter), empty)


def _finalize(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    """What transformers does after it has read the weights, as it does on ranks whose parameters stay on meta."""
    note = model.__dict__.get(NOTE)
    if note is None:
        return original(model, *args, **kwargs)
    with _parameters_stay(model, _MOVE):
        done = original(model, *args, **kwargs)
    note.note(model)
    return done


_MOVE, _MOVE_OF_4 = "_move_missing_keys_from_meta_to_device", "_move_missing_keys_from_meta_to_cpu"
"""transformers' method that gives memory to what the checkpoint lacks."""


@contextlib.contextmanager
def _parameters_stay(model: torch.nn.Module, move: str) -> Iterator[None]:
    """transformers takes this rank for one that gets its parameters from another."""
    from transformers import modeling_utils

    before = modeling_utils.is_fsdp_enabled, modeling_utils.is_local_dist_rank_0
    modeling_utils.is_fsdp_enabled, modeling_utils.is_local_dist_rank_0 = lambda: True, lambda: False
    model.__dict__[move] = lambda *_, **__: _give_buffers(model)
    try:
        yield
    finally:
        del model.__dict__[move]
        modeling_utils.is_fsdp_enabled, modeling_utils.is_local_dist_rank_0 = before


def defer_of_4(model: Any, checkpoint: Any, load: Callable[[], Any]) -> Any:
    """`defer` for transformers 4, whose own loading, which is called here, does all but read."""
    report = _defer(model, checkpoint, None, None, getattr(model.config, "dtype", None))
    with _parameters_stay(model, _MOVE_OF_4):
        done = load()
    ignored = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    left = [n for n in report.missing if n not in done[1] and not any(p.search(n) for p in ignored)]
    if left:
        raise PlanError(f"the architecture data has nothing for '{left[0]}', which transformers finds in the checkpoint; {_HELP}")
    model.tie_weights()
    model.__dict__[NOTE].note(model)
    return done


def _give_buffers(model: torch.nn.Module) -> None:
    """Memory for the buffers that no checkpoint has; transformers computes their values next."""
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros_like(buffer, device="cpu")


def _deferred(model: torch.nn.Module) -> list[tuple[torch.nn.Module, Deferred]]:
    return [(m, m.__dict__[NOTE]) for m in model.modules() if NOTE in m.__dict__]


def _forget(model: torch.nn.Module) -> None:
    del model.__dict__[NOTE]
    hooks = model._forward_pre_hooks
    for key in [k for k, h in hooks.items() if h is _before_forward]:
        del hooks[key]
        model._forward_pre_hooks_with_kwargs.pop(key, None)


def _parts(model: torch.nn.Module) -> list[tuple[torch.nn.Module, Deferred, set[int]]]:
    """The deferred models within a model, innermost first, with the ids of those tensors of each that have no values and are not of one within."""
    taken: set[int] = set()
    found = []
    for inner, note in reversed(_deferred(model)):
        mine = {id(s.tensor) for s in slots(inner)[0] if s.tensor.is_meta and not s.adapter} - taken
        found.append((inner, note, mine))
        taken |= mine
    return found


def _check(model: torch.nn.Module) -> None:
    taken: set[int] = set()
    for inner, note, mine in _parts(model):
        note.check()
        note.check_places(inner, taken)
        taken |= mine


def _load_now(model: torch.nn.Module, why: str, device: torch.device | None = None) -> None:
    """Loads models whole that are still on meta."""
    if not _deferred(model):
        return
    _check(model)
    for inner, note, mine in _parts(model):
        options = note.options(note.device if device is None else device, mine, int(torch.initial_seed()))
        report = fill_within(inner, note.checkpoint, options, inner)
        _forget(inner)
        inner.__dict__[WAS] = True
        logger.warning("this rank holds the model whole: %s: %r", why, report)


def _before_forward(model: torch.nn.Module, args: Any, kwargs: Any = None) -> None:
    if NOTE in model.__dict__ and not any(hasattr(p, "placements") for p in model.parameters()):
        _load_now(model, "it runs before Accelerator.prepare has sharded it")


def _first_forward(original: Any, self: Any) -> Any:
    """What FSDP2 does before the first forward of a model, which somebody has sharded without `Accelerator.prepare`, as TRL its reference models."""
    if getattr(self, "_is_root", None) is not None:
        return original(self)  # not its first: this is called in every forward
    for root in getattr(self, "_modules", ()):
        if any(hasattr(p, "placements") for inner, _ in _deferred(root) for p in inner.parameters()):
            _fill_now(root, None, _seed_of_rank_0())
    return original(self)


def _resize(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    _load_now(self, f"{original.__name__} needs its values")
    return original(self, *args, **kwargs)


def _to(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    if _deferred(self):
        try:
            device = torch._C._nn._parse_to(*args, **kwargs)[0]
        except (TypeError, RuntimeError):
            device = None  # the original says what is wrong
        if device is not None and device.type != "meta":
            _load_now(self, f"it is moved to {device}", device)
    return original(self, *args, **kwargs)


def _merge(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    _load_now(self.model, "adapters are merged into it")
    return original(self, *args, **kwargs)


def _inject(original: Any, self: Any, model: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
    """PEFT puts adapters where the base is; those of a base that will be read later have values of their own already."""
    if not _deferred(model):
        return original(self, model, adapter_name, *args, **kwargs)
    config = self.peft_config[adapter_name]
    if not _is_plain_lora(config):
        _load_now(model, f"{type(config).__name__} may need its values")
        return original(self, model, adapter_name, *args, **kwargs)
    move = torch.nn.Module.to

    def to(module: Any, *where: Any, **options: Any) -> Any:
        device, dtype = torch._C._nn._parse_to(*where, **options)[:2]
        if device is not None and device.type == "meta":
            return module if dtype is None else move(module, dtype)
        return move(module, *where, **options)

    torch.nn.Module.to = to  # type: ignore[method-assign, assignment]
    try:
        return original(self, model, adapter_name, *args, **kwargs)
    finally:
        torch.nn.Module.to = move  # type: ignore[method-assign]


_OF_PLAIN_LORA = [
    "r",
    "target_modules",
    "exclude_modules",
    "lora_alpha",
    "lora_dropout",
    "fan_in_fan_out",
    "bias",
    "use_rslora",
    "init_lora_weights",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "runtime_config",
    "lora_bias",
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
]


def _is_plain_lora(config: Any) -> bool:
    """Whether adapters are made without a look at the base's values: LoRA with none of the options that are not known to need none."""
    if type(config).__name__ != "LoraConfig" or config.init_lora_weights not in (True, False, "gaussian"):
        return False
    plain = type(config)()
    return all(getattr(config, f.name) == getattr(plain, f.name) for f in dataclasses.fields(config) if f.name not in _OF_PLAIN_LORA)


def _prepare(original: Any, self: Any, *args: Any) -> Any:
    """`Accelerator._prepare_fsdp2`, which finds optimizers' parameters by addresses: parameters on meta have none."""
    models = [a for a in args if isinstance(a, torch.nn.Module)]
    if not any(_deferred(m) for m in models):
        return original(self, *args)
    names = {id(p): _clean(n) for m in models for n, p in m.named_parameters()}
    with contextlib.ExitStack() as stack:
        putting = [stack.enter_context(parameters_aside(o)) for o in args if isinstance(o, torch.optim.Optimizer)]
        result = original(self, *args)
        now = {_clean(n): p for r in result if isinstance(r, torch.nn.Module) for n, p in r.named_parameters()}
        for put in putting:
            put(lambda parameter: now[names[id(parameter)]] if id(parameter) in names else parameter)
    left = next((n for n, p in now.items() if p.is_meta), None)
    if left is not None:
        raise UnsupportedError(f"parameter '{left}' has no memory after Accelerator.prepare: this accelerate loads in another way than is known")
    return result


def _clean(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _seed_of_rank_0() -> int:
    import torch.distributed as dist

    seed = [int(torch.initial_seed())]
    dist.broadcast_object_list(seed, src=0)
    return seed[0]


def _prepare_model(original: Any, accelerator: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What accelerate shards a model by. The ranks agree first on whether the weights are still to be read."""
    import torch.distributed as dist

    waiting = bool(_deferred(model))
    if waiting or any(WAS in m.__dict__ for m in model.modules()):
        every: list[Any] = [None] * dist.get_world_size()
        problem = None
        try:
            if waiting:
                _check(model)
        except UnsupportedError as error:
            problem = str(error)
        dist.all_gather_object(every, (waiting, problem))
        found = next((p for _, p in every if p is not None), None)
        if found is not None:
            raise UnsupportedError(found)
        if waiting and not all(w for w, _ in every):
            _load_now(model, "another rank does")
    # Without us ranks have parameters on meta too.
    left = next((n for n, p in model.named_parameters() if p.is_meta and hasattr(p, _NOTED)), None)
    if left is not None and not _deferred(model):
        raise UnsupportedError(
            f"parameter '{left}' has no values: it was taken out of the model whose weights Accelerator.prepare would have read; {_HELP}"
        )
    return original(accelerator, model, *args, **kwargs)


def _load_full(original: Any, accelerator: Any, model: torch.nn.Module, full_sd: dict[str, torch.Tensor], *more: Any, **options: Any) -> Any:
    """What accelerate does to a model that it has sharded: it broadcasts rank 0's tensors, `full_sd`, and puts each rank's part into the model."""
    if not _deferred(model):
        return original(accelerator, model, full_sd, *more, **options)
    noted = {n for inner, note, _ in _parts(model) for n in _named(model, inner, note)}
    state = model.state_dict(keep_vars=True)
    # What the user has put in the place of something that the checkpoint has is kept.
    rest = {n: t for n, t in state.items() if _clean(n) not in noted or (n in full_sd and not full_sd[n].is_meta)}
    for name in rest:
        if name not in full_sd or full_sd[name].is_meta:
            raise UnsupportedError(f"tensor '{name}' has no values: it is not in the checkpoint, and was made or moved to the meta device; {_HELP}")
    sharded = {n: t for n, t in rest.items() if hasattr(t, "device_mesh")}
    if sharded:
        original(accelerator, _Rest(model, sharded), {n: full_sd[n] for n in sharded}, *more, **options)
    plain = {n: full_sd[n].to(accelerator.device) for n in rest if n not in sharded}
    if plain:
        model.load_state_dict(plain, strict=False, assign=True)
    _fill_now(model, accelerator.device, _seed_of_rank_0())
    return model


def _named(model: torch.nn.Module, inner: torch.nn.Module, note: Deferred) -> set[str]:
    """The noted names as they are in the whole model."""
    names = {name for _, names, _ in note.tensors for name in names}
    prefix = next(n for n, m in model.named_modules() if m is inner)
    prefix = prefix + "." if prefix else ""
    return {
        _clean(prefix + n)
        for n, _ in [*inner.named_parameters(remove_duplicate=False), *inner.named_buffers(remove_duplicate=False)]
        if _clean(n).replace(".base_layer.", ".") in names
    }


class _Rest:
    """A model that has these tensors alone."""

    def __init__(self, model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
        self._model, self._state = model, state

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, torch.Tensor], assign: bool = False, **_: Any) -> Any:
        return self._model.load_state_dict(state, strict=False, assign=assign)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _fill_now(model: torch.nn.Module, device: torch.device | None, seed: int) -> None:
    """Fills the deferred models within a sharded one."""
    from . import transformers

    for inner, note, mine in _parts(model):
        report = agreeing(lambda: fill_within(inner, note.checkpoint, note.options(device, mine, seed), model))  # noqa: B023
        _forget(inner)
        if os.environ.get("RANK", "0") == "0":
            logger.log(transformers._filled_is, "shardwright filled the model: %r", report)
