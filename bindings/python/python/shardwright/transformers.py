"""`from_pretrained` through shardwright: under ZeRO-3, with `distributed_config=`, and for accelerate's FSDP2, each rank reads its own bytes.

    import shardwright.transformers
    shardwright.transformers.enable()

What shardwright does not do (quantised models, pickled checkpoints, `device_map`, tensor parallelism) goes the usual way, with a line in the log.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ._errors import ShardwrightError, UnsupportedError

if TYPE_CHECKING:
    from ._fill import LoadReport

logger = logging.getLogger("shardwright")

MOVED = (UnsupportedError, ImportError, AttributeError, TypeError, NotImplementedError, LookupError)
"""Raised by a load that shardwright does not do, or that needs something private which this version of a library has elsewhere or otherwise."""

_originals: dict[str, Any] = {}
_fallback = True
_fsdp2 = False
_filled_is = logging.INFO
"""The level at which a load that went through shardwright is logged, by rank 0."""

_NEEDED = ("model", "state_dict", "checkpoint_files", "load_config")
_NEEDED_OF_4 = ("model", "state_dict", "checkpoint_files", "hf_quantizer", "key_mapping")
"""Of transformers 4, which has a class method."""


def enable(*, fallback: bool = True, fsdp2: bool = False) -> None:
    """Lets `from_pretrained` load sharded models through shardwright; `fallback=False` raises where it would go the usual way.

    Under ZeRO-3 and with `distributed_config=`, what it returns is loaded.

    With `fsdp2=True`, where accelerate is going to shard the model by FSDP2 with `cpu_ram_efficient_loading`, as a `Trainer` does whose `fsdp_config`
    asks for it, the parameters stay on meta until `Accelerator.prepare`, and each rank reads its own bytes then. A model that is run, saved, moved,
    resized or merged with adapters before that is loaded whole at that moment, with a line in the log; weights that are replaced, moved or changed in
    place meanwhile end in an `UnsupportedError`. What is written through `.data` is not seen: do not use it with scripts that do that.

    Raises:
        UnsupportedError: with `fallback=False`, this transformers loads in another way than is known; else the log says so and nothing is changed.
    """
    global _fallback, _fsdp2
    _fallback, _fsdp2 = fallback, fsdp2
    if fsdp2:
        from ._deferred import watch

        watch()
    if _originals:
        return
    from transformers import PreTrainedModel, modeling_utils

    load, context = (PreTrainedModel.__dict__.get(name) for name in ("_load_pretrained_model", "get_init_context"))

    def takes(kind: Any, needed: tuple[str, ...]) -> bool:
        return isinstance(load, kind) and set(needed) <= set(inspect.signature(load.__func__).parameters)

    ours: Any = None
    if takes(staticmethod, _NEEDED):
        ours = staticmethod(_load)
    elif takes(classmethod, _NEEDED_OF_4) and hasattr(modeling_utils, "load_shard_file"):
        ours = classmethod(_load_of_4)
    if ours is None:
        import transformers

        why = f"transformers {transformers.__version__} has no PreTrainedModel._load_pretrained_model({', '.join(_NEEDED)})"
        if not fallback:
            raise UnsupportedError(f"{why}: from_pretrained cannot go through shardwright")
        logger.warning("%s: from_pretrained loads without shardwright", why)
        return
    from . import _fill  # noqa: F401  imported now, not within the first load

    _originals["load"] = load
    PreTrainedModel._load_pretrained_model = ours
    if isinstance(context, classmethod):
        _originals["context"] = context
        PreTrainedModel.get_init_context = classmethod(_init_context)
    else:
        logger.warning("PreTrainedModel.get_init_context is not what it was: under ZeRO-3 each parameter is broadcast before it is filled")


def disable() -> None:
    """Puts transformers' own loading back."""
    if not _originals:
        return
    from transformers import PreTrainedModel

    from ._deferred import uninstall

    PreTrainedModel._load_pretrained_model = _originals.pop("load")
    if "context" in _originals:
        PreTrainedModel.get_init_context = _originals.pop("context")
    uninstall()


@contextlib.contextmanager
def patched(*, fallback: bool = True, fsdp2: bool = False) -> Iterator[None]:
    """`enable` for as long as the context lasts."""
    global _fallback, _fsdp2
    enabled, options = bool(_originals), (_fallback, _fsdp2)
    enable(fallback=fallback, fsdp2=fsdp2)
    try:
        yield
    finally:
        _fallback, _fsdp2 = options
        if not enabled:
            disable()


def _init_context(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """zero.Init broadcasts memory that nobody has written yet (`no_init_weights` is on); without it nothing is lost. RoPE's frequencies keep their
    dtype, as newer versions of transformers see to themselves."""
    original = _originals["context"].__func__
    if not _zero3():
        return original(cls, *args, **kwargs)
    import deepspeed

    from .deepspeed import arange_keeps_dtype, quiet_init_class

    init = deepspeed.zero.Init
    deepspeed.zero.Init = quiet_init_class()
    try:
        return [arange_keeps_dtype(), *original(cls, *args, **kwargs)]
    finally:
        deepspeed.zero.Init = init


def _zero3() -> bool:
    """Whether transformers builds models under ZeRO-3 now."""
    try:
        from transformers.integrations import is_deepspeed_zero3_enabled
    except ImportError:
        return False
    return bool(is_deepspeed_zero3_enabled())


def _sharded(model: Any) -> str | None:
    """How the model is sharded, if it is."""
    if _zero3() and any(hasattr(p, "ds_tensor") for p in model.parameters()):
        return "ZeRO-3"
    if any(hasattr(p, "placements") for p in model.parameters()):
        return "FSDP2"
    return None


def _why_not(state_dict: Any, files: Any, quantised: bool) -> str | None:
    """Why a load goes the usual way."""
    if state_dict is not None:
        return "a state dict was given"
    if not files or not all(str(f).endswith(".safetensors") for f in files):
        return "the checkpoint is not in safetensors format"
    if len({os.path.dirname(f) for f in files}) != 1:
        return "the checkpoint's files are in different directories"
    if quantised:
        return "the model is quantised"
    return None


def _load(*args: Any, **kwargs: Any) -> Any:
    """In place of `PreTrainedModel._load_pretrained_model`."""
    original = _originals["load"].__func__
    try:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        model, state_dict, files, config = (given[name] for name in _NEEDED)
    except (TypeError, KeyError):
        return original(*args, **kwargs)

    def ours() -> Any:
        why = _why_not(state_dict, files, config.is_quantized)
        if why is not None:
            raise UnsupportedError(why)
        return _ours(model, files, config)

    def deferred() -> Any:
        from ._deferred import defer, install

        places = set((config.device_map or {}).values())
        why = _why_not(state_dict, files, config.is_quantized) or ("device_map has several devices" if len(places) > 1 else None) or install()
        if why is not None:
            raise UnsupportedError(why)

        return _info(model, defer(model, _opened(files), config, next(iter(places), None)))

    if _awaits_accelerate(model):
        return _either("FSDP2", deferred, lambda: original(*args, **kwargs))
    return _either(_sharded(model), ours, lambda: original(*args, **kwargs))


def _awaits_accelerate(model: Any) -> bool:
    """Whether accelerate will shard this model, which is on meta."""
    if not _fsdp2 or getattr(model, "peft_config", None):
        return False
    from ._deferred import NOTE, wanted

    return NOTE not in model.__dict__ and not _zero3() and wanted() and not any(hasattr(p, "placements") for p in model.parameters())


def _load_of_4(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of `PreTrainedModel._load_pretrained_model` of transformers 4: its own does all but read the files."""
    from ._deferred import defer_of_4, install

    original = _originals["load"].__func__
    try:
        given = inspect.signature(original).bind(cls, *args, **kwargs).arguments
        model, state_dict, files = (given[name] for name in _NEEDED_OF_4[:3])
    except (TypeError, KeyError):
        return original(cls, *args, **kwargs)
    awaited = _awaits_accelerate(model)

    def unread() -> Any:
        with _no_file_is_read():
            return original(cls, *args, **kwargs)

    def ours() -> Any:
        why = _why_not(state_dict, files, given.get("hf_quantizer") is not None)
        if why is None and given.get("key_mapping") != getattr(model, "_checkpoint_conversion_mapping", None) and given.get("key_mapping"):
            why = "key_mapping was given"
        if why is None and awaited:
            why = "a device_map was given" if given.get("device_map") is not None else install(older=True)
        if why is not None:
            raise UnsupportedError(why)
        if awaited:
            return defer_of_4(model, _opened(files), unread)
        report = _fill_from(model, files, None)
        done = unread()
        ignored = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
        left = [n for n in report.missing if n not in done[1] and not any(p.search(n) for p in ignored)]
        if left:
            raise UnsupportedError(f"the architecture data has nothing for '{left[0]}', which transformers finds in the checkpoint")
        return done

    return _either("FSDP2" if awaited else _sharded(model), ours, lambda: original(cls, *args, **kwargs))


@contextlib.contextmanager
def _no_file_is_read() -> Iterator[None]:
    from transformers import modeling_utils

    read = modeling_utils.load_shard_file
    modeling_utils.load_shard_file = lambda args: ([], None)
    try:
        yield
    finally:
        modeling_utils.load_shard_file = read


def _either(how: str | None, ours: Callable[[], Any], theirs: Callable[[], Any]) -> Any:
    """A load of a model that is sharded, by what `how` says, through shardwright, or where it does not do that, the usual way."""
    if how is None:
        return theirs()
    try:
        return ours()
    except MOVED as error:
        why = str(error) if isinstance(error, UnsupportedError) else f"{type(error).__name__}: {error}"
        cause: BaseException = error
    except ShardwrightError as error:
        if not (_fallback and "shapes differ" in str(error)):
            raise
        # transformers has its own report, and `ignore_mismatched_sizes`.
        why, cause = str(error), error
    if not _fallback:
        raise UnsupportedError(f"shardwright does not load this {how} model: {why}") from cause
    logger.warning("shardwright does not load this %s model, transformers does: %s", how, why)
    return theirs()


def _ours(model: Any, files: Any, config: Any) -> Any:
    return _info(model, _fill_from(model, files, config.weight_mapping))


def _info(model: Any, report: LoadReport) -> Any:
    """What transformers' own loading returns."""
    from transformers.utils.loading_report import LoadStateDictInfo

    fields: dict[str, Any] = {
        # Aliases are missing as long as they are not tied, but for those that the checkpoint has: transformers compares these before it ties them.
        "missing_keys": set(report.missing) | (set(report.tied) - set(report.filled)),
        "unexpected_keys": set(report.unexpected),
        "mismatched_keys": set(),
        "conversion_errors": {},
        "error_msgs": [],
        "skipped_pp_keys": set(),
    }
    known = LoadStateDictInfo.__dataclass_fields__
    model._weight_conversions = report.conversions
    return LoadStateDictInfo(**{k: v for k, v in fields.items() if k in known}), None


def _fill_from(model: Any, files: Any, conversions: Any) -> LoadReport:
    """Fills a model from these files of one directory, in the precision that they have; transformers initialises and ties the rest."""
    from ._fill import Options, _fill

    report = _fill(model, _opened(files), Options(missing="keep", unexpected="ignore", conversions=conversions, round_to=None, defer=True))
    if os.environ.get("RANK", "0") == "0":
        logger.log(_filled_is, "shardwright filled the model: %r", report)
    return report


def _opened(files: Any) -> Any:
    """The checkpoint that has these files, which are in one directory."""
    from . import _native

    folder = os.path.dirname(files[0])
    return _native.Checkpoint.open(folder if len(files) > 1 or _alone(folder) else files[0])


def _alone(folder: str) -> bool:
    """Whether the directory's only safetensors file is the one to load."""
    return sum(name.endswith(".safetensors") for name in os.listdir(folder)) == 1
