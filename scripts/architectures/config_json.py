"""What a config's class makes of a config.json that lacks keys, has null or older names, or lacks a part."""

import contextlib
import copy
import inspect
import re

from .changes import SMALL, WORDS, other_numbers
from .configs import plain
from .default_configs import LACKS
from .formulas import evaluate, keys_of
from .library import PreTrainedConfig
from .switches import is_on


def older_names(cls):
    """Names of the keyword arguments that a config's class reads besides its own fields."""
    source = ""
    for c in cls.__mro__:
        if c is not PreTrainedConfig and issubclass(c, PreTrainedConfig):
            with contextlib.suppress(OSError, TypeError):
                source += inspect.getsource(c)
    return set(re.findall(r"""kwargs(?:\.(?:pop|get)\(|\[)\s*["'](\w+)""", source)) | set(re.findall(r"""["'](\w+)["'] (?:not )?in kwargs""", source))


def fixed(config, keys):
    """({key: value}, {older name: key}): of those keys the number that a config.json has that says neither the key nor its older name, whatever
    else it says. Keys that are made of others are left out."""
    cls = type(config)

    def read(says):
        with contextlib.suppress(Exception):
            return plain(cls.from_dict(copy.deepcopy(says)))
        return {}

    base = read({})
    out, older = {k: base[k] for k in keys if type(base.get(k)) is int and base[k] >= 1}, {}
    for key, value in {**dict.fromkeys(sorted(older_names(cls))), **base}.items():
        if isinstance(value, PreTrainedConfig):
            tries = [{k: new} for k, v in plain(value).items() if type(v) is int and v >= 1 for new in other_numbers(v)]
        elif isinstance(value, bool):
            tries = [not value]
        elif isinstance(value, int):
            tries = other_numbers(value)
        elif isinstance(value, (list, tuple)) and value:
            tries = [[*value, value[-1]], [*value, *value]]
        elif value is None:
            tries = [48, True, [48, 48]]
        else:
            continue
        for new in tries:
            there = read({key: new})
            for other in [k for k in out if k != key and k in there and there[k] != out[k]]:
                if key not in base and type(new) is int and there[other] == new:
                    older[key] = other
                elif older.get(key) != other:
                    del out[other]
    return out, {name: key for name, key in older.items() if key in out}


def said(config, keys):
    """({key: [value]}, {older name: key}) of keys that switch parts on: what the class has where config.json lacks the key, whatever else it says; []
    where another key decides. Keys that the class does not take as config.json says are left out."""
    cls = type(config)

    def read(says):
        with contextlib.suppress(Exception):
            return plain(cls.from_dict(copy.deepcopy(says)))
        return {}

    base, lacks = read({}), {}
    if not base and keys:
        lacks = copy.deepcopy(LACKS.get(config.model_type, {}))
        base = read(lacks)

    def other(value):
        if isinstance(value, PreTrainedConfig):
            return [{k: new} for k, v in plain(value).items() if not isinstance(v, PreTrainedConfig) for new in other(v)[:1]]
        if isinstance(value, bool):
            return [not value]
        if isinstance(value, (list, tuple)):
            return [[], [*value, *value]]
        return other_numbers(value)[:1] if type(value) is int else [True, 48] if value is None else list(WORDS) if isinstance(value, str) else []

    changes = [{k: new} for k, v in base.items() for new in other(v)]
    others = [(change, there) for change in changes if (there := read({**lacks, **change}))]
    names = [(name, value, there) for name in sorted(older_names(cls)) for value in (True, False, 48) if (there := read({**lacks, name: value}))]
    like = lambda a, b: is_on(a, "") == is_on(b, "") and (a is None) == (b is None)
    out, older = {}, {}
    for name in {name for name, *_ in names if name not in base}:
        if [of.get("tie_word_embeddings") for other, value, of in names if other == name and isinstance(value, bool)] == [True, False]:
            older[name] = "tie_word_embeddings"
    for key, silent in keys.items():
        default = base.get(key, silent)
        on = default if default and type(default) is not bool else 48 if any(type(of.get(key)) is int for _, of in others) else True
        tries = [v for v in (on, not default if isinstance(default, bool) else None, False if isinstance(default, bool) else 0) if v is not None]
        taken = [v for v in tries if like(read({**lacks, key: v}).get(key), v)]
        if len({bool(v) for v in taken}) < 2 and not (taken and default is None):
            continue
        if default is None and read({**lacks, key: None}).get(key) is not None:
            continue
        moved = [change for change, of in others if key not in change and not like(of.get(key, silent), default)]
        if any(not like(read({**lacks, **change, key: v}).get(key), v) for v in taken for change, _ in others if key not in change):
            continue
        for name, value, of in names:
            if name in base or like(of.get(key, silent), default):
                continue
            if of.get(key) == value and older.get(name, key) == key:
                older[name] = key
            else:
                moved.append(name)
        out[key] = [] if moved or not read({}) else [default if default is None or isinstance(default, (bool, int)) else bool(default)]
    return out, older


def forced_tie(cls, model_type):
    """`tie_word_embeddings` of a config that takes no other, whatever config.json says."""
    with contextlib.suppress(Exception):
        values = [
            getattr(cls.from_dict({**copy.deepcopy(LACKS.get(model_type, {})), "tie_word_embeddings": t}), "tie_word_embeddings", None)
            for t in (False, True)
        ]
        if values[0] == values[1]:
            return values[0]
    return None


def derived_keys(config, keys):
    """{key: formula} of those keys that a config makes of others where config.json lacks them, or has null; "=formula" where it does so whatever
    config.json has."""
    cls = type(config)

    def read(says):
        with contextlib.suppress(Exception):
            return plain(cls.from_dict(copy.deepcopy(says)))
        return {}

    base, out = read({}), {}
    numbers = {k: v for k, v in base.items() if type(v) is int and v >= 1}
    reads = [({k: new}, read({k: new})) for k, v in numbers.items() for new in other_numbers(v)]
    for key in keys:
        n = base.get(key)
        if type(n) is not int or n < 1 or read({key: None}).get(key) != n:
            continue
        movers = [next(iter(says)) for says, there in reads if key not in says and there.get(key, n) != n]
        movers = [k for k in dict.fromkeys(movers) if base[k] >= 1]
        tries = [f"{c}*{a}" if c > 1 else a for a in movers for c in (1, 2, 3, 4)] + [f"{a}/{b}" for a in movers for b in movers if a != b]
        pairs = [{a: 2 * base[a], b: times * base[b]} for a in movers for b in movers if a < b for times in (1, 2)]
        all_reads = reads + [(says, read(says)) for says in pairs]
        for formula in tries:
            of = keys_of(formula)
            if of != set(movers):
                continue
            held = [
                evaluate(formula, there) == there[key]
                for says, there in all_reads
                if key in there and key not in says and evaluate(formula, there) is not None
            ]
            if held and all(held) and evaluate(formula, base) == n:
                always = all(read({key: new}).get(key) == n for new in other_numbers(n))
                out[key] = f"={formula}" if always else formula
                break
    return out


def whole_parts(config):
    """{sub-config: numbers} of parts that config.json may lack as a whole: where the part then differs from one that says nothing."""
    cls = type(config)
    out = {}
    for name in config.sub_configs or {}:
        with contextlib.suppress(Exception):
            part = getattr(cls.from_dict({}), name)
            alone = plain(type(part).from_dict({}))
            there = {k: v for k, v in plain(part).items() if type(v) is int and v >= 1 and not k.endswith(("token_id", "token_index"))}
            flags = {k: v for k, v in plain(part).items() if v is None or v is True or isinstance(v, (bool, int)) and not v}
            flat = is_flat(cls, name, there)
            if part.model_type and not flat:
                out[name] = {k: v for k, v in {**there, **flags}.items() if k in there and alone.get(k) != v or k in flags and alone.get(k, 0) != v}
    return out


def is_flat(cls, name, numbers):
    """Whether the part takes its keys from the top of a config.json that lacks it, as older files have them."""

    def read(key, new):
        with contextlib.suppress(Exception):
            return plain(getattr(cls.from_dict({key: new}), name)).get(key)

    return any(read(k, new) == new for k, v in numbers.items() for new in other_numbers(v)[:1])


def flat_parts(config):
    """The sub-configs that older files have at the top, in part or whole: where each key of theirs that changes is read from there."""
    out = []
    for name in config.sub_configs or {}:
        with contextlib.suppress(Exception):
            part = getattr(type(config).from_dict({}), name)
            there = {
                k: v
                for k, v in plain(part).items()
                if type(v) is int and v > 1 and re.fullmatch("hidden_size|d_model|num_hidden_layers|intermediate_size", k)
            }
            if part.model_type and there and all(is_flat(type(config), name, {k: v}) for k, v in there.items()):
                out.append(name)
    return out


def decided(config):
    """{sub-config: keys} that the config of the whole model sets in its parts, where they have a default of their own; "=key" where it sets them
    whatever the part has."""
    cls = type(config)
    subs = {k: v for k in (config.sub_configs or {}) if isinstance(v := getattr(config, k, None), PreTrainedConfig) and v.model_type}
    out, flags, always = {}, {}, {}

    def look(says):
        with contextlib.suppress(Exception):
            whole = cls.from_dict(copy.deepcopy(says))
            for key, sub in subs.items():
                if key not in says:
                    continue  # made of the whole config's own defaults
                alone = plain(type(sub).from_dict(copy.deepcopy(says[key])))
                there = plain(getattr(whole, key))
                moved = {k for k, v in there.items() if type(alone.get(k)) is int and alone[k] != v}
                always.setdefault(key, set()).update(k for k in moved if type(says[key].get(k)) is int)
                of = flags.setdefault(key, set())
                of.update(
                    k for k, v in there.items() if k in alone and (v is None) != (alone[k] is None) or isinstance(v, bool) and alone.get(k) != v
                )
                out.setdefault(key, set()).update(moved)

    minimal = {key: {"model_type": sub.model_type} for key, sub in subs.items()}
    look(minimal)
    for key in subs:
        look({key: minimal[key]})
        for k, v in plain(subs[key]).items():
            for new in [not v] if isinstance(v, bool) else [SMALL] if v is None else other_numbers(v) if type(v) is int and v >= 1 else ():
                look({**minimal, key: {**minimal[key], k: new}})
    for k, v in plain(config).items():
        for new in [not v] if isinstance(v, bool) else other_numbers(v) if type(v) is int and v >= 1 else ():
            look({**minimal, k: new})
    own = {key: {*fixed(subs[key], keys)[0], *flags.get(key, ()), *(f"={k}" for k in always.get(key, ()))} for key, keys in out.items()}
    return {key: sorted(keys) for key, keys in own.items() if keys}


def lettered(config, keys):
    """{older name: (key, {letter: word})} of names for a list of words that have a letter for each."""
    out, cls = {}, type(config)
    for name in sorted(older_names(cls)):
        letters = getattr(config, name, None)
        if not isinstance(letters, str) or not letters:
            continue
        letters = "".join(dict.fromkeys(letters))
        for key in keys:
            words = [plain(cls.from_dict({name: some})).get(key) for some in (letters, letters[::-1])]
            if (
                all(isinstance(w, list) and len(w) == len(letters) for w in words)
                and words[0] == words[1][::-1]
                and len(set(words[0])) == len(letters)
            ):
                out[name] = (key, dict(zip(letters, words[0])))
    return out
