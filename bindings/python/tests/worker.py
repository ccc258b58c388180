"""Run by torchrun: fills models that the real engines sharded and compares every parameter and buffer with what transformers loads."""

import os
import sys
import traceback
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import shardwright
import torch
import torch.distributed as dist
import transformers as T
from accelerate import init_empty_weights
from shardwright._fill import kept_dtypes
from shardwright._model import _Arena, part, slots

COLLECTIVES = (
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
    "all_reduce",
    "reduce_scatter_tensor",
    "barrier",
    "scatter",
    "all_to_all",
)
calls: list[str] = []


def count_collectives():
    for name in COLLECTIVES:
        original = getattr(dist, name)

        def counted(*args, _original=original, _name=name, **kwargs):
            calls.append(_name)
            return _original(*args, **kwargs)

        setattr(dist, name, counted)


def reference(path):
    model = T.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


def size(path):
    from safetensors import safe_open

    total = 0
    for file in Path(path).glob("*.safetensors"):
        with safe_open(file, "pt") as f:
            total += sum(f.get_tensor(n).nbytes for n in f.keys())  # noqa: SIM118
    return total


wrong: list[str] = []


def check(name, ok):
    if not ok:
        wrong.append(name)


def agree():
    """What is wrong on any rank fails all of them."""
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, wrong)
    found = [f"rank {rank}: {name}" for rank, names in enumerate(every) for name in names]
    assert not found, f"{len(found)} differ: {found[:8]}"


def wrap(model, mesh, **options):
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, **options)
    if not model.config.tie_word_embeddings:
        fully_shard(model.model.embed_tokens, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def as_trainers_save(path):
    """The same checkpoint as a trainer on 2 ranks saves it: a distributed checkpoint by the names of the model's class."""
    at = path.parent.parent / f"distributed-{dist.get_world_size()}" / path.name
    if dist.get_rank() == 0 and not at.exists():
        names = None if T.__version__.startswith("4.") else "model"  # classes of 4 have these models' names on the hub
        shardwright.convert(path, at, "dcp", ranks=2, names=names, params_only=True)
        (at / "config.json").write_text((path / "config.json").read_text())
    dist.barrier()
    return at


def fsdp2(folder):
    world = dist.get_world_size()
    meshes = {"flat": dist.device_mesh.init_device_mesh("cpu", (world,))}
    if world == 4:
        meshes["hsdp"] = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for path in sorted(p for p in Path(folder).iterdir() if p.is_dir()):
        want = reference(path)
        for kind, mesh in meshes.items():
            for how in ("meta", "arena", "real"):
                meta = how != "real"
                # Without torch's poison memory is one mapping, as large models have it.
                torch.utils.deterministic.fill_uninitialized_memory = how != "arena"
                config = T.AutoConfig.from_pretrained(path)
                with init_empty_weights() if meta else torch.device("cpu"):
                    model = T.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
                model.tie_weights()
                wrap(model, mesh)
                source = as_trainers_save(path) if how == "real" else path
                before = {n: id(p) for n, p in model.named_parameters()}
                calls.clear()
                report = shardwright.fill(model, source)
                assert not calls, f"{path.name}: collectives {calls}"
                assert before == {n: id(p) for n, p in model.named_parameters()}, "a parameter is another object"
                for n, p in [*model.named_parameters(), *model.named_buffers()]:
                    whole = p.full_tensor() if hasattr(p, "full_tensor") else p
                    check(f"{path.name} {kind} {n}", torch.equal(whole, want[n].to(whole.dtype)))
                read = torch.tensor([report.bytes_read])
                dist.all_reduce(read)
                whole_model = size(path) * (2 if kind == "hsdp" else 1)
                torch.utils.deterministic.fill_uninitialized_memory = True
                persistent = any(n in want for n, _ in model.named_buffers() if n in model.state_dict())
                if source is path and not persistent:  # buffers are whole on every rank
                    assert int(read) == whole_model, f"{path.name} {kind}: {int(read)} bytes read of {whole_model}"
    if world == 4:
        over_tensor_parallelism(Path(folder))
    # A forward leaves the root unit gathered; a second fill finds the shards.
    path = Path(folder) / "qwen3"
    with init_empty_weights():
        model = T.AutoModelForCausalLM.from_config(T.AutoConfig.from_pretrained(path), dtype=torch.float32)
    wrap(model, meshes["flat"])
    shardwright.fill(model, path)
    with torch.no_grad():
        first = model(input_ids=torch.arange(8).view(1, 8)).logits
        shardwright.fill(model, path)
        check("logits after a second fill", torch.equal(first, model(input_ids=torch.arange(8).view(1, 8)).logits))
    # Missing parameters: an error on every rank, or initialised alike.
    config = T.AutoConfig.from_pretrained(Path(folder) / "qwen3")
    config.num_labels = 1
    with init_empty_weights():
        model = T.AutoModelForTokenClassification.from_config(config)
    wrap(model.to(torch.float32), meshes["flat"])
    try:
        shardwright.fill(model, Path(folder) / "qwen3")
    except shardwright.PlanError as error:
        assert "score" in str(error)
    else:
        raise AssertionError("a missing parameter was not reported")
    report = shardwright.fill(model, Path(folder) / "qwen3", missing="init")
    assert "score.weight" in report.initialised
    score = model.score.weight.full_tensor()
    assert torch.isfinite(score).all() and float(score.detach().std()) > 0


def over_tensor_parallelism(folder):
    """FSDP2 over TP: rows cut by both are `_StridedShard`. The reference is what the engines make of a model that has its values."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    path, mesh = folder / "qwen3", dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    plan = {"mlp.gate_proj": ColwiseParallel(), "mlp.up_proj": ColwiseParallel(), "mlp.down_proj": RowwiseParallel()}

    def sharded(model):
        for layer in model.model.layers:
            parallelize_module(layer, mesh["tp"], plan)
        return wrap(model, mesh["dp"])

    want = sharded(T.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32))
    with init_empty_weights():
        model = T.AutoModelForCausalLM.from_config(T.AutoConfig.from_pretrained(path), dtype=torch.float32)
    sharded(model)
    calls.clear()
    shardwright.fill(model, path)
    assert not calls, f"FSDP2 over TP: collectives {calls}"
    kinds = {type(p).__name__ for _, t in model.named_parameters() for p in t.placements}
    assert "_StridedShard" in kinds, kinds
    for (n, p), (_, q) in zip(model.named_parameters(), want.named_parameters(), strict=True):
        check(f"FSDP2 over TP {n}", p.placements == q.placements and torch.equal(p.to_local(), q.to_local()))
    weight = model.model.layers[0].mlp.up_proj.weight
    where = next(axis for axis, p in enumerate(weight.placements) if type(p).__name__ == "_StridedShard")
    placement = type(weight.placements[where])(0, split_factor=3)
    placements = [placement if axis == where else p for axis, p in enumerate(weight.placements)]
    odd = torch.nn.Module()
    odd.register_buffer(
        "up", torch.distributed.tensor.DTensor.from_local(weight.to_local().detach(), weight.device_mesh, placements, run_check=False)
    )
    try:
        part(slots(odd)[0][0])
    except shardwright.UnsupportedError as error:
        assert "'up'" in str(error) and "StridedShard" in str(error), error
    else:
        raise AssertionError("a stride that is not FSDP2's was taken")


def stock_buffer_dtypes(path, config):
    from transformers.integrations import HfDeepSpeedConfig

    active = HfDeepSpeedConfig(config)  # from_pretrained partitions while it is alive
    dtype = torch.bfloat16 if config["bf16"]["enabled"] else torch.float32
    model = T.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    del active
    return {n: b.dtype for n, b in model.named_buffers()}


def zero3(folder):
    import deepspeed
    import shardwright.deepspeed as sd

    for path in sorted(p for p in Path(folder).iterdir() if p.is_dir()):
        want = reference(path)
        for bf16, offload in ((True, False), (False, False), (True, True)):
            zero = {"stage": 3, **({"offload_param": {"device": "cpu"}} if offload else {})}
            config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, "bf16": {"enabled": bf16}}
            model_config = T.AutoConfig.from_pretrained(path)
            dtypes = stock_buffer_dtypes(path, config)
            source = as_trainers_save(path) if offload else path
            calls.clear()
            # The constructor itself: unlike from_config it leaves torch's default dtype as it is.
            model = sd.build(lambda c=model_config: T.AutoModelForCausalLM._model_mapping[type(c)](c), source, config)
            assert not calls, f"{path.name}: collectives {calls}"
            for n, p in model.named_parameters():
                valid = max(0, min(p.ds_tensor.ds_numel, p.ds_numel - dist.get_rank() * p.ds_tensor.ds_numel))
                check(f"{path.name} padding of {n}", bool((p.ds_tensor.data[valid:] == 0).all()))
                with deepspeed.zero.GatheredParameters([p]):
                    check(f"{path.name} {n}", torch.equal(p.data, want[n].to(p.dtype)))
            for n, b in model.named_buffers():
                check(f"{path.name} buffer {n}", torch.equal(b, want[n].to(b.dtype)))
                # DeepSpeed before 0.19.8 casts even what the class keeps in float32.
                kept = any(p.search(n) for p, _ in kept_dtypes(model, torch.bfloat16))
                dtype = torch.float32 if kept else dtypes[n]
                check(f"{path.name} buffer {n}: {b.dtype}, expected {dtype}", b.dtype == dtype)
        # DeepSpeed before 0.19.3 does not say which partition is whose.
        filled = [p.ds_tensor.data.clone() for p in model.parameters()]
        for p in model.parameters():
            p.ds_tensor.data.fill_(3)
            p.__dict__.pop("ds_zero_partition_rank", None)
        sd.fill_partitions(model, source)
        for (n, p), values in zip(model.named_parameters(), filled, strict=True):
            check(f"{path.name} {n} by the group's rank", torch.equal(p.ds_tensor.data, values))


def masters(folder):
    """fp32 masters have what bf16 partitions lose."""
    import deepspeed
    import shardwright.deepspeed as sd
    from deepspeed.utils import safe_get_local_fp32_param
    from safetensors.torch import load_file, save_file

    source, path = Path(folder) / "qwen3", Path(folder).parent / "float32"
    if dist.get_rank() == 0:
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text((source / "config.json").read_text())
        tensors = {n: t for f in source.glob("*.safetensors") for n, t in load_file(f).items()}
        save_file({n: t.float() * 1.001 for n, t in tensors.items()}, path / "model.safetensors")
    dist.barrier()
    want = load_file(path / "model.safetensors")
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    model = sd.build(lambda: T.AutoModelForCausalLM.from_config(T.AutoConfig.from_pretrained(path)), path, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    calls.clear()
    report = sd.fill_masters(engine, path)
    assert not calls and len(report.filled) == len(want), (calls, report)
    for n, p in model.named_parameters():
        size, rank = p.ds_tensor.ds_numel, dist.get_rank()
        part = want[n].reshape(-1)[rank * size : (rank + 1) * size]
        check(f"master of {n}", torch.equal(safe_get_local_fp32_param(p)[: part.numel()], part))


def run_each(functions):
    """What is named on the command line, after the directory that each is given, on all ranks; what is wrong on any rank fails all of them."""
    dist.init_process_group("gloo")
    count_collectives()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    for what in sys.argv[2:]:
        try:
            functions[what](Path(sys.argv[1]))
        except Exception as error:
            traceback.print_exc()
            wrong.append(f"{what}: {type(error).__name__}: {error}")
        agree()
        if dist.get_rank() == 0:
            print(f"{what}: as it should be", flush=True)
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    count_collectives()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    _Arena.LEAST = 0
    for what in sys.argv[2:]:
        {"fsdp2": fsdp2, "zero3": zero3, "masters": masters}[what](sys.argv[1])
        agree()
        if dist.get_rank() == 0:
            print(f"{what}: all exact", flush=True)
    dist.barrier()
    os._exit(0)
