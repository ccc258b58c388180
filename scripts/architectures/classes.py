"""What is known of one class: its tree with formulas and conditions, and what else its model says of itself."""

import contextlib
import re
from dataclasses import dataclass

from .changes import is_doubled, one_key, one_key_of_a_part, together
from .configs import plain, unlisted
from .conversions import mapping_before_5
from .formulas import solve
from .library import MAJOR, PreTrainedConfig, PreTrainedModel, build
from .size_formulas import Dependence, confirm, disprove, spelled_out, without_misleading
from .switches import is_switch, row, switched
from .ties import tied_names
from .trees import Node, entries, forget_sizes, has_reference, put_size, sizes, tree

HEADS = {"vocab_size", "hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim", "embedding_size", "num_labels", "emb_dim"}
"""Keys that the sizes of a head may depend on; the rest of its class is the base model's class."""


@dataclass
class Described:
    """What is known of a class, and what its config's keys mean to it."""

    says: dict  # the line of the class in the data file
    tree: Node
    references: set  # (class, config class) of other models in it
    defaults: dict  # {key: value} of keys that sizes depend on
    derived: dict  # {key: formula} of keys that are made of others
    switches: dict  # {key: value} of keys that switch parts on
    set_in: dict  # {sub-config: keys} that the class sets in parts


def describe(cls, config, deep, within=None):
    """Describes a class. `within` names the class of the base model, where that is described on its own. Without `deep`, only keys that matter to a
    head are changed."""
    references = set()
    model = build(cls, config)
    set_in = overridden(model, config)
    config = model.config if type(model.config) is type(config) else config
    node = tree(model, model.config, references, base=within)
    if within is not None and not has_reference(node, f"@:{within}"):
        within, deep = None, True
    derived = {}
    if deep:
        config, derived = spelled_out(cls, config, sizes(node), within)
    silent = unlisted(cls, config)
    rows = [row(silent, config, node)]
    dependence, others = Dependence(config, node), []
    for key, old, new, other, t in under_changes(cls, config, deep, within, references):
        rows.append(row(silent, other, t))
        dependence.note(key, old, new, t)
        others.append((other, t))
    solved = dependence.solved()
    if deep:
        confirm(cls, config, solved, within)
        disprove(cls, config, solved, dependence.keys(), within)
    for place, (_, holder, dim) in dependence.sizes.items():
        put_size(holder, dim, without_misleading(solved[place], dim))
    merge_others(cls, node, others, deep, within, references, rows)
    switches = {key: silent.get(key) for key in switched(cls, config, node, rows, within)}
    says = said_by(cls, model, config, node.cls, left_out(model, within))
    return Described(says, node, references, dependence.defaults, derived, switches, set_in)


def under_changes(cls, config, deep, within, references):
    """(key, its value before, after, config, tree) of a class under configs that differ in one key, or in a few."""
    for key, old, new, other in [*one_key(cls, config), *(together(config) if deep else ()), *one_key_of_a_part(config, deep)]:
        if not deep and not matters_to_head(key, old, new):
            continue
        try:
            try:
                model = build(cls, other)
            except Exception:
                other = type(config)(**plain(other))  # makes what follows from the key
                model = build(cls, other)
            t = tree(model, model.config, references, base=within)
        except Exception:
            continue
        yield key, old, new, other, t


def matters_to_head(key, old, new):
    """Whether a change may matter to what a class has besides its base model."""
    of_size = (is_doubled(old, new) and key in HEADS) or (old is None and "vocab" in key) or "." in key
    return of_size or isinstance(old, bool) or key == "out_features"


def merge_others(cls, node, others, deep, within, references, rows):
    """Merges the trees of other configs into a class's tree. The sizes of what only such a config has get formulas by changes of that config."""
    known, of_two = entries(node), []
    for other, t in others:
        there, more = sizes(t), {place: dims for place, dims in entries(t).items() if place not in known}
        forget_sizes(t)
        new = {place: n for place, (n, _, _) in there.items() if place[:-1] in more}
        if deep and new:
            known.update(more)
            solved, trees = solve_new(cls, other, new, references, within, rows)
            for place, formula in solved.items():
                _, holder, dim = there[place]
                if formula is not None:
                    if dim is not None:
                        holder.shape = holder.shape or [None] * more[place[:-1]]
                    put_size(holder, dim, formula)
            of_two += trees
        node.merge(t)
    for t in of_two:
        forget_sizes(t)
        node.merge(t)


def solve_new(cls, config, places, references, within, rows):
    """({place: formula}, trees): formulas of those sizes ({place: size}) of a model under a config that differs from the default in one key, and its
    trees with a flag changed as well."""
    depends, trees = {place: {} for place in places}, []
    silent = unlisted(cls, config)
    for key, old, new, other in one_key(cls, config):
        try:
            model = build(cls, other)
            t = tree(model, model.config, references, base=within)
        except Exception:
            continue
        rows.append(row(silent, other, t))
        there = sizes(t)
        if isinstance(old, bool):
            trees.append(t)
        for place, n in places.items():
            if place in there and there[place][0] != n:
                if is_doubled(old, new):
                    depends[place][key] = (old, there[place][0] - n)
                else:
                    depends[place].setdefault(key, (0, 0))
    solved = {place: solve(n, depends[place]) for place, n in places.items()}
    confirm(cls, config, solved, within)
    return {place: without_misleading(formula, None if place[-1] == "len" else place[-1]) for place, formula in solved.items()}, trees


def said_by(cls, model, config, root, absent):
    """The line of a class in the data file."""
    says = {
        "absent": absent,
        "root": root,
        "type": config.model_type,
        "base": model.base_model_prefix,
        "tied": tied_names(cls, model),
        "tie": default_tie(config),
        "fp32": sorted(model._keep_in_fp32_modules_strict or ()),
        "fp32half": sorted(model._keep_in_fp32_modules or ()),
        "unexpected": sorted(str(p) for p in model._keys_to_ignore_on_load_unexpected or ()),
        "missing": sorted(str(p) for p in model._keys_to_ignore_on_load_missing or ()),
        "split": sorted(model._no_split_modules or ()),
    }
    if MAJOR < 5:
        says["mapping"] = mapping_before_5(cls)
    return {k: v for k, v in says.items() if v not in (None, [], "")}


def default_tie(config):
    """`tie_word_embeddings` of a config that says nothing; of a config whose class needs arguments, its own."""
    with contextlib.suppress(Exception):
        config = type(config)()
    return getattr(config, "tie_word_embeddings", None)


def left_out(model, within):
    """The modules, by path, that a model leaves out of its base model and of the models of its parts, which are built on their own as well."""
    absent = []
    if within is not None:
        inner = next(((n, m) for n, m in model.named_modules() if n and type(m).__name__ == within and m.config is model.config), None)
        if inner is not None:
            path, base = inner
            absent = lacking(path, base, build(type(base), base.config))
    inside = ()
    for path, part in model.named_modules():
        if not isinstance(part, PreTrainedModel) or type(part.config) is type(model.config) or path.startswith(inside):
            continue
        inside = (*inside, f"{path}.")
        with contextlib.suppress(Exception):
            absent += lacking(path, part, build(type(part), part.config))
    return absent


def lacking(path, inside, alone):
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
