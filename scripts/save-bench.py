"""save-bench.py PROGRAM [--gigabytes N] [--dir DIR]: `load --save` of four ranks beside a bare copy of as many bytes on the same disk.

Writes a checkpoint of random bfloat16 (1.6 GB by default) into a new directory, then runs in turn, three rounds: a bare loop that reads the
source and writes and syncs it once, and PROGRAM's save in bfloat16; then the same into float32, where the loop writes each block twice.
Prints seconds, the ratio, and the program's peak memory as the kernel counts it (ru_maxrss). Python's own library only.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import struct
import subprocess
import tempfile
import time

BLOCK = 8 << 20


def write_checkpoint(folder, gigabytes):
    rows, tensors = 4096, max(1, round(gigabytes * 1e9 / (4096 * 4096 * 2)))
    size = rows * 4096 * 2
    header = {f"layers.{i:03}.weight": {"dtype": "BF16", "shape": [rows, 4096], "data_offsets": [i * size, (i + 1) * size]} for i in range(tensors)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # Random exponents below those of NaN and infinity.
    mask = int.from_bytes(b"\xff\x3f" * (BLOCK // 2), "little")
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in range(tensors * size // BLOCK):
            file.write((int.from_bytes(os.urandom(BLOCK), "little") & mask).to_bytes(BLOCK, "little"))
    (folder / "config.json").write_text('{"architectures": ["None"]}')
    return folder / "model.safetensors"


def bare(source, target, times):
    block = memoryview(bytearray(BLOCK))
    started = time.monotonic()
    with open(source, "rb", buffering=0) as read, open(target, "wb", buffering=0) as write:
        while n := read.readinto(block):
            for _ in range(times):
                write.write(block[:n])
        os.fsync(write.fileno())
    seconds = time.monotonic() - started
    os.unlink(target)
    return seconds


def save(program, config, target):
    started = time.monotonic()
    child = subprocess.Popen([program, "load", config, "--world-size", "4", "--save", target], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit(said.decode())
    shutil.rmtree(target)
    return seconds, usage.ru_maxrss * 1024


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("program")
    parse.add_argument("--gigabytes", type=float, default=1.6)
    parse.add_argument("--dir", default=None, help="a directory on the disk to measure")
    args = parse.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        folder = pathlib.Path(folder)
        model = folder / "model"
        model.mkdir()
        source = write_checkpoint(model, args.gigabytes)
        os.sync()
        for dtype, times in (("bfloat16", 1), ("float32", 2)):
            config = folder / "train.yaml"
            config.write_text(
                f"model: {model}\ndist_config: {{name: fsdp2}}\ninit_config: {{name: init_on_meta}}\nshardwright: {{storage_dtype: {dtype}}}\n"
            )
            loops, saves, peak = [], [], 0
            for _ in range(3):
                loops.append(bare(source, folder / "copy", times))
                seconds, memory = save(args.program, config, folder / "shards")
                saves.append(seconds)
                peak = max(peak, memory)
            loop, own = statistics.median(loops), statistics.median(saves)
            print(f"{dtype}: bare loop {loop:.2f} s, save {own:.2f} s, ratio {loop / own:.2f}, peak memory {peak / 2**20:.0f} MiB", flush=True)


main()
