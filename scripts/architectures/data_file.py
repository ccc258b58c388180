"""The data file: its format, writing and reading it, and which model types differ in the installed transformers.

Lines, a name and JSON apart by a tab:

    %version        {"transformers": "5.24.0"}
    >KEY            conversions registered for a model type or a class: [kind, regex, sources, targets, more]
    :MODEL_TYPE     classes by use; names of attributes; defaults of keys that sizes depend on, where nothing else decides them, and formulas of those
                    made of others; older names of keys; keys that switch parts on, with their defaults; keys that the type sets in its parts; numbers
                    of parts that config.json may lack as a whole; of which kind each layer is. TYPE/KEY is a part of a type that transformers does
                    not list
    !CLASS          a model's class: its root module, the base model's prefix, dtypes, tied weights, parts that layers share, names that it ignores
    MODULE          a module: flags, parameters and buffers, children. One that not every config has ends with its condition: "key" (neither false,
                    zero, null nor empty), "key?" (not null), "!key", "!key?", or 0 where more than one key decides. A child of two classes ends with
                    the condition under which it is of the first
"""

import base64
import contextlib
import hashlib
import json
import sys
import tempfile
from pathlib import Path

from .library import MAJOR, transformers

DATA = Path(__file__).resolve().parents[2] / "crates/arch/data"


def of_installed():
    """The file of the installed transformers."""
    return DATA / f"transformers{'' if MAJOR >= 5 else '-4'}.txt"


def when(always, first=()):
    """How a parameter or child ends: with nothing where it is always there, else its condition; then when it is of the first of two classes."""
    return [1 if always is True else always or 0, *first] if first or always is not True else []


class Table:
    """Modules by content. The name of a class that is built in several ways is followed by a digest of each, so that a new module changes no line but
    those of what it is part of."""

    def __init__(self):
        self.modules, self.lengths = {}, {}

    def add(self, packed):
        """Adds a packed tree, and gives its digest."""
        cls, flags, params, children = packed
        listed = []
        for name, always, length, variants, first in children:
            kinds = [(key, None if sub is None else self.add(sub)) for key, sub in variants]
            listed.append((name, tuple(kinds), length, always, *([first] if first else [])))
        values = tuple((n, kind, json.dumps(shape), always) for n, kind, always, shape in params)
        content = (cls, flags, values, tuple(listed))
        digest = base64.b32encode(hashlib.sha256(repr(content).encode()).digest()).decode().lower()
        self.modules[digest] = content
        return digest

    def name(self, digest):
        """The name of a module's line, once `lines` has been called."""
        cls = self.modules[digest][0]
        return cls if not self.lengths[cls] else f"{cls}#{digest[: self.lengths[cls]]}"

    def lines(self):
        """{name: JSON} of all modules."""
        by_class = {}
        for digest, (cls, *_) in self.modules.items():
            by_class.setdefault(cls, []).append(digest)
        for cls, digests in by_class.items():
            enough = (n for n in range(3, 53) if len({d[:n] for d in digests}) == len(digests))
            self.lengths[cls] = 0 if len(digests) == 1 else next(enough)
        out = {}
        for digest, (_, flags, params, children) in self.modules.items():
            values = [[n, kind, json.loads(shape), *when(always)] for n, kind, shape, always in params]
            listed = [
                [n, [key if sub is None else self.name(sub) for key, sub in kinds], length, *when(always, first)]
                for n, kinds, length, always, *first in children
            ]
            out[self.name(digest)] = json.dumps([flags, values, listed], separators=(",", ":"))
        return out


def read(path):
    """What a data file says: {model type: (its line, its classes)}. The inverse of `write`."""
    rows = dict(line.split("\t", 1) for line in path.read_text().splitlines())
    packed = {}

    def unpack(name):
        if name not in packed:
            flags, params, children = json.loads(rows[name])
            listed = [
                [
                    n,
                    True if len(rest) < 3 or rest[2] == 1 else rest[2] or False,
                    rest[1],
                    [[k.split("#")[0], None] if k.startswith("@") else [k.split("#")[0], unpack(k)] for k in rest[0]],
                    rest[3] if len(rest) > 3 else None,
                ]
                for n, *rest in children
            ]
            packed[name] = [
                name.split("#")[0],
                flags,
                [[n, kind, more[0] or False if more else True, shape] for n, kind, shape, *more in params],
                listed,
            ]
        return packed[name]

    done = {key[1:]: (json.loads(row), []) for key, row in rows.items() if key[0] == ":"}
    for key, row in rows.items():
        if key[0] == "!":
            says = json.loads(row)
            if MAJOR < 5 and f">{key[1:]}" in rows:
                says["mapping"] = json.loads(rows[f">{key[1:]}"])  # the class's own
            done.setdefault(says["type"], ({}, []))[1].append((key[1:], says, unpack(says["root"])))
    return done


def write(path, done, tables):
    """Writes what is known of model types ({model type: (its line, its classes)}), and transformers' tables of conversions."""
    table, lines, classes_of_all = Table(), {"%version": json.dumps({"transformers": transformers.__version__})}, {}
    for key, rows in tables.items():
        lines[f">{key}"] = json.dumps(rows, separators=(",", ":"))
    for model_type in sorted(done):
        line, classes = done[model_type]
        if line:
            lines[f":{model_type}"] = json.dumps(line, separators=(",", ":"))
        for name, says, packed in classes:
            mapping = says.pop("mapping", None)
            if mapping:
                lines[f">{name}"] = json.dumps(mapping, separators=(",", ":"))
            # a class of several model types is its own one's
            if name not in classes_of_all or says["type"] == model_type:
                classes_of_all[name] = ({k: v for k, v in says.items() if k != "root"}, table.add(packed))
    modules = table.lines()
    for name, (says, digest) in classes_of_all.items():
        lines[f"!{name}"] = json.dumps({"root": table.name(digest), **says}, separators=(",", ":"))
    lines.update(modules)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{k}\t{v}\n" for k, v in sorted(lines.items())))
    print(f"{path}: {len(lines)} lines, {path.stat().st_size} bytes")


def check(path, done):
    """Prints which model types differ between a data file and what is known of the installed transformers; whether any does."""
    had = json.loads(path.read_text().split("%version\t", 1)[1].split("\n", 1)[0])["transformers"]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        write(Path(folder) / path.name, done, {})  # as a file has it
        new_of, old, changed = read(Path(folder) / path.name), read(path), []

    def plain_data(model_type, line, classes):
        of = {n: ({k: v for k, v in says.items() if k not in ("root", "mapping")}, tree) for n, says, tree in classes if says["type"] == model_type}
        return json.loads(json.dumps([line, of]))

    for model_type in sorted(done):
        new = plain_data(model_type, *new_of[model_type])
        if model_type not in old:
            changed.append(f"{model_type}: new")
            continue
        (line_before, before), (line_now, now) = plain_data(model_type, *old[model_type]), new
        differs = sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
        if differs or line_before != line_now:
            changed.append(f"{model_type}: {', '.join(differs) or 'its keys'}")
    print(f"{path.name} is of transformers {had}, {transformers.__version__} is installed: {len(changed)} of {len(done)} model types differ")
    for line in changed:
        print(f"changed: {line}")
    return bool(changed)
