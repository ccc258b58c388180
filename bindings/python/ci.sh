#!/usr/bin/env bash
# Installs the package into a venv of its own and checks it: lint, types, tests with the real engines. PYTHON_VENV names a venv to reuse.
set -euo pipefail
cd "$(dirname "$0")"
venv=${PYTHON_VENV:-.venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu HF_HUB_OFFLINE=1
# DeepSpeed builds its CPU communication with ninja; not where another venv's build lies.
PATH=$(cd "$venv/bin" && pwd):$PATH
export PATH TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$(cd "$venv" && pwd)/torch_extensions}

echo "== python: dependencies"
python -m pip install --quiet 'maturin>=1.9,<2' ruff mypy 'pytest>=8' numpy safetensors ninja torch transformers accelerate deepspeed

echo "== python: install"
python -m pip install --quiet --no-build-isolation --no-deps --force-reinstall .

echo "== python: lint and types"
cargo fmt --check
ruff check python tests
ruff format --check python tests
mypy

echo "== python: tests"
# From another directory, so that the installed package is what is tested.
here=$PWD
cd "$venv"
python -m pytest -q "$here/tests"
