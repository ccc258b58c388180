"""Run by torchrun: fills models on a card that all ranks share, wrapped by FSDP2 and not, and compares every parameter and buffer."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["LOCAL_RANK"] = "0"  # all ranks share the one card
import shardwright
import torch
import torch.distributed as dist
import transformers as T
from accelerate import init_empty_weights
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

DEVICE = os.environ.get("CUDA_WORKER_DEVICE", "cuda")
wrong: list[str] = []


def built(path, dtype, how):
    config = T.AutoConfig.from_pretrained(path)
    with init_empty_weights() if how == "meta" else torch.device(DEVICE if how == "there" else "cpu"):
        model = T.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    return model


def wrap(model, **options):
    mesh = dist.device_mesh.init_device_mesh(DEVICE, (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def rows(whole, rank, world):
    """torch.chunk's part of a tensor."""
    step = -(-whole.shape[0] // world)
    return whole[rank * step : (rank + 1) * step]


def compare(what, model, want, device):
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        sharded = hasattr(tensor, "to_local")
        local = tensor.to_local() if sharded else tensor
        expected = want[name].detach().cpu().to(local.dtype)  # the forward took the reference to the card
        if sharded:
            expected = rows(expected, dist.get_rank(), dist.get_world_size())
        on = torch.device(device if isinstance(tensor, torch.nn.Parameter) else DEVICE).type
        if local.device.type != on:
            wrong.append(f"{what}: {name} is on {local.device}")
        elif not torch.equal(local.detach().cpu(), expected):
            wrong.append(f"{what}: {name} differs")


def main(folder):
    for path in sorted(p for p in Path(folder).iterdir() if p.is_dir()):
        for dtype in (torch.float32, torch.bfloat16):
            reference = T.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
            want = {**dict(reference.named_parameters(remove_duplicate=False)), **dict(reference.named_buffers())}
            for how in ("meta", "there"):
                model = wrap(built(path, dtype, how))
                shardwright.fill(model, path)
                compare(f"{path.name} {dtype} {how}", model, want, DEVICE)
            if dist.get_backend() == "nccl" and path.name == "qwen3":
                with torch.no_grad():
                    ids = torch.arange(8, device=DEVICE).view(1, 8)
                    if not torch.equal(model(input_ids=ids).logits, reference.to(DEVICE)(input_ids=ids).logits):
                        wrong.append(f"{path.name} {dtype}: the logits differ")
            model = wrap(built(path, dtype, "meta"), offload_policy=CPUOffloadPolicy(pin_memory=DEVICE == "cuda"))
            shardwright.fill(model, path, device=DEVICE)
            compare(f"{path.name} {dtype} offloaded", model, want, "cpu")
            model = built(path, dtype, "meta")
            shardwright.fill(model, path, device=DEVICE)
            compare(f"{path.name} {dtype} whole", model, want, DEVICE)
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, wrong)
    assert not any(every), every
    if dist.get_rank() == 0:
        print("on the card: all exact", flush=True)


if __name__ == "__main__":
    # NCCL refuses a card that two ranks share; nothing here needs it but the forward of a single rank.
    alone = int(os.environ["WORLD_SIZE"]) == 1 and DEVICE == "cuda"
    dist.init_process_group("nccl" if alone else "gloo")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    main(sys.argv[1])
    dist.barrier()
    os._exit(0)
