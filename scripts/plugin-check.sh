#!/usr/bin/env bash
# Builds and tests the example plugins, and the example for candle, as an outsider does: outside of this repository, from the crates as they would
# be published.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
# Kept between runs, so that dependencies are compiled once.
target=${CARGO_TARGET_DIR:-$root/target}/plugin-check
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "-- package every crate"
rm -rf "$target/package"
cargo package --workspace --no-verify --allow-dirty --locked --quiet --target-dir "$target"

echo "-- unpack, as from a registry"
plugins="expert-parallel tensor-parallel"
# candle is no plugin: a program that uses the library alone, without the command line and CUDA.
outsiders="$plugins candle"
mkdir "$work/crates"
for crate in "$target"/package/shardwright*.crate; do tar -xzf "$crate" -C "$work/crates"; done
for plugin in $outsiders; do
    git ls-files "examples/$plugin" | tar -cf - -T - | tar -xf - -C "$work" --strip-components=1
    # The versions that this repository pins; what the plugin adds is resolved.
    cp Cargo.lock "$work/$plugin/"
    # Instead of the working tree's crates: the packages.
    {
        echo "[patch.crates-io]"
        for crate in "$work"/crates/*/; do
            name=$(basename "$crate")
            echo "${name%-*} = { path = \"$crate\" }"
        done
    } >"$work/$plugin/.cargo/config.toml"
done
export CARGO_TARGET_DIR=$target

# Loads, saves and verifies a model end to end with the program that is built here; torch reads the save where there is one.
end_to_end() {
    cargo run --quiet -- load train.yaml --world-size 4 --save shards
    cargo run --quiet -- verify shards --against "$1"
    if [ -n "${SHARDWRIGHT_PYTHON:-}" ]; then
        echo "-- torch reads what it saved, on another number of ranks"
        "$SHARDWRIGHT_PYTHON" -m torch.distributed.run --nproc-per-node 2 "$root/tests/interop/read_with_torch.py" "shards=$1"
    fi
}

export SHARDWRIGHT_EXAMPLES=$root/examples
for plugin in $outsiders; do
    echo "-- test $plugin against the packages"
    (cd "$work/$plugin" && cargo test --quiet)
done

echo "-- their commands, as their READMEs have them"
cd "$work/tensor-parallel"
cargo run --quiet --example tiny -- tiny
end_to_end tiny
cd "$work/expert-parallel"
cargo run --quiet --example tiny_moe -- tiny-moe
end_to_end tiny-moe
cargo run --quiet -- strategies | grep -q '^example/expert-parallel  *expert-parallel  *0.1.0'

echo "-- another version of core in the same binary is refused by cargo"
core=$(echo "$work"/crates/shardwright-core-*)
version=${core##*-}
cp -r "$core" "$work/other-core"
sed -i "0,/^version = \"$version\"/s//version = \"99.0.0\"/" "$work/other-core/Cargo.toml"
printf '\n[dependencies.other-core]\npackage = "shardwright-core"\nversion = "99.0.0"\npath = "%s"\n' "$work/other-core" >>Cargo.toml
if said=$(cargo metadata --format-version 1 2>&1 >/dev/null); then
    echo "two versions of core were linked side by side" >&2
    exit 1
fi
for word in "links to the native library \`shardwright-core\`" "v$version" "v99.0.0"; do
    grep -qF "$word" <<<"$said" || { printf 'cargo refused, but did not say %s:\n%s\n' "$word" "$said" >&2; exit 1; }
done
echo "-- all of it holds"
