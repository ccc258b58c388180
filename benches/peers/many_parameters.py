#!/usr/bin/env python3
"""many_parameters.py [COUNT]: what a fill costs in Python for each parameter: a model of so many small ones (20,000), plain and wrapped by FSDP2, each
parameter in a module of its own. The engine's own time is taken off. The best of five fills, without collectives, in one process."""

import os
import sys
import tempfile
import time

import shardwright
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from shardwright import _fill, _native
from torch.distributed.fsdp import fully_shard

COUNT, IN_A_LAYER, RUNS = int(sys.argv[1]) if sys.argv[1:] else 20_000, 10, 5
engine = 0.0


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for i in range(IN_A_LAYER):
            setattr(self, f"p{i}", torch.nn.Linear(4, 8, bias=False))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer() for _ in range(COUNT // IN_A_LAYER)])


def build(wrapped):
    with torch.device("meta"):
        model = Model()
    if wrapped:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def timed(*arguments, _native_fill=_native.fill, **options):
    global engine
    started = time.perf_counter()
    stats = _native_fill(*arguments, **options)
    engine += time.perf_counter() - started
    return stats


_fill._native.fill = timed
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
    names = [name for name, _ in build(False).named_parameters()]
    save_file({name: torch.randn(8, 4).bfloat16() for name in names}, f"{folder}/model.safetensors")
    print(f"{len(names)} parameters\n\n| model | fill s | of it the engine's | Python's µs a parameter | asked |\n|---|---|---|---|---|")
    for wrapped in (False, True):
        runs = []
        for _ in range(RUNS):
            model, engine = build(wrapped), 0.0
            started = time.perf_counter()
            report = shardwright.fill(model, folder)
            runs.append((time.perf_counter() - started, engine))
            assert len(report.filled) == len(names)
        whole, native = min(runs, key=lambda run: run[0] - run[1])
        per = (whole - native) / len(names) * 1e6
        print(f"| {'FSDP2' if wrapped else 'plain'} | {whole:.3f} | {native:.3f} | {per:.1f} | ≤ 30: {'met' if per <= 30 else 'NOT MET'} |")
os._exit(0)
