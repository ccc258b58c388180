#!/usr/bin/env python3
"""gpu_fill.py [MODEL]: how the weights of a model come onto a card from Python: shardwright's fill against what others offer, with hot files.
Seconds are from a model on meta (or nothing) to weights that have arrived: of the first run, and of the best.

MODEL is a directory; without one a Qwen3 of 0.6B with random values is made, in BENCH_DIR. What cannot be imported is named and skipped.
"""

import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 4


def meta(path, dtype):
    import transformers as T
    from accelerate import init_empty_weights

    with init_empty_weights():
        model = T.AutoModelForCausalLM.from_config(T.AutoConfig.from_pretrained(path), dtype=dtype)
    model.tie_weights()
    return model


def sharded(model):
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cuda", (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def files(path):
    return sorted(str(f) for f in Path(path).glob("*.safetensors"))


def fill(path, dtype):
    import shardwright

    model = sharded(meta(path, dtype))
    return lambda: (shardwright.fill(model, path), model)


def fill_whole(path, dtype):
    import shardwright

    model = meta(path, dtype)
    return lambda: (shardwright.fill(model, path, device="cuda"), model)


def slices(path, dtype):
    """LLaMA-Factory's way under init_on_meta: memory for every parameter, then every tensor read and its part copied."""
    import torch
    from safetensors import safe_open

    model = sharded(meta(path, dtype))

    def run():
        model.to_empty(device="cuda")
        known = dict(model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for file in files(path):
                with safe_open(file, "pt", device="cpu") as f:
                    for name in f.keys():  # noqa: SIM118
                        known[name].to_local().copy_(f.get_tensor(name))
        return model

    return run


def from_pretrained(path, dtype):
    import transformers as T

    return lambda: T.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map="cuda")


def load_file(path, dtype):
    from safetensors.torch import load_file

    return lambda: [t.to(dtype) for f in files(path) for t in load_file(f, device="cuda").values()]


def fastsafetensors(path, dtype):
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    def run():
        loader = SafeTensorsFileLoader(SingleGroup(), "cuda:0", nogds=True)
        loader.add_filenames({0: files(path)})
        buffer = loader.copy_files_to_device()
        return [buffer.get_tensor(n).to(dtype) for n in loader.get_keys()], buffer, loader

    return run


def instanttensor(path, dtype):
    from instanttensor import safe_open

    def run():
        with safe_open(files(path), framework="pt", device=0) as f:
            return [t.to(dtype) if t.dtype != dtype else t.clone() for _, t in f.tensors()]

    return run


WAYS = {f.__name__: f for f in (fill, fill_whole, slices, from_pretrained, load_file, fastsafetensors, instanttensor)}
SAID = {"fill": "shardwright.fill, FSDP2", "fill_whole": "shardwright.fill, not wrapped", "slices": "FSDP2, tensor by tensor (as LLaMA-Factory)"}
SAID |= {"from_pretrained": "from_pretrained(device_map='cuda')", "load_file": "safetensors load_file, then .to"}


def measure(path):
    import shardwright  # noqa: F401  before anything is timed
    import torch
    import torch.distributed as dist

    size = sum(os.path.getsize(f) for f in files(path))
    for file in files(path):
        Path(file).read_bytes()
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    torch.empty(1, device="cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {size / 1e9:.2f} GB of source, hot; one rank, {RUNS} runs in one process\n")
    print("| dtype | way | first s | best s | GB/s of source | peak beyond the model MB |\n|---|---|---|---|---|---|")
    for dtype in ("bfloat16", "float32"):
        for way in WAYS:
            times, peak = [], 0
            try:
                for _ in range(RUNS):
                    gc.collect()
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                    run = WAYS[way](path, getattr(torch, dtype))
                    torch.cuda.synchronize()
                    started = time.perf_counter()
                    kept = run()
                    torch.cuda.synchronize()
                    times.append(time.perf_counter() - started)
                    peak = torch.cuda.max_memory_allocated() - before - size * (2 if dtype == "float32" else 1)
                    del kept, run
            except Exception as error:
                print(f"skipped: {way}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", flush=True)
                continue
            best = min(times)
            print(f"| {dtype} | {SAID.get(way, way)} | {times[0]:.3f} | {best:.3f} | {size / best / 1e9:.2f} | {peak / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        measure(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as made:
            subprocess.run([sys.executable, Path(__file__).with_name("make_model.py"), "dense", made], check=True)
            measure(made)
