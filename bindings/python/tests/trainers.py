"""Run by torchrun on two ranks: the ways in that other libraries have, each against what the library does without us."""

import contextlib
import os
import shutil

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["ACCELERATE_USE_CPU"] = "true"
import shardwright
import torch
import torch.distributed as dist
import transformers as T
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from worker import calls, check, reference, run_each, wrap


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def build(path, dtype=torch.float32):
    with init_empty_weights():
        return T.AutoModelForCausalLM.from_config(T.AutoConfig.from_pretrained(path), dtype=dtype)


def untie(tied, folder):
    """A checkpoint of a model that is tied by its config, with a head of its own."""
    shutil.copytree(tied, folder, dirs_exist_ok=True)
    state = {n: t for file in tied.glob("*.safetensors") for n, t in load_file(file).items()}
    state["lm_head.weight"] = torch.randn_like(state["model.embed_tokens.weight"])
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@contextlib.contextmanager
def asked():
    """The names of the parameters that are read meanwhile."""
    from shardwright import _fill

    names, fill = set(), _fill._native_fill
    _fill._native_fill = lambda opened, items, *more: names.update(i[0] for i in items) or fill(opened, items, *more)
    try:
        yield names
    finally:
        _fill._native_fill = fill


def native(folder):
    """`from_pretrained` with `distributed_config=`."""
    from transformers.distributed import DistributedConfig

    shardwright.transformers.enable(fallback=False)
    try:
        untied = folder.parent / "qwen3-untied"
        if dist.get_rank() == 0:
            untie(folder / "qwen3-tied", untied)
        dist.barrier()
        for path in (folder / "qwen3", folder / "qwen3-tied", untied, folder / "qwen3_moe"):
            name, want = path.name, reference(path)
            config = DistributedConfig(fsdp_size=dist.get_world_size())
            with asked() as names:
                model = T.AutoModelForCausalLM.from_pretrained(path, distributed_config=config, dtype=torch.float32)
            check(f"{name} reads its head only if it has one", ("lm_head.weight" in names) == (name != "qwen3-tied"))
            assert any(hasattr(p, "placements") for p in model.parameters())
            for n, p in [*model.named_parameters(), *model.named_buffers()]:
                check(f"{name} {n}", torch.equal(whole(p), want[n].to(p.dtype)))
            if "moe" not in name:  # torch's grouped matrix product wants wider experts
                model(input_ids=torch.arange(8).view(1, 8), labels=torch.arange(8).view(1, 8)).loss.backward()
    finally:
        shardwright.transformers.disable()


def zero3(folder):
    """`from_pretrained` under ZeRO-3: no parameter is broadcast or gathered, what the checkpoint lacks is initialised, ties are made."""
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    paths = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.endswith("-untied"))
    wanted = {path: reference(path) for path in paths}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}
    active = HfDeepSpeedConfig(config)  # from_pretrained partitions while it is alive
    shardwright.transformers.enable(fallback=False)
    try:
        for path, want in wanted.items():
            calls.clear()
            with asked() as names:
                model = T.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
            moved = [c for c in calls if c != "barrier"]
            check(f"{path.name}: collectives {moved}", not moved)
            check(f"{path.name}: {len(names)} read", set(dict(model.named_parameters())) <= names)
            for n, p in model.named_parameters():
                size, rank = p.ds_tensor.ds_numel, dist.get_rank()
                part = want[n].reshape(-1)[rank * size : (rank + 1) * size].to(p.dtype)
                check(f"{path.name} {n}", torch.equal(p.ds_tensor.data[: part.numel()], part))
            for n, b in model.named_buffers():
                check(f"{path.name} buffer {n}", torch.equal(b, want[n].to(b.dtype)))
        model = T.AutoModelForSequenceClassification.from_pretrained(folder / "qwen3", dtype=torch.bfloat16, num_labels=3)
        # DeepSpeed 0.16 leaves classes without their own constructors once a model has been built.
        if deepspeed.__version__ > "0.17":
            with deepspeed.zero.GatheredParameters([model.score.weight, model.model.norm.weight]):
                check("a new head is initialised", bool(torch.isfinite(model.score.weight).all() and model.score.weight.float().std() > 0))
                norm = wanted[folder / "qwen3"]["model.norm.weight"]
                check("the rest is filled", torch.equal(model.model.norm.weight, norm.bfloat16()))
    finally:
        shardwright.transformers.disable()
        del active


def lora(folder):
    """PEFT over a base that is filled: adapters are PEFT's, the base is the checkpoint's, only adapters learn."""
    from peft import LoraConfig, get_peft_model

    path, want = folder / "qwen3", reference(folder / "qwen3")
    with init_empty_weights():
        model = get_peft_model(build(path), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    base = model.get_base_model()
    wrap(base, dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),)))
    report = shardwright.fill(model, path, unexpected="error")
    assert not report.missing and any("lora_A" in n for n in report.initialised), report
    for n, p in base.named_parameters():
        if "lora_B" in n:
            check(f"{n} is zero", bool((whole(p) == 0).all()))
        elif "lora_A" in n:
            check(f"{n} is random", bool(torch.isfinite(whole(p)).all() and whole(p).detach().std() > 0))
        else:
            check(n, torch.equal(whole(p), want[n.replace(".base_layer", "")]))
    frozen = {n: whole(p).detach().clone() for n, p in base.named_parameters() if not p.requires_grad}
    assert frozen and len(frozen) < len(list(base.named_parameters()))
    tokens = torch.arange(8).view(1, 8)
    plain = T.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    first = model(input_ids=tokens, labels=tokens).loss
    check("loss at first", torch.allclose(first, plain(input_ids=tokens, labels=tokens).loss, atol=1e-5))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first.backward()
    optimizer.step()
    check("frozen parameters stay", all(torch.equal(frozen[n], whole(p)) for n, p in base.named_parameters() if n in frozen))
    check("adapters learn", any(bool((whole(p) != 0).any()) for n, p in base.named_parameters() if "lora_B" in n))


def freeze(folder):
    """Frozen layers are filled like the others and stay as they are."""
    path, want = folder / "qwen3", reference(folder / "qwen3")
    model = build(path)
    for n, p in model.named_parameters():
        p.requires_grad_("layers.1" in n)
    wrap(model, dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),)))
    shardwright.fill(model, path)
    tokens = torch.arange(8).view(1, 8)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    for n, p in model.named_parameters():
        check(f"{n} is {'trained' if p.requires_grad else 'frozen'}", torch.equal(whole(p), want[n]) != p.requires_grad)


def accelerate(folder):
    """`prepare`: accelerate refuses FSDP on a CPU, so its state is set by hand."""
    import shardwright.accelerate
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils import DistributedType

    path, want = folder / "qwen3", reference(folder / "qwen3")
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False)
    accelerator = Accelerator(cpu=True)
    accelerator.state._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
    accelerator.state.__dict__.update(accelerator.state._shared_state)
    make = lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)  # noqa: E731
    model, optimizer = shardwright.accelerate.prepare(accelerator, build(path), path, optimizer=make)
    for n, p in model.named_parameters():
        check(n, hasattr(p, "placements") and torch.equal(whole(p), want[n]))
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert mine == {id(p) for p in model.parameters()}, "the optimizer has other parameters"
    tokens = torch.arange(8).view(1, 8)
    accelerator.backward(model(input_ids=tokens, labels=tokens).loss)
    optimizer.step()
    check("the model learns", any(not torch.equal(whole(p), want[n]) for n, p in model.named_parameters()))
    # What follows needs accelerate as it was.
    accelerator.state._reset_state(True)


if __name__ == "__main__":
    import shardwright.transformers

    run_each(globals())
