"""What a config's class makes of a config.json that lacks keys, has null or older names, or lacks a part."""

import contextlib
import copy
import inspect
import re

from .changes import SMALL, WORDS, other_numbers
from .configs import parts_of, plain
from .default_configs import LACKS
from .formulas import evaluate, keys_of
from .library import PreTrainedConfig
from .switches import is_on


def older_names(cls):
    """The keyword arguments that a config's class reads besides its own fields."""
    source = ""
    for c in cls.__mro__:
        if c is not PreTrainedConfig and issubclass(c, PreTrainedConfig):
            with contextlib.suppress(OSError, TypeError):
                source += inspect.getsource(c)
    return set(re.findall(r"""kwargs(?:\.(?:pop|get)\(|\[)\s*["'](\w+)""", source)) | set(re.findall(r"""["'](\w+)["'] (?:not )?in kwargs""", source))


def read(cls, says):
    """The keys of the config that a class makes of a config.json; none where it refuses it."""
    with contextlib.suppress(Exception):
        return plain(cls.from_dict(copy.deepcopy(says)))
    return {}


def number_defaults(config, keys):
    """({key: value}, {older name: key}) of keys that are numbers: what the class has where config.json has neither the key nor its older name,
    whatever else it has. Keys that are made of others are left out."""
    cls = type(config)
    base = read(cls, {})
    out, older = {k: base[k] for k in keys if type(base.get(k)) is int and base[k] >= 1}, {}
    for key, value in {**dict.fromkeys(sorted(older_names(cls))), **base}.items():
        for new in replacements(value):
            there = read(cls, {key: new})
            for other in [k for k in out if k != key and k in there and there[k] != out[k]]:
                if key not in base and type(new) is int and there[other] == new:
                    older[key] = other
                elif older.get(key) != other:
                    del out[other]
    return out, {name: key for name, key in older.items() if key in out}


def replacements(value):
    """What config.json may have in place of a value, to see which numbers follow from it."""
    if isinstance(value, PreTrainedConfig):
        return [{k: new} for k, v in plain(value).items() if type(v) is int and v >= 1 for new in other_numbers(v)]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return other_numbers(value)
    if isinstance(value, (list, tuple)) and value:
        return [[*value, value[-1]], [*value, *value]]
    return [48, True, [48, 48]] if value is None else []


def switch_defaults(config, keys):
    """({key: [value]}, {older name: key}) of keys that switch parts on ({key: value where the config lacks it}): what the class has where config.json
    lacks the key, whatever else it has; [] where another key decides. Keys that the class does not take as config.json has them are left out."""
    cls = type(config)
    base, lacks = read(cls, {}), {}
    if not base and keys:
        lacks = copy.deepcopy(LACKS.get(config.model_type, {}))
        base = read(cls, lacks)
    changes = [{k: new} for k, v in base.items() for new in switchings(v)]
    others = [(change, there) for change in changes if (there := read(cls, {**lacks, **change}))]
    names = [(name, value, there) for name in sorted(older_names(cls)) for value in (True, False, 48) if (there := read(cls, {**lacks, name: value}))]
    out, older = {}, {}
    for name in sorted({name for name, *_ in names if name not in base}):
        if [of.get("tie_word_embeddings") for other, value, of in names if other == name and isinstance(value, bool)] == [True, False]:
            older[name] = "tie_word_embeddings"
    for key, silent in keys.items():
        default = base.get(key, silent)
        on = default if default and type(default) is not bool else 48 if any(type(of.get(key)) is int for _, of in others) else True
        tries = [v for v in (on, not default if isinstance(default, bool) else None, False if isinstance(default, bool) else 0) if v is not None]
        taken = [v for v in tries if alike(read(cls, {**lacks, key: v}).get(key), v)]
        if len({bool(v) for v in taken}) < 2 and not (taken and default is None):
            continue
        if default is None and read(cls, {**lacks, key: None}).get(key) is not None:
            continue
        moved = [change for change, of in others if key not in change and not alike(of.get(key, silent), default)]
        if any(not alike(read(cls, {**lacks, **change, key: v}).get(key), v) for v in taken for change, _ in others if key not in change):
            continue
        for name, value, of in names:
            if name in base or alike(of.get(key, silent), default):
                continue
            if of.get(key) == value and older.get(name, key) == key:
                older[name] = key
            else:
                moved.append(name)
        out[key] = [] if moved or not read(cls, {}) else [default if default is None or isinstance(default, (bool, int)) else bool(default)]
    return out, older


def switchings(value):
    """What config.json may have in place of a value, to see which switches follow from it."""
    if isinstance(value, PreTrainedConfig):
        return [{k: new} for k, v in plain(value).items() if not isinstance(v, PreTrainedConfig) for new in switchings(v)[:1]]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (list, tuple)):
        return [[], [*value, *value]]
    return other_numbers(value)[:1] if type(value) is int else [True, 48] if value is None else list(WORDS) if isinstance(value, str) else []


def alike(a, b):
    """Whether two values switch the same parts on."""
    return is_on(a, "") == is_on(b, "") and (a is None) == (b is None)


def forced_tie(cls, model_type):
    """`tie_word_embeddings` of a class that has the same whatever config.json says; else None."""
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

    base, out = read(cls, {}), {}
    numbers = {k: v for k, v in base.items() if type(v) is int and v >= 1}
    reads = [({k: new}, read(cls, {k: new})) for k, v in numbers.items() for new in other_numbers(v)]
    for key in keys:
        n = base.get(key)
        if type(n) is not int or n < 1 or read(cls, {key: None}).get(key) != n:
            continue
        movers = [next(iter(says)) for says, there in reads if key not in says and there.get(key, n) != n]
        movers = [k for k in dict.fromkeys(movers) if base[k] >= 1]
        tries = [f"{c}*{a}" if c > 1 else a for a in movers for c in (1, 2, 3, 4)] + [f"{a}/{b}" for a in movers for b in movers if a != b]
        pairs = [{a: 2 * base[a], b: times * base[b]} for a in movers for b in movers if a < b for times in (1, 2)]
        all_reads = reads + [(says, read(cls, says)) for says in pairs]
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
                always = all(read(cls, {key: new}).get(key) == n for new in other_numbers(n))
                out[key] = f"={formula}" if always else formula
                break
    return out


def whole_parts(config):
    """{sub-config: {key: value}} of parts that config.json may lack as a whole: what the part then has that an empty one has not."""
    cls = type(config)
    out = {}
    for name in config.sub_configs or {}:
        with contextlib.suppress(Exception):
            part = getattr(cls.from_dict({}), name)
            alone = plain(type(part).from_dict({}))
            there = {k: v for k, v in plain(part).items() if type(v) is int and v >= 1 and not k.endswith(("token_id", "token_index"))}
            flags = {k: v for k, v in plain(part).items() if v is None or v is True or (isinstance(v, (bool, int)) and not v)}
            flat = is_flat(cls, name, there)
            if part.model_type and not flat:
                out[name] = {
                    k: v for k, v in {**there, **flags}.items() if (k in there and alone.get(k) != v) or (k in flags and alone.get(k, 0) != v)
                }
    return out


def is_flat(cls, name, numbers):
    """Whether a part takes any of these keys from the top of a config.json that lacks the part, where older files have them."""

    def read_in_part(key, new):
        with contextlib.suppress(Exception):
            return plain(getattr(cls.from_dict({key: new}), name)).get(key)

    return any(read_in_part(k, new) == new for k, v in numbers.items() for new in other_numbers(v)[:1])


def flat_parts(config):
    """The sub-configs that older files have at the top of config.json, in part or whole."""
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


def set_in_parts(config):
    """{sub-config: keys} that the config of the whole model sets in its parts, where these have a default of their own; "=key" where it sets them
    whatever the part has."""
    cls = type(config)
    subs = {k: v for k, v in parts_of(config).items() if v.model_type}
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
                    k for k, v in there.items() if (k in alone and (v is None) != (alone[k] is None)) or (isinstance(v, bool) and alone.get(k) != v)
                )
                out.setdefault(key, set()).update(moved)

    def others(v):
        return [not v] if isinstance(v, bool) else other_numbers(v) if type(v) is int and v >= 1 else []

    minimal = {key: {"model_type": sub.model_type} for key, sub in subs.items()}
    look(minimal)
    for key in subs:
        look({key: minimal[key]})
        for k, v in plain(subs[key]).items():
            for new in [SMALL] if v is None else others(v):
                look({**minimal, key: {**minimal[key], k: new}})
    for k, v in plain(config).items():
        for new in others(v):
            look({**minimal, k: new})
    own = {key: {*number_defaults(subs[key], keys)[0], *flags.get(key, ()), *(f"={k}" for k in always.get(key, ()))} for key, keys in out.items()}
    return {key: sorted(keys) for key, keys in own.items() if keys}


def lettered(config, keys):
    """{older name: (key, {letter: word})} of names whose value has a letter for each word of a list."""
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
                out[name] = (key, dict(zip(letters, words[0], strict=True)))
    return out
