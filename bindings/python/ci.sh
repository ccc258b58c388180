#!/usr/bin/env bash
# Checks the package: builds it, lints, checks types, and tests it with the real engines, in virtual environments of its own that are kept for the
# next run. Where the packages cannot be had it says so and passes.
#
#   bindings/python/ci.sh [pytest arguments]
#   bindings/python/ci.sh environments      makes the environments, and no more
#
# SHARDWRIGHT_PYTHON_ENV  a directory for the environments; by default in the user's cache, by the pinned versions
# PYTHON                  the interpreter that makes them; by default python3
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD

skip() {
    echo "python: skipped: $*"
    exit 0
}

python=${PYTHON:-python3}
command -v "$python" >/dev/null || skip "no $python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || skip "$("$python" --version) is older than 3.10"
command -v c++ >/dev/null || skip "no C++ compiler, which DeepSpeed needs to build its communication"

# ---- three environments: the current versions, over them LLaMA-Factory with the oldest supported transformers of major version 5, and the
# oldest torch, transformers and DeepSpeed
key=$({ cat requirements/*.txt; "$python" -c 'import sys; print(sys.version, sys.base_prefix)'; } | cksum | cut -d' ' -f1)
home=${SHARDWRIGHT_PYTHON_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/shardwright/python-$key}
mkdir -p "$home"
exec 9>"$home/lock"
flock 9

if [ ! -e "$home/complete" ]; then
    echo "== python: packages, into $home"
    rm -rf "$home/current" "$home/llamafactory" "$home/oldest"
    "$python" -m venv "$home/current" || skip "$python makes no virtual environment"
    # DeepSpeed comes as source; nothing of it is built ahead.
    DS_BUILD_OPS=0 timeout 1200 "$home/current/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements/current.txt ||
        skip "the packages of requirements/current.txt cannot be installed"
    "$python" -m venv "$home/llamafactory"
    # Its own packages come first, those of the other environment after them.
    for site in "$home"/llamafactory/lib/python*/site-packages; do
        echo "$home"/current/lib/python*/site-packages >"$site/current.pth"
    done
    timeout 300 "$home/llamafactory/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --ignore-installed \
        -r requirements/llamafactory.txt || skip "LLaMA-Factory cannot be installed"
    "$python" -m venv "$home/oldest"
    DS_BUILD_OPS=0 timeout 1200 "$home/oldest/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements/oldest.txt ||
        skip "the packages of requirements/oldest.txt cannot be installed"
    touch "$home/complete"
fi
[ "${1:-}" != environments ] || exit 0

export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false TRITON_CACHE_DIR=$home/triton
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo} TORCH_EXTENSIONS_DIR=$home/torch_extensions
unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT PYTHONPATH
PATH=$home/current/bin:$PATH

# ---- the extension: shares the workspace's build
echo "== python: build"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$here/../../target}
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
maturin build --quiet --profile dev --locked --out "$wheels" --interpreter "$home/current/bin/python"
for venv in current llamafactory oldest; do
    "$home/$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$wheels"/shardwright-*.whl
done

echo "== python: lint and types"
cargo fmt --check
cargo clippy --quiet --all-targets --locked -- -D warnings
ruff check --config pyproject.toml python tests reference.py ../../scripts/architectures ../../scripts/make-architectures.py
ruff format --config pyproject.toml --check python tests reference.py ../../scripts/architectures ../../scripts/make-architectures.py
mypy
"$home/current/bin/python" reference.py "$wheels/python-reference.md"
cmp "$wheels/python-reference.md" ../../docs/python-reference.md ||
    { echo "docs/python-reference.md is out of date: python bindings/python/reference.py" >&2; exit 1; }

# ---- checkpoints that the real engines save, converted, and loaded by the real engines again
if [ $# -eq 0 ]; then
    echo "== python: torch and transformers read what the command writes"
    SHARDWRIGHT_PYTHON=$home/current/bin/python cargo test --quiet --manifest-path ../../Cargo.toml --test interop --locked
    echo "== python: conversions between the real engines"
    cargo build --quiet --manifest-path ../../Cargo.toml --workspace --bin shardwright --locked
    # Some 390 cases, in 5 to 8 minutes; --quick takes a part of them, in 2.
    timeout 1500 python ../../tests/convert/engines.py "$CARGO_TARGET_DIR/debug/shardwright"
fi

# ---- from another directory, so that the installed package is what is tested
cd "$wheels"
echo "== python: tests, current versions"
timeout 1800 python -m pytest -q "$here/tests" -p no:cacheprovider "$@"
echo "== python: tests, LLaMA-Factory and the oldest transformers 5"
PATH=$home/llamafactory/bin:$PATH timeout 1800 python -m pytest -q "$here"/tests/test_{trace,llamafactory,resume,engines,meta,quantised,wrappers,trainers,deferred}.py -p no:cacheprovider "$@"
echo "== python: tests, the oldest torch, transformers and DeepSpeed"
export TORCH_EXTENSIONS_DIR=$home/torch_extensions-oldest
PATH=$home/oldest/bin:$PATH timeout 900 python -m pytest -q "$here"/tests/test_{engines,api,optimizer,fallback,bad_input,native_fill,meta,quantised,wrappers,trainers,deferred}.py -p no:cacheprovider "$@"
