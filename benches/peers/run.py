"""run.py BINARY MODEL [--python PYTHON] [--rounds N] [--only WORD]: shardwright beside its peers, as a markdown table.

Every load is a fresh process per rank. Round by round, each peer is followed by shardwright doing the same job with as many processes and
threads, so that both sides see the same machine; the table has medians, and the spread of each. The page cache is filled before, and
checked to be full after. A virtual machine may give its free memory back to its host within seconds, after which every first touch waits
for the host: so a balloon holds memory until a load begins, and lets go of it at that moment, for both sides alike (a peer has finished
its imports by then). Only the standard library is used here; the peers need PYTHON to have torch, transformers, safetensors,
accelerate and deepspeed.
"""
import argparse
import ctypes
import json
import mmap
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

# job, peer's script and arguments, world size, ranks that run, shardwright's config, the factor that is asked for
JOBS = [
    ("one rank of 8, float32", ["get_slice.py", "{model}", "float32"], 8, [3], "fsdp2", 2),
    ("one rank of 8, bfloat16 (no cast)", ["get_slice.py", "{model}", "bfloat16"], 8, [3], "fsdp2-checkpoint", 2),
    ("both ranks of 2, bfloat16 (no cast)", ["get_slice.py", "{model}", "bfloat16"], 2, [0, 1], "fsdp2-checkpoint", 2),
    ("both ranks of 2, float32", ["get_slice.py", "{model}", "float32"], 2, [0, 1], "fsdp2", 2),
    # Like for like: the peer maps the file too, with the same danger.
    ("both ranks of 2, float32, `--mmap`", ["get_slice.py", "{model}", "float32"], 2, [0, 1], "fsdp2-mmap", 2),
    ("both ranks of 2, float32", ["fsdp2_meta.py", "{model}"], 2, [0, 1], "fsdp2", 8),
    ("both ranks of 2, bfloat16", ["zero3.py", "{model}"], 2, [0, 1], "zero3", 25),
]
# Seconds.
SETTLE = 6
NAMES = {
    "get_slice.py": "safetensors `get_slice` + cast",
    "fsdp2_meta.py": "LLaMA-Factory, FSDP2 `init_on_meta`",
    "zero3.py": "LLaMA-Factory, DeepSpeed ZeRO-3",
}


def configs(folder, model):
    zero3 = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}
    (folder / "ds.json").write_text(json.dumps(zero3))
    texts = {
        "fsdp2": "dist_config: {name: fsdp2}\n",
        "fsdp2-mmap": "dist_config: {name: fsdp2}\nshardwright: {io: {mmap: true}}\n",
        "fsdp2-checkpoint": "dist_config: {name: fsdp2}\nshardwright: {storage_dtype: checkpoint}\n",
        "zero3": "dist_config: {name: deepspeed, config_file: ds.json}\n",
    }
    paths = {}
    for name, text in texts.items():
        paths[name] = folder / f"{name}.yaml"
        paths[name].write_text(f"model: {json.dumps(str(model))}\n{text}")
    return paths


class Balloon:
    """Nearly all free memory, touched: what it lets go of at the moment when a load begins is what the load will get."""

    PART = 1 << 28
    # Bytes that stay free, so that nothing else, the page cache above all, has to give way.
    SPARE = 1 << 30

    def __init__(self, gigabytes, most=None):
        self.parts, self.given = [], gigabytes << 30
        self.most = sys.maxsize if most is None else most << 30

    def fill(self):
        while free_memory() > self.SPARE + self.PART and len(self.parts) * self.PART < self.most:
            self.parts.append(self._touched(self.PART))

    def release(self):
        """What was asked for at once; the rest bit by bit, for a load that takes long and would find the memory gone again."""
        self.fill()
        # The spare memory too is touched once, a moment ago, when the load begins.
        spare = self._touched(max(mmap.PAGESIZE, min(free_memory(), 2 * self.SPARE) - self.SPARE // 4))
        for _ in range(min(self.given // self.PART, len(self.parts))):
            self.parts.pop().close()
        spare.close()
        threading.Thread(target=self._trickle, args=(self.parts,), daemon=True).start()
        self.parts = []

    @staticmethod
    def _touched(size):
        part = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        part.madvise(mmap.MADV_HUGEPAGE)
        for page in range(0, size, mmap.PAGESIZE):
            part[page] = 1
        return part

    @staticmethod
    def _trickle(parts):
        while parts:
            time.sleep(0.5)
            parts.pop().close()


def free_memory():
    """Bytes that hold nothing at all, by the system's count."""
    with open("/proc/meminfo") as info:
        return next(int(line.split()[1]) << 10 for line in info if line.startswith("MemFree"))


def launch(command, world, ranks, extra, balloon, waits):
    """Starts a process per rank at once; answers wall seconds of the slowest and what each printed. `waits`: until it is told to load."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    cores = len(os.sched_getaffinity(0))
    threads = str(max(1, cores // len(ranks)))
    if not waits:
        # As long as a peer's imports take: what the load before gave up has by then gone back to the host, and nobody is busy with it.
        time.sleep(SETTLE)
        balloon.release()
    start, running = time.perf_counter(), []
    for rank in ranks:
        env = dict(os.environ, RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(ranks.index(rank)), LOCAL_WORLD_SIZE=str(len(ranks)),
                   MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS=threads, TOKENIZERS_PARALLELISM="false",
                   HF_HUB_OFFLINE="1", THP_MEM_ALLOC_ENABLE="1", **extra)
        errors = tempfile.TemporaryFile("w+")
        process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        running.append((process, errors))
    if waits:
        for process, _ in running:
            while process.stdout.readline() not in ("ready\n", ""):
                pass
        balloon.release()
        for process, _ in running:
            try:
                process.stdin.write("\n")
                process.stdin.flush()
            except BrokenPipeError:
                pass
    outputs = [process.communicate()[0] for process, _ in running]
    wall = time.perf_counter() - start
    for process, errors in running:
        errors.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(map(str, command))} failed:\n{errors.read()[-3000:]}")
    balloon.fill()
    return wall, outputs


def peer(python, script, model, world, ranks, balloon):
    command = [python, str(HERE / script[0])] + [a.format(model=model) for a in script[1:]]
    # DeepSpeed builds an extension with the ninja that is beside its interpreter.
    path = f"{Path(python).absolute().parent}{os.pathsep}{os.environ.get('PATH', '')}"
    _, outputs = launch(command, world, ranks, {"PATH": path}, balloon, waits=True)
    lines = [json.loads(out.strip().splitlines()[-1]) for out in outputs]
    return {
        "seconds": max(line["seconds"] for line in lines),
        "over_mb": max(line["peak_mb"] - line["idle_mb"] - line["shard_mb"] for line in lines),
        "shard_mb": max(line["shard_mb"] for line in lines),
    }


def ours(binary, config, world, ranks, balloon):
    # The report is JSON on standard output; wall time is the whole process, from fork to exit, of the slowest rank.
    wall, outputs = launch([binary, "load", str(config), "--format", "json"], world, ranks, {}, balloon, waits=False)
    reports = [json.loads(out) for out in outputs]
    return {
        "seconds": max(r["totals"]["seconds"] for r in reports),
        "wall": wall,
        "over_mb": max((r["totals"]["peak_memory_bytes"] - r["totals"]["shard_bytes"]) / 1e6 for r in reports),
        "shard_mb": max(r["totals"]["shard_bytes"] for r in reports) / 1e6,
        "ratio_read": max(r["totals"]["bytes_read"] / max(1, r["totals"]["bytes_needed"]) for r in reports),
    }


def resident(path):
    """The share of a file that is in the page cache."""
    size = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    pages = -(-size // mmap.PAGESIZE)
    vector = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file:
        at = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if at in (None, ctypes.c_void_p(-1).value):
            return float("nan")
        libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(size), vector)
        libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(size))
    return sum(page & 1 for page in vector) / pages


def fill(files, afresh=False):
    """Brings files into the page cache. Afresh: out of it first, so that they lie there as a read leaves them, in large folios; a file that
    was written or downloaded page by page stays in small ones, from which every reader copies up to 1.6 times slower."""
    for file in files:
        with file.open("rb", buffering=0) as source:
            if afresh:
                os.fsync(source.fileno())
                os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while source.read(1 << 24):
                pass


def machine():
    with open("/proc/cpuinfo") as info:
        model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.processor())
    with open("/proc/meminfo") as info:
        memory = int(info.readline().split()[1]) / 2**20
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, Linux {platform.release()}"


def versions(python):
    code = ("import importlib.metadata as m; print(', '.join(f'{p} {m.version(p)}' for p in "
            "['torch','safetensors','transformers','accelerate','deepspeed']))")
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--balloon", type=int, default=6, help="GiB of memory let go of at the moment when a load begins")
    parser.add_argument("--only", default="", help="jobs whose peer's script has this in its name")
    args = parser.parse_args()
    model = args.model.resolve()
    files = sorted(model.glob("*.safetensors"))
    if not files:
        sys.exit(f"no *.safetensors in {model}")
    print(f"machine: {machine()}\n{versions(args.python)}")
    print(f"model: {model.name}, {sum(f.stat().st_size for f in files) / 1e9:.2f} GB in {len(files)} files; {args.rounds} rounds, medians\n")
    print("| job | peer | peer, s | shardwright, s | whole process, s | ratio | asked | peer: peak − idle − shard | shardwright: peak − shard |")
    print("|---|---|---|---|---|---|---|---|---|")
    fill(files, afresh=True)
    with tempfile.TemporaryDirectory() as folder:
        paths, balloon = configs(Path(folder), model), Balloon(args.balloon)
        for job, script, world, ranks, config, asked in JOBS:
            if args.only not in script[0]:
                continue
            theirs, mine = [], []
            for _ in range(args.rounds):
                balloon.fill()
                fill(files)
                theirs.append(peer(args.python, script, model, world, ranks, balloon))
                mine.append(ours(args.binary.resolve(), paths[config], world, ranks, balloon))
            row(job, script[0], theirs, mine, asked)
            cached = min(resident(f) for f in files)
            if cached < 0.999:
                print(f"<!-- page cache: only {cached:.1%} of a file was left: not a hot run -->")


def row(job, script, theirs, mine, asked):
    def spread(values):
        return f"{statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"

    seconds = [t["seconds"] for t in theirs], [m["seconds"] for m in mine]
    ratio = statistics.median(seconds[0]) / statistics.median(seconds[1])
    over = [statistics.median(x["over_mb"] for x in side) for side in (theirs, mine)]
    print(f"| {job} | {NAMES[script]} | {spread(seconds[0])} | {spread(seconds[1])} | {spread([m['wall'] for m in mine])} "
          f"| **{ratio:.1f}×** | ≥ {asked}× | {over[0]:.0f} MB | {over[1]:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
