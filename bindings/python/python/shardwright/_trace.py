"""Traces transformers' own conversion objects: which elements of which checkpoint tensors make up each parameter.

A `Lazy` tensor stands for data that nobody has read. It goes through `ConversionOps.convert` in place of a real tensor and records which elements
move where, as strided boxes. An op that computes (de-quantisation) raises `Opaque`; its parameters are then made by running the op on real
tensors. Nothing here reads a file, and torch is only needed by the models that are traced.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from ._errors import UnsupportedError

Loop = tuple[int, int]
"""(size, source stride), in elements."""

Piece = tuple[str, int, int, list[tuple[int, int, int]]]
"""(source tensor, source offset, target offset, [(size, source stride, target stride)], outermost first), in elements."""

MOST_BOXES = 1 << 20


class Opaque(Exception):
    """An op that does more than move elements."""


def row_major(shape: Sequence[int]) -> list[int]:
    """The strides of a contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return strides[::-1]


@dataclass(slots=True)
class Box:
    """Elements of one source. Along each dim it covers the range that starts at `start[dim]` and is as long as the product of the sizes of
    `loops[dim]`, outermost first; no loops are one index."""

    source: str
    offset: int
    start: list[int]
    loops: list[tuple[Loop, ...]]

    def extent(self, dim: int) -> int:
        return math.prod(size for size, _ in self.loops[dim])

    def cut(self, dim: int, first: int, count: int) -> list[Box]:
        """The part from index `first` of its own range along a dim: one box, or up to two more a loop."""
        loops = self.loops[dim]
        if first == 0 and count == self.extent(dim):
            return [self]
        if not count:
            return []
        (_, stride), inner = loops[0], loops[1:]
        row = math.prod(size for size, _ in inner)
        if first % row == 0 and count % row == 0:
            rows = count // row
            kept = ((rows, stride), *inner) if rows > 1 else inner
            return [self._with(dim, first, first // row * stride, kept)]
        # A head inside one row, whole rows, and a tail inside another.
        out, at, end = [], first, first + count
        while at < end:
            index, inside = divmod(at, row)
            if inside or end - at < row:
                stop = min(end, (index + 1) * row)
                one = self._with(dim, index * row, index * stride, inner)
                out += one.cut(dim, inside, stop - at)
            else:
                stop = end // row * row
                rows = (stop - at) // row
                out.append(self._with(dim, at, index * stride, ((rows, stride), *inner) if rows > 1 else inner))
            at = stop
        return out

    def _with(self, dim: int, first: int, offset: int, loops: tuple[Loop, ...]) -> Box:
        start, all_loops = list(self.start), list(self.loops)
        start[dim] += first
        all_loops[dim] = loops
        return Box(self.source, self.offset + offset, start, all_loops)


def _factor(loops: tuple[Loop, ...], inner: int) -> tuple[tuple[Loop, ...], tuple[Loop, ...]]:
    """Splits loops in two, so that the second part runs over `inner` elements."""
    outer, tail, left = list(loops), [], inner
    while left > 1:
        if not outer:
            raise Opaque("a reshape that does not follow the boxes")
        size, stride = outer.pop()
        if left % size == 0:
            tail.append((size, stride))
            left //= size
        elif size % left == 0:
            tail.append((left, stride))
            outer.append((size // left, stride * left))
            left = 1
        else:
            raise Opaque("a reshape that does not follow the boxes")
    return tuple(outer), tuple(reversed(tail))


class Lazy:
    """A tensor as a list of boxes; supports what moves elements and nothing else."""

    def __init__(self, shape: Iterable[int], boxes: list[Box], dtype: Any = None, device: Any = "cpu") -> None:
        self._shape, self.boxes, self.dtype, self.device = tuple(shape), boxes, dtype, device
        self.requires_grad = False

    @classmethod
    def leaf(cls, name: str, shape: Sequence[int], dtype: Any = None) -> Lazy:
        """A whole checkpoint tensor."""
        loops: list[tuple[Loop, ...]] = [((n, s),) if n != 1 else () for n, s in zip(shape, row_major(shape), strict=True)]
        boxes = [] if 0 in shape else [Box(name, 0, [0] * len(shape), loops)]
        return cls(shape, boxes, dtype)

    # ---- what a tensor tells

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """What `isinstance` sees: some ops take a tensor as it is, and the first item of all else."""
        torch = sys.modules.get("torch")
        return Lazy if torch is None else torch.Tensor

    @property
    def shape(self) -> Any:
        try:
            import torch
        except ImportError:
            return self._shape
        return torch.Size(self._shape)

    @property
    def ndim(self) -> int:
        return len(self._shape)

    def dim(self) -> int:
        return len(self._shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self._shape[dim]

    def numel(self) -> int:
        return math.prod(self._shape)

    def is_floating_point(self) -> bool:
        return bool(getattr(self.dtype, "is_floating_point", True))

    def __len__(self) -> int:
        return self._shape[0]

    def __iter__(self) -> Iterator[Lazy]:
        return iter(self.unbind(0))

    # ---- what moves nothing

    def contiguous(self, **_: Any) -> Lazy:
        return self

    clone = detach = cpu = contiguous

    def to(self, *args: Any, **kwargs: Any) -> Lazy:
        wanted = [a for a in [*args, kwargs.get("dtype")] if type(a).__name__ == "dtype"]
        if wanted and wanted[0] != self.dtype:
            raise Opaque(f"a cast to {wanted[0]}")
        return self

    # ---- what moves elements

    def _of(self, shape: Iterable[int], boxes: list[Box]) -> Lazy:
        if len(boxes) > MOST_BOXES:
            raise Opaque(f"more than {MOST_BOXES} boxes")
        return Lazy(shape, boxes, self.dtype, self.device)

    def _dim(self, dim: int, extra: int = 0) -> int:
        n = len(self._shape) + extra
        if not -n <= dim < n:
            raise IndexError(f"dim {dim} of a tensor with {n}")
        return dim % n

    def narrow(self, dim: int, start: int, length: int) -> Lazy:
        dim = self._dim(dim)
        boxes = []
        for box in self.boxes:
            first, end = max(start, box.start[dim]), min(start + length, box.start[dim] + box.extent(dim))
            if first < end:
                for part in box.cut(dim, first - box.start[dim], end - first):
                    at = list(part.start)
                    at[dim] -= start
                    boxes.append(Box(part.source, part.offset, at, part.loops))
        return self._of((*self._shape[:dim], length, *self._shape[dim + 1 :]), boxes)

    def unsqueeze(self, dim: int) -> Lazy:
        dim = self._dim(dim, 1)
        boxes = [Box(b.source, b.offset, [*b.start[:dim], 0, *b.start[dim:]], [*b.loops[:dim], (), *b.loops[dim:]]) for b in self.boxes]
        return self._of((*self._shape[:dim], 1, *self._shape[dim:]), boxes)

    def squeeze(self, dim: int | None = None) -> Lazy:
        gone = [d for d, n in enumerate(self._shape) if n == 1] if dim is None else [self._dim(dim)]
        keep = [d for d, n in enumerate(self._shape) if d not in gone or n != 1]
        return self.permute(*keep) if len(keep) < len(self._shape) else self

    def permute(self, *dims: Any) -> Lazy:
        order = [d % len(self._shape) for d in (dims[0] if dims and isinstance(dims[0], (tuple, list)) else dims)]
        boxes = [Box(b.source, b.offset, [b.start[d] for d in order], [b.loops[d] for d in order]) for b in self.boxes]
        return self._of([self._shape[d] for d in order], boxes)

    def transpose(self, dim0: int, dim1: int) -> Lazy:
        order = list(range(len(self._shape)))
        dim0, dim1 = self._dim(dim0), self._dim(dim1)
        order[dim0], order[dim1] = dim1, dim0
        return self.permute(*order)

    swapaxes = swapdims = transpose

    def t(self) -> Lazy:
        return self.transpose(0, 1) if len(self._shape) == 2 else self

    T = property(t)
    mT = property(lambda self: self.transpose(-1, -2))

    def movedim(self, source: int, destination: int) -> Lazy:
        order = list(range(len(self._shape)))
        order.insert(self._dim(destination), order.pop(self._dim(source)))
        return self.permute(*order)

    def select(self, dim: int, index: int) -> Lazy:
        dim = self._dim(dim)
        return self.narrow(dim, index % self._shape[dim], 1).squeeze(dim)

    def unbind(self, dim: int = 0) -> tuple[Lazy, ...]:
        return tuple(self.select(dim, i) for i in range(self._shape[self._dim(dim)]))

    def split(self, sizes: int | Sequence[int], dim: int = 0) -> tuple[Lazy, ...]:
        total, at, out = self._shape[self._dim(dim)], 0, []
        if isinstance(sizes, int):
            sizes = [min(sizes, total - i) for i in range(0, total, sizes)] or [0]
        if sum(sizes) != total:
            raise ValueError(f"split of {total} into {list(sizes)}")
        for size in sizes:
            out.append(self.narrow(dim, at, size))
            at += size
        return tuple(out)

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Lazy, ...]:
        return self.split(max(1, -(-self._shape[self._dim(dim)] // chunks)), dim)

    def tensor_split(self, sections: int, dim: int = 0) -> tuple[Lazy, ...]:
        if not isinstance(sections, int):
            raise Opaque("tensor_split at indices")
        small, more = divmod(self._shape[self._dim(dim)], sections)
        return self.split([small + (i < more) for i in range(sections)], dim)

    def reshape(self, *shape: Any) -> Lazy:
        new = list(shape[0] if shape and isinstance(shape[0], (tuple, list)) else shape)
        if -1 in new:
            new[new.index(-1)] = self.numel() // math.prod(n for n in new if n != -1)
        if math.prod(new) != self.numel():
            raise ValueError(f"shape {new} is invalid for {self.numel()} elements")
        if 0 in new:
            return self._of(new, [])
        # Dims are handled in groups with equal products: the old ones are merged, the result is split.
        boxes = self.boxes
        out: list[tuple[Box, list[int], list[tuple[Loop, ...]]]] = [(b, [], []) for b in boxes]
        i = j = 0
        old = list(self._shape)
        while i < len(old) or j < len(new):
            i0, j0 = i, j
            a = b = 1
            i, a = (i + 1, old[i]) if i < len(old) else (i, 1)
            j, b = (j + 1, new[j]) if j < len(new) else (j, 1)
            while a != b:
                if a < b:
                    a *= old[i]
                    i += 1
                else:
                    b *= new[j]
                    j += 1
            step = []
            for box, start, loops in out:
                for merged, at, flat in _merged(box, range(i0, i), old):
                    for cut, starts, parts in _splits(merged, at, flat, new[j0:j]):
                        step.append((cut, start + starts, loops + parts))
                        if len(step) > MOST_BOXES:
                            raise Opaque(f"more than {MOST_BOXES} boxes")
            out = step
        return self._of(new, [Box(box.source, box.offset, start, loops) for box, start, loops in out])

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Lazy:
        first, last = self._dim(start_dim), self._dim(end_dim)
        return self.reshape(*self._shape[:first], math.prod(self._shape[first : last + 1]), *self._shape[last + 1 :])

    def unflatten(self, dim: int, sizes: Sequence[int]) -> Lazy:
        dim, sizes = self._dim(dim), list(sizes)
        if -1 in sizes:
            sizes[sizes.index(-1)] = self._shape[dim] // math.prod(n for n in sizes if n != -1)
        return self.reshape(*self._shape[:dim], *sizes, *self._shape[dim + 1 :])

    def __getitem__(self, index: Any) -> Lazy:
        items = list(index) if isinstance(index, tuple) else [index]
        if any(i is Ellipsis for i in items):
            at = next(k for k, i in enumerate(items) if i is Ellipsis)
            items[at : at + 1] = [slice(None)] * (len(self._shape) - sum(i is not None for i in items) + 1)
        out, dim = self, 0
        for item in items:
            if item is None:
                out = out.unsqueeze(dim)
                dim += 1
            elif isinstance(item, int):
                out = out.select(dim, item)
            elif isinstance(item, slice):
                first, end, step = item.indices(out._shape[dim])
                if step != 1:
                    out = cat([out.narrow(dim, i, 1) for i in range(first, end, step)], dim)
                else:
                    out = out.narrow(dim, first, max(0, end - first))
                dim += 1
            elif isinstance(item, list) and all(isinstance(i, int) for i in item):
                out = cat([out.narrow(dim, i % out._shape[dim], 1) for i in item], dim)
                dim += 1
            else:
                raise Opaque(f"an index of type {type(item).__name__}")
        return out

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Opaque(f"Tensor.{name}")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name, kwargs = getattr(func, "__name__", str(func)), kwargs or {}
        if name in ("cat", "concat", "concatenate"):
            return cat(*args, **kwargs)
        if name == "stack":
            return stack(*args, **kwargs)
        if name in MOVES:
            kwargs = {"sizes" if k == "split_size_or_sections" else k: v for k, v in kwargs.items()}
            return getattr(Lazy, name)(*args, **kwargs)
        raise Opaque(f"torch.{name}")


VIEWS = ("narrow", "unsqueeze", "squeeze", "permute", "transpose", "swapaxes", "swapdims", "movedim", "select", "unbind")
MOVES = frozenset((*VIEWS, "split", "chunk", "tensor_split", "reshape", "flatten", "clone", "t"))


def cat(tensors: Sequence[Lazy], dim: int = 0) -> Lazy:
    """`torch.cat`."""
    first = tensors[0]
    dim, at, boxes = first._dim(dim), 0, []
    for tensor in tensors:
        if len(tensor._shape) != len(first._shape) or any(
            a != b for d, (a, b) in enumerate(zip(tensor._shape, first._shape, strict=True)) if d != dim
        ):
            raise ValueError(f"cat of {first._shape} and {tensor._shape} along dim {dim}")
        for b in tensor.boxes:
            start = list(b.start)
            start[dim] += at
            boxes.append(Box(b.source, b.offset, start, b.loops))
        at += tensor._shape[dim]
    return first._of((*first._shape[:dim], at, *first._shape[dim + 1 :]), boxes)


def stack(tensors: Sequence[Lazy], dim: int = 0) -> Lazy:
    """`torch.stack`."""
    if any(t._shape != tensors[0]._shape for t in tensors):
        raise ValueError(f"stack of {sorted({t._shape for t in tensors})}")
    return cat([t.unsqueeze(dim) for t in tensors], dim)


def _merged(box: Box, dims: range, shape: list[int]) -> Iterator[tuple[Box, int, tuple[Loop, ...]]]:
    """The box with these dims merged to one: its start there, and its loops. Where it does not cover an inner dim, a box for each outer index."""
    if not dims:
        yield box, 0, ()
        return
    outer, inner = dims[0], range(dims[1] if len(dims) > 1 else dims.stop, dims.stop)
    row = math.prod(shape[d] for d in inner)
    if all(box.start[d] == 0 and box.extent(d) == shape[d] for d in inner):
        loops = tuple(loop for d in dims for loop in box.loops[d])
        yield box, box.start[outer] * row, loops
        return
    for i in range(box.extent(outer)):
        for one in box.cut(outer, i, 1):
            for cut, at, loops in _merged(one, inner, shape):
                yield cut, one.start[outer] * row + at, loops


def _splits(box: Box, at: int, loops: tuple[Loop, ...], sizes: list[int]) -> Iterator[tuple[Box, list[int], list[tuple[Loop, ...]]]]:
    """Splits the merged range into dims of these sizes."""
    if not sizes:
        yield box, [], []
        return
    if len(sizes) == 1:
        yield box, [at], [loops]
        return
    row = math.prod(sizes[1:])
    flat = Box(box.source, box.offset, [at], [loops])
    count, done = flat.extent(0), 0
    while done < count:
        inside = (at + done) % row
        part = min(row - inside, count - done) if inside or count - done < row else (count - done) // row * row
        for cut in flat.cut(0, done, part):
            within = Box(box.source, cut.offset, box.start, box.loops)
            index, first = divmod(cut.start[0], row)
            extent = cut.extent(0)
            if first or extent % row:
                for b, starts, parts in _splits(within, first, cut.loops[0], sizes[1:]):
                    yield b, [index, *starts], [(), *parts]
            else:
                outer, inner = _factor(cut.loops[0], row)
                for b, starts, parts in _splits(within, 0, inner, sizes[1:]):
                    yield b, [index, *starts], [outer, *parts]
        done += part


def pieces(tensor: Lazy) -> list[Piece]:
    """The boxes as pieces of the row-major flattened tensor."""
    strides, out = row_major(tensor._shape), []
    for box in tensor.boxes:
        target, loops = 0, []
        for start, stride, dim in zip(box.start, strides, box.loops, strict=True):
            target += start * stride
            step = stride * math.prod(size for size, _ in dim)
            for size, source in dim:
                step //= size
                loops.append((size, source, step))
        merged: list[tuple[int, int, int]] = []
        for size, source, step in loops:
            if size == 1:
                continue
            if merged and merged[-1][1] == size * source and merged[-1][2] == size * step:
                merged[-1] = (merged[-1][0] * size, source, step)
            else:
                merged.append((size, source, step))
        out.append((box.source, box.offset, target, merged))
    return out


@dataclass(slots=True)
class Recipe:
    """How one parameter is made: the whole tensor `source`, or `pieces` of several, or, if an op computes, by `group`."""

    shape: tuple[int, ...]
    source: str | None = None
    pieces: list[Piece] | None = None
    group: Group | None = None
    float32: bool = False
    """The class keeps it in float32, whatever dtype the model is loaded in. Only the architecture data says so here."""

    def sources(self) -> set[str]:
        if self.group is not None:
            return self.group.sources()
        return {self.source} if self.source is not None else {p[0] for p in self.pieces or ()}


@dataclass(slots=True)
class Group:
    """A converter that computes, with the tensors that it takes, by pattern."""

    name: str
    converter: Any
    inputs: dict[str, list[str]]
    why: str

    def sources(self) -> set[str]:
        return {s for names in self.inputs.values() for s in names}

    def run(self, model: Any, read: Any) -> dict[str, Any]:
        """The real tensors, by target name; `read` returns a checkpoint tensor."""
        return _convert(self.converter, self.name, {p: [read(n) for n in names] for p, names in self.inputs.items()}, model)


@dataclass(slots=True)
class Traced:
    """What a model takes from a checkpoint."""

    recipes: dict[str, Recipe] = field(default_factory=dict)
    unexpected: list[tuple[str, str]] = field(default_factory=list)
    """Checkpoint tensors that the model has no place for, with the names that they were given."""
    errors: dict[str, str] = field(default_factory=dict)
    """Parameters whose conversion failed, with the reason."""
    conversions: list[Any] = field(default_factory=list)
    """The conversion objects that were used, as `save_pretrained` wants them in `model._weight_conversions`."""
    ties: dict[str, str] = field(default_factory=dict)
    """Names that are tied to others by the architecture data, where it decides."""


def recipe(tensor: Lazy, sizes: Mapping[str, int]) -> Recipe:
    """The recipe of a traced tensor, given the element counts of the checkpoint's tensors."""
    made = pieces(tensor)
    if len(made) == 1 and sizes[made[0][0]] == tensor.numel():
        name, offset, target, loops = made[0]
        if offset == target == 0 and (not loops or loops == [(tensor.numel(), 1, 1)]):
            return Recipe(tensor._shape, source=name)
    return Recipe(tensor._shape, pieces=made)


def identity(names: Iterable[str], tensors: Mapping[str, Sequence[int]]) -> Traced:
    """Every tensor under its own name."""
    known = set(names)
    found = {n: Recipe(tuple(s), source=n) for n, s in tensors.items() if n in known}
    return Traced(found, [(n, n) for n in tensors if n not in known])


def trace(
    model: Any,
    tensors: Mapping[str, Sequence[int]],
    conversions: Sequence[Any] | None = None,
    state: Mapping[str, Any] | None = None,
    config: str | None = None,
) -> Traced:
    """Traces the conversions of a transformers model over a checkpoint's tensors, given as shapes by name.

    `conversions` replaces what transformers has for the model, `state` its `state_dict()`; `config` is the text of the checkpoint's config.json. A
    model of another kind takes tensors under their own names.
    """
    if state is None:
        state = model.state_dict(keep_vars=True)
    if conversions is None:
        conversions = _mapping(model, config)
    if conversions is None:
        return identity(state, tensors)
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    by_pattern = {p: c for c in converters for p in c.source_patterns}
    prefix_is = "base_model_prefix" if "base_model_prefix" in inspect.signature(rename_source_key).parameters else "prefix"
    prefix = {prefix_is: model.base_model_prefix, "meta_state_dict": state}
    sizes = {n: math.prod(s) for n, s in tensors.items()}
    out = Traced()
    groups: dict[str, tuple[Any, dict[str, list[str]]]] = {}
    for key in sorted(tensors, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, **prefix)
        if name not in state and key in state:
            name, pattern = rename_source_key(key, [], [], **prefix)
        if name not in state:
            out.unexpected.append((key, name))
        elif pattern is None:
            # As in transformers, the first of several tensors with one name counts.
            if name not in out.recipes and name not in groups:
                out.recipes[name] = Recipe(tuple(tensors[key]), source=key)
        elif name not in out.recipes:
            groups.setdefault(name, (by_pattern[pattern], {}))[1].setdefault(pattern, []).append(key)
    for name, (converter, inputs) in groups.items():
        dtype = getattr(state[name], "dtype", None)
        try:
            lazy = {p: [Lazy.leaf(n, tensors[n], dtype) for n in names] for p, names in inputs.items()}
            for target, tensor in _convert(converter, name, lazy, model).items():
                if not isinstance(tensor, Lazy):
                    raise Opaque(f"{target} is new")
                out.recipes[target] = recipe(tensor, sizes)
        except Exception as why:
            # Whatever a lazy tensor cannot do, a real one may: the op itself decides, on whole sources.
            group = Group(name, deepcopy(converter), inputs, f"{type(why).__name__}: {why}")
            for target in _targets(group, tensors, model, out):
                out.recipes[target] = Recipe(tuple(state[target].shape) if target in state else (), group=group)
    out.conversions = [c for c in conversions if c.was_used()] if all(hasattr(c, "was_used") for c in conversions) else list(conversions)
    return out


def is_of_transformers(model: Any) -> bool:
    """Whether it is a model of transformers, as far as its attributes tell."""
    return hasattr(model, "base_model_prefix") and hasattr(model, "config") and find_spec("transformers") is not None


def _mapping(model: Any, config: str | None) -> list[Any] | None:
    """The conversions that the installed transformers has for this model; None if it is not one of its models."""
    if not is_of_transformers(model):
        return None
    from transformers.conversion_mapping import get_model_conversion_mapping

    with _own_classes(model), _patterns_compiled_late():
        return [*_dequantisation(model, config), *get_model_conversion_mapping(model)]


class _Pattern:
    """A regular expression that is compiled when it is first used."""

    __slots__ = ("_compiled", "_source")

    def __init__(self, pattern: str, flags: int = 0) -> None:
        self._source = (pattern, flags)
        self._compiled: re.Pattern[str] | None = None

    def __getattr__(self, name: str) -> Any:
        if self._compiled is None:
            self._compiled = re.compile(*self._source)
        return getattr(self._compiled, name)

    def __copy__(self) -> _Pattern:
        return self

    def __deepcopy__(self, _: Any) -> _Pattern:
        return self

    def __reduce__(self) -> Any:
        return re.compile, self._source


class _LateRe:
    """The module `re`, with patterns that are compiled late."""

    compile = _Pattern

    def __getattr__(self, name: str) -> Any:
        return getattr(re, name)


@contextmanager
def _patterns_compiled_late() -> Iterator[None]:
    """Where transformers makes its table of conversions, at the first look into it, it compiles the patterns of all models, which takes as long as
    reading hundreds of megabytes; one model needs few of them."""
    from transformers import conversion_mapping, core_model_loading

    if getattr(conversion_mapping, "_checkpoint_conversion_mapping_cache", re) is not None or getattr(core_model_loading, "re", None) is not re:
        yield
        return
    core_model_loading.re = _LateRe()
    try:
        yield
    finally:
        core_model_loading.re = re


def _dequantisation(model: Any, config: str | None) -> list[Any]:
    """For a model that is not quantised, the conversions that turn its checkpoint's codes and scales into weights."""
    if getattr(model, "is_quantized", False):
        return []
    quantised = getattr(model.config, "quantization_config", None)
    if quantised is None and config is not None and "quantization_config" in config:
        # The model was built from another config, or the section was taken out of it, and the weights are codes nevertheless.
        with suppress(ValueError):
            quantised = json.loads(config).get("quantization_config")
    if not quantised:
        return []
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        quantiser = AutoHfQuantizer.from_config(quantised, pre_quantized=True)
        if hasattr(quantiser.quantization_config, "dequantize"):
            quantiser.quantization_config.dequantize = True
        found = quantiser.get_weight_conversions()
    except Exception as error:
        raise UnsupportedError(f"the checkpoint is quantised ({_method(quantised)}) and the model is not: {error}") from error
    if not found:
        raise UnsupportedError(f"the checkpoint is quantised ({_method(quantised)}) and the model is not; transformers has no conversion for it")
    return list(found)


def _method(config: Any) -> str:
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return str(getattr(method, "value", method))


def own_class(module: Any) -> type:
    """The class of a module as it was before `fully_shard`, which gives each a class of a new name."""
    cls = type(module)
    sharded = cls.__name__.startswith("FSDP") and len(cls.__bases__) == 2 and hasattr(module, "_get_fsdp_state")
    return cls.__bases__[1] if sharded else cls


@contextmanager
def _own_classes(model: Any) -> Iterator[None]:
    """transformers looks conversions up by the name of the class."""
    changed = []
    for module in model.modules():
        cls, own = type(module), own_class(module)
        if own is not cls:
            changed.append((module, cls))
            module.__class__ = own
    try:
        yield
    finally:
        for module, cls in changed:
            module.__class__ = cls


class _WholeShapes:
    """A model whose parameters have their whole shapes, which conversions compare with: a partitioned parameter of ZeRO-3 has none itself."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def get_parameter(self, target: str) -> Any:
        import torch

        parameter = self._model.get_parameter(target)
        if not hasattr(parameter, "ds_shape"):
            return parameter
        return torch.empty(tuple(parameter.ds_shape), dtype=parameter.dtype, device="meta")


def _convert(converter: Any, name: str, inputs: dict[str, list[Any]], model: Any) -> dict[str, Any]:
    """`WeightConverter.convert` on tensors of any kind."""
    tensors: dict[str, Any] = dict(inputs)
    for op in converter.operations:
        tensors = op.convert(
            tensors,
            source_patterns=converter.source_patterns,
            target_patterns=converter.target_patterns,
            full_layer_name=name,
            model=_WholeShapes(model),
            config=model.config,
            missing_keys=None,
        )
    full = name.replace("*.", "0.") if "*." in name else name
    found = next((full.partition(k) for k in tensors if k in full), None)
    if found is not None:
        tensors = {found[0] + k + found[2]: v for k, v in tensors.items()}
    return {k: v[0] if isinstance(v, list) else v for k, v in tensors.items()}


def _targets(group: Group, tensors: Mapping[str, Sequence[int]], model: Any, out: Traced) -> list[str]:
    """The parameters that an op that computes will fill: it is run on meta tensors, which cost nothing."""
    import torch

    # The element type only decides whether an op accepts its input, and this one it does not look at.
    try:
        made = _convert(
            group.converter, group.name, {p: [torch.empty(tensors[n], device="meta") for n in ns] for p, ns in group.inputs.items()}, model
        )
    except Exception as error:
        # Some ops look at values. One target is what most have.
        if len(group.converter.target_patterns) == 1:
            return [group.name]
        out.errors[group.name] = f"{type(error).__name__}: {error}"
        return []
    return list(made)
