#!/usr/bin/env bash
# Runs tests under a sanitizer on nightly: scripts/sanitize.sh [address|thread] [CRATE…]
#   address (the default)  out-of-bounds, use after free and leaks, in the crates that have unsafe code, and on the way to a device
#                          that is none (tests/gpu)
#   thread                 data races, in the engine's own tests, with a std that is instrumented too (an uninstrumented one reports false races)
# (miri knows neither these SIMD instructions nor pread, so it is no substitute.)
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
    echo "sanitize: skipped: no $1" >&2
    exit 0
}

kind=address
case "${1:-}" in
address | thread) kind=$1 && shift ;;
esac
host=$(rustc -vV | sed -n 's/^host: //p')
rustc +nightly --version >/dev/null 2>&1 || skip "nightly toolchain (rustup toolchain install nightly)"
crates=("$@")
# A target of its own keeps build scripts and proc macros out of the sanitizer, and its folder keeps other builds whole.
common=(--target "$host" --target-dir "target/sanitize-$kind")
export RUSTFLAGS="-Zsanitizer=$kind ${RUSTFLAGS:-}"

case $kind in
address)
    export ASAN_OPTIONS="detect_leaks=1:${ASAN_OPTIONS:-}"
    if [ ${#crates[@]} -eq 0 ]; then
        crates=(shardwright-cast shardwright-engine)
        cargo +nightly test -p shardwright --test gpu "${common[@]}"
    fi
    exec cargo +nightly test "${crates[@]/#/-p}" --lib --tests "${common[@]}"
    ;;
thread)
    [ -f "$(rustc +nightly --print sysroot)/lib/rustlib/src/rust/library/std/Cargo.toml" ] ||
        skip "source of std (rustup +nightly component add rust-src)"
    [ ${#crates[@]} -gt 0 ] || crates=(shardwright-engine)
    # The tests of one binary run in one process, so a race ends it: exit code 66 and a report with both stacks.
    export TSAN_OPTIONS="halt_on_error=1:${TSAN_OPTIONS:-}"
    exec cargo +nightly test -Zbuild-std "${crates[@]/#/-p}" --lib "${common[@]}"
    ;;
esac
