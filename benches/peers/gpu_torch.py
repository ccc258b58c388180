#!/usr/bin/env python3
"""gpu_torch.py FILE DTYPE DEVICE: how torch brings a safetensors file to a device, as rows of the bench's table. Files are hot."""

import statistics
import sys
import time

import torch
from safetensors import safe_open
from safetensors.torch import load_file

file, dtype, device = sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3]
if device == "cuda" and not torch.cuda.is_available():
    sys.exit("torch sees no CUDA device")


def whole():
    return [t.to(dtype) for t in load_file(file, device=device).values()]


def slices():
    with safe_open(file, framework="pt") as f:
        return [f.get_slice(name)[:].to(device).to(dtype) for name in f.keys()]


def seconds(run):
    if device != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


with safe_open(file, framework="pt") as f:
    tensors = [f.get_tensor(name) for name in f.keys()]
    source, size = tensors[0].dtype, sum(t.numel() * t.element_size() for t in tensors)
    del tensors


def empty():
    if device == "cuda":
        torch.cuda.empty_cache()


for name, run in [("load_file, then .to", whole), ("get_slice, then .to", slices)]:
    run()
    # Emptied, torch asks the driver for its memory within the time, as a first load does; kept, it does not.
    for allocator, before in [("memory from the driver", empty), ("memory kept by torch", lambda: None)]:
        times = []
        for _ in range(5):
            before()
            times.append(seconds(run))
        rate = size / statistics.median(times) / 1e9
        print(f"| {str(source)[6:]} → {sys.argv[2]} | torch {torch.__version__}: {name}, {allocator} | - | {rate:.2f} source | - | - | - | - | - |")
