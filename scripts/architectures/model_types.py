"""What is known of one model type: its line of the data file, and all its classes."""

import contextlib
import importlib
import json
import sys

from .classes import describe
from .config_json import derived_keys, flat_parts, forced_tie, lettered, number_defaults, set_in_parts, switch_defaults, whole_parts
from .configs import parts_of, plain
from .default_configs import LAYERS, default_config, evened, repaired, shrunk
from .formulas import keys_of
from .layers import layers_of, with_letters
from .library import CONFIG_MAPPING_NAMES, PreTrainedModel, at_home, base_of, by_use, classes_of, is_model, modeling_files, torch, transformers
from .trees import elements_at, pack


class Classes:
    """The classes of a model type, and what its config's keys mean to them."""

    def __init__(self):
        self.described, self.failed = {}, {}  # by name: what is known, or why nothing is
        self.defaults, self.derived, self.switches = {}, {}, {}  # as of one class
        self.set_in, self.references = {}, set()

    def add(self, name, config, found):
        """Adds what is known of a class of this config."""
        self.described[name] = found
        for part, keys in found.set_in.items():
            self.set_in.setdefault(part, set()).update(keys)
        self.switches.update({k: v for k, v in found.switches.items() if k not in self.switches})
        self.references |= found.references
        self.defaults.update({k: plain(config).get(k, v) for k, v in found.defaults.items()})
        for key, formula in found.derived.items():
            if self.derived.setdefault(key, formula) != formula:
                self.derived[key] = None


def one_type(model_type):
    """Everything of a model type, and of parts that are not listed: [(type, its line, [(class, what it says, tree)], {class: why it failed})]."""
    torch.set_num_threads(1)
    try:
        config = default_config(model_type)
    except Exception as error:
        return [(model_type, {}, [], {"config": f"{type(error).__name__}: {error}"})]
    return of_config(model_type, config)


def of_config(model_type, config):
    """Everything of a config's model type, as `one_type` gives it."""
    found, base, parts = classes_of(model_type), base_of(model_type), parts_of(config)
    line = {**by_use(found), "base": base, "attributes": dict(config.attribute_map or {})}
    line["tie"] = getattr(config, "tie_word_embeddings", None)
    line["ties"] = forced_tie(type(config), model_type)
    line["sub"] = {k: name_of(v, model_type, k) for k, v in parts.items()}
    # of the type that config.json says; other parts are of one type, whatever it says
    line["auto"] = sorted(k for k, v in (config.sub_configs or {}).items() if v.__name__ == "AutoConfig")
    names = list(dict.fromkeys(n for n in [base, *found.values()] if n))
    others, own = classes_in_files(model_type, config, names)
    classes = describe_all(config, base, list(dict.fromkeys([*names, *own])), others)
    line |= line_of_keys(config, base, classes)
    line = {k: v for k, v in line.items() if v not in (None, {}, [])}
    for of in classes.described.values() if "/" in model_type else ():
        of.says["type"] = model_type
    all_of_it = [(model_type, line, [(n, of.says, pack(of.tree)) for n, of in classes.described.items()], classes.failed)]
    for key, part in parts.items():
        of_it = of_part(config, line["sub"][key], part, classes, others)
        if any(packed for _, _, packed, _ in of_it):
            all_of_it += of_it
        elif not at_home(part):
            line["sub"] = {k: v for k, v in {**line["sub"], key: part.model_type}.items() if v}  # no model takes it
    if not line.get("sub"):
        line.pop("sub", None)
    return all_of_it


def name_of(part, model_type, key):
    """The model type of a part of a model's config. Before transformers 5 most are not listed, and some have the whole model's; these get a name."""
    return part.model_type if at_home(part) else f"{model_type}/{key}"


def classes_in_files(model_type, config, names):
    """({name: class} of the models in a type's modeling files, names of those that take its config). Composite models use classes that no
    auto-mapping names."""
    module = None
    for name in names:
        cls = getattr(transformers, name, None)
        module = sys.modules.get(cls.__module__) if cls is not None else module
    if module is None:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    if model_type == "dinat" and module is not None:
        module.requires_backends = lambda *_: None  # natten computes; it has no parameters
    others, own = {}, []
    for file in modeling_files(module, type(config)):
        for name, cls in vars(file).items():
            if is_model(cls) and cls.__module__ == file.__name__ and not name.endswith("PreTrainedModel"):
                others.setdefault(name, cls)
                if getattr(cls, "config_class", None) is type(config):
                    own.append(name)
    return others, own


def describe_all(config, base, names, others):
    """The classes of these names, described; the base model first, which the others have in them."""
    classes, small, tiny = Classes(), evened(shrunk(config, LAYERS)), shrunk(config, 2)
    for name in names:
        cls = getattr(transformers, name, None) or others.get(name)
        if cls is None or not issubclass(cls, PreTrainedModel):
            continue
        own = getattr(cls, "config_class", None)
        if own is not type(config) and getattr(own, "model_type", "") in CONFIG_MAPPING_NAMES:
            continue  # another model type's
        deep = name == base or base not in classes.described
        # cut short, as it is, and with what it lacks
        makers = (lambda: small, lambda: config, lambda: repaired(small)) if deep else (lambda: tiny, lambda: config, lambda: repaired(small))
        found = described(cls, makers, deep, None if deep else base)
        if isinstance(found, str):
            classes.failed[name] = found
        else:
            classes.add(name, config, found)
    return classes


def described(cls, makers, deep, within):
    """A class described under the first config that it takes, of those that `makers` make; else why it took none."""
    why = None
    for make in makers:
        try:
            return describe(cls, make(), deep, within)
        except Exception as error:
            why = why or f"{type(error).__name__}: {str(error)[:150]}"
    return why


def line_of_keys(config, base, classes):
    """What the line of a model type says of the config's keys. Adds to the base model which parts its layers share, and how long its lists are."""
    rules, shared, lengths = layers_of(config, base)
    letters = lettered(config, [key for key in plain(config) if f"{key}[i" in json.dumps(rules)])
    defaults = dict(classes.defaults)
    if base in classes.described:
        of_base = classes.described[base]
        for path, key in lengths.items():
            with contextlib.suppress(KeyError):
                elements_at(of_base.tree, path.split(".")).length = f"#{key}"
        if shared:
            lists = tuple(to.split("*")[0] for to in shared)
            of_base.says["shared"] = shared
            of_base.says["tied"] = {k: v for k, v in of_base.says.get("tied", {}).items() if not v.removeprefix("^").startswith(lists)}
            defaults.update({n: getattr(config, n) for n in shared.values() if isinstance(n, str)})
    derived = {**{k: f for k, f in classes.derived.items() if f}, **derived_keys(config, defaults)}
    keys = {**defaults, **{k: 0 for formula in derived.values() for k in sorted(keys_of(formula))}}
    defaults, older = number_defaults(config, [k for k in keys if k not in derived])
    older.update({name: key for name, (key, _) in letters.items()})
    switches, older_switches = switch_defaults(config, classes.switches)
    older.update({name: key for name, key in older_switches.items() if name not in older})
    sets = set_in_parts(config)
    return {
        "defaults": defaults,
        "derived": derived,
        "switches": switches,
        "older": older,
        "sets": {part: sorted({*sets.get(part, ()), *classes.set_in.get(part, ())}) for part in sorted({*sets, *classes.set_in})},
        "parts": whole_parts(config),
        "flat": flat_parts(config),
        "kinds": {pair: [[with_letters(p, letters) for p in all_of] for all_of in of] for pair, of in rules.items()},
    }


def of_part(config, name, part, classes, others):
    """Everything of a part of a model's config that is not listed, and classes that claim the whole model's config but take the part's."""
    found = [] if at_home(part) else of_config(name, part)
    for of in sorted({of for of, kind in classes.references if kind is type(part)}):
        cls = others.get(of)
        if cls is not None and getattr(cls, "config_class", None) is type(config):
            classes.failed.pop(of, None)
            with contextlib.suppress(Exception):
                it = describe(cls, shrunk(part, LAYERS), True)
                found.append((name, {}, [(of, {**it.says, "type": name}, pack(it.tree))], {}))
    return found
