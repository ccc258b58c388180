"""The `shardwright` command."""

import sys

from ._native import main as _main


def main() -> None:
    """Runs the command line with this process's arguments."""
    sys.exit(_main(["shardwright", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
