"""`shardwright.fill`: this rank's part of every parameter and persistent buffer, read into the model's own memory."""

from __future__ import annotations

import functools
import gc
import logging
import os
import re
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

from . import _device, _native
from ._architecture import recipes_of
from ._errors import ConfigError, PlanError, UnsupportedError
from ._hub import open_checkpoint
from ._model import Part, Slot, base_of, check_writable, distinct, initialise, materialise, named_modules, part, refresh, reshard, slots
from ._progress import Bar as _Bar
from ._trace import Recipe, Traced, is_of_transformers

logger = logging.getLogger("shardwright")

STAGING_BYTES = 64 << 20
"""Memory for values that cannot be written in place: on a device that the engine does not write to, not contiguous, or computed."""

MOST_NAMED = 8

_Listed = tuple[str, str, list[int]]
"""A tensor of the checkpoint: name, dtype, shape."""


@dataclass
class LoadReport:
    """What a fill did. `bytes_needed` are the source bytes of this rank's part, `bytes_read` what was read for them."""

    filled: list[str] = field(default_factory=list)
    initialised: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)
    computed: list[str] = field(default_factory=list)
    casts: dict[str, int] = field(default_factory=dict)
    bytes_read: int = 0
    bytes_needed: int = 0
    seconds: float = 0.0
    conversions: list[Any] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        rate = self.bytes_read / self.seconds / 1e9 if self.seconds else 0.0
        parts = [f"{len(self.filled)} tensors filled, {self.bytes_read / 1e6:.1f} MB read in {self.seconds:.3f} s ({rate:.2f} GB/s)"]
        for what in ("initialised", "kept", "missing", "unexpected", "mismatched", "computed"):
            names = getattr(self, what)
            if names:
                parts.append(f"{what}: {_listed(names)}")
        if self.tied:
            parts.append(f"tied: {_listed([f'{a} = {b}' for a, b in self.tied.items()])}")
        if self.casts:
            parts.append("casts: " + ", ".join(f"{k} ({n})" for k, n in self.casts.items()))
        return "LoadReport(" + "; ".join(parts) + ")"


@dataclass
class Options:
    """How to fill; the keyword arguments of `fill`."""

    device: torch.device | str | None = None
    missing: Literal["error", "init", "keep"] = "error"
    unexpected: Literal["error", "warn", "ignore"] = "warn"
    mismatched: Literal["error", "init", "keep"] = "error"
    conversions: Sequence[Any] | None = None
    round_to: torch.dtype | Literal["auto"] | None = "auto"
    seed: int = 0
    threads: int | None = None
    progress: bool | Callable[[int, int], None] = False
    agree: bool = False
    defer: bool = False
    """For callers that initialise what is missing and make the ties themselves: aliases that are not tied yet get neither memory nor values."""
    only: Container[int] | None = None
    """The ids of the tensors to fill; others are left as they are, on meta too."""
    transient: bool = True
    """Whether buffers that are never saved are computed where they had no memory."""

    def check(self) -> None:
        for name, allowed in {
            "missing": ("error", "init", "keep"),
            "unexpected": ("error", "warn", "ignore"),
            "mismatched": ("error", "init", "keep"),
        }.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")


def options_of(given: dict[str, Any]) -> Options:
    """Checked options from keyword arguments."""
    known = {f.name for f in fields(Options)} - {"defer", "only", "transient"}
    for name in given:
        if name not in known:
            raise TypeError(f"unknown option '{name}'; there are {', '.join(sorted(known))}")
    options = Options(**given)
    options.check()
    return options


def fill(model: torch.nn.Module, checkpoint: str | os.PathLike[str] | _native.Checkpoint, **options: Any) -> LoadReport:
    """Fills a model that `fully_shard` or `zero.Init` sharded, or a whole one, from a checkpoint: each rank reads its own bytes.

    Tensors on meta are given memory first. The model decides names, shapes, dtypes and placements; weights are converted by the rules of the
    installed transformers, or by shardwright's architecture data where it has none. No collective is called.

    Args:
        model: a module, wrapped in any way. Parameters may be on meta. The whole shape of each, over all ranks, has to be the checkpoint's, after
            its conversions.
        checkpoint: a directory of safetensors files, one such file, or a hub id, which is fetched if it is not in the cache.
        device: where tensors on meta are put; by default the device of the mesh, or the CPU. The buffers of a model that is not sharded and lies
            on meta go there too.
        missing: what becomes of parameters that the checkpoint lacks: "error", "init" (the model's own initialisation), or "keep".
        unexpected: tensors that the model has no place for: "error", "warn" or "ignore".
        mismatched: parameters whose shape in the checkpoint is another one: "error", "init" or "keep".
        conversions: conversion objects in place of those that transformers has for the model.
        round_to: a dtype that values are rounded through before they are cast to the parameter's. "auto" is the one of the model's config, which
            gives what `from_pretrained(dtype="auto")` gives; None keeps the checkpoint's precision as far as the parameter's dtype can hold it.
        seed: for "init"; the same on every rank.
        threads: threads that read.
        progress: True for a tqdm bar, or a callable that takes the bytes done and the bytes to do.
        agree: one all-reduce at the end, so that a failure on one rank is an error on all.

    Returns:
        A `LoadReport`.

    Raises:
        CheckpointError: the checkpoint is missing or malformed.
        PlanError: names or shapes do not fit.
        UnsupportedError: a placement or a parameter that is not supported, by name.
    """
    chosen = options_of(options)
    if not chosen.agree:
        return _fill(model, checkpoint, chosen)
    return agreeing(lambda: _fill(model, checkpoint, chosen))


def agreeing(load: Callable[[], LoadReport]) -> LoadReport:
    """Runs a fill, then an all-reduce, so that a failure on one rank is an error on all."""
    failure: BaseException | None = None
    report = LoadReport()
    try:
        report = load()
    except BaseException as error:  # every rank must reach the all-reduce
        failure = error
    import torch.distributed as dist

    failed = torch.tensor([failure is not None], dtype=torch.int32, device=_collective_device())
    dist.all_reduce(failed)
    if failure is not None:
        raise failure
    if int(failed.item()):
        raise PlanError(f"{int(failed.item())} other rank(s) failed to fill the model; see their errors")
    return report


def _collective_device() -> torch.device:
    import torch.distributed as dist

    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _fill(model: torch.nn.Module, checkpoint: Any, options: Options) -> LoadReport:
    return fill_within(base_of(model), checkpoint, options, model)


def fill_within(model: torch.nn.Module, checkpoint: Any, options: Options, whole: torch.nn.Module) -> LoadReport:
    """Fills a model that is a part of another one, or is that one itself. What has no memory in the other one gets some."""
    # Many small objects are made and none of them in cycles: the collector would go through them again and again.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _fill_all(model, checkpoint, options, whole)
    finally:
        if collecting:
            gc.enable()


def plan_of(model: torch.nn.Module, checkpoint: Any, options: Options) -> LoadReport:
    """What a fill of this model would do, from the model and the headers alone."""
    opened = open_checkpoint(checkpoint)
    kept, _ = slots(model)
    return resolve(model, opened, opened.tensors(), kept, options)[0]


def _fill_all(model: torch.nn.Module, checkpoint: Any, options: Options, whole: torch.nn.Module) -> LoadReport:
    started = time.perf_counter()
    opened = open_checkpoint(checkpoint)
    named = named_modules(whole)
    modules = distinct(named)
    reshard(modules)
    kept, transient = slots(model, named if model is whole else None)
    tensors = opened.tensors()
    report, jobs, new = resolve(model, opened, tensors, kept, options)
    without: Container[int] = ()
    if options.defer:
        without = {id(s.tensor) for s in kept}.difference((id(s.tensor) for s, _ in jobs), (id(s.tensor) for s in new))
    elif options.only is not None:
        tensors_of = (t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None)
        without = {id(t) for t in tensors_of if id(t) not in options.only}
    fresh = materialise(whole, modules, options.device, without)
    if fresh:
        for slot in [*kept, *transient]:
            if slot.buffer:
                refresh(slot)
    with torch.no_grad():
        read(model, opened, tensors, jobs, report, options, fresh)
        if not options.defer:
            remake(model, new, transient if options.transient else [], fresh, report, options)
    for slot, _ in jobs:
        slot.tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    report.seconds = time.perf_counter() - started
    logger.info("%r", report)
    return report


def resolve(
    model: torch.nn.Module, opened: _native.Checkpoint, tensors: list[_Listed], kept: list[Slot], options: Options
) -> tuple[LoadReport, list[tuple[Slot, Recipe]], list[Slot]]:
    """Which slot is made how, and which are new. Depends on the model and the headers alone, so it is the same on every rank."""
    shapes = {name: shape for name, _, shape in tensors}
    state = {name: slot.tensor for slot in kept for name in slot.names}
    traced = recipes_of(model, opened, shapes, options.conversions, state)
    if traced.errors:
        name, why = next(iter(traced.errors.items()))
        raise PlanError(f"tensor '{name}': its conversion failed: {why}")
    report = LoadReport(conversions=traced.conversions)
    ties = {**traced.ties, **_ties(model)}
    jobs, new = [], []
    wrong: list[str] = []
    recipes = traced.recipes
    for slot in kept:
        if options.only is not None and id(slot.tensor) not in options.only:
            continue
        names = slot.names
        if len(names) == 1 and names[0] in recipes:
            found: str | None = names[0]
        else:
            names = sorted(names, key=lambda n: n in ties)
            found = next((n for n in names if n in recipes), None)
            if found is None:
                # A tie that nobody has made yet: the alias has memory of its own and is filled alike.
                found = next((ties[n] for n in names if ties.get(n) in recipes), None)
                untied = options.defer and found in state
            else:
                untied = False
            if found is not None:
                report.tied.update({alias: found for alias in slot.names if alias != found})
            if untied:
                continue
        recipe = recipes.get(found) if found is not None else None
        if recipe is None and slot.adapter:
            # PEFT's own, which no checkpoint of the base has: made anew only where it has no value yet.
            if slot.tensor.is_meta:
                new.append(slot)
            else:
                report.kept.append(slot.name)
        elif recipe is None:
            (report.missing if not slot.buffer or slot.tensor.is_meta else report.kept).append(slot.name)
            new.append(slot)
        elif recipe.shape != slot.shape:
            wrong.append(f"'{slot.name}': expected {slot.shape} as in the model, found {recipe.shape} in the checkpoint")
            report.mismatched.append(slot.name)
            new.append(slot)
        else:
            jobs.append((slot, recipe))
            report.filled.append(slot.name)
    _judge(model, report, traced, wrong, options)
    new = [s for s in new if s.name not in report.kept]
    return report, jobs, new


def _judge(model: torch.nn.Module, report: LoadReport, traced: Traced, wrong: list[str], options: Options) -> None:
    """Raises or warns where names and shapes do not fit."""
    if wrong and options.mismatched == "error":
        raise PlanError(f"shapes differ: {_listed(wrong)}; mismatched='init' initialises these parameters anew")
    optional = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    needed = [n for n in report.missing if not any(p.search(n) for p in optional)]
    if needed and options.missing == "error":
        within = None if is_of_transformers(model) else next((n for n, m in model.named_modules() if is_of_transformers(m)), None)
        help = "missing='init' initialises them, missing='keep' leaves them"
        if within is not None:
            help = f"'{within}' is a model of transformers: fill that one, or {help}"
        raise PlanError(f"the checkpoint lacks {len(needed)} of the model's tensors: {_listed(needed)}; {help}")
    ignored = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    report.unexpected = [n for n, name in traced.unexpected if not any(p.search(name) for p in ignored)]
    if report.unexpected:
        what = f"the model has no place for {len(report.unexpected)} tensors of the checkpoint: {_listed(report.unexpected)}"
        if options.unexpected == "error":
            raise PlanError(what)
        if options.unexpected == "warn":
            logger.warning("%s", what)


def _ties(model: torch.nn.Module) -> dict[str, str]:
    """Names that transformers ties to others, where it does."""
    ties = getattr(model, "all_tied_weights_keys", None)
    return dict(ties) if isinstance(ties, dict) else {}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")


@dataclass(slots=True)
class _Way:
    """How values of one dtype come into memory of another."""

    castable: bool
    count: int = 0


def read(
    model: torch.nn.Module,
    opened: _native.Checkpoint,
    tensors: list[_Listed],
    jobs: Iterable[tuple[Slot, Recipe]],
    report: LoadReport,
    options: Options,
    fresh: Container[int] = (),
) -> None:
    """Reads every slot's part into its memory. `fresh` are the ids of tensors whose memory was made just now."""
    dtypes = {name: dtype for name, dtype, _ in tensors}
    jobs = list(jobs)
    codes = Codes(dtypes, lambda: {s for _, recipe in jobs for s in recipe.sources()})
    ways: dict[tuple[str, torch.dtype, str | None], _Way] = {}
    ranges: dict[Any, Any] = {}
    rounding = _rounding(model, options)
    direct: dict[int | None, list[Any]] = {}
    later: list[tuple[Slot, Part, Recipe, str]] = []
    computed: list[tuple[Slot, Part, Recipe]] = []
    for slot, recipe in jobs:
        where = part(slot, ranges)
        local = where.local
        if id(slot.tensor) not in fresh:
            check_writable(slot, local)
        if recipe.group is not None:
            computed.append((slot, where, recipe))
            continue
        if recipe.source is not None:
            kind = dtypes[recipe.source]
        else:
            kinds = {dtypes[s] for s in recipe.sources()}
            if len(kinds) > 1:
                raise UnsupportedError(f"tensor '{slot.name}': made of tensors of different dtypes: {', '.join(sorted(kinds))}")
            kind = kinds.pop() if kinds else _name(local.dtype)
        if kind in CODES and not slot.buffer:
            codes.refuse(slot.name, recipe.source or next(iter(recipe.sources())), _name(local.dtype))
        through = None if recipe.float32 else rounding(slot, kind)
        way = ways.get((kind, local.dtype, through))
        if way is None:
            _check_kind(slot, kind, local.dtype)
            way = _Way(all(_native.casts(a, b) for a, b in _steps(kind, through, _name(local.dtype))))
            ways[kind, local.dtype, through] = way
        way.count += 1
        if way.castable and _device.in_place(local):
            direct.setdefault(_device.index(local), []).append(_item(slot, recipe, where, local, through))
        else:
            later.append((slot, where, recipe, kind))
    for (kind, to, _), way in ways.items():
        if kind != _name(to):
            key = f"{kind} -> {_name(to)}"
            report.casts[key] = report.casts.get(key, 0) + way.count
    bar = _Bar(options.progress)
    try:
        for device, items in direct.items():
            _native_fill(opened, items, report, options, bar, device)
        _read_staged(opened, later, rounding, report, options, bar)
        _compute(model, opened, computed, report, options)
    finally:
        bar.close()


CODES = {"int8", "uint8", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"}
"""Dtypes in which checkpoints hold codes, which are weights only once they are scaled."""

_SCALES = re.compile("scale|^SCB$|absmax")


class Codes:
    """Tells codes of quantised checkpoints from values. `dtypes` are the checkpoint's, by name; `used` gives the names of what is read."""

    def __init__(self, dtypes: Mapping[str, str], used: Callable[[], set[str]]) -> None:
        self._dtypes, self._used = dtypes, used
        self._scales: dict[str, str] | None = None

    def refuse(self, name: str, source: str, to: str, integers: bool = True) -> None:
        """Raises if the source, whose dtype is of `CODES`, holds codes, and the parameter has another dtype. With `integers`, integers without a
        scale are taken for codes too."""
        kind = self._dtypes[source]
        if kind == to or (kind.startswith("float8") and to.startswith("float8")):
            return
        if self._scales is None:
            used = self._used()
            self._scales = {n.rpartition(".")[0]: n for n in self._dtypes if n not in used and _SCALES.search(n.rpartition(".")[2])}
        scale = self._scales.get(source.rpartition(".")[0])
        if scale is None and (kind.startswith("float8") or not integers):
            return
        scaled = f"codes of {kind}, to be scaled by '{scale}'" if scale is not None else kind
        raise UnsupportedError(
            f"tensor '{name}': {to} in the model, {scaled} in the checkpoint; a quantised checkpoint is read into models of transformers only, "
            "by the quantization_config of its config.json"
        )


def _steps(kind: str, through: str | None, to: str) -> list[tuple[str, str]]:
    return [(kind, to)] if through is None else [(kind, through), (through, to)]


def _item(slot: Slot, recipe: Recipe, where: Part, memory: torch.Tensor, through: str | None, dtype: torch.dtype | None = None) -> Any:
    assembly = recipe.source if recipe.source is not None else recipe.pieces
    return (slot.names[0], slot.shape, assembly, through, where.ranges, where.flat, memory.data_ptr(), memory.nbytes, _name(dtype or memory.dtype))


def _neighbours() -> int | None:
    """Processes of this job on this machine, which share its cores."""
    local = os.environ.get("LOCAL_WORLD_SIZE")
    return int(local) if local and local.isdigit() else None


def _native_fill(opened: _native.Checkpoint, items: list[Any], report: LoadReport, options: Options, bar: _Bar, device: int | None = None) -> None:
    """Fills the items' memory, which is on one device, or on the host."""
    _device.settle(device)
    stats = _native.fill(
        opened,
        items,
        device=device,
        threads=options.threads,
        local_processes=_neighbours(),
        progress=bar.report,
    )
    report.bytes_read += stats["bytes_read"]
    report.bytes_needed += stats["bytes_needed"]


def _read_staged(opened: _native.Checkpoint, later: list[Any], rounding: Any, report: LoadReport, options: Options, bar: _Bar) -> None:
    """In batches of bounded size: read next to the place, then copy."""
    while later:
        items: list[Any] = []
        staged: list[Any] = []
        size = 0
        while later and (not staged or size < STAGING_BYTES):
            slot, where, recipe, kind = later.pop()
            through, local = None if recipe.float32 else rounding(slot, kind), where.local
            castable = all(_native.casts(a, b) for a, b in _steps(kind, through, _name(local.dtype)))
            dtype = local.dtype if castable else getattr(torch, kind)
            buffer = torch.empty(local.shape, dtype=dtype)
            items.append(_item(slot, recipe, where, buffer, through if castable else None))
            staged.append((buffer, local, None if castable or through is None else getattr(torch, through)))
            size += buffer.numel() * buffer.element_size()
        _native_fill(opened, items, report, options, bar)
        for buffer, local, through in staged:
            local.copy_(buffer if through is None else buffer.to(through))


def _compute(model: torch.nn.Module, opened: _native.Checkpoint, computed: list[Any], report: LoadReport, options: Options) -> None:
    """Parameters made by an op that computes: it runs in torch, on whole tensors, one group at a time."""
    if not computed:
        return
    known = {name: (dtype, shape) for name, dtype, shape in opened.tensors()}
    groups: dict[int, list[tuple[Slot, Part, Recipe]]] = {}
    for slot, where, recipe in computed:
        groups.setdefault(id(recipe.group), []).append((slot, where, recipe))

    def whole(name: str) -> torch.Tensor:
        dtype, shape = known[name]
        tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        slot = Slot(tensor, [name])
        _native_fill(opened, [_item(slot, Recipe(tuple(shape), source=name), part(slot), tensor, None)], report, options, _Bar(False))
        return tensor

    for members in groups.values():
        group = members[0][2].group
        assert group is not None
        made = group.run(model, whole)
        for slot, where, _ in members:
            value = next((made[n] for n in slot.names if n in made), None)
            if value is None or tuple(value.shape) != slot.shape:
                found = "nothing" if value is None else str(tuple(value.shape))
                raise PlanError(f"tensor '{slot.name}': its conversion ({group.why}) made {found}, expected {slot.shape}")
            put(where, value)
            report.computed.append(slot.name)


def put(where: Part, whole: torch.Tensor) -> None:
    """Copies this rank's part of a whole tensor to its place."""
    value = where.of(whole)
    if where.flat is None:
        where.local.copy_(value)
        return
    where.local[: where.numel()].copy_(value)
    where.local[where.numel() :].zero_()


def remake(model: torch.nn.Module, new: list[Slot], transient: list[Slot], fresh: set[int], report: LoadReport, options: Options) -> None:
    """Initialises what the checkpoint lacks, and buffers that are never saved and had no memory."""
    lost = [s for s in transient if id(s.tensor) in fresh]
    wanted = []
    for slot in new:
        how = options.mismatched if slot.name in report.mismatched else options.missing
        # What had no memory holds whatever was there before; "keep" cannot mean that.
        if how != "keep" or id(slot.tensor) in fresh:  # adapters are only here if they had none
            wanted.append(slot)
        else:
            report.kept.append(slot.name)
    targets = wanted + lost
    if not targets:
        return
    parts = {id(s.tensor): part(s) for s in targets}
    left = initialise(model, targets, options.seed, lambda slot, whole: put(parts[id(slot.tensor)], whole))
    if left:
        raise PlanError(
            f"the model has no initialisation for {_listed(left)}, which had no memory and is not in the checkpoint; build the model with "
            "accelerate.init_empty_weights(), which keeps buffers, or set missing='keep' and initialise before"
        )
    report.initialised += [s.name for s in wanted]


def kept_dtypes(model: Any, dtype: torch.dtype) -> list[tuple[re.Pattern[str], torch.dtype]]:
    """Names of parameters and buffers that the model's class keeps in another dtype than the one it is loaded in, with theirs."""
    if hasattr(model, "_get_dtype_plan"):
        return [(re.compile(p.replace("*", ".*")), d) for p, d in model._get_dtype_plan(dtype).items()]
    # transformers 4
    names = list(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        names += getattr(model, "_keep_in_fp32_modules", None) or ()
    return [(re.compile(rf"((^|\.){name}($|\.))"), torch.float32) for name in names]


def _rounding(model: torch.nn.Module, options: Options) -> Callable[[Slot, str], str | None]:
    """The dtype that a slot's values are rounded through."""
    to = options.round_to
    if to is None:
        return lambda slot, kind: None
    if to == "auto":
        to = getattr(getattr(model, "config", None), "dtype", None)
    if not isinstance(to, torch.dtype):
        return lambda slot, kind: None
    patterns = kept_dtypes(model, to)
    name = _name(to)

    @functools.cache
    def rounded(kind: str, to: str, dtype: torch.dtype) -> str | None:
        return to if getattr(torch, kind).is_floating_point and to not in (kind, _name(dtype)) else None

    def through(slot: Slot, kind: str) -> str | None:
        kept = next((d for p, d in patterns if any(p.search(n) for n in slot.names)), None) if patterns else None
        return rounded(kind, name if kept is None else _name(kept), slot.tensor.dtype)

    return through


def _check_kind(slot: Slot, kind: str, dtype: torch.dtype) -> None:
    source = getattr(torch, kind, None)
    if source is None:
        raise UnsupportedError(f"tensor '{slot.name}': this torch has no dtype {kind}")
    if (source.is_floating_point or source.is_complex) and not (dtype.is_floating_point or dtype.is_complex):
        raise UnsupportedError(f"tensor '{slot.name}': {_name(dtype)} in the model, {kind} in the checkpoint; quantised parameters are not filled")


@functools.cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
