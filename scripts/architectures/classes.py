"""What is known of one class: its tree with formulas and conditions, and what else its model says of itself."""

import contextlib
import copy
import re

from .changes import configs, of_parts, together
from .configs import has_layers_of_their_own, plain, unlisted
from .conversions import mapping_before_5
from .formulas import solve
from .library import MAJOR, PreTrainedConfig, PreTrainedModel, build
from .size_formulas import confirm, disprove, misleads, names_sizes, solve_in, spelled_out
from .switches import is_switch, switched
from .ties import tied
from .trees import entries, formulas, has_reference, presence, sizes, tree

HEADS = {"vocab_size", "hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim", "embedding_size", "num_labels", "emb_dim"}
"""Keys that the sizes of a head may depend on; the rest of its class is the base model's class."""


def describe(cls, config, deep, within=None):
    """(what the class says of itself, its tree, references to other models' classes)."""
    references = set()
    model = build(cls, config)
    set_in = overridden(model, config)
    config = model.config if type(model.config) is type(config) else config
    node = tree(model, model.config, references, base=within)
    if within is not None and not has_reference(node, f"@:{within}"):
        within, deep = None, True
    derived = {}
    if deep:
        config, derived = spelled_out(cls, config, sizes(node, {}), within)
    base = sizes(node, {})
    depends = {place: {} for place in base}
    defaults = {}
    others = []
    silent = unlisted(cls, config)
    rows = [({**silent, **plain(config)}, presence(node, {}))]
    for key, old, new, other in [*configs(cls, config, True), *(together(config) if deep else ()), *of_parts(config, deep)]:
        doubled = isinstance(old, int) and not isinstance(old, bool) and isinstance(new, int) and new == 2 * old
        if not deep and not (
            doubled and key in HEADS or isinstance(old, bool) or old is None and "vocab" in key or key == "out_features" or "." in key
        ):
            continue
        try:
            try:
                m = build(cls, other)
            except Exception:
                other = type(config)(**plain(other))  # of which it makes what follows from the key
                m = build(cls, other)
            t = tree(m, m.config, references, base=within)
        except Exception:
            continue
        rows.append(({**silent, **plain(other)}, presence(t, {})))
        there, its = sizes(t, {}), entries(t, {})
        for place, (n, _, _) in base.items():
            if place not in there and (not doubled or has_layers_of_their_own(config)) and place[:-1] in its and place[-1] != "len":
                depends[place].setdefault(key, (0, 0))  # elements of a list differ in it
            if place in there and there[place][0] != n:
                # what a flag changes has no formula
                if doubled and names_sizes(config, key):
                    depends[place][key] = (old, there[place][0] - n)
                elif isinstance(old, bool) or not isinstance(old, int) or "." in key:
                    depends[place].setdefault(key, (0, 0))
                if key in vars(config):
                    defaults[key] = old
        others.append((other, t))
    solved = {place: solve(n, depends[place]) for place, (n, _, _) in base.items()}
    if deep:
        confirm(cls, config, solved, within)
        disprove(cls, config, solved, {key for of in depends.values() for key in of}, within)
    for place, (n, holder, d) in base.items():
        formula = solved[place]
        if d is not None and isinstance(formula, str) and misleads(formula):
            formula = None
        if d is None:
            holder[2] = formula
        else:
            holder[2][d] = formula
    known, of_two = entries(node, {}), []
    for other, t in others:
        there, more = sizes(t, {}), {place: dims for place, dims in entries(t, {}).items() if place not in known}
        formulas(t)
        new = {place: n for place, (n, _, _) in there.items() if place[:-1] in more}
        if deep and new:
            # what only such a config has, by what its own keys change
            known.update(more)
            solved, trees = solve_in(cls, other, new, references, within, rows)
            for place, formula in solved.items():
                _, holder, d = there[place]
                if formula is not None and d is None:
                    holder[2] = formula
                elif formula is not None:
                    holder[2] = holder[2] or [None] * more[place[:-1]]
                    holder[2][d] = formula
            of_two += trees
        node.merge(t)
    for t in of_two:
        formulas(t)
        node.merge(t)
    switches = {key: silent.get(key) for key in switched(cls, config, node, rows, within)}
    absent = []
    if within is not None:
        # the base model is built on its own elsewhere; what this class leaves out of it
        inner = next(((n, m) for n, m in model.named_modules() if n and type(m).__name__ == within and m.config is model.config), None)
        if inner is not None:
            alone = build(type(inner[1]), other_config(inner[1]))
            absent = lacks(*inner, alone)
    inside = ()
    for name, part in model.named_modules():
        # models of parts are built on their own elsewhere as well
        if not isinstance(part, PreTrainedModel) or type(part.config) is type(model.config) or name.startswith(inside):
            continue
        inside = (*inside, f"{name}.")
        with contextlib.suppress(Exception):
            absent += lacks(name, part, build(type(part), copy.deepcopy(part.config)))
    says = {
        "absent": absent,
        "root": node.cls,
        "type": config.model_type,
        "base": model.base_model_prefix,
        "tied": tied(cls, model),
        "tie": getattr(type(config)(), "tie_word_embeddings", None)
        if not needs_arguments(type(config))
        else getattr(config, "tie_word_embeddings", None),
        "fp32": sorted(model._keep_in_fp32_modules_strict or ()),
        "fp32half": sorted(model._keep_in_fp32_modules or ()),
        "unexpected": sorted(str(p) for p in model._keys_to_ignore_on_load_unexpected or ()),
        "missing": sorted(str(p) for p in model._keys_to_ignore_on_load_missing or ()),
        "split": sorted(model._no_split_modules or ()),
    }
    if MAJOR < 5:
        says["mapping"] = mapping_before_5(cls)
    return {k: v for k, v in says.items() if v not in (None, [], "")}, node, references, (defaults, derived, switches, set_in)


def lacks(path, inside, alone):
    """The modules that a model in another one lacks, of those that it has alone, by their paths. Elements of lists are not named: how many there are
    is the config's."""
    has, out = inside.state_dict().keys(), []
    for name, module in alone.named_modules():
        keys = [f"{name}.{k}" for k in module.state_dict()] if name else []
        if keys and has.isdisjoint(keys) and not re.search(r"(^|\.)\d", name) and not name.startswith(tuple(f"{n}." for n in out)):
            out.append(name)
    return [f"{path}.{name}" for name in sorted(out)]


def overridden(model, config):
    """{sub-config: keys} that a model switches on or off itself in a part's config before it makes the part."""
    out = {}
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.config is not model.config:
            for name, part in vars(config).items():
                if isinstance(part, PreTrainedConfig) and type(part) is type(module.config):
                    was, now = plain(part), plain(module.config)
                    moved = {
                        k for k in was if k in now and is_switch(was[k]) and (bool(was[k]) != bool(now[k]) or (was[k] is None) != (now[k] is None))
                    }
                    out.setdefault(name, set()).update(moved)
    return {name: sorted(keys) for name, keys in out.items() if keys}


def needs_arguments(config_class):
    try:
        config_class()
    except Exception:
        return True
    return False


def other_config(model):
    return copy.deepcopy(model.config)
