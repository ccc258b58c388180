#!/usr/bin/env bash
# Follows docs/write-a-strategy.md literally, in a fresh directory beside a link to this repository: its files, then its commands.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
target=${CARGO_TARGET_DIR:-$root/target}/guide-check
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ln -s "$root" "$work/shardwright"
cd "$work"

# block LANGUAGE WORDS: the one block of that language that has these words, without the lines that documentation tests alone see.
block() {
    awk -v language="$1" -v words="$2" '
        /^```/ && !inside { inside = 1; kind = substr($0, 4); sub(/,.*/, "", kind); text = ""; next }
        /^```/ { inside = 0; if (kind == language && index(text, words)) { printf "%s", text; found++ } next }
        inside && !/^ *# / { text = text $0 "\n" }
        END { if (found != 1) { print "write-a-strategy.md has " found + 0 " blocks with: " words > "/dev/stderr"; exit 1 } }
    ' "$root/docs/write-a-strategy.md"
}
# commands WORDS: runs the lines of a console block.
commands() {
    block console "$1" | sed -n 's/^\$ //p' >"$work/commands"
    [ -s "$work/commands" ]
    while read -r line; do
        echo "-- $line"
        eval "$line" </dev/null
    done <"$work/commands"
}

export CARGO_TARGET_DIR=$target
commands "cargo new"
block toml 'name = "acme-strategy"' >Cargo.toml
cp "$root/Cargo.lock" . # the versions that this repository pins; what the crate adds is resolved
block rust "register_strategy!(" >src/lib.rs
printf '\nmod policy;\n' >>src/lib.rs
block rust "register_precision!(" >src/policy.rs
mkdir tests
block rust "fn largest_dim_conforms" >tests/conformance.rs
block rust "shardwright::main()" >src/main.rs
block yaml "name: acme/largest-dim" >train.yaml
commands "cargo test"
commands "load train.yaml"
cargo run --quiet -- strategies | grep -q '^acme/vectors ' || { echo "the policy is not linked" >&2; exit 1; }
echo "-- all of it holds"
