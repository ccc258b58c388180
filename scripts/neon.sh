#!/usr/bin/env bash
# Runs the cast kernels' tests on AArch64: natively there, elsewhere under qemu-user, linked without a cross toolchain.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-musl
if [ "$(uname -m)" = aarch64 ]; then
    exec cargo test -p shardwright-cast
fi
for tool in qemu-aarch64 rustup; do
    if ! command -v "$tool" >/dev/null; then
        echo "neon: skipped: no $tool" >&2
        exit 0
    fi
done
if ! rustup target list --installed | grep -qx "$target"; then
    echo "neon: skipped: no target $target (rustup target add $target)" >&2
    exit 0
fi
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER=qemu-aarch64
exec cargo test -p shardwright-cast --target "$target" "$@"
