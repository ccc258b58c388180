"""Of which kind each layer of a list is, by predicates on the layer's index and keys of config.json."""

import copy
import itertools
import re

from .changes import KINDS
from .configs import plain
from .default_configs import LACKS
from .library import CONFIG_MAPPING, build, is_model, torch, transformers
from .ties import shared, shares

DEPTH = 6  # layers of a model that is built here
DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
OF_LAYERS = re.compile("layer|dense|sparse|step|interval|freq|period|offset|moe|block|attention")
PREDICATE = re.compile(r"(i>=|i<=|i%|\(i\+1\)%|i!|i@|)(\w+)(?:\[(i|i%)\]=(.+)|=(\w+))?")


class Runs:
    """Models of a class under several configs, of few layers each."""

    def __init__(self, cls, config, depth):
        self.cls, self.config, self.depth = cls, config, depth
        self.seen = []  # (keys, what `slots` says)
        self.sharing = []  # (the config's keys, what `shares` says)

    def run(self, keys):
        """What `slots` says of the model under these keys; None where it is not built."""
        model_type, keys = self.config.model_type, {self.depth: DEPTH, **keys}
        try:
            lacks = {k: v[:DEPTH] if isinstance(v, list) else v for k, v in LACKS.get(model_type, {}).items()}
            config = CONFIG_MAPPING[model_type](**copy.deepcopy({**lacks, **keys}))
            model = build(self.cls, config)
            self.seen.append((keys, slots(model)))
            self.sharing.append((plain(config), shares(model)))
        except Exception:
            return None
        return self.seen[-1][1]


def layers_of(config, base):
    """(`kinds`, `shared`, `lengths`) of the base model of a type.

    `kinds` is {"one/other": [[predicate…]…]}: where one of two classes stands, it is the first at the layers for which all predicates of an
    alternative are true; the first alternative decides whose keys config.json has. "+CLASS.child" and "-CLASS.child" say in this way where a layer
    has a part, or lacks it. Where more keys decide than are tried together, nothing is said.
    """
    cls = getattr(transformers, base or "", None)
    if not is_model(cls) or cls.config_class is not type(config):
        return {}, {}, {}
    depth = next((k for k in DEPTHS if isinstance(vars(config).get(k, getattr(type(config), k, None)), (int, property))), None)
    if depth is None:
        return {}, {}, {}
    runs, values_of = Runs(cls, config, depth), singles(config)
    runs.run({})
    one_key = {key: [(value, got) for value in values if (got := runs.run({key: value})) is not None] for key, values in values_of.items()}
    rules = rules_of(runs, one_key, lambda found: found)
    parts = rules_of(runs, one_key, lambda found: parts_of_layers(found, runs.seen))
    if parts:
        # a flag may decide as well
        cases = [{}, *({key: value} for key, found in one_key.items() for value, _ in found[-2:] if isinstance(value, list))]
        for flag, value in [(k, v) for k, v in plain(config).items() if isinstance(v, bool)]:
            for keys in cases:
                runs.run({**keys, flag: not value})
        found_parts = [(keys, parts_of_layers(found, runs.seen)) for keys, found in runs.seen]
        parts = {pair: of for pair, of in parts.items() if all(agrees(pair, of, keys, found) for keys, found in found_parts)}
    sharers = sorted((-max(len(having) for _, having in of.values()), i) for i, (_, of) in enumerate(runs.sharing) if of)
    for keys in [runs.seen[i][0] for _, i in sharers[:4]]:
        # a number may say how many different ones there are
        for key, value in itertools.product([k for k, values in values_of.items() if type(values[0]) is int], (2, 3)):
            runs.run({**keys, key: value})
    return {**rules, **parts}, shared(runs.sharing), lengths(runs.seen)


def slots(model):
    """{(list, child): {index: class}} of the children of lists' elements, and of the elements themselves, as child ""."""
    out = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and not re.search(r"\.\d+(\.|$)", path):
            for i, element in enumerate(module):
                for name, child in [("", element), *element._modules.items()] if element is not None else ():
                    if child is not None:
                        out.setdefault((path, name), {})[i] = type(child).__name__
    return out


def singles(config):
    """{key: values} to try, of keys that may tell layers apart."""
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
            # a short list is repeated, or says how many layers there are; most classes refuse it
            out[key] += [some for a, b in itertools.permutations(known, 2) for some in ([a, b], [a, b, b, b], [a, a, b])]
        elif "layer" in key and (value is None or (listed and all(isinstance(n, int) for n in value))):
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
    """{(list, class, child): {index: "+CLASS.child" or "-CLASS.child"}}: which elements have a child that some element of their class has."""
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


def rules_of(runs, one_key, view):
    """`kinds` of what `view` makes of a model's layers. `one_key` is {key: [(value, what `slots` says)]}."""
    effective = effective_values(runs, one_key, view)
    if len(effective) > 4:
        return {}
    for some in itertools.product(*([None, *(values[:4] if len(effective) < 4 else values[-3:])] for values in effective.values())):
        keys = {k: v for k, v in zip(effective, some, strict=True) if v is not None}
        if len(keys) > 1:
            runs.run(keys)
    seen = [(keys, view(found)) for keys, found in runs.seen]
    forms = word_forms(effective, seen)
    tries = tries_of(effective, forms)
    out = {}
    for slot in sorted({slot for _, found in seen for slot in found}):
        rows = [(keys, found[slot]) for keys, found in seen if slot in found]
        classes = sorted({c for _, found in rows for c in found.values()})
        if len(classes) < 2:
            continue
        rules = rules_by_words(forms, rows, classes)
        if len(classes) == 2:
            add_rules_of_two(rules, tries, rows, classes)
        out.setdefault(tuple(classes), []).append(rules)
    # of two classes that stand in for each other in several places, by one rule in all of them
    return {pair: rule for found in out.values() if all(f == found[0] for f in found) for pair, rule in found[0].items()}


def effective_values(runs, one_key, view):
    """{key: values} of keys that change of which kind layers are."""
    effective, first = {}, view(runs.seen[0][1]) if runs.seen else None
    for key, found in one_key.items():
        found = [(value, view(got)) for value, got in found]
        differ = [value for i, (value, got) in enumerate(found) if got not in [g for _, g in found[:i]]]
        if len(differ) > 1:
            effective[key] = differ
        elif differ and any(got != first for _, got in found):
            # its values may differ under another key
            effective[key] = [value for value, _ in found][-4:]
        elif not found and "period" in key:
            effective[key] = [2, 3, 4]  # which the default offset is too large for
    return effective


def words_in(values):
    """The words in a key's values that are lists of them."""
    return sorted({w for v in values if isinstance(v, list) for w in v if isinstance(w, str)})


def word_forms(effective, seen):
    """{key: form} of lists of words: "i" where a list has a word for each layer, "i%" where it is repeated."""
    forms = {}
    for key, values in effective.items():
        if words_in(values):
            repeated = any(i >= len(keys[key]) for keys, found in seen if key in keys for layers in found.values() for i in layers)
            forms[key] = "i%" if repeated else "i"
    return forms


def tries_of(effective, forms):
    """Lists of predicates to try: one of each key, of up to three keys."""
    pool = []
    for key, values in effective.items():
        if key in forms:
            pool.append([f"{key}[{forms[key]}]={word}" for word in words_in(values)])
        elif isinstance(values[0], list):
            pool.append([f"i!{key}", f"i@{key}"])
        else:
            pool.append([f"{form}{key}" for form in ("i>=", "i<=", "(i+1)%", "i%")])
    tries = [list(p) for n in (1, 2, 3) for of in itertools.combinations(pool, n) for p in itertools.product(*of)]
    tries += [[f"i%{a}={b}"] for a, b in itertools.permutations([k for k, v in effective.items() if not isinstance(v[0], list)], 2)]
    tries.sort(key=lambda t: (not any("=" in p[3:] and "[" in p for p in t), len(t)))  # words decide where there are any
    return tries


def pair_of(first, classes):
    """The name of a rule on two classes, by the one that it is about."""
    return "/".join(sorted(classes, key=lambda c: c != first))


def rules_by_words(forms, rows, classes):
    """{"one/other": [[predicate]]} of lists in which several words mean one of two classes, or {"one/": [[predicate]]} of more classes."""
    rules = {}
    for key, form in forms.items():
        by_word = {
            (keys[key][i % len(keys[key]) if form == "i%" else i], c)
            for keys, found in rows if isinstance(keys.get(key), list) for i, c in found.items() if form == "i%" or i < len(keys[key])
        }  # fmt: skip
        words = {name: sorted(w for w, c in by_word if c == name) for name in classes}
        if len(by_word) != len(dict(by_word)) or not all(words.values()):
            continue
        predicates = {name: f"{key}[{form}]={'|'.join(words[name])}" for name in classes}
        if len(classes) > 2:
            rules = rules or {f"{name}/": [[predicates[name]]] for name in classes}
        elif min(map(len, words.values())) > 1:
            name = min(classes, key=lambda name: (len(words[name]), name))
            rules.setdefault(pair_of(name, classes), []).append([predicates[name]])
    return rules


def add_rules_of_two(rules, tries, rows, classes):
    """Adds the alternatives that are right about two classes in all models."""
    decided = set()  # keys of earlier alternatives; models under them say nothing of later ones
    for predicates in tries:
        keys_of_it = {k for p in predicates for k in PREDICATE.fullmatch(p).group(2, 5) if k}
        answers = [([all_of([holds(p, i, keys) for p in predicates]) for i in found], list(found.values()), keys) for keys, found in rows]
        answers = [(answer, found) for answer, found, keys in answers if None not in answer and not decided & keys.keys()]
        if len({tuple(answer) for answer, _ in answers}) < 3:
            continue
        for name in classes:
            if all(a == (c == name) for answer, found in answers for a, c in zip(answer, found, strict=True)):
                rules.setdefault(pair_of(name, classes), []).append(predicates)
                decided |= keys_of_it
                break


def holds(predicate, i, keys):
    """Whether a predicate is true of layer i; None where the keys do not say."""
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
    if value is None or ("%" in form and value < 1):
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
    """Whether all are true; None where one is not known."""
    return None if None in answers else all(answers)


def with_letters(predicate, letters):
    """A predicate on a list's words, with the letters that stand for them."""
    key, form, words = predicate.partition("[")[0], predicate.partition("]=")[0], predicate.partition("]=")[2]
    more = [letter for of, table in letters.values() if of == key and words for letter, word in table.items() if word in words.split("|")]
    return f"{form}]={'|'.join([*words.split('|'), *more])}" if more else predicate
