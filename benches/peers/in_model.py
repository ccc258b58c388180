"""in_model.py WAY stock|ours MODEL: brings a checkpoint into a sharded model of its class, one process of two. What is timed is the load alone,
from the moment when the model is built (and sharded, where the way loads after that) until its values are there; building is named apart."""
import contextlib
import json
import os
import sys
import time

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
way, side, path = sys.argv[1:]
ours = side == "ours"

import torch
import torch.distributed as dist
import transformers as T
from common import ready, status_mb

if ours:
    import shardwright

started, times = time.perf_counter(), {}


def shards(model):
    """Bytes of parameters and buffers on this rank."""
    kept = {id(p): p for p in [*model.parameters(), *model.buffers()]}.values()
    local = [getattr(p, "ds_tensor", p) for p in kept]
    local = [p.to_local() if hasattr(p, "to_local") else p for p in local]
    return sum(t.nbytes for t in local if not t.is_meta)


@contextlib.contextmanager
def loading(model=None):
    """What lies inside is the load, of a model or of one that is built there and handed over by the function that is given."""
    made = []
    times["build"], before = (time.perf_counter() - started, shards(model)) if model is not None else (0.0, 0)
    dist.barrier()
    ready()
    dist.barrier()
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    idle, begun = status_mb("VmRSS"), time.perf_counter()
    yield made.append
    dist.barrier()
    seconds, peak = time.perf_counter() - begun, status_mb("VmHWM")
    shard = shards(made[0] if made else model)
    given = (shard - before) / 1e6
    line = {"rank": dist.get_rank(), "seconds": seconds, "build": times["build"], "shard_mb": shard / 1e6, "over_mb": peak - idle - given}
    print(json.dumps(line), flush=True)


def inside_from_pretrained(**options):
    """`from_pretrained`, whose call that loads is timed."""
    load = T.PreTrainedModel._load_pretrained_model

    def timed(model, *args, **kwargs):
        with loading(model):
            return load(model, *args, **kwargs)

    T.PreTrainedModel._load_pretrained_model = staticmethod(timed)
    return T.AutoModelForCausalLM.from_pretrained(path, **options)


def enable():
    if ours:
        import shardwright.transformers

        shardwright.transformers.enable(fallback=False, fsdp2=True)


def on_meta(dtype):
    from accelerate import init_empty_weights

    config = T.AutoConfig.from_pretrained(path)
    with init_empty_weights():
        model = T.AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model.to(dtype)


def wrapped(dtype):
    from torch.distributed.fsdp import fully_shard

    model = on_meta(dtype)
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def llamafactory_fsdp2():
    """LLaMA-Factory's own engine: `init_on_meta`, float32 storage."""
    from llamafactory.v1.accelerator.interface import DistributedInterface
    from llamafactory.v1.plugins.trainer_plugins.distributed.fsdp2 import FSDP2Engine

    DistributedInterface({"name": "fsdp2"})
    engine = FSDP2Engine({"name": "fsdp2"}, bf16=True)
    if ours:
        import shardwright.llamafactory

        shardwright.llamafactory.install()
    model = engine.prepare_model(on_meta(torch.float32))
    with loading(model):
        engine.materialize_and_load(model, path)


def zero3():
    """What LLaMA-Factory does under ZeRO-3: the config is registered, then `from_pretrained` builds under `zero.Init`. bfloat16."""
    import deepspeed
    from accelerate.utils import DeepSpeedPlugin

    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    config = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "bf16": {"enabled": True}, "zero_optimization": {"stage": 3}}
    plugin = DeepSpeedPlugin(hf_ds_config=config, zero3_init_flag=True)
    plugin.set_mixed_precision("bf16")
    plugin.set_deepspeed_weakref()
    enable()
    global started
    started = time.perf_counter()
    inside_from_pretrained(dtype="auto")


def native():
    """transformers' `distributed_config=`, bfloat16."""
    from transformers.distributed import DistributedConfig

    enable()
    inside_from_pretrained(dtype="auto", distributed_config=DistributedConfig(fsdp_size=dist.get_world_size()))


def accelerate():
    """accelerate's `cpu_ram_efficient_loading`: rank 0 loads the whole model and broadcasts it. bfloat16."""
    from types import SimpleNamespace

    from accelerate.utils.fsdp_utils import fsdp2_load_full_state_dict

    model = wrapped(torch.bfloat16)
    with loading(model):
        if ours:
            shardwright.fill(model, path)
        else:
            first = dist.get_rank() == 0
            whole = T.AutoModelForCausalLM.from_pretrained(path, dtype="auto").state_dict() if first else {}
            fsdp2_load_full_state_dict(SimpleNamespace(is_main_process=first), model, whole)


def trainer():
    """What transformers' Trainer does with `fsdp_config`: `from_pretrained`, an optimizer, `Accelerator.prepare`. bfloat16."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils import DistributedType

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=True)
    accelerator = Accelerator(cpu=True)
    # accelerate refuses FSDP on a CPU.
    accelerator.state._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
    accelerator.state.__dict__.update(accelerator.state._shared_state)
    enable()
    with loading() as made:
        model = T.AutoModelForCausalLM.from_pretrained(path, dtype="auto")
        model, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
        made(model)


def dcp():
    """`dcp.load` of the checkpoint's own names into float32 shards, as torchtitan does."""
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    names = {n: tuple(t.get_shape()) for n, t in slices().items()}
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    model = torch.nn.Module()
    rows = {"dtype": torch.float32, "device_mesh": mesh, "placements": [torch.distributed.tensor.Shard(0)]}
    state = {n: torch.distributed.tensor.empty(s, **rows) for n, s in names.items()}
    for i, tensor in enumerate(state.values()):
        model.register_buffer(f"t{i}", tensor)
        tensor.to_local().zero_()
    if ours:
        from shardwright.dcp import SafetensorsReader as Reader
    else:
        Reader = HuggingFaceStorageReader
    with loading(model):
        checkpoint.load(state, storage_reader=Reader(path))


def slices():
    from pathlib import Path

    from safetensors import safe_open

    found = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        opened = safe_open(file, framework="pt")
        found |= {n: opened.get_slice(n) for n in opened.keys()}
    return found


if way != "llamafactory_fsdp2":
    dist.init_process_group("gloo")
globals()[way]()
os._exit(0)
