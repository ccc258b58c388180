"""Which key decides whether a module or parameter is there."""

import contextlib
import copy
import random
import time

from .configs import plain, unlisted, with_parts
from .library import SECONDS
from .trees import Node, optional, presence, tree_of

NEVER_SWITCHES = {"tie_word_embeddings"}
MIXES = 6  # configs with several keys changed that confirm conditions


def is_on(value, form):
    """Whether a key's value switches a part on: any but false, zero, null and what is empty; of the form "?" any but null."""
    return value is not None if form else bool(value)


def is_switch(value):
    """Whether a key with this value may switch a part on or off."""
    return value is None or isinstance(value, (bool, int, float, str, list, tuple))


def conditions(rows, places):
    """{place: [condition]}: "key", "!key", "key?" or "!key?", each right about the place in all rows that have the module around it."""
    by_signature = {}
    for place in places:
        module = place[:-1]
        # per row: True or False where the module is there, None where some elements of a list have the place, "" where the module is not there
        states = tuple((there[place] or None) if place in there else False if module in there else "" for _, there in rows)
        by_signature.setdefault(states, []).append(place)
    out = {}
    for states, of in by_signature.items():
        known = [(values, state) for (values, _), state in zip(rows, states, strict=True) if state != ""]
        found = []
        if {state for _, state in known} == {True, False}:
            keys = [k for k in known[0][0] if k not in NEVER_SWITCHES and all(k in values and is_switch(values[k]) for values, _ in known)]
            for key in keys:
                for form in ("", "?"):
                    answers = {is_on(values[key], form) == state for values, state in known}
                    if len(answers) == 1:
                        found.append(f"{'' if answers == {True} else '!'}{key}{form}")
        out.update(dict.fromkeys(of, found))
    return out


def key_of(condition):
    """The key of a condition."""
    return condition.strip("!?")


def row(silent, config, node):
    """A config's keys, over those that its class reads with a default of its own, and what its model has: what `conditions` compares."""
    return {**silent, **plain(config)}, presence(node)


def switched(cls, config, node, rows, within):
    """Writes into a tree which key decides whether what not every config has is there, and gives these keys. A key has to be right about every
    config that was built, of which some have several keys changed."""
    places = optional(node)
    first = conditions(rows, places)
    keys = sorted({key_of(c) for found in first.values() for c in found})
    if not keys:
        return []
    silent = unlisted(cls, config)

    def add(other):
        with contextlib.suppress(Exception):
            rows.append(row(silent, other, tree_of(cls, other, within)))
            return True
        return False

    for other in bounds(config, keys, rows):
        add(other)
    mixes, until = 0, time.monotonic() + SECONDS
    for other in mixed(config, keys, rows, random.Random(cls.__name__)):
        if mixes == MIXES or time.monotonic() > until:
            break
        mixes += add(other)
    used = set()
    for place, found in conditions(rows, [place for place, found in first.items() if found]).items():
        module = place[:-1]
        if mixes < 2 or sum(module in there for _, there in rows) < 4 or len({key_of(c) for c in found}) != 1:
            continue
        if isinstance(places[place], Node):
            places[place].first[place[-2]] = found[0]
        else:
            places[place].always = found[0]
        used.add(key_of(found[0]))
    return sorted(used)


def seen(rows, key):
    """The values that a key had in configs that were built."""
    return list({repr(values[key]): values[key] for values, _ in rows if key in values and is_switch(values[key])}.values())


def bounds(config, keys, rows):
    """Configs in which a number is 0, 1 or null, where it was not yet."""
    for key in keys:
        had = seen(rows, key)
        for value in [v for v in (0, 1, None) if repr(v) not in map(repr, had)] if any(type(v) is int for v in had) else ():
            other = copy.deepcopy(config)
            with contextlib.suppress(Exception):
                setattr(other, key, value)
                yield other


def mixed(config, keys, rows, rng):
    """Configs with all these keys drawn anew from the values that they had, and some other keys and flags of parts changed as well."""
    pools = {key: seen(rows, key) for key in keys}
    rest = {
        key: values for key in plain(config) if key not in pools and len(values := seen(rows, key)) > 1 and any(not v or v is True for v in values)
    }
    for n in range(4 * MIXES):
        other = copy.deepcopy(config)
        with contextlib.suppress(Exception):
            for key, values in pools.items():
                setattr(other, key, rng.choice(values))
            for key, values in rest.items():
                if rng.random() < (0.3, 0.1, 0)[n % 3]:
                    setattr(other, key, rng.choice(values))
            for part in list(with_parts(other))[1:]:
                for key, value in plain(part).items():
                    if isinstance(value, bool) and rng.random() < 0.2:
                        setattr(part, key, not value)
            yield other
