#!/usr/bin/env bash
# Runs the tests of crates that have unsafe code under AddressSanitizer on nightly: scripts/sanitize.sh [CRATE…]
# (miri knows neither these SIMD instructions nor pread, so it is no substitute.)
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
if ! rustc +nightly --version >/dev/null 2>&1; then
    echo "sanitize: skipped: no nightly toolchain (rustup toolchain install nightly)" >&2
    exit 0
fi
crates=("$@")
[ ${#crates[@]} -gt 0 ] || crates=(shardwright-precision shardwright-engine)
args=()
for crate in "${crates[@]}"; do args+=(-p "$crate"); done

# A target of its own keeps build scripts and proc macros out of the sanitizer, and its folder keeps other builds whole.
export RUSTFLAGS="-Zsanitizer=address ${RUSTFLAGS:-}"
export ASAN_OPTIONS="detect_leaks=1:${ASAN_OPTIONS:-}"
exec cargo +nightly test "${args[@]}" --lib --tests --target "$host" --target-dir target/sanitize
