"""What a model has, as a tree of modules. The trees of one class under several configs are merged: what not all have is optional.

A place is a path in a tree: a tuple of names, each child's followed by its class. The place of a size ends with a dim, or with "len" for how many
elements a list has.
"""

from dataclasses import dataclass

from .library import PreTrainedConfig, PreTrainedModel, build, torch


@dataclass(eq=False)
class Value:
    """A parameter or buffer. `kind` is "p", or "f" where it is float32 by the class's choice; of a buffer "b" or "B", or "n" where it is not saved.
    `shape` has sizes, then formulas in their place, or None where a size is not known."""

    kind: str
    always: bool | str  # or the condition under which it is there
    shape: list | None


@dataclass(eq=False)
class Child:
    """A child by its class: {class: Node}, or {"@part:CLASS": None} for another model. `length` is of "*", the elements of a list."""

    variants: dict
    always: bool | str
    length: int | str | None


class Node:
    """A module, or what several of one class have in common."""

    def __init__(self, cls):
        self.cls, self.flags = cls, ""
        self.params, self.children = {}, {}  # by name
        self.first = {}  # by the name of a child of two classes: when it is of the first

    def merge(self, other):
        """Of two configs or two elements of a list: what only one has is optional."""
        for mine, theirs in ((self.params, other.params), (self.children, other.children)):
            for name in [*mine, *theirs]:
                if name not in theirs:
                    mine[name].always = False
                elif name not in mine:
                    mine[name] = theirs[name]
                    mine[name].always = False
        for name, value in other.params.items():
            mine = self.params[name]
            if mine is value:
                continue
            mine.always = mine.always and value.always
            if value.shape is not None and mine.shape is not None:
                same = len(value.shape) == len(mine.shape)
                mine.shape = [a if a == b else None for a, b in zip(mine.shape, value.shape, strict=True)] if same else None
        for name, child in other.children.items():
            mine = self.children[name]
            if mine is child:
                continue
            mine.always = mine.always and child.always
            for key, node in child.variants.items():
                if key not in mine.variants:
                    mine.variants[key] = node
                elif isinstance(node, Node) and node is not mine.variants[key]:
                    mine.variants[key].merge(node)
            if child.length is not None and mine.length != child.length:
                mine.length = None
        return self


def tree_of(cls, config, within):
    """The tree of a class under a config, where references to other models do not matter."""
    model = build(cls, config)
    return tree(model, model.config, set(), base=within)


def tree(module, owner, references, path="", base=None):
    """A module's node. `owner` is the config of the model that it is part of. Models with a config of their own are references, and are added to
    `references`; so is the base model, where `base` names its class."""
    node = Node(type(module).__name__)
    if isinstance(module, torch.nn.Embedding):
        node.flags += "E"
    node.params.update(parameters(module))
    for name, b in module._buffers.items():
        if b is not None:
            saved = name not in module._non_persistent_buffers_set
            node.params[name] = Value(("B" if b.dtype == torch.float32 else "b") if saved else "n", True, list(b.shape))
    if isinstance(module, PreTrainedModel):
        node.flags += "M"
    for name, child in module._modules.items():
        if child is None:
            continue
        if is_list(child):
            elements = elements_of(child, owner, references, f"{path}.{name}", base)
            node.children[name] = Child({elements.cls: elements}, True, None)
        else:
            key, sub = variant(child, owner, references, f"{path}.{name}", base)
            node.children[name] = Child({key: sub}, True, None)
    return node


def parameters(module):
    """{name: Value} of a module's own parameters."""
    return {n: Value("p" if p.dtype != torch.float32 else "f", True, list(p.shape)) for n, p in module._parameters.items() if p is not None}


def is_list(module):
    """Whether a module's children are elements of a list, which are merged."""
    if not isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential)) or not len(module) or not all(k.isdigit() for k in module._modules):
        return False
    return isinstance(module, torch.nn.ModuleList) or (len(module) > 3 and len({type(c) for c in module}) == 1)


def elements_of(module, owner, references, path, base):
    """The node of a list, whose one child "*" stands for all elements."""
    node = Node(type(module).__name__)
    node.flags = "L"
    node.params.update(parameters(module))  # a parametrization is such a list
    merged = {}
    for i, element in enumerate(module):
        if element is None:
            continue
        key, sub = variant(element, owner, references, f"{path}.{i}", base)
        if key in merged and isinstance(sub, Node):
            merged[key].merge(sub)
        else:
            merged.setdefault(key, sub)
    node.children["*"] = Child(merged, True, None if any(element is None for element in module) else len(module))
    return node


def variant(module, owner, references, path, base=None):
    """(class, Node) of a module, or ("@part:CLASS", None) of a reference: ":CLASS" after "@" alone is the base model, "?" any class."""
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


def sizes(node, into=None, path=()):
    """{place: (size, its Value or Child, dim)} of every size in a tree."""
    into = {} if into is None else into
    for name, value in node.params.items():
        for d, n in enumerate(value.shape or ()):
            if n is not None:
                into[(*path, name, d)] = (n, value, d)
    for name, child in node.children.items():
        if child.length is not None:
            into[(*path, name, "len")] = (child.length, child, None)
        for key, sub in child.variants.items():
            if isinstance(sub, Node):
                sizes(sub, into, (*path, name, key))
    return into


def entries(node, into=None, path=()):
    """{place: how many dims it has} of every parameter, buffer and child in a tree."""
    into = {} if into is None else into
    for name, value in node.params.items():
        into[(*path, name)] = len(value.shape or ())
    for name, child in node.children.items():
        into[(*path, name)] = 0
        for key, sub in child.variants.items():
            if isinstance(sub, Node):
                entries(sub, into, (*path, name, key))
    return into


def presence(node, into=None, path=(), alone=True):
    """What a tree of one config has, by place: parameters, buffers and children (False where only some elements of a list have them), and the modules
    around them by their class, whose places have an even number of parts (False where other elements have one of another class)."""
    into = {} if into is None else into
    into[path] = alone
    for name, value in node.params.items():
        into[(*path, name)] = value.always
    for name, child in node.children.items():
        into[(*path, name)] = child.always
        for key, sub in child.variants.items():
            into[(*path, name, key)] = len(child.variants) == 1
            if isinstance(sub, Node):
                presence(sub, into, (*path, name, key), len(child.variants) == 1)
    return into


def optional(node, into=None, path=()):
    """{place: Value or Child} of what not every config has, and {place of the first class: Node around it} of children of two classes. Elements of
    lists and buffers that are not saved are left out."""
    into = {} if into is None else into
    for name, value in node.params.items():
        if not value.always and value.kind != "n":
            into[(*path, name)] = value
    for name, child in node.children.items():
        if not child.always and name != "*":
            into[(*path, name)] = child
        if len(child.variants) == 2 and name != "*":
            into[(*path, name, next(iter(child.variants)))] = node
        for key, sub in child.variants.items():
            if isinstance(sub, Node):
                optional(sub, into, (*path, name, key))
    return into


def put_size(holder, dim, size):
    """Puts a size or formula in place of what a Value has in a dim, or a Child as its length."""
    if dim is None:
        holder.length = size
    else:
        holder.shape[dim] = size


def forget_sizes(node):
    """Takes the sizes out of a tree of another config: they are not formulas."""
    for value in node.params.values():
        value.shape = None
    for child in node.children.values():
        child.length = None
        for sub in child.variants.values():
            if isinstance(sub, Node):
                forget_sizes(sub)


def has_reference(node, key):
    """Whether a tree has a reference."""
    return any(k == key or (isinstance(sub, Node) and has_reference(sub, key)) for c in node.children.values() for k, sub in c.variants.items())


def elements_at(node, path):
    """The Child that stands for the elements of the list at a path of names."""
    for name in path:
        node = next(iter(node.children[name].variants.values()))
    return node.children["*"]


def pack(node):
    """A tree as plain lists, which go from process to process: [class, flags, params, children]."""
    params = [[n, value.kind, value.always, value.shape] for n, value in node.params.items()]
    children = [
        [
            n,
            child.always,
            child.length,
            [[key, pack(sub) if isinstance(sub, Node) else None] for key, sub in child.variants.items()],
            node.first.get(n),
        ]
        for n, child in node.children.items()
    ]
    return [node.cls, node.flags, params, children]
