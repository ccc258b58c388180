#!/usr/bin/env python3
"""in_models.py MODEL… [--python PYTHON] [--llamafactory PYTHON] [--rounds N] [--only WORD]: the Python package beside its peers, as a markdown
table. Two processes a load, turn by turn the peer's way and ours with the same model, hot; see run.py for the page cache and the balloon.

The interpreters need shardwright besides what run.py names; --llamafactory one that has llamafactory too, by default the same.
"""
import argparse
import json
import os
import statistics
import sys
from pathlib import Path

from run import HERE, Balloon, fill, launch, machine, resident, versions

# way, name, the factor that is asked for, if any
WAYS = [
    ("llamafactory_fsdp2", "LLaMA-Factory, FSDP2 `init_on_meta`, float32", 10),
    ("zero3", "LLaMA-Factory, DeepSpeed ZeRO-3, bfloat16", 30),
    ("native", "transformers `distributed_config=`, bfloat16", 3),
    ("accelerate", "accelerate, rank 0 broadcasts, bfloat16", 10),
    ("trainer", "accelerate, FSDP2 `cpu_ram_efficient_loading`, bfloat16", None),
    ("dcp", "`dcp.load`, torch's `HuggingFaceStorageReader`, float32", 5),
]


def one(python, way, side, model, balloon):
    path = f"{Path(python).absolute().parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [python, str(HERE / "in_model.py"), way, side, str(model)]
    _, outputs = launch(command, 2, [0, 1], {"PATH": path}, balloon, waits=True)
    lines = [json.loads(out.strip().splitlines()[-1]) for out in outputs]
    return {key: max(line[key] for line in lines) for key in ("seconds", "build", "over_mb", "shard_mb")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--llamafactory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--balloon", type=int, default=6, help="GiB of memory let go of at the moment when a load begins")
    parser.add_argument("--most", type=int, help="GiB that the balloon holds at most; by default nearly all that is free")
    parser.add_argument("--only", default="", help="ways that have this in their name")
    args = parser.parse_args()
    print(f"machine: {machine()}\n{versions(args.python)}; {args.rounds} rounds, medians (range)\n")
    columns = ["model", "peer", "peer builds, s", "peer loads, s", "shardwright builds, s", "shardwright loads, s", "ratio", "asked"]
    print("| " + " | ".join([*columns, "peer: beyond the shard", "shardwright: beyond the shard"]) + " |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    balloon = Balloon(args.balloon, args.most)
    for model in args.models:
        files = sorted(model.glob("*.safetensors"))
        if not files:
            sys.exit(f"no *.safetensors in {model}")
        fill(files, afresh=True)
        for way, name, asked in WAYS:
            if args.only not in way:
                continue
            python = args.llamafactory or args.python if way.startswith("llamafactory") else args.python
            sides = {"stock": [], "ours": []}
            for _ in range(args.rounds):
                for side, runs in sides.items():
                    balloon.fill()
                    fill(files)
                    runs.append(one(python, way, side, model.resolve(), balloon))
            row(model, name, asked, *sides.values())
            cached = min(resident(f) for f in files)
            if cached < 0.999:
                print(f"<!-- page cache: only {cached:.1%} of a file was left: not a hot run -->")


def row(model, name, asked, theirs, mine):
    def spread(runs, key):
        values = [r[key] for r in runs]
        return f"{statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"

    ratio = statistics.median(t["seconds"] for t in theirs) / statistics.median(m["seconds"] for m in mine)
    goal = "" if asked is None else f"≥ {asked}×"
    over = [max(r["over_mb"] for r in runs) / 1.048576 for runs in (theirs, mine)]
    print(
        f"| {model.name} | {name} | {spread(theirs, 'build')} | {spread(theirs, 'seconds')} | {spread(mine, 'build')} | {spread(mine, 'seconds')} "
        f"| **{ratio:.1f}×** | {goal} | {over[0]:.0f} MiB | {over[1]:.0f} MiB |",
        flush=True,
    )


if __name__ == "__main__":
    main()
