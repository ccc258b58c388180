"""get_slice.py MODEL DTYPE: one rank's rows of every tensor through safetensors' get_slice, then a cast. No model is built, no process
group is made: the least that Python can do."""
import os
import sys
import time
from pathlib import Path

import torch
from safetensors import safe_open

from common import ready, report, rows_of, status_mb

rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dtype = getattr(torch, sys.argv[2])
idle = status_mb("VmRSS")
ready()
start = time.perf_counter()
shard = {}
for file in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():
            part = tensors.get_slice(name)
            first, last = rows_of(rank, world, part.get_shape()[0])
            # copy: without it, a part that needs no cast would stay a view of the mapped file, unread.
            shard[name] = part[first:last].to(dtype, copy=True)
seconds = time.perf_counter() - start
report(seconds, sum(t.nbytes for t in shard.values()), idle)
