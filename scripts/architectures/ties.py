"""Parameters that are one: tied weights, and parts that several layers of a list share."""

import contextlib
import copy
import re

from .configs import with_parts
from .library import MAJOR, PreTrainedConfig, build


def tied_names(cls, model):
    """{alias: first name} of tied parameters. transformers 5 has them as data; before, a tied model is built."""
    keys = getattr(model, "_tied_weights_keys", None)
    if MAJOR >= 5:
        return keys if isinstance(keys, dict) else None
    if not keys:
        return None
    config = copy.deepcopy(model.config)
    for c in (config, *(v for v in vars(config).values() if isinstance(v, PreTrainedConfig))):
        c.tie_word_embeddings = True
    try:
        other = build(cls, config)
        other.tie_weights()
    except Exception:
        return None
    return aliases(other)


def aliases(model):
    """{alias: first name} of parameters that a model has under several names."""
    first, out = {}, {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(p), name) != name:
            out[name] = first[id(p)]
    return out


def all_tied_names(model):
    """{alias: first name} of parameters and buffers in all of a model that `tie_word_embeddings` ties; before transformers 5, that are one."""
    if MAJOR < 5:
        return aliases(model)
    for of in with_parts(model.config):
        of.tie_word_embeddings = True
    with contextlib.suppress(Exception):
        return model.get_expanded_tied_weights_keys(all_submodels=True)
    return {}


IN_LIST = re.compile(r"([\w.]+?)\.(\d+)\.(\w+)\.([\w.]+)")


def shares(model):
    """{(list, child): ({index: index of the element that it shares the child with}, every index that has the child)}."""
    names = [n for of in (model.named_parameters, model.named_buffers) for n, _ in of(remove_duplicate=False)]
    of_all, has = all_tied_names(model), {}
    for path, i, child, rest in (m.groups() for m in map(IN_LIST.fullmatch, names) if m):
        to = IN_LIST.fullmatch(of_all.get(f"{path}.{i}.{child}.{rest}", ""))
        same = to is not None and to.group(1, 3, 4) == (path, child, rest)
        has.setdefault((path, child), {}).setdefault(int(i), set()).add(int(to.group(2)) if same else None)
    some = {slot: of for slot, of in has.items() if any(sources != {None} for sources in of.values())}
    return {slot: ({i: next(iter(s)) if len(s) == 1 else -1 for i, s in of.items() if s != {None}}, sorted(of)) for slot, of in some.items()}


def shared(found):
    """{"list.*.child": n}, of what `shares` says of several models, each with its config's keys: an element of the list shares the child with the one
    that has it n such elements before, so that there are n different ones. n is a number, or a key of config.json."""
    out = {}
    for path, child in sorted({slot for _, of in found for slot in of}):
        runs = [(config, *of[path, child]) for config, of in found if (path, child) in of]
        numbers = [n for n in (1, 2) if all(in_turn(having, n) == chosen for _, chosen, having in runs)]
        keys = [
            k
            for k, v in runs[0][0].items()
            if type(v) is int
            and len({config.get(k) for config, *_ in runs}) > 1
            and all(in_turn(having, config.get(k) or 0) == chosen for config, chosen, having in runs)
        ]
        if len(runs) > 1 and (numbers or keys):
            out[f"{path}.*.{child}"] = (numbers or keys)[0]
    return out


def in_turn(having, n):
    """{index: the one that it shares with}, where n different ones are used in turn."""
    return {i: having[k % n] for k, i in enumerate(having) if k >= n} if n > 0 else None
