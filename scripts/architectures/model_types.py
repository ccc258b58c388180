"""What is known of one model type: its line of the data file, and all its classes."""

import contextlib
import importlib
import json
import sys

from .classes import describe
from .config_json import decided, derived_keys, fixed, flat_parts, forced_tie, lettered, said, whole_parts
from .configs import parts_of, plain
from .default_configs import LAYERS, default_config, evened, repaired, shrunk
from .formulas import keys_of
from .layers import kinds_of, with_letters
from .library import CONFIG_MAPPING_NAMES, PreTrainedModel, at_home, autos, classes_of, modules_beside, torch, transformers, use
from .trees import of_length, pack


def one_type(model_type):
    """Everything of a model type, and of parts that are not listed: [(type, its line, [(class, what it says, tree)], {class: why it failed})]."""
    torch.set_num_threads(1)
    try:
        config = default_config(model_type)
    except Exception as error:
        found = use(classes_of(model_type))
        return [(model_type, {}, [], {"config": f"{type(error).__name__}: {error}"})] if found else []
    return of_config(model_type, config)


def of_config(model_type, config):
    found = classes_of(model_type)
    base = autos.MODEL_MAPPING_NAMES.get(model_type)
    base = base[0] if isinstance(base, (list, tuple)) and base else base
    line = {"llm": use(found)["llm"], "cls": use(found)["cls"], "base": base}
    failed, out, described, overrides, used = {}, [], False, {}, set()
    attribute_map = {k: v for k, v in (config.attribute_map or {}).items()}
    line["attributes"] = attribute_map
    line["tie"] = getattr(config, "tie_word_embeddings", None)
    line["ties"] = forced_tie(type(config), model_type)
    parts = parts_of(config)
    line["sub"] = {k: name_of(v, model_type, k) for k, v in parts.items()}
    auto = sorted(k for k, v in (config.sub_configs or {}).items() if v.__name__ == "AutoConfig")
    if auto:
        line["auto"] = auto  # of the type that config.json says; others are of one type, whatever it says
    line["defaults"], line["derived"], line["switches"] = {}, {}, {}
    small, tiny = evened(shrunk(config, LAYERS)), shrunk(config, 2)
    names = list(dict.fromkeys([n for n in [base, *found.values()] if n]))
    module = None
    for name in names:
        cls = getattr(transformers, name, None)
        module = sys.modules.get(cls.__module__) if cls is not None else module
    if module is None:
        try:
            module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
        except ImportError:
            pass
    if model_type == "dinat" and module is not None:
        module.requires_backends = lambda *_: None  # natten computes; it has no parameters
    # the classes of its files besides: those that a composite model uses of it
    others = {}
    for file in modules_beside(module, type(config)):
        for name, cls in vars(file).items():
            if (
                isinstance(cls, type)
                and issubclass(cls, PreTrainedModel)
                and cls.__module__ == file.__name__
                and not name.endswith("PreTrainedModel")
            ):
                others.setdefault(name, cls)
                if getattr(cls, "config_class", None) is type(config) and name not in names:
                    names.append(name)
    for name in names:
        cls = getattr(transformers, name, None) or others.get(name)
        if cls is None or not issubclass(cls, PreTrainedModel):
            continue
        own = getattr(cls, "config_class", None)
        if own is not type(config) and getattr(own, "model_type", "") in CONFIG_MAPPING_NAMES:
            continue  # another model type's
        deep = name == base or not described
        within = None if deep else base
        found, why = None, None
        # cut short, as it is, and with what it lacks
        for attempt in (lambda: small if deep else tiny, lambda: config, lambda: repaired(small)):
            try:
                found = describe(cls, attempt(), deep, within)
                break
            except Exception as error:
                why = why or f"{type(error).__name__}: {str(error)[:150]}"
        if found is None:
            failed[name] = why
            continue
        says, node, references, (defaults, unsaid, switches, set_in) = found
        for part, keys in set_in.items():
            overrides.setdefault(part, set()).update(keys)
        line["switches"].update({k: v for k, v in switches.items() if k not in line["switches"]})
        described = described or name == base
        used |= references
        line["defaults"].update({k: plain(config).get(k, v) for k, v in defaults.items()})
        for key, formula in unsaid.items():
            if line["derived"].setdefault(key, formula) != formula:
                line["derived"][key] = None
        out.append((name, says, node, references, defaults))
    rules, shared_of, as_long = kinds_of(config, base)
    letters = lettered(config, [key for key in plain(config) if f"{key}[i" in json.dumps(rules)])
    for node in [node for name, _, node, *_ in out if name == base]:
        for path, key in as_long.items():
            with contextlib.suppress(KeyError):
                of_length(node, path.split("."))[2] = f"#{key}"
    for says in [says for name, says, *_ in out if name == base and shared_of]:
        says["shared"] = shared_of
        lists = tuple(to.split("*")[0] for to in shared_of)
        says["tied"] = {k: v for k, v in says.get("tied", {}).items() if not v.removeprefix("^").startswith(lists)}
        line["defaults"].update({n: getattr(config, n) for n in shared_of.values() if isinstance(n, str)})
    keys = line["defaults"]
    line["derived"] = {**{k: f for k, f in line["derived"].items() if f}, **derived_keys(config, keys)}
    keys = {**keys, **{k: 0 for formula in line["derived"].values() for k in sorted(keys_of(formula))}}
    line["defaults"], line["older"] = fixed(config, [k for k in keys if k not in line["derived"]])
    line["older"].update({name: key for name, (key, _) in letters.items()})
    line["switches"], older = said(config, line["switches"])
    line["older"].update({name: key for name, key in older.items() if name not in line["older"]})
    line["sets"] = {part: sorted({*of.get(part, ()), *overrides.get(part, ())}) for of in [decided(config)] for part in sorted({*of, *overrides})}
    line["parts"] = whole_parts(config)
    line["flat"] = flat_parts(config)
    line["kinds"] = {pair: [[with_letters(p, letters) for p in all_of] for all_of in of] for pair, of in rules.items()}
    line = {k: v for k, v in line.items() if v not in (None, {}, [])}
    for says in [says for _, says, *_ in out if "/" in model_type]:
        says["type"] = model_type
    all_of_it = [(model_type, line, [(n, s, pack(t)) for n, s, t, _, _ in out], failed)]
    for key, part in parts.items():
        name = line["sub"][key]
        of_part = [] if at_home(part) else of_config(name, part)
        # those that are said to take the whole model's config, and take its part
        for of in sorted({of for of, kind in used if kind is type(part)}):
            cls = others.get(of)
            if cls is not None and getattr(cls, "config_class", None) is type(config):
                failed.pop(of, None)
                with contextlib.suppress(Exception):
                    says, node, _, _ = describe(cls, shrunk(part, LAYERS), True)
                    of_part.append((name, {}, [(of, {**says, "type": name}, pack(node))], {}))
        if any(classes for _, _, classes, _ in of_part):
            all_of_it += of_part
        elif not at_home(part):
            line["sub"] = {k: v for k, v in {**line["sub"], key: part.model_type}.items() if v}  # no model takes it
    if not line.get("sub"):
        line.pop("sub", None)
    return all_of_it


def name_of(part, model_type, key):
    """The model type of a part of a model's config. Before 5 most are not listed, and some have the whole model's; these have a name of their own."""
    return part.model_type if at_home(part) else f"{model_type}/{key}"
