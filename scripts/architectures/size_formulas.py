"""The formulas of a model's sizes, checked against models that are built under other configs."""

import contextlib
import copy
import itertools
import re

from .changes import SMALL, further, is_doubled
from .configs import LAYER_COUNTS, has_layers_of_their_own, numbers_of, plain, put
from .formulas import evaluate, is_plain, keys_of, solve
from .library import CONFIG_MAPPING_NAMES
from .trees import entries, sizes, tree_of


class Dependence:
    """What the sizes of a tree depend on, by the trees of configs that differ in one key."""

    def __init__(self, config, node):
        self.config, self.sizes = config, sizes(node)
        self.on = {place: {} for place in self.sizes}  # what `solve` takes
        self.defaults = {}  # of keys that sizes depend on

    def note(self, key, old, new, t):
        """Compares with the tree of a config that has another value of a key."""
        doubled, there, its = is_doubled(old, new), sizes(t), entries(t)
        for place, (n, _, _) in self.sizes.items():
            depends = self.on[place]
            if place not in there and (not doubled or has_layers_of_their_own(self.config)) and place[:-1] in its and place[-1] != "len":
                depends.setdefault(key, (0, 0))  # elements of a list differ in it
            if place in there and there[place][0] != n:
                if doubled and names_sizes(self.config, key):
                    depends[key] = (old, there[place][0] - n)
                elif isinstance(old, bool) or not isinstance(old, int) or "." in key:
                    depends.setdefault(key, (0, 0))  # what a flag changes has no formula
                if key in vars(self.config):
                    self.defaults[key] = old

    def keys(self):
        """The keys that any size depends on."""
        return {key for depends in self.on.values() for key in depends}

    def solved(self):
        """{place: formula}, not yet confirmed."""
        return {place: solve(n, self.on[place]) for place, (n, _, _) in self.sizes.items()}


def names_sizes(config, key):
    """Whether a size's formula may use this key. A key of a part may be used if the part is not a model itself, or if it is the vocabulary's size:
    other sizes of a sub-model are compared there, and what is made of them outside depends on more than integers."""
    part, _, inner = key.rpartition(".")
    if not part or inner == "vocab_size":
        return True
    of = getattr(config, part)
    if not isinstance(of, dict) and of.model_type and of.model_type in CONFIG_MAPPING_NAMES:
        return False
    with contextlib.suppress(Exception):
        return numbers_of(type(config).from_dict({part: {inner: SMALL}})).get(key) == SMALL  # else the whole model sets it
    return True


def misleads(formula):
    """Whether a dim's formula is a coincidence: the number of layers, which other lists are as long as, or a window, which some layers lack."""
    return formula.rpartition(".")[2] in LAYER_COUNTS or "window_size" in keys_of(formula)


def without_misleading(formula, dim):
    """A formula, or None where it is one of a dim and a coincidence."""
    return None if dim is not None and isinstance(formula, str) and misleads(formula) else formula


def confirm(cls, config, solved, within):
    """Takes back formulas that hold with one key changed and not with two, and those that no such config was built for. Of several formulas that a
    size may have, the one that holds stays."""
    open_ones = {place: list(f) if isinstance(f, tuple) else [f] for place, f in solved.items() if not is_plain(f)}
    sets = {frozenset(keys_of(fs[0])) for fs in open_ones.values()}
    pairs = sorted({tuple(sorted(pair)) for keys in sets for pair in itertools.combinations(keys, 2)})[:24]
    seen = set()
    for pair in [*pairs, *((k,) for k in sorted({k for keys in sets if len(keys) == 1 for k in keys}))]:
        for times in ((2, 2), (2, 4), (3, 3)) if len(pair) == 2 else ((3,),):
            other = copy.deepcopy(config)
            try:
                for key, by in zip(pair, times, strict=True):
                    put(other, key, by * numbers_of(other)[key])
                there = sizes(tree_of(cls, other, within))
            except Exception:
                continue
            values = numbers_of(other)
            for place, formulas in open_ones.items():
                if place in there and formulas and len(keys_of(formulas[0]).intersection(pair)) == len(pair):
                    found = [evaluate(formula, values) for formula in formulas]
                    if None in found:
                        continue
                    seen.add(place)
                    open_ones[place] = [f for f, n in zip(formulas, found, strict=True) if n == there[place][0]]
    for place, formulas in open_ones.items():
        solved[place] = formulas[0] if place in seen and len(formulas) == 1 else None


def disprove(cls, config, solved, effective, within):
    """Takes back formulas that one further config contradicts. One that holds as long as a key divides a width becomes "width/key*key", which is
    unknown where the key does not divide it."""
    rows = []
    for key, other in further(config, effective):
        with contextlib.suppress(Exception):
            there = sizes(tree_of(cls, other, within))
            ns = {place: there[place][0] for place, formula in solved.items() if isinstance(formula, str) and place in there}
            rows.append((key, numbers_of(other), ns))
    found = {}
    for place, formula in solved.items():
        if not isinstance(formula, str):
            continue
        ns = tuple(row[2].get(place) for row in rows)
        if (formula, ns) not in found:
            found[formula, ns] = corrected(formula, rows, ns)
        solved[place] = found[formula, ns]


def corrected(formula, rows, ns):
    """A formula, or one with a quotient that holds in its place, or None, by what a size is (`ns`) under the configs of `rows`."""

    def wrong(text):
        return [key for (key, values, _), n in zip(rows, ns, strict=True) if n is not None and evaluate(text, values) not in (None, n)]

    failed = wrong(formula)
    if not failed:
        return formula
    tries = (
        re.sub(rf"(?<![\w.]){re.escape(width)}(?![\w.])", f"{width}/{key}*{key}", formula)
        for key in failed
        for width in sorted(keys_of(formula) - {key})
    )
    return next((text for text in tries if not wrong(text)), None)


WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim")
HEAD_COUNTS = ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads")
UNSAID = ("head_dim",)
"""Keys that a class takes where a config has them, and makes of a width and a number of heads where it does not."""


def spelled_out(cls, config, base, within):
    """(the config with such a key written out, {key: formula}), where that changes no size and another value does."""
    values, derived = plain(config), {}

    def under(changes):
        other = copy.deepcopy(config)
        for name, value in changes.items():
            setattr(other, name, value)
        return {place: n for place, (n, _, _) in sizes(tree_of(cls, other, within)).items()}

    for key in UNSAID:
        if type(values.get(key)) is int:
            continue
        pairs = [
            (a, b) for a in WIDTHS for b in HEAD_COUNTS if type(values.get(a)) is int and type(values.get(b)) is int and values[a] % values[b] == 0
        ]
        for a, b in pairs[:2]:
            n = values[a] // values[b]
            try:
                written = under({key: n})
                same = written == {place: size for place, (size, _, _) in base.items()} and under({key: 2 * n}) != written
                same = same and under({a: 2 * values[a]}) == under({a: 2 * values[a], key: 2 * n})
                same = same and under({b: 2 * values[b]}) == under({b: 2 * values[b], key: n // 2})
            except Exception:
                continue
            if same:
                config = copy.deepcopy(config)
                setattr(config, key, n)
                derived[key] = f"{a}/{b}"
                break
    return config, derived
