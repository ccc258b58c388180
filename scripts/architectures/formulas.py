"""A size as a number, a product or a sum of config keys. Arithmetic alone: no model is built here.

`depends` is {key: (its value, what doubling it adds to the size)}; a value of 0 is that of a key whose effect has no formula.
"""

import itertools
import re

GROWTH = {1: 1, 2: 3, -1: -0.5, -2: -0.75}
"""{power of a key in a product: what doubling the key adds, as a fraction of the product}."""


def solve(n, depends):
    """A size as a number, "key", "3*key", "key+2", "2*key*other", "key/other", or None; or a tuple of what it may be, "key*other+key*third"."""
    if not depends:
        return n
    if any(not value for value, _ in depends.values()):
        return None
    if len(depends) == 1:
        (key, (value, more)) = next(iter(depends.items()))
        if more > 0 and more % value == 0 and not (more == 3 * n and value * value <= n):
            m = more // value
            text = key if m == 1 else f"{m}*{key}"
            rest = n - m * value
            return text if rest == 0 else f"{text}+{rest}" if rest > 0 else f"{text}{rest}"
    if all(more == n for _, more in depends.values()):
        whole = 1
        for value, _ in depends.values():
            whole *= value
        if n % whole == 0:
            c = n // whole
            return "*".join(([str(c)] if c != 1 else []) + list(depends))
    return one_product(n, depends) or two_products(n, depends)


def product(n, powers, depends):
    """A product of powers of keys as text, if it is `n` up to a small whole factor; else None."""
    up = sorted((k for k, p in powers.items() if p > 0), key=lambda k: depends[k][0])
    down = [k for k, p in powers.items() if p < 0]
    factors, value = [], 1
    up = [k for k in up for _ in range(powers[k])]
    for key in [k for k in down for _ in range(-powers[k])]:
        # the largest number is divided: a width
        if not up or depends[up[-1]][0] % depends[key][0]:
            return None
        over = up.pop()
        factors.append(f"{over}/{key}")
        value *= depends[over][0] // depends[key][0]
    for key in up:
        factors.append(key)
        value *= depends[key][0]
    if n <= 0 or n % value or n // value > 4:
        return None
    return "*".join(([str(n // value)] if n != value else []) + sorted(factors))


def one_product(n, depends):
    """A product of powers of keys, or one with 1 or 2 added, as for class tokens beside patches; else None."""
    for rest in (0, 1, 2):
        powers = {}
        for key, (_, more) in depends.items():
            powers[key] = next((p for p, growth in GROWTH.items() if more == growth * (n - rest)), None)
        if None not in powers.values() and (text := product(n - rest, powers, depends)):
            return text if not rest else f"{text}+{rest}"
    return None


def two_products(n, depends):
    """A sum of two products: None, or a tuple of all that it may be."""
    found = set()
    kinds = [(p, q) for p in (0, 1, -1) for q in (0, 1, -1) if p or q]
    if len(depends) > 5:
        return None
    for powers in itertools.product(kinds, repeat=len(depends)):
        # of a first product x: more = g*x + h*(n - x) for every key
        x = None
        for (_, more), (p, q) in zip(depends.values(), powers, strict=True):
            g, h = GROWTH.get(p, 0), GROWTH.get(q, 0)
            if g == h:
                if more != h * n:
                    break
            else:
                one = (more - h * n) / (g - h)
                if x is not None and one != x:
                    break
                x = one
        else:
            if x is None or x != int(x) or not 0 < x < n:
                continue
            first = product(int(x), {k: p for k, (p, _) in zip(depends, powers, strict=True) if p}, depends)
            second = product(n - int(x), {k: q for k, (_, q) in zip(depends, powers, strict=True) if q}, depends)
            if first and second:
                found.add("+".join(sorted((first, second))))
    return tuple(sorted(found)) if 0 < len(found) <= 8 else None


def evaluate(formula, values):
    """A formula's number, as the Rust side has it; None where a key has none, or a quotient is not whole."""
    total = 0
    for term in re.split(r"\+|(?=-)", formula):
        amount = 1
        for factor in term.split("*"):
            over, _, under = factor.partition("/")
            parts = [int(k) if re.fullmatch(r"-?\d+", k) else values.get(k) for k in (over, under) if k]
            if any(type(part) is not int for part in parts) or (len(parts) > 1 and (not parts[1] or parts[0] % parts[1])):
                return None
            amount *= parts[0] if len(parts) == 1 else parts[0] // parts[1]
        total += amount
    return total


def keys_of(formula):
    """The keys that a formula has."""
    return set(re.findall(r"[A-Za-z_][\w.]*", formula)) if isinstance(formula, str) else set()


def is_plain(formula):
    """Whether a formula is of one key, or a product, which changes of one key are enough to confirm."""
    return not isinstance(formula, (str, tuple)) or (
        isinstance(formula, str) and "/" not in formula and ("+" not in formula or len(keys_of(formula)) < 2)
    )
