"""The formulas of a model's sizes, checked against models that are built under other configs."""

import contextlib
import copy
import itertools
import re

from .changes import SMALL, configs, further
from .configs import LAYER_COUNTS, numbers_of, plain, put, unlisted
from .formulas import evaluate, is_plain, keys_of, solve
from .library import CONFIG_MAPPING_NAMES, build
from .trees import presence, sizes, tree


def misleads(formula):
    """Formulas of a dim that are none: the number of layers, which lists of other things are as long as, and windows, which some layers do without."""
    return formula.rpartition(".")[2] in LAYER_COUNTS or "window_size" in keys_of(formula)


def names_sizes(config, key):
    """Whether a size's formula may have this key. A key of a part may be used if the part is not itself a model, or if the key is the vocabulary size:
    a sub-model's other sizes are compared in the sub-model, and what is made of them outside depends on more than integers."""
    part, _, inner = key.rpartition(".")
    if not part or inner == "vocab_size":
        return True
    of = getattr(config, part)
    if not isinstance(of, dict) and of.model_type and of.model_type in CONFIG_MAPPING_NAMES:
        return False
    with contextlib.suppress(Exception):
        return numbers_of(type(config).from_dict({part: {inner: SMALL}})).get(key) == SMALL  # else the whole model sets it
    return True


def solve_in(cls, config, places, references, within, rows):
    """({place: formula}, trees): formulas of those sizes of a model under a config that differs from the default in one key, and its trees with a flag
    changed as well."""
    depends, trees = {place: {} for place in places}, []
    silent = unlisted(cls, config)
    for key, old, new, other in configs(cls, config, True):
        doubled = isinstance(old, int) and not isinstance(old, bool) and isinstance(new, int) and new == 2 * old
        try:
            m = build(cls, other)
            t = tree(m, m.config, references, base=within)
        except Exception:
            continue
        rows.append(({**silent, **plain(other)}, presence(t, {})))
        there = sizes(t, {})
        if isinstance(old, bool):
            trees.append(t)
        for place, n in places.items():
            if place in there and there[place][0] != n:
                if doubled:
                    depends[place][key] = (old, there[place][0] - n)
                else:
                    depends[place].setdefault(key, (0, 0))
    solved = {place: solve(n, depends[place]) for place, n in places.items()}
    confirm(cls, config, solved, within)
    return {place: None if place[-1] != "len" and isinstance(f, str) and misleads(f) else f for place, f in solved.items()}, trees


def confirm(cls, config, solved, within):
    """Takes back formulas that hold for one key changed and not for two, and those that no such config was built for. Of several that a size may be
    the one stays that holds."""
    open_ones = {place: list(f) if isinstance(f, tuple) else [f] for place, f in solved.items() if not is_plain(f)}
    sets = {frozenset(keys_of(fs[0])) for fs in open_ones.values()}
    pairs = sorted({tuple(sorted(pair)) for keys in sets for pair in itertools.combinations(keys, 2)})[:24]
    seen = set()
    for pair in [*pairs, *((k,) for k in sorted({k for keys in sets if len(keys) == 1 for k in keys}))]:
        for times in ((2, 2), (2, 4), (3, 3)) if len(pair) == 2 else ((3,),):
            other = copy.deepcopy(config)
            try:
                for key, by in zip(pair, times):
                    put(other, key, by * numbers_of(other)[key])
                model = build(cls, other)
                there = sizes(tree(model, model.config, set(), base=within), {})
            except Exception:
                continue
            values = numbers_of(other)
            for place, formulas in open_ones.items():
                if place in there and formulas and len(keys_of(formulas[0]).intersection(pair)) == len(pair):
                    found = [evaluate(formula, values) for formula in formulas]
                    if None in found:
                        continue
                    seen.add(place)
                    open_ones[place] = [f for f, n in zip(formulas, found) if n == there[place][0]]
    for place, formulas in open_ones.items():
        solved[place] = formulas[0] if place in seen and len(formulas) == 1 else None


def disprove(cls, config, solved, effective, within):
    """Takes back formulas that such a config contradicts. One that holds as long as a key divides a width becomes "width/key*key", which is unknown
    where it does not."""
    rows = []
    for key, other in further(config, effective):
        with contextlib.suppress(Exception):
            model = build(cls, other)
            there = sizes(tree(model, model.config, set(), base=within), {})
            rows.append(
                (key, numbers_of(other), {place: there[place][0] for place, formula in solved.items() if isinstance(formula, str) and place in there})
            )
    found = {}
    for place, formula in solved.items():
        if not isinstance(formula, str):
            continue
        seen = tuple(row[2].get(place) for row in rows)
        if (formula, seen) not in found:

            def wrong(text):
                return [key for (key, values, _), n in zip(rows, seen) if n is not None and evaluate(text, values) not in (None, n)]

            failed = wrong(formula)
            tries = [
                re.sub(rf"(?<![\w.]){re.escape(width)}(?![\w.])", f"{width}/{key}*{key}", formula)
                for key in failed
                for width in sorted(keys_of(formula) - {key})
            ]
            found[formula, seen] = next((text for text in tries if not wrong(text)), None) if failed else formula
        solved[place] = found[formula, seen]


WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim")
HEAD_COUNTS = ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads")
UNSAID = ("head_dim",)
"""Keys that a class takes where a config has them, and makes of others where it does not."""


def spelled_out(cls, config, base, within):
    """(the config with such a key written out, {key: formula}), where that changes no size and another value does."""
    values, derived = plain(config), {}
    for key in UNSAID:
        if type(values.get(key)) is int:
            continue
        pairs = [
            (a, b) for a in WIDTHS for b in HEAD_COUNTS if type(values.get(a)) is int and type(values.get(b)) is int and values[a] % values[b] == 0
        ]
        for a, b in pairs[:2]:

            def of(changes):
                other = copy.deepcopy(config)
                for name, value in changes.items():
                    setattr(other, name, value)
                model = build(cls, other)
                return {place: n for place, (n, _, _) in sizes(tree(model, model.config, set(), base=within), {}).items()}

            n = values[a] // values[b]
            try:
                written = of({key: n})
                same = written == {place: size for place, (size, _, _) in base.items()} and of({key: 2 * n}) != written
                same = same and of({a: 2 * values[a]}) == of({a: 2 * values[a], key: 2 * n})
                same = same and of({b: 2 * values[b]}) == of({b: 2 * values[b], key: n // 2})
            except Exception:
                continue
            if same:
                config = copy.deepcopy(config)
                setattr(config, key, n)
                derived[key] = f"{a}/{b}"
                break
    return config, derived
