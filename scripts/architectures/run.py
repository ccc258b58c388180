"""Makes many model types at once, in processes."""

import json
import multiprocessing
import sys

from .model_types import one_type


def add(done, model_type, line, classes, failed):
    """Adds what was found of a type to what is known of it: some of a part's classes are found with the whole model's."""
    line_before, before = done.get(model_type, ({}, []))
    line = {**{k: v for k, v in line_before.items() if k != "none"}, **line}
    classes = [*[c for c in before if c[0] not in {name for name, *_ in classes}], *classes]
    if not classes:
        others = {line.get(k) for k in ("llm", "cls", "base")} - {None} if not failed else ()
        line = line if others else {**line, "none": reason(failed)}
    done[model_type] = (line, classes)


def reason(failed):
    """Why nothing is known of a model type, in a line."""
    why = next(iter(failed.values()), "transformers has no class of its own for it")
    return " ".join(why.split())[:120]


def resumed(state):
    """What a state file has: {model type: (its line, its classes)}."""
    if not state or not state.exists():
        return {}
    return {t: (line, classes) for t, line, classes in map(json.loads, state.read_text().splitlines())}


def make(types, done, had, jobs, state=None, log=None):
    """Adds to `done` what it lacks of these model types and their parts. `had` is what the data file has. Progress goes to `log`."""
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=20) as pool:
        for all_of_it in pool.imap_unordered(one_type, [t for t in types if t not in done]):
            for model_type, line, classes, failed in all_of_it:
                if model_type in had and model_type not in types:
                    done.setdefault(model_type, had[model_type])  # only what the whole model has of it is made anew
                add(done, model_type, line, classes, failed)
                for name, why in failed.items():
                    print(f"{model_type} {name}: {why}", file=sys.stderr, flush=True)
                print(f"{len(done)}/{len(types)} {model_type}: {len(classes)} classes", file=log, flush=True)
            if state:
                with state.open("a") as file:
                    file.write("".join(json.dumps([t, *done[t]]) + "\n" for t in dict.fromkeys(t for t, *_ in all_of_it)))
