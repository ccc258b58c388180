#!/usr/bin/env bash
# Fuzzes every target for a while: scripts/fuzz.sh [SECONDS each, default 30] [TARGET…]
# The corpus in the repository is only read; what is found goes to fuzz/target/corpus, crashes to fuzz/artifacts.
# What the targets run has no unsafe code, so that they are built without a sanitizer, with overflow checks and debug assertions; a sanitizer takes four
# fifths of the inputs. SANITIZER=address sets one. Unsafe code is run under AddressSanitizer by scripts/sanitize.sh.
# Where nightly or cargo-fuzz is missing it says so and leaves it to `cargo test --test hostile`, which does the same without a fuzzer.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

seconds=${1:-30}
[ $# -eq 0 ] || shift
missing=()
rustc +nightly --version >/dev/null 2>&1 || missing+=("a nightly toolchain (rustup toolchain install nightly)")
cargo fuzz --version >/dev/null 2>&1 || missing+=("cargo-fuzz (cargo install cargo-fuzz)")
if [ ${#missing[@]} -gt 0 ]; then
    for what in "${missing[@]}"; do echo "fuzz: skipped: no $what" >&2; done
    exit 0
fi

flags=(--release --sanitizer "${SANITIZER:-none}" --no-trace-compares --disable-branch-folding false)
# Branches that no fuzzing is for, and that libFuzzer counts on every input: what the standard library checks of unsafe callers.
[ -n "${SANITIZER:-}" ] || export RUSTFLAGS="-Zub-checks=no${RUSTFLAGS:+ $RUSTFLAGS}"
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(header index yaml deepspeed plan zip pickle)
# Short stacks and a small quarantine: each input allocates much, and what is freed is not used long after.
export ASAN_OPTIONS="malloc_context_size=4:quarantine_size_mb=16:${ASAN_OPTIONS:-}"
status=0
for target in "${targets[@]}"; do
    mkdir -p "target/corpus/$target"
    cargo +nightly fuzz build "${flags[@]}" "$target" 2>/dev/null || cargo +nightly fuzz build "${flags[@]}" "$target"
    log="target/$target.log"
    # A generous timeout and memory limit: what takes longer on a kilobyte of input is a finding too. The corpus is neither weighted nor reduced,
    # which would take a third of the time.
    if cargo +nightly fuzz run "${flags[@]}" "$target" "target/corpus/$target" "corpus/$target" -- \
        -max_total_time="$seconds" -max_len=8192 -timeout=10 -rss_limit_mb=2048 -entropic=0 -reduce_inputs=0 -print_final_stats=1 >"$log" 2>&1; then
        echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs, nothing fell out"
    else
        status=1
        echo "$target: failed; see fuzz/$log and fuzz/artifacts/$target" >&2
        grep -m3 -E "panicked at|ERROR: |SUMMARY: " "$log" >&2 || true
    fi
done
exit "$status"
