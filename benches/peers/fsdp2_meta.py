"""fsdp2_meta.py MODEL: what LLaMA-Factory v1 does under `init_on_meta`: a float32 model on the meta device, `fully_shard` on every layer
and on the root, empty shards, and then every rank reads every tensor whole, casts it and copies its rows."""
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoConfig, AutoModelForCausalLM

from common import ready, report, rows_of, status_mb


def wrap(model, mesh, tied):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    stacks = (m.layers for m in model.modules() if isinstance(getattr(m, "layers", None), torch.nn.ModuleList))
    layers = tuple({type(stack[0]) for stack in stacks})
    inner = layers if tied else layers + (torch.nn.Embedding,)
    for module in [m for m in model.modules() if isinstance(m, inner)] + [model]:
        fully_shard(module, mesh=mesh, mp_policy=policy)


@torch.no_grad()
def load(model, directory, rank, world):
    parameters = dict(model.named_parameters())
    for file in sorted(Path(directory).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in sorted(tensors.keys()):
                if name not in parameters:
                    continue
                whole = tensors.get_tensor(name).to(parameters[name].dtype)
                first, last = rows_of(rank, world, whole.shape[0])
                parameters[name].to_local()[: last - first].copy_(whole[first:last])


dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
mesh = init_device_mesh("cpu", (1, world), mesh_dim_names=("mp_replicate", "mp_shard"))
idle = status_mb("VmRSS")
ready()
dist.barrier()
start = time.perf_counter()
config = AutoConfig.from_pretrained(sys.argv[1])
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(config).to(torch.float32)
wrap(model, mesh, config.tie_word_embeddings)
model.to_empty(device="cpu")
load(model, sys.argv[1], rank, world)
dist.barrier()
seconds = time.perf_counter() - start
report(seconds, sum(p.to_local().nbytes for p in model.parameters()), idle)
dist.destroy_process_group()
