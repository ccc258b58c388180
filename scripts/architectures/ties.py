"""Parameters that are one: tied weights, and parts that several layers of a list share."""

import contextlib
import copy
import re

from .configs import with_parts
from .library import MAJOR, PreTrainedConfig, build


def tied(cls, model):
    """Names of one parameter: alias -> first. transformers 5 has them as data; before, the model is asked."""
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
    first, out = {}, {}
    for name, p in other.named_parameters(remove_duplicate=False):
        if first.setdefault(id(p), name) != name:
            out[name] = first[id(p)]
    return out


def ties(model):
    """{other name: first name} of parameters and buffers that config.json's `tie_word_embeddings` makes one; before transformers 5, of those that are."""
    if MAJOR >= 5:
        for of in with_parts(model.config):
            of.tie_word_embeddings = True
        with contextlib.suppress(Exception):
            return model.get_expanded_tied_weights_keys(all_submodels=True)
        return {}
    first, out = {}, {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(p), name) != name:
            out[name] = first[id(p)]
    return out


IN_LIST = re.compile(r"([\w.]+?)\.(\d+)\.(\w+)\.([\w.]+)")


def shares(model):
    """{(list, child): ({index: index of the element that it shares the child with}, every index that has the child)}."""
    names = [n for of in (model.named_parameters, model.named_buffers) for n, _ in of(remove_duplicate=False)]
    of_all, has = ties(model), {}
    for path, i, child, rest in (m.groups() for m in map(IN_LIST.fullmatch, names) if m):
        to = IN_LIST.fullmatch(of_all.get(f"{path}.{i}.{child}.{rest}", ""))
        same = to is not None and to.group(1, 3, 4) == (path, child, rest)
        has.setdefault((path, child), {}).setdefault(int(i), set()).add(int(to.group(2)) if same else None)
    some = {slot: of for slot, of in has.items() if any(sources != {None} for sources in of.values())}
    return {slot: ({i: next(iter(s)) if len(s) == 1 else -1 for i, s in of.items() if s != {None}}, sorted(of)) for slot, of in some.items()}


def shared(found):
    """{"list.*.child": n}, of all that `shares` says of models with their configs: elements of the list that have the child share it with the one that
    has it n such elements before, so that there are n different ones. n is a number, or a key of config.json."""
    out = {}
    for path, child in sorted({slot for _, of in found for slot in of}):
        runs = [(config, *of[path, child]) for config, of in found if (path, child) in of]

        def fits(n):
            in_turn = lambda config, having: {i: having[k % count] for k, i in enumerate(having) if k >= count} if (count := n(config)) > 0 else None
            return all(chosen == in_turn(config, having) for config, chosen, having in runs)

        numbers = [n for n in (1, 2) if fits(lambda _: n)]
        keys = [
            k
            for k, v in runs[0][0].items()
            if type(v) is int and len({config.get(k) for config, *_ in runs}) > 1 and fits(lambda config: config.get(k) or 0)
        ]
        if len(runs) > 1 and (numbers or keys):
            out[f"{path}.*.{child}"] = (numbers or keys)[0]
    return out
