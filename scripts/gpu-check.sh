#!/usr/bin/env bash
# Everything that takes a card, on any machine that has one: builds, runs all GPU tests and benches, prints one table. Says what was not run.
#
#   scripts/gpu-check.sh [OUT]     also writes the log to OUT (gpu-check.log)
#
# PYTHON: an interpreter with torch and safetensors for the comparison; BENCH_MIB, BENCH_DIR: see benches/gpu.rs.
# Exit codes: 0 all that could be run passed, on a card; 1 something failed; 77 there is no card, and what needs none passed.
set -uo pipefail
cd "$(dirname "$0")/.."
log=${1:-gpu-check.log}
: >"$log"
rows=()

# row NAME COMMAND...: runs it, and notes passed, failed or skipped with the reason.
row() {
    local name=$1 from result
    shift
    printf '\n== %s\n' "$name" | tee -a "$log"
    from=$(wc -l <"$log")
    if "$@" 2>&1 | tee -a "$log"; then result=passed; else result="FAILED ($*)"; fi
    local skipped
    # By reason; the log has the names.
    skipped=$(tail -n "+$((from + 1))" "$log" | sed -n 's/^test \([^ ]*\) *\.\.\. *ignored (\(.*\))$/\2\t\1/p' | sort -u |
        awk -F '\t' '{ n[$1]++; name[$1] = $2 } END { for (why in n) printf "%s skipped: %s; ", (n[why] > 1 ? n[why] " tests" : name[why]), why }')
    [ -n "$skipped" ] && [ "$result" = passed ] && result="passed in part; ${skipped%; }"
    rows+=("| $name | ${result//|//} |")
}

nvidia-smi --query-gpu=name,driver_version,memory.total,pcie.link.gen.current,pcie.link.width.current --format=csv,noheader 2>/dev/null | tee -a "$log" ||
    echo "no nvidia-smi" | tee -a "$log"

export SHARDWRIGHT_PYTHON=${SHARDWRIGHT_PYTHON:-${PYTHON:-python3}}

# What the PTX is made with and compiled by, to hold it against its source and look at its machine code.
scripts/cuda-tools.sh >>"$log" 2>&1 || echo "no CUDA tools to be had here" | tee -a "$log"

row "builds" cargo build --locked --tests --benches --examples -p shardwright -p shardwright-engine
row "kernels on the host, PTX and source" cargo test --locked -p shardwright-engine --test kernels -- --nocapture
row "loads on this machine's driver, on one in front of it that fails, and on the fake one" cargo test --locked -p shardwright --test gpu -- --nocapture --test-threads=1

# The fake driver's run does not count: without a card the others are ignored.
card=yes
printf '%s\n' "${rows[@]}" | grep '^| loads on' | grep -q 'no CUDA device' && card=

sanitizer=($(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null))
if [ -n "$card" ] && [ ${#sanitizer[@]} = 0 ]; then # from PyPI, where it lies in an order that it does not expect
    scripts/cuda-tools.sh sanitizer >>"$log" 2>&1
    home=$(ls -d "$PWD"/target/cuda-tools/lib/python3*/site-packages/nvidia/cuda_sanitizer_api 2>/dev/null)
    [ -n "$home" ] && sanitizer=("$home/bin/compute-sanitizer" --injection-path "$home/lib")
fi
if [ -z "$card" ]; then
    rows+=("| compute-sanitizer | skipped: no CUDA device |")
elif [ ${#sanitizer[@]} = 0 ]; then
    rows+=("| compute-sanitizer | skipped: it is not installed and not to be had |")
else
    binary=$(cargo test --locked -p shardwright --test gpu --no-run --message-format=json 2>/dev/null |
        sed -n 's/.*"executable":"\([^"]*\/gpu-[^"]*\)".*/\1/p' | tail -1)
    # Runs on stand-ins of the driver have nothing to sanitize, nor has memory that is asked for in vain, which it would report.
    # (racecheck looks at shared memory, and the kernels have none.)
    for tool in "memcheck --leak-check full" initcheck; do
        # shellcheck disable=SC2086
        row "compute-sanitizer $tool" "${sanitizer[@]}" --tool $tool --error-exitcode 1 "$binary" --test-threads=1 --nocapture \
            --skip all_of_it_passes_on_a_driver_that_is_none --skip a_driver_in_front_of_this_machines \
            --skip too_little_memory_is_reported_with_the_numbers --skip cli::
    done
fi

row "torch takes shards without a copy" cargo test --locked -p shardwright --test dlpack -- --nocapture

speed=$(($(wc -l <"$log") + 1))
row "speed" cargo bench --locked -p shardwright --bench gpu
speeds=$(tail -n "+$speed" "$log" | sed -n '/, driver for CUDA /{s/$/\n/;p};/^|/p') # the card's name stands above the table

{
    printf '\n| check | result |\n|---|---|\n'
    printf '%s\n' "${rows[@]}"
    [ -z "$speeds" ] || printf '\n%s\n' "$speeds"
} | tee -a "$log"
if printf '%s\n' "${rows[@]}" | grep -q FAILED; then exit 1; fi
if [ -z "$card" ]; then
    echo "no card here: everything that needs one is open"
    exit 77
fi
