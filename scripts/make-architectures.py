#!/usr/bin/env python3
"""Makes crates/arch/data/transformers.txt: what shardwright knows of transformers' architectures, read off transformers itself.

    python scripts/make-architectures.py [--out FILE] [--types llama,qwen3] [--jobs 2]

Every class of every model type is built on the meta device, from its default config and from configs that differ from it in one key; the module
trees are merged. Which keys change a size tells its formula. The result is a text of one line a module class, sorted, so that a new version of
transformers shows as a diff. Needs torch and transformers; takes about a quarter of an hour.

Lines, a name and JSON apart by a tab:
    %version        {"transformers": "5.24.0"}
    >KEY            conversions registered for a model type or a class: [kind, regex, sources, targets, more]
    :MODEL_TYPE     classes by use, the names of attributes, defaults of keys that sizes depend on
    !CLASS          a model's class: its root module, prefix of the base model, dtypes, tied weights, names that it ignores
    MODULE          a module: flags, parameters and buffers, children
"""

import argparse
import ast
import contextlib
import copy
import importlib
import inspect
import json
import multiprocessing
import os
import re
import signal
import sys
import warnings
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

ROOT = Path(__file__).resolve().parent.parent

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import PreTrainedConfig, PreTrainedModel  # noqa: E402
from transformers import initialization as init  # noqa: E402
from transformers.models.auto import modeling_auto as autos  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES  # noqa: E402

SECONDS = 20  # for one build
LAYERS = 8  # of a list, at most, where a default config has more
SMALL = 4


# ---- building ----------------------------------------------------------------------------------------------------------------------


class Slow(Exception):
    pass


def build(cls, config):
    """The model on the meta device, parameters in bfloat16: what is float32 all the same is so by the class's own choice."""

    def alarm(*_):
        raise Slow

    signal.signal(signal.SIGALRM, alarm)
    signal.alarm(SECONDS)
    old = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"), init.no_init_weights():
            return cls(copy.deepcopy(config))
    finally:
        torch.set_default_dtype(old)
        signal.alarm(0)


def plain(config):
    """A config's own keys."""
    return {k: v for k, v in vars(config).items() if not k.startswith("_") and k not in IGNORED_KEYS}


IGNORED_KEYS = {
    "transformers_version", "architectures", "id2label", "label2id", "return_dict", "output_hidden_states", "output_attentions", "problem_type",
    "dtype", "torch_dtype", "chunk_size_feed_forward", "is_encoder_decoder", "use_cache", "gradient_checkpointing", "name_or_path",
}  # fmt: skip


WORDS = ("layer_norm", "layer", "group", "gated-gelu", "relative_key", "rope", "conv", "none")
"""Values of keys that are words, tried on each."""
KINDS = (
    "full_attention", "sliding_attention", "chunked_attention", "linear_attention", "conv", "mamba", "attention", "recurrent", "moe", "mlp",
    "dense", "sparse", "hybrid",
)  # fmt: skip
"""Kinds of layers, tried in each list of words."""


def unlisted(cls, config):
    """Keys that a class reads with a default of its own, where the config does not have them."""
    try:
        source = inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError):
        return {}
    out = {}
    for key, default in re.findall(r'getattr\((?:self\.)?config, "(\w+)", ([^()]+)\)', source):
        with contextlib.suppress(Exception):
            value = ast.literal_eval(default)
            if not hasattr(config, key) and (value is None or isinstance(value, (bool, str))):
                out[key] = value
    return out


def configs(cls, config, deep):
    """(key, its value before, after, config): configs that differ in one key, those first that a size may depend on."""
    for key, value in {**plain(config), **(unlisted(cls, config) if deep else {})}.items():
        if isinstance(value, PreTrainedConfig) or key.endswith(("token_id", "token_index")) or key.startswith("output_"):
            continue
        tries = []
        if isinstance(value, bool):
            tries = [not value]
        elif isinstance(value, int) and value >= 1 and "token" not in key:
            tries = [2 * value]
            if deep and ("rank" in key or "expert" in key or "dense" in key or "interval" in key or "step" in key):
                tries += [None] if "rank" in key else [0, 1]
        elif isinstance(value, int) and value == 0 and deep:
            tries = [1]
        elif value is None and deep and not key.endswith(("id", "ids", "path", "theta")):
            tries = [True, SMALL]
        elif isinstance(value, str) and deep and not key.endswith(("act", "activation", "function", "type", "path", "token")):
            tries = [word for word in WORDS if word != value]
        elif deep and isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value):
            # the kind of one layer, at the front and at the end
            tries = [[kind, *value[1:-1], kind] for kind in KINDS if kind not in value]
        for new in tries:
            other = copy.deepcopy(config)
            try:
                setattr(other, key, new)
                # lists as long as the number of layers follow it
                for name, items in plain(config).items():
                    if ("layer" in key or key == "depth") and isinstance(items, (list, tuple)) and isinstance(value, int) and len(items) == value and new == 2 * value:
                        setattr(other, name, [*items, *items])
            except Exception:
                continue
            yield key, value, new, other


def repaired(config):
    """A default config that no class takes, with what it lacks."""
    config = copy.deepcopy(config)
    lacks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 10000.0}
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if isinstance(heads, int):
        lacks["num_key_value_heads"] = heads
        if isinstance(hidden, int):
            lacks["head_dim"] = hidden // heads
    n = getattr(config, "num_hidden_layers", None)
    if isinstance(n, int):
        lacks["layer_types"] = ["full_attention"] * n
    for key, value in lacks.items():
        if getattr(config, key, None) is None:
            setattr(config, key, value)
    return config


HEADS = {"vocab_size", "hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim", "embedding_size", "num_labels", "emb_dim"}
"""Keys that the sizes of a head may depend on; the rest of its class is the base model's class."""


def shrunk(config, most):
    """Long lists of layers cut short; keys that are as long as the number of layers follow."""
    config = copy.deepcopy(config)
    for key in ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depth"):
        n = vars(config).get(key)
        if isinstance(n, int) and n > most:
            setattr(config, key, most)
            for other, value in plain(config).items():
                if isinstance(value, (list, tuple)) and len(value) == n:
                    setattr(config, other, value[:most])
    return config


# ---- trees -------------------------------------------------------------------------------------------------------------------------


class Node:
    """A module, or what several of one class have in common: `params` name -> [kind, sizes, always], `children` name -> [variants, always, length]."""

    def __init__(self, cls):
        self.cls, self.flags, self.model = cls, "", None
        self.params, self.children = {}, {}

    def merge(self, other):
        """Of two configs or two elements of a list: what only one has is optional."""
        for mine, theirs in ((self.params, other.params), (self.children, other.children)):
            for name in [*mine, *theirs]:
                if name not in theirs:
                    mine[name][1] = False
                elif name not in mine:
                    mine[name] = theirs[name]
                    mine[name][1] = False
        for name, (_, always, shape) in other.params.items():
            mine = self.params[name]
            if mine is other.params[name]:
                continue
            mine[1] = mine[1] and always
            if shape is not None and mine[2] is not None:
                same = len(shape) == len(mine[2])
                mine[2] = [a if a == b else None for a, b in zip(mine[2], shape)] if same else None
        for name, (variants, always, length) in other.children.items():
            mine = self.children[name]
            if mine is other.children[name]:
                continue
            mine[1] = mine[1] and always
            for key, node in variants.items():
                if key not in mine[0]:
                    mine[0][key] = node
                elif isinstance(node, Node) and node is not mine[0][key]:
                    mine[0][key].merge(node)
            if length is not None and mine[2] != length:
                mine[2] = None
        return self


def tree(module, owner, references, path="", base=None):
    """A module's node. `owner` is the config of the model that it is part of; models with a config of their own are references."""
    node = Node(type(module).__name__)
    if isinstance(module, torch.nn.Embedding):
        node.flags += "E"
    for name, p in module._parameters.items():
        if p is not None:
            node.params[name] = ["p" if p.dtype != torch.float32 else "f", True, list(p.shape)]
    for name, b in module._buffers.items():
        if b is not None:
            saved = name not in module._non_persistent_buffers_set
            node.params[name] = [("B" if b.dtype == torch.float32 else "b") if saved else "n", True, list(b.shape)]
    if isinstance(module, PreTrainedModel):
        node.flags += "M"
        node.model = type(module).__name__
    for name, child in module._modules.items():
        if child is None:
            continue
        listed = isinstance(child, (torch.nn.ModuleList, torch.nn.Sequential)) and len(child) and all(k.isdigit() for k in child._modules)
        same = listed and (isinstance(child, torch.nn.ModuleList) or len(child) > 3 and len({type(c) for c in child}) == 1)
        if same:
            elements = Node(type(child).__name__)
            elements.flags = "L"
            for n, p in child._parameters.items():  # a parametrization is such a list
                if p is not None:
                    elements.params[n] = ["p" if p.dtype != torch.float32 else "f", True, list(p.shape)]
            merged = {}
            for i, element in enumerate(child):
                key, sub = variant(element, owner, references, f"{path}.{name}.{i}", base)
                if key in merged and isinstance(sub, Node):
                    merged[key].merge(sub)
                else:
                    merged.setdefault(key, sub)
            elements.children["*"] = [merged, True, len(child)]
            node.children[name] = [{elements.cls: elements}, True, None]
        else:
            key, sub = variant(child, owner, references, f"{path}.{name}", base)
            node.children[name] = [{key: sub}, True, None]
    return node


def variant(module, owner, references, path, base=None):
    if isinstance(module, PreTrainedModel) and module.config is owner and type(module).__name__ == base:
        return f"@:{base}", None
    if isinstance(module, PreTrainedModel) and module.config is not owner:
        config = module.config
        where = next((k for k in getattr(owner, "sub_configs", None) or {} if getattr(owner, k, None) is config), None)
        if where is None:
            where = next((k for k, v in vars(owner).items() if isinstance(v, PreTrainedConfig) and type(v) is type(config)), None)
        if where is not None and type(config) is not type(owner):
            references.add((type(module).__name__, type(config)))
            return f"@{where}:{type(module).__name__}", None
    node = tree(module, owner, references, path, base)
    return node.cls, node


def sizes(node, into, path=()):
    """Every size in a tree by its place."""
    for name, entry in node.params.items():
        for d, n in enumerate(entry[2] or ()):
            if n is not None:
                into[(*path, name, d)] = (n, entry, d)
    for name, child in node.children.items():
        if child[2] is not None:
            into[(*path, name, "len")] = (child[2], child, None)
        for key, sub in child[0].items():
            if isinstance(sub, Node):
                sizes(sub, into, (*path, name, key))
    return into


# ---- a class -----------------------------------------------------------------------------------------------------------------------


def describe(cls, config, deep, within=None):
    """(what the class says of itself, its tree, references to other models' classes)."""
    references = set()
    model = build(cls, config)
    config = model.config if type(model.config) is type(config) else config
    node = tree(model, model.config, references, base=within)
    if within is not None and not has_reference(node, f"@:{within}"):
        within, deep = None, True
    base = sizes(node, {})
    depends = {place: {} for place in base}
    defaults = {}
    others = []
    for key, old, new, other in configs(cls, config, deep):
        doubled = isinstance(old, int) and not isinstance(old, bool) and isinstance(new, int) and new == 2 * old
        if not deep and not (doubled and key in HEADS):
            continue
        try:
            m = build(cls, other)
            t = tree(m, m.config, references, base=within)
        except Exception:
            continue
        there = sizes(t, {})
        for place, (n, _, _) in base.items():
            if place in there and there[place][0] != n:
                # what a flag changes has no formula
                if doubled:
                    depends[place][key] = (old, there[place][0] - n)
                elif isinstance(old, bool) or not isinstance(old, int):
                    depends[place].setdefault(key, (0, 0))
                defaults[key] = old
        others.append(t)
    for place, (n, holder, d) in base.items():
        formula = solve(n, depends[place])
        if d is None:
            holder[2] = formula
        else:
            holder[2][d] = formula
    for t in others:
        formulas(t)
        node.merge(t)
    # a key that only a flag depends on is not told: what is optional is what the checkpoint has
    absent = []
    if within is not None:
        # the base model is built on its own elsewhere; what this class leaves out of it
        inner = next(((n, m) for n, m in model.named_modules() if n and type(m).__name__ == within and m.config is model.config), None)
        if inner is not None:
            alone = build(type(inner[1]), other_config(inner[1]))
            has = {n for n, _ in inner[1].named_modules()}
            gone = {n for n, _ in alone.named_modules() if n not in has}
            absent = sorted(f"{inner[0]}.{n}" for n in gone if n.rpartition(".")[0] not in gone)
    says = {
        "absent": absent,
        "root": node.cls,
        "type": config.model_type,
        "base": model.base_model_prefix,
        "tied": getattr(model, "_tied_weights_keys", None) if isinstance(getattr(model, "_tied_weights_keys", None), dict) else None,
        "tie": getattr(type(config)(), "tie_word_embeddings", None) if not needs_arguments(type(config)) else getattr(config, "tie_word_embeddings", None),
        "fp32": sorted(model._keep_in_fp32_modules_strict or ()),
        "fp32half": sorted(model._keep_in_fp32_modules or ()),
        "unexpected": [str(p) for p in model._keys_to_ignore_on_load_unexpected or ()],
        "missing": [str(p) for p in model._keys_to_ignore_on_load_missing or ()],
        "split": sorted(model._no_split_modules or ()),
    }
    return {k: v for k, v in says.items() if v not in (None, [], "")}, node, references, defaults


def other_config(model):
    return copy.deepcopy(model.config)


def has_reference(node, key):
    return any(k == key or isinstance(sub, Node) and has_reference(sub, key) for c in node.children.values() for k, sub in c[0].items())


def formulas(node):
    """Trees of other configs: their sizes are not formulas."""
    for entry in node.params.values():
        entry[2] = None
    for child in node.children.values():
        if child[2] is not None:
            child[2] = None
        for sub in child[0].values():
            if isinstance(sub, Node):
                formulas(sub)


def needs_arguments(config_class):
    try:
        config_class()
    except Exception:
        return True
    return False


def solve(n, depends):
    """A size as a number, "key", "3*key", "key+2", "2*key*other", or None."""
    if not depends:
        return n
    if any(not value for value, _ in depends.values()):
        return None
    if len(depends) == 1:
        (key, (value, more)) = next(iter(depends.items()))
        if more % value:
            return None
        m = more // value
        text = key if m == 1 else f"{m}*{key}"
        rest = n - m * value
        return text if rest == 0 else f"{text}+{rest}" if rest > 0 else f"{text}{rest}"
    if all(more == n for _, more in depends.values()):
        product = 1
        for value, _ in depends.values():
            product *= value
        if n % product == 0:
            c = n // product
            return "*".join(([str(c)] if c != 1 else []) + list(depends))
    return None


# ---- all classes -------------------------------------------------------------------------------------------------------------------


def classes_of(model_type):
    """The classes of a model type, by auto-mapping."""
    out = {}
    for name, names in vars(autos).items():
        if name.startswith("MODEL_") and name.endswith("_MAPPING_NAMES") and model_type in names:
            found = names[model_type]
            out[name[len("MODEL_") : -len("_MAPPING_NAMES")]] = found[0] if isinstance(found, (list, tuple)) else found
    return out


def use(found):
    """LLaMA-Factory's choice for model_class llm, cls and other."""
    first = lambda *keys: next((found[k] for k in keys if k in found), None)
    base = found.get("MAPPING") or vars(autos)["MODEL_MAPPING_NAMES"].get("")
    return {"llm": first("FOR_IMAGE_TEXT_TO_TEXT", "FOR_MULTIMODAL_LM", "FOR_CAUSAL_LM"), "cls": first("FOR_TOKEN_CLASSIFICATION"), "base": base}


def one_type(model_type):
    """Everything of a model type: [(class, what it says, tree, references, defaults)], and the type's own line."""
    torch.set_num_threads(1)
    found = classes_of(model_type)
    base = autos.MODEL_MAPPING_NAMES.get(model_type)
    base = base[0] if isinstance(base, (list, tuple)) and base else base
    line = {"llm": use(found)["llm"], "cls": use(found)["cls"], "base": base}
    failed, out, described = {}, [], False
    try:
        config = CONFIG_MAPPING[model_type]()
    except Exception as error:
        return model_type, {}, [], {"config": f"{type(error).__name__}: {error}"}
    attribute_map = {k: v for k, v in (config.attribute_map or {}).items()}
    line["attributes"] = attribute_map
    line["tie"] = getattr(config, "tie_word_embeddings", None)
    line["sub"] = {
        k: v.model_type for k in (config.sub_configs or {}) if isinstance(v := getattr(config, k, None), PreTrainedConfig) and v.model_type
    }
    line["defaults"] = {}
    small, tiny = shrunk(config, LAYERS), shrunk(config, 2)
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
    # the classes of its file besides: those that a composite model uses of it
    if module is not None:
        for name, cls in vars(module).items():
            if isinstance(cls, type) and issubclass(cls, PreTrainedModel) and cls.__module__ == module.__name__ and not name.endswith("PreTrainedModel"):
                if getattr(cls, "config_class", None) is type(config) and name not in names:
                    names.append(name)
    for name in names:
        cls = getattr(transformers, name, None) or getattr(module, name, None)
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
        says, node, references, defaults = found
        described = described or name == base
        line["defaults"].update({k: plain(config).get(k, v) for k, v in defaults.items()})
        out.append((name, says, node, references, defaults))
    line = {k: v for k, v in line.items() if v not in (None, {}, [])}
    return model_type, line, [(n, s, pack(t)) for n, s, t, _, _ in out], failed


def pack(node):
    """A tree as plain lists: [class, flags, params, children]."""
    params = [[n, kind, always, shape] for n, (kind, always, shape) in node.params.items()]
    children = [[n, always, length, [[key, pack(sub) if isinstance(sub, Node) else None] for key, sub in variants.items()]]
                for n, (variants, always, length) in node.children.items()]  # fmt: skip
    return [node.cls, node.flags, params, children]


# ---- writing -----------------------------------------------------------------------------------------------------------------------


class Table:
    """Modules by content: the first of a class has the class's name, others a number behind it."""

    def __init__(self):
        self.lines, self.names = {}, {}

    def add(self, packed):
        cls, flags, params, children = packed
        listed = []
        for name, always, length, variants in children:
            kinds = [key if sub is None else self.add(sub) for key, sub in variants]
            listed.append([name, kinds, length] if always else [name, kinds, length, 0])
        # A list has one child, which stands for every element.
        values = [[n, kind, shape] if always else [n, kind, shape, 0] for n, kind, always, shape in params]
        line = json.dumps([flags, values, listed], separators=(",", ":"))
        if (cls, line) not in self.names:
            n = sum(1 for c, _ in self.names if c == cls)
            self.names[cls, line] = cls if n == 0 else f"{cls}#{n}"
            self.lines[self.names[cls, line]] = line
        return self.names[cls, line]


def conversions():
    """transformers' tables as data; none before transformers 5."""
    try:
        from transformers import conversion_mapping as tables
        from transformers import core_model_loading as loading
    except ImportError:
        return {}
    out = {}
    for key, transforms in tables._build_checkpoint_conversion_mapping().items():
        rows = []
        for t in transforms:
            more = {}
            if isinstance(t, loading.WeightConverter):
                more["ops"] = [[type(op).__name__, {k: v for k, v in vars(op).items() if isinstance(v, (int, str, bool, list, tuple)) and v is not False}] for op in t.operations]
            if getattr(t, "offset", None) is not None:
                more["offset"] = t.offset
            pattern = t.compiled_sources.pattern
            if type(t).__name__ == "LayerPairCollapse":
                pattern = t.pattern.pattern
            rows.append([type(t).__name__, pattern, list(t.source_patterns), list(t.target_patterns), more])
        out[key] = rows
    return out


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--out", type=Path, default=ROOT / "crates/arch/data/transformers.txt")
    args.add_argument("--types")
    args.add_argument("--jobs", type=int, default=2)
    args.add_argument("--state", type=Path, help="keeps what is done, a line a model type, and goes on from it")
    args = args.parse_args()
    types = args.types.split(",") if args.types else list(CONFIG_MAPPING_NAMES)
    done = {}
    if args.state and args.state.exists():
        done = {t: (line, classes) for t, line, classes in map(json.loads, args.state.read_text().splitlines())}
    todo = [t for t in types if t not in done]
    with multiprocessing.get_context("fork").Pool(args.jobs, maxtasksperchild=20) as pool:
        for model_type, line, classes, failed in pool.imap_unordered(one_type, todo):
            done[model_type] = (line, classes)
            if args.state:
                with args.state.open("a") as file:
                    file.write(json.dumps([model_type, line, classes]) + "\n")
            for name, why in failed.items():
                print(f"{model_type} {name}: {why}", file=sys.stderr, flush=True)
            print(f"{len(done)}/{len(types)} {model_type}: {len(classes)} classes", flush=True)
    table, lines = Table(), {"%version": json.dumps({"transformers": transformers.__version__})}
    for key, rows in conversions().items():
        lines[f">{key}"] = json.dumps(rows, separators=(",", ":"))
    for model_type in sorted(done):
        line, classes = done[model_type]
        if line:
            lines[f":{model_type}"] = json.dumps(line, separators=(",", ":"))
        for name, says, packed in classes:
            if f"!{name}" not in lines or says["type"] == model_type and json.loads(lines[f"!{name}"])["type"] != name:
                says["root"] = table.add(packed)
                lines.setdefault(f"!{name}", json.dumps(says, separators=(",", ":")))
    lines.update(table.lines)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(f"{k}\t{v}\n" for k, v in sorted(lines.items())))
    print(f"{args.out}: {len(lines)} lines, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
