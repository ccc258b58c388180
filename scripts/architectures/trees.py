"""What a model has, as a tree of modules. The trees of one class under several configs are merged: what not all have is optional."""

from .library import PreTrainedConfig, PreTrainedModel, torch


class Node:
    """A module, or what several of one class have in common: `params` name -> [kind, sizes, always], `children` name -> [variants, always, length]."""

    def __init__(self, cls):
        self.cls, self.flags, self.model = cls, "", None
        self.params, self.children = {}, {}
        self.first = {}  # of a child of two classes: when it is of the first

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
                if element is None:
                    continue
                key, sub = variant(element, owner, references, f"{path}.{name}.{i}", base)
                if key in merged and isinstance(sub, Node):
                    merged[key].merge(sub)
                else:
                    merged.setdefault(key, sub)
            elements.children["*"] = [merged, True, None if any(element is None for element in child) else len(child)]
            node.children[name] = [{elements.cls: elements}, True, None]
        else:
            key, sub = variant(child, owner, references, f"{path}.{name}", base)
            node.children[name] = [{key: sub}, True, None]
    return node


def variant(module, owner, references, path, base=None):
    if isinstance(module, PreTrainedModel) and module.config is owner and type(module).__name__ == base:
        return f"@:{base}", None
    if type(module).__module__.split(".")[0] == "timm" and path.endswith("timm_model"):
        return "@:?", None  # a model of another library: every name fits
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


def entries(node, into, path=()):
    """Every parameter, buffer and child in a tree by its place, with how many dims it has."""
    for name, entry in node.params.items():
        into[(*path, name)] = len(entry[2] or ())
    for name, child in node.children.items():
        into[(*path, name)] = 0
        for key, sub in child[0].items():
            if isinstance(sub, Node):
                entries(sub, into, (*path, name, key))
    return into


def presence(node, into, path=(), alone=True):
    """What a tree of one config has, by its place: parameters, buffers and children (False where only some elements of a list have them), and the
    modules around them by their class, whose places have an even number of parts (False where other elements have one of another class)."""
    into[path] = alone
    for name, entry in node.params.items():
        into[(*path, name)] = entry[1]
    for name, child in node.children.items():
        into[(*path, name)] = child[1]
        for key, sub in child[0].items():
            into[(*path, name, key)] = len(child[0]) == 1
            if isinstance(sub, Node):
                presence(sub, into, (*path, name, key), len(child[0]) == 1)
    return into


def optional(node, into, path=()):
    """The entries of what not every config has, by place, and the nodes of what is of one of two classes, by the place of the first; elements of lists
    and buffers that no checkpoint has aside."""
    for name, entry in node.params.items():
        if not entry[1] and entry[0] != "n":
            into[(*path, name)] = entry
    for name, child in node.children.items():
        if not child[1] and name != "*":
            into[(*path, name)] = child
        if len(child[0]) == 2 and name != "*":
            into[(*path, name, next(iter(child[0])))] = node
        for key, sub in child[0].items():
            if isinstance(sub, Node):
                optional(sub, into, (*path, name, key))
    return into


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


def has_reference(node, key):
    return any(k == key or isinstance(sub, Node) and has_reference(sub, key) for c in node.children.values() for k, sub in c[0].items())


def of_length(node, path):
    """The entry of a list's elements in a tree."""
    for name in path:
        node = next(iter(node.children[name][0].values()))
    return node.children["*"]


def pack(node):
    """A tree as plain lists: [class, flags, params, children]."""
    params = [[n, kind, always, shape] for n, (kind, always, shape) in node.params.items()]
    children = [[n, always, length, [[key, pack(sub) if isinstance(sub, Node) else None] for key, sub in variants.items()], node.first.get(n)]
                for n, (variants, always, length) in node.children.items()]  # fmt: skip
    return [node.cls, node.flags, params, children]
