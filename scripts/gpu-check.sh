#!/usr/bin/env bash
# Everything that takes a card, on any machine that has one: builds, runs all GPU tests and benches, prints one table. Says what was not run.
#
#   scripts/gpu-check.sh [OUT]                also writes the log to OUT (gpu-check.log)
#   scripts/gpu-check.sh --pack DIR           builds, and puts into DIR what a machine with a card and without Rust needs; runs nothing
#   scripts/gpu-check.sh --packed DIR [OUT]   runs what --pack put there, in a checkout of the same commit. The programs look for the checkout where
#                                             they were built: where nothing lies at that path, a link to this one is made
#
# PYTHON: an interpreter with torch and safetensors for the comparison, with transformers for models; with the package shardwright unless it is packed.
# BENCH_MIB, BENCH_DIR: see benches/gpu.rs. CHECK_SECONDS: the most that a row may take (1200). CHECK_ROWS: a regular expression of the rows to run.
# Exit codes: 0 all that could be run passed, on a card; 1 something failed; 77 there is no card, and what needs none passed.
set -uo pipefail
cd "$(dirname "$0")/.."

# pack DIR: what the checks run, without the symbols.
pack() {
    local to=$1 name path
    mkdir -p "$to/bin" "$to/examples" "$to/wheels"
    cargo build --locked --example dlpack --bin shardwright || return
    {
        cargo test --locked -p shardwright-engine --test kernels --no-run --message-format=json &&
            cargo test --locked -p shardwright --test gpu --test dlpack --no-run --message-format=json &&
            cargo bench --locked -p shardwright --bench gpu --no-run --message-format=json | sed 's/"name":"gpu"/"name":"gpu-bench"/'
    } | sed -n 's/.*"name":"\([a-z0-9-]*\)".*"executable":"\([^"]*\)".*/\1 \2/p' | sort -u >"$to/programs" || return
    while read -r name path; do
        case $name in kernels | gpu | dlpack | gpu-bench) strip -o "$to/bin/$name" "$path" || return ;; esac
    done <"$to/programs"
    strip -o "$to/bin/shardwright" target/debug/shardwright && strip -o "$to/examples/libdlpack.so" target/debug/examples/libdlpack.so || return
    "${PYTHON:-python3}" -m maturin build --quiet --release --locked --manifest-path bindings/python/Cargo.toml --out "$to/wheels" ||
        echo "no wheel: ${PYTHON:-python3} has no maturin"
    pwd >"$to/built-in"
    rm "$to/programs"
    du -sh "$to"
}

packed=
case ${1:-} in
--pack)
    pack "${2:?--pack needs a directory}"
    exit
    ;;
--packed)
    [ -e "${2:?--packed needs a directory}/built-in" ] || { echo "$2: nothing was packed there; scripts/gpu-check.sh --pack $2 does it" >&2; exit 1; }
    packed=$(cd "$2" && pwd)
    shift 2
    ;;
esac
log=${1:-gpu-check.log}
: >"$log"
rows=()

# row NAME COMMAND...: runs it, and notes passed, failed or skipped with the reason.
row() {
    local name=$1 from result
    shift
    [[ $name =~ ${CHECK_ROWS:-.} ]] || return
    printf '\n== %s\n' "$name" | tee -a "$log"
    from=$(wc -l <"$log")
    if timeout "${CHECK_SECONDS:-1200}" "$@" 2>&1 | tee -a "$log"; then result=passed; else result="FAILED ($*)"; fi
    local skipped
    # By reason; the log has the names.
    skipped=$(tail -n "+$((from + 1))" "$log" | sed -n 's/^test \([^ ]*\) *\.\.\. *ignored (\(.*\))$/\2\t\1/p' | sort -u |
        awk -F '\t' '{ n[$1]++; name[$1] = $2 } END { for (why in n) printf "%s skipped: %s; ", (n[why] > 1 ? n[why] " tests" : name[why]), why }')
    [ -n "$skipped" ] && [ "$result" = passed ] && result="passed in part; ${skipped%; }"
    rows+=("| $name | ${result//|//} |")
}

nvidia-smi --query-gpu=name,driver_version,memory.total,pcie.link.gen.current,pcie.link.width.current --format=csv,noheader 2>/dev/null | tee -a "$log" ||
    echo "no nvidia-smi" | tee -a "$log"

python=${PYTHON:-python3}
export SHARDWRIGHT_PYTHON=${SHARDWRIGHT_PYTHON:-$python}

if [ -n "$packed" ]; then
    built=$(cat "$packed/built-in")
    [ -e "$built" ] || { mkdir -p "$(dirname "$built")" && ln -s "$PWD" "$built"; }
    mkdir -p target/debug
    [ -e target/debug/shardwright ] || ln -s "$packed/bin/shardwright" target/debug/shardwright
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --target "$site" "$packed"/wheels/*.whl >>"$log" 2>&1 &&
        export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
else
    # What the PTX is made with and compiled by, to hold it against its source and look at its machine code.
    scripts/cuda-tools.sh >>"$log" 2>&1 || echo "no CUDA tools to be had here" | tee -a "$log"
    row "builds" cargo build --locked --tests --benches --examples -p shardwright -p shardwright-engine
fi

# tests NAME PACKAGE: the command that runs a test program with what follows.
tests() {
    if [ -n "$packed" ]; then
        command=("$packed/bin/$1")
    else
        command=(cargo test --locked -p "$2" --test "$1" --)
    fi
}

tests kernels shardwright-engine
row "kernels on the host, PTX and source" "${command[@]}" --nocapture
tests gpu shardwright
row "loads on this machine's driver, on one in front of it that fails, and on the fake one" "${command[@]}" --nocapture --test-threads=1

# As the driver says, and the tests: the fake driver's run does not count, without a card the others are ignored.
card=
case $(printf '%s\n' "${rows[@]}" | grep '^| loads on') in
*'no CUDA device'*) ;;
?*) card=yes ;;
*) nvidia-smi -L >/dev/null 2>&1 && card=yes ;; # that row is not among those asked for
esac

sanitizer=($(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null))
if [ -n "$card" ] && [ ${#sanitizer[@]} = 0 ] && [ -z "$packed" ]; then # from PyPI, where it lies in an order that it does not expect
    scripts/cuda-tools.sh sanitizer >>"$log" 2>&1
    home=$(ls -d "$PWD"/target/cuda-tools/lib/python3*/site-packages/nvidia/cuda_sanitizer_api 2>/dev/null)
    [ -n "$home" ] && sanitizer=("$home/bin/compute-sanitizer" --injection-path "$home/lib")
fi
if [ -z "$card" ]; then
    rows+=("| compute-sanitizer | skipped: no CUDA device |")
elif [ ${#sanitizer[@]} = 0 ]; then
    rows+=("| compute-sanitizer | skipped: it is not installed and not to be had |")
else
    binary=$packed/bin/gpu
    [ -n "$packed" ] || binary=$(cargo test --locked -p shardwright --test gpu --no-run --message-format=json 2>/dev/null |
        sed -n 's/.*"executable":"\([^"]*\/gpu-[^"]*\)".*/\1/p' | tail -1)
    # Runs on stand-ins of the driver have nothing to sanitize, nor has memory that is asked for in vain, which it would report.
    # (racecheck looks at shared memory, and the kernels have none.)
    for tool in "memcheck --leak-check full" initcheck; do
        # shellcheck disable=SC2086
        row "compute-sanitizer $tool" "${sanitizer[@]}" --tool $tool --error-exitcode 1 "$binary" --test-threads=1 --nocapture \
            --skip all_of_it_passes_on_a_driver_that_is_none --skip a_driver_in_front_of_this_machines --skip a_driver_that_registers_no_memory \
            --skip too_little_memory_is_reported_with_the_numbers --skip is_not_on_the_device --skip cli::
    done
fi

tests dlpack shardwright
row "torch takes shards without a copy" "${command[@]}" --nocapture

# A real torchrun fills models that lie on the card.
models=
if [ -z "$card" ]; then
    rows+=("| Python fills models on the card | skipped: no CUDA device |")
elif why=$("$python" -c 'import torch, transformers, shardwright, pytest; assert torch.cuda.is_available(), "torch sees no CUDA device"' 2>&1); then
    models=yes
    row "Python fills models on the card" "$python" -m pytest -q -rs -p no:cacheprovider bindings/python/tests/test_cuda.py
else
    rows+=("| Python fills models on the card | skipped: $python: ${why##*$'\n'} |")
fi

speed=$(($(wc -l <"$log") + 1))
if [ -n "$packed" ]; then command=("$packed/bin/gpu-bench" --bench); else command=(cargo bench --locked -p shardwright --bench gpu); fi
row "speed" "${command[@]}"
if [ -n "$models" ]; then
    row "speed of Python" "$python" benches/peers/gpu_fill.py
else
    rows+=("| speed of Python | skipped, as the models on the card are |")
fi
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
