#!/usr/bin/env bash
# Prints shardwright beside its peers as a markdown table: scripts/peers.sh MODEL [ROUNDS]
# MODEL is a directory of safetensors files with a config.json that transformers can build. PYTHON names an interpreter with torch,
# transformers, safetensors, accelerate and deepspeed (all run on CPU):
#     python3 -m venv peers && peers/bin/pip install torch transformers safetensors accelerate deepspeed
#     PYTHON=peers/bin/python scripts/peers.sh MODEL
# With LLAMAFACTORY, an interpreter that has shardwright and LLaMA-Factory too (bindings/python/ci.sh makes both interpreters),
# the Python package is measured as well: models that were built are filled, beside what their libraries do.
#     PYTHON=ENV/current/bin/python LLAMAFACTORY=ENV/llamafactory/bin/python scripts/peers.sh MODEL
# benches/peers/make_model.py makes the two models of the tables, with random values.
# The machine should have nothing else to do.
set -euo pipefail
cd "$(dirname "$0")/.."

model=${1:?usage: scripts/peers.sh MODEL [ROUNDS]}
python=${PYTHON:-python3}
if ! "$python" -c 'import torch, transformers, safetensors, accelerate, deepspeed' 2>/dev/null; then
    echo "peers: skipped: $python has not all of torch, transformers, safetensors, accelerate, deepspeed (set PYTHON)" >&2
    exit 0
fi
cargo build --release --quiet
python3 benches/peers/run.py target/release/shardwright "$model" --python "$python" --rounds "${2:-5}"
if [ -n "${LLAMAFACTORY:-}" ]; then
    echo
    python3 benches/peers/in_models.py "$model" --python "$python" --llamafactory "$LLAMAFACTORY" --rounds "${2:-5}"
fi
