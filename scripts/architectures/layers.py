"""Of which kind each layer of a list is, by predicates on the layer's index and keys of config.json."""

import copy
import itertools
import re

from .changes import KINDS
from .configs import plain
from .default_configs import LACKS
from .library import CONFIG_MAPPING, PreTrainedModel, build, torch, transformers
from .ties import shared, shares

DEPTH = 6  # layers that are built to see which is of which kind
DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
OF_LAYERS = re.compile("layer|dense|sparse|step|interval|freq|period|offset|moe|block|attention")
PREDICATE = re.compile(r"(i>=|i<=|i%|\(i\+1\)%|i!|i@|)(\w+)(?:\[(i|i%)\]=(.+)|=(\w+))?")


def kinds_of(config, base):
    """`kinds`, `shared` and `lengths` of the base model of a type."""
    cls = getattr(transformers, base or "", None)
    known = isinstance(cls, type) and issubclass(cls, PreTrainedModel) and cls.config_class is type(config)
    return kinds(cls, config) if known else ({}, {}, {})


def kinds(cls, config):
    """(`kinds`, `shared`, `lengths`) of a model. `kinds` is {"one/other": [[predicate…]…]}: where one of two classes stands, it is the first at the layers of which all predicates of an alternative are true: of
    the first one whose keys config.json has. `"+CLASS.child"` and `"-CLASS.child"` say in this way where a layer has a part, or lacks it. Of more keys
    than are looked at together nothing is said."""
    depth = next((k for k in DEPTHS if isinstance(vars(config).get(k, getattr(type(config), k, None)), (int, property))), None)
    if depth is None:
        return {}, {}, {}
    seen, sharing = [], []

    def run(keys):
        keys = {depth: DEPTH, **keys}
        try:
            lacks = {k: v[:DEPTH] if isinstance(v, list) else v for k, v in LACKS.get(config.model_type, {}).items()}
            made = CONFIG_MAPPING[config.model_type](**copy.deepcopy({**lacks, **keys}))
            model = build(cls, made)
            seen.append((keys, slots(model)))
            sharing.append((plain(made), shares(model)))
        except Exception:
            return None
        return seen[-1][1]

    run({})
    one_key = {key: [(value, got) for value in values if (got := run({key: value})) is not None] for key, values in singles(config).items()}
    rules = rules_of(one_key, seen, run, lambda slots: slots)
    parts = rules_of(one_key, seen, run, lambda slots: parts_of_layers(slots, seen))
    if parts:
        # a flag may decide as well
        cases = [{}, *({key: value} for key, found in one_key.items() for value, _ in found[-2:] if isinstance(value, list))]
        for flag, value in [(k, v) for k, v in plain(config).items() if isinstance(v, bool)]:
            for keys in cases:
                run({**keys, flag: not value})
        runs = [(keys, parts_of_layers(found, seen)) for keys, found in seen]
        parts = {pair: of for pair, of in parts.items() if all(agrees(pair, of, keys, found) for keys, found in runs)}
    sharers = sorted((-max(len(having) for _, having in of.values()), i) for i, (_, of) in enumerate(sharing) if of)
    for keys in [seen[i][0] for _, i in sharers[:4]]:
        # a number may say how many different ones there are
        for key, value in itertools.product([k for k, values in singles(config).items() if type(values[0]) is int], (2, 3)):
            run({**keys, key: value})
    return {**rules, **parts}, shared(sharing), lengths(seen)


def slots(model):
    """{(list, child): {index: class}}: of which class the elements of lists are, and their children."""
    out = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and not re.search(r"\.\d+(\.|$)", path):
            for i, element in enumerate(module):
                for name, child in [("", element), *element._modules.items()] if element is not None else ():
                    if child is not None:
                        out.setdefault((path, name), {})[i] = type(child).__name__
    return out


def singles(config):
    """{key: values of it that config.json may have}, of keys that are layers' business."""
    values = {k: v for k, v in plain(config).items() if OF_LAYERS.search(k) and k not in DEPTHS}
    out = {}
    for key, value in values.items():
        listed = isinstance(value, (list, tuple))
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 128:
            out[key] = [-1, 0, 1, 2, 3, 4]
        elif listed and value and all(isinstance(w, str) for w in value):
            known = list(dict.fromkeys(value))
            pairs = [(a, b) for a, b in itertools.permutations(dict.fromkeys([*known, *KINDS]), 2) if a in known or b in known]
            out[key] = [some for a, b in pairs for some in ([a, b] * (DEPTH // 2), [a, a] + [b] * (DEPTH - 2))]
            # a short one is repeated, or says how many layers there are; most classes take none
            out[key] += [some for a, b in itertools.permutations(known, 2) for some in ([a, b], [a, b, b, b], [a, a, b])]
        elif "layer" in key and (value is None or listed and all(isinstance(n, int) for n in value)):
            out[key] = [[], [1], [0, 3, 4]]
    return out


def lengths(seen):
    """{list: key} of lists of modules that are as long as a list of config.json, whatever else it says."""
    out = {}
    for path in sorted({path for _, found in seen for path, name in found if not name}):
        by_key = {}
        for keys, found in seen:
            for key, value in keys.items():
                if isinstance(value, list) and value and isinstance(value[0], str) and (path, "") in found:
                    by_key.setdefault(key, []).append((len(value), len(found[path, ""])))
        of = [key for key, pairs in by_key.items() if len(set(pairs)) > 1 and all(a == b for a, b in pairs)]
        if of:
            out[path] = of[0]
    return out


def parts_of_layers(slots, seen):
    """{(list, class, child): {index: "+CLASS.child" or "-CLASS.child"}}: where elements of a list have a child that one of their class has somewhere."""
    known = {}
    for _, found in seen:
        for (path, name), at in found.items():
            for i in at if name else ():
                known.setdefault(path, set()).add((found[path, ""][i], name))
    out = {}
    for path, parts in known.items():
        of = slots.get((path, ""), {})
        for cls, name in parts:
            there = slots.get((path, name), {})
            out[path, cls, name] = {i: f"{'+' if i in there else '-'}{cls}.{name}" for i, c in of.items() if c == cls}
    return out


def rules_of(one_key, seen, run, view):
    """`kinds` of what `view` makes of a model's layers."""
    effective, first = {}, view(seen[0][1]) if seen else None
    for key, found in one_key.items():
        found = [(value, view(got)) for value, got in found]
        differ = [value for i, (value, got) in enumerate(found) if got not in [g for _, g in found[:i]]]
        if len(differ) > 1:
            effective[key] = differ
        elif differ and any(got != first for _, got in found):
            # with another key it may be told apart
            effective[key] = [value for value, _ in found][-4:]
        elif not found and "period" in key:
            effective[key] = [2, 3, 4]  # which the default offset is too large for
    if len(effective) > 4:
        return {}
    for some in itertools.product(*([None, *(values[:4] if len(effective) < 4 else values[-3:])] for values in effective.values())):
        keys = {k: v for k, v in zip(effective, some) if v is not None}
        if len(keys) > 1:
            run(keys)
    seen = [(keys, view(found)) for keys, found in seen]
    pool, places = [], {}
    for key, values in effective.items():
        words = sorted({w for v in values if isinstance(v, list) for w in v if isinstance(w, str)})
        if words:
            repeated = any(i >= len(keys[key]) for keys, found in seen if key in keys for layers in found.values() for i in layers)
            places[key] = "i%" if repeated else "i"
            pool.append([f"{key}[{places[key]}]={word}" for word in words])
        elif isinstance(values[0], list):
            pool.append([f"i!{key}", f"i@{key}"])
        else:
            pool.append([f"{form}{key}" for form in ("i>=", "i<=", "(i+1)%", "i%")])
    tries = [list(p) for n in (1, 2, 3) for of in itertools.combinations(pool, n) for p in itertools.product(*of)]
    tries += [[f"i%{a}={b}"] for a, b in itertools.permutations([k for k, v in effective.items() if not isinstance(v[0], list)], 2)]
    tries.sort(key=lambda t: (not any("=" in p[3:] and "[" in p for p in t), len(t)))  # words decide where there are any
    out = {}
    for slot in sorted({slot for _, found in seen for slot in found}):
        runs = [(keys, found[slot]) for keys, found in seen if slot in found]
        classes = sorted({c for _, found in runs for c in found.values()})
        if len(classes) < 2:
            continue
        rules = {}
        for key, at in places.items():  # several words of one meaning, or several kinds
            by_word = {
                (keys[key][i % len(keys[key]) if at == "i%" else i], c)
                for keys, found in runs if isinstance(keys.get(key), list) for i, c in found.items() if at == "i%" or i < len(keys[key])
            }  # fmt: skip
            words = {name: sorted(w for w, c in by_word if c == name) for name in classes}
            if len(by_word) != len(dict(by_word)) or not all(words.values()):
                continue
            rule = lambda name: [[f"{key}[{at}]={'|'.join(words[name])}"]]
            if len(classes) > 2:
                rules = rules or {f"{name}/": rule(name) for name in classes}
            elif min(map(len, words.values())) > 1:
                name = min(classes, key=lambda name: (len(words[name]), name))
                rules.setdefault("/".join(sorted(classes, key=lambda c: c != name)), []).extend(rule(name))
        if len(classes) > 2:
            out.setdefault(tuple(classes), []).append(rules)
            continue
        decided = set()  # keys that alternatives before have, whose runs say nothing of later ones
        for predicates in tries:
            keys_of_it = {k for p in predicates for k in PREDICATE.fullmatch(p).group(2, 5) if k}
            answers = [([all_of([holds(p, i, keys) for p in predicates]) for i in found], list(found.values()), keys) for keys, found in runs]
            answers = [(answer, found) for answer, found, keys in answers if None not in answer and not decided & keys.keys()]
            if len({tuple(answer) for answer, _ in answers}) < 3:
                continue
            for name in classes:
                if all(a == (c == name) for answer, found in answers for a, c in zip(answer, found)):
                    rules.setdefault("/".join(sorted(classes, key=lambda c: c != name)), []).append(predicates)
                    decided |= keys_of_it
                    break
        out.setdefault(tuple(classes), []).append(rules)
    # of two classes that stand in for each other in several places, by one rule in all of them
    return {pair: rule for found in out.values() if all(f == found[0] for f in found) for pair, rule in found[0].items()}


def holds(predicate, i, keys):
    """Whether a predicate of `kinds` is true of layer i; None where the keys do not say."""
    form, key, at, words, other = PREDICATE.fullmatch(predicate).groups()
    value = keys.get(key)
    if words is not None:
        i = i % len(value) if at == "i%" and value else i
        return value[i] in words.split("|") if value is not None and i < len(value) else None
    if other is not None:
        rest = keys.get(other)
        return None if value is None or value < 1 or rest is None else i % value == rest
    if form == "i!":
        return i not in (value or ())
    if form == "i@":
        return None if value is None else i in value
    if value is None or "%" in form and value < 1:
        return None
    return {"i>=": i >= value, "i<=": i <= value or value == -1, "i%": i % (value or 1) == 0, "(i+1)%": (i + 1) % (value or 1) == 0}[form]


def agrees(pair, alternatives, keys, found):
    """Whether the first of the alternatives that config.json's keys decide is right about a model."""
    first = pair.split("/")[0]
    for layers in found.values():
        if not {first, pair.split("/")[1]} & set(layers.values()):
            continue
        for i, kind in layers.items():
            answers = (all_of([holds(p, i, keys) for p in predicates]) for predicates in alternatives)
            answer = next((a for a in answers if a is not None), None)
            if answer is not None and answer != (kind == first):
                return False
    return True


def all_of(answers):
    return None if None in answers else all(answers)


def with_letters(predicate, letters):
    """A predicate of a list's words that is one of their letters as well."""
    key, form, words = predicate.partition("[")[0], predicate.partition("]=")[0], predicate.partition("]=")[2]
    more = [letter for of, table in letters.values() if of == key and words for letter, word in table.items() if word in words.split("|")]
    return f"{form}]={'|'.join([*words.split('|'), *more])}" if more else predicate
