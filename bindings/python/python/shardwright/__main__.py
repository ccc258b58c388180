"""The `shardwright` command: as the Rust program's, with the strategies and precision policies of Python packages."""

import sys

from ._errors import ConfigError
from ._native import main as _main
from ._plugin import PLUGIN_FLAG, load_installed, load_module, take_plugins

USAGE = 2


def main() -> None:
    """Runs the command line with this process's arguments."""
    arguments = sys.argv[1:]
    try:
        wanted, rest = take_plugins(arguments)
        load_installed(lambda text: print(f"warning: {text}", file=sys.stderr))
        for module in wanted:
            load_module(module)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USAGE)
    code = _main(["shardwright", *rest])
    if rest in (["--help"], ["-h"], ["help"]):
        print(f"\nFrom Python:\n      {PLUGIN_FLAG} <MODULE>  Import strategies and precision policies: a module's name or a .py file")
    sys.exit(code)


if __name__ == "__main__":
    main()
