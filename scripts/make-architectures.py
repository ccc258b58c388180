#!/usr/bin/env python3
"""Makes crates/arch/data/transformers.txt: what shardwright knows of transformers' architectures, read off transformers itself.

    python scripts/make-architectures.py [--out FILE] [--types llama,qwen3] [--jobs 2]
    python scripts/make-architectures.py --check [--types llama,qwen3]      names the model types that the installed transformers has otherwise

The package architectures/ beside this does the work: its __init__.py says how, and which module does what. The file has one line a module class,
sorted, so that a new version of transformers shows as a diff. Needs torch and transformers, and timm, torchvision and scipy for the classes that need
them. Takes ten minutes on a quiet machine.
"""

import argparse
import sys
from pathlib import Path

from architectures import data_file, run
from architectures.conversions import conversions
from architectures.library import CONFIG_MAPPING_NAMES


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--out", type=Path, help="crates/arch/data/transformers.txt, or transformers-4.txt for a transformers before 5")
    args.add_argument("--types", help="these model types alone are made; the others stay as the file has them")
    args.add_argument("--jobs", type=int, default=2)
    args.add_argument("--check", action="store_true", help="write nothing; name the model types that differ from the file, and exit with 1")
    args.add_argument("--state", type=Path, help="keeps what is done, a line a model type, and goes on from it")
    args = args.parse_args()
    out = args.out or data_file.of_installed()
    types = args.types.split(",") if args.types else list(CONFIG_MAPPING_NAMES)
    done = run.resumed(args.state)
    had = data_file.read(out) if args.types and out.exists() else {}
    run.make(types, done, had, args.jobs, args.state, log=sys.stderr if args.check else sys.stdout)
    if args.check:
        sys.exit(data_file.check(out, done))
    data_file.write(out, {**had, **done}, conversions())


if __name__ == "__main__":
    main()
