#!/usr/bin/env bash
# Puts NVIDIA's compilers for the kernels' PTX into target/cuda-tools, from PyPI: NVRTC, which makes it (make-ptx.py), ptxas, which makes
# machine code of it, nvdisasm, which reads that. Needs python3 with pip and no GPU. Exits 1, saying why, where they cannot be had; the
# tests that use them are then ignored.
#
#   scripts/cuda-tools.sh [sanitizer]     also compute-sanitizer
set -euo pipefail
cd "$(dirname "$0")/.."
home=target/cuda-tools
packages=(nvidia-cuda-nvrtc-cu12==12.0.76 nvidia-cuda-nvcc-cu12==12.9.86 nvidia-cuda-nvdisasm==13.5.37)
[ "${1:-}" = sanitizer ] && packages+=(nvidia-cuda-sanitizer-api-cu12==12.9.79)

[ -x $home/bin/python ] || python3 -m venv $home || {
    echo "CUDA tools: python3 makes no virtual environment" >&2
    exit 1
}
$home/bin/python -m pip install --quiet --disable-pip-version-check --only-binary=:all: "${packages[@]}" || {
    echo "CUDA tools: cannot install ${packages[*]}" >&2
    exit 1
}
# The wheels do not mark them as programs.
find $home/lib -path '*/nvidia/*/bin/*' -type f -exec chmod +x {} +
echo "CUDA tools: ${packages[*]} in $home"
