"""Records in `hjson.json` what DeepSpeed's reader makes of JSON, of JSON with comments, and of everything else that hjson allows.

    python tests/resolve/hjson_corpus.py

DeepSpeed reads its file as `hjson.load(f, object_pairs_hook=dict_raise_error_on_duplicate_keys)`; this calls those two.
"""

import json
import os
import random
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"
import hjson
from deepspeed.runtime.config_utils import dict_raise_error_on_duplicate_keys

SCALARS = ["0", "1", "-7", "5e8", "1.5", "-0.0", "1E-4", "true", "false", "null", '"auto"', '""', '"a b"', '"a\\nb"', '"\\u00e9"', '"é"', '"#x"', '"//x"', '"/*"']
KEYS = ['"stage"', '"bf16"', '"a b"', '"enabled"', '"é"', '"#"', '"a:b"']
COMMENTS = ["# c\n", "// c\n", "/* c */", "/* c\n c */", "# { } , : \"\n", "/**/"]
SPACES = ["", " ", "\n", "\t", "\r\n", "  \n  "]
# What hjson allows beyond comments, in place of a key, of a value, and between members.
LAX_KEYS = ["stage", "'stage'", "a-b", "3", "stage "]
LAX_VALUES = ["auto", "'auto'", "'''auto'''", "'''\n  a\n  b\n  '''", "True", "5 apples", "1.5.2", "01", "+1", ".5", "5.", "nan", "Infinity", "trueish", "-", "0x10", "none # c", "true false"]


def tree(rng, depth, value=None):
    """A value as a list of tokens; spaces and comments go between them."""
    kind = rng.random()
    if depth == 0 or kind < 0.3:
        return [value(rng) if value else rng.choice(SCALARS)]
    members = rng.randrange(4)
    if kind < 0.75:
        tokens = ["{"]
        keys = rng.sample(KEYS, members)
        if members > 1 and rng.random() < 0.1:
            keys[-1] = keys[0]
        for i, key in enumerate(keys):
            tokens += ([","] if i else []) + [key, ":"] + tree(rng, depth - 1, value)
        return tokens + ["}"]
    tokens = ["["]
    for i in range(members):
        tokens += ([","] if i else []) + tree(rng, depth - 1, value)
    return tokens + ["]"]


def text(rng, tokens, comments):
    between = lambda: rng.choice(SPACES) + (rng.choice(COMMENTS) if comments and rng.random() < 0.25 else "") + rng.choice(SPACES)
    return between() + "".join(token + between() for token in tokens)


def lax(rng):
    """One or two constructs that only hjson has."""
    tokens = ["{"] + tree(rng, 1)[0:0]
    members = [[rng.choice(KEYS), ":", rng.choice(SCALARS)] for _ in range(rng.randrange(1, 4))]
    which = rng.randrange(5)
    at = rng.randrange(len(members))
    if which == 0:
        members[at][0] = rng.choice(LAX_KEYS)
    elif which <= 2:
        members[at][2] = rng.choice(LAX_VALUES)
    joint = "\n" if which == 3 else ",\n"
    body = joint.join("".join(m) for m in members) + (",\n" if which == 4 else "\n")
    return body if rng.random() < 0.15 else "{\n" + body + "}"


def broken(rng):
    """JSON with a character taken out, put in or changed."""
    base = list(text(rng, tree(rng, 2), False)) or ["{"]
    at = rng.randrange(len(base))
    how = rng.randrange(3)
    if how == 0:
        del base[at]
    elif how == 1:
        base.insert(at, rng.choice('{}[],:"#/*\\\'ae0\n'))
    else:
        base[at] = rng.choice('{}[],:"#/*\\\'ae0\n')
    return "".join(base)


def answer(source):
    try:
        value = hjson.loads(source, object_pairs_hook=dict_raise_error_on_duplicate_keys)
    except Exception as error:  # whatever it says, DeepSpeed does not start
        return {"error": type(error).__name__}
    return {"value": value}


def is_strict(source):
    try:
        json.loads(source, parse_constant=lambda word: 1 / 0)
        return True
    except (ValueError, ZeroDivisionError):
        return False


def main():
    rng, rows, seen = random.Random(0), [], set()
    made = [("json", lambda: text(rng, tree(rng, 3), False), 250), ("comments", lambda: text(rng, tree(rng, 3), True), 350)]
    made += [("hjson", lambda: lax(rng), 350), ("broken", lambda: broken(rng), 350)]
    for kind, make, count in made:
        while count:
            source = make()
            if source in seen:
                continue
            seen.add(source)
            count -= 1
            rows.append({"text": source, "kind": "json" if kind != "comments" and is_strict(source) else kind, **answer(source)})
    lines = ",\n".join(json.dumps(row) for row in rows)
    Path(__file__).with_name("hjson.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
