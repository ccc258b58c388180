#!/usr/bin/env bash
# Runs tests of the Python package with its extension built for AddressSanitizer on nightly: scripts/sanitize-python.sh PYTHON [pytest arguments]
# PYTHON is an interpreter that has the package and pytest installed; bindings/python/ci.sh makes one. The package's Python files are copied
# beside the instrumented extension; the installed package stays as it is. Without arguments: bad input, reads into any region, files.
# Leaks are not looked for: CPython itself ends with memory that it never frees.
set -euo pipefail
cd "$(dirname "$0")/../bindings/python"

python=${1:?usage: scripts/sanitize-python.sh PYTHON [pytest arguments]}
shift
host=$(rustc -vV | sed -n 's/^host: //p')
runtime=$(gcc -print-file-name=libasan.so)
[ -e "$runtime" ] || { echo "sanitize: skipped: no libasan (install gcc's)" >&2; exit 0; }
rustc +nightly --version >/dev/null 2>&1 || { echo "sanitize: skipped: no nightly toolchain" >&2; exit 0; }

# external-clangrt: the runtime is the one that is preloaded, for the interpreter itself has none.
RUSTFLAGS="-Zsanitizer=address -Zexternal-clangrt ${RUSTFLAGS:-}" CARGO_PROFILE_DEV_DEBUG=1 \
    cargo +nightly build --locked --target "$host" --target-dir target/sanitize
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -r python/shardwright "$folder/"
cp "target/sanitize/$host/debug/lib_native.so" "$folder/shardwright/_native.abi3.so"

[ $# -gt 0 ] || set -- tests/test_bad_input.py tests/test_native_fill.py tests/test_files.py
# The package comes from the folder, not from the interpreter's.
LD_PRELOAD=$runtime PYTHONPATH=$folder PYTHONMALLOC=malloc ASAN_OPTIONS="detect_leaks=0:${ASAN_OPTIONS:-}" \
    "$python" -m pytest -q -p no:cacheprovider "$@"
