"""Run by torchrun on two ranks: `from_pretrained` and `Accelerator.prepare` under FSDP2, against what they do without us."""

import contextlib
import copy
import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["ACCELERATE_USE_CPU"] = "true"
import cpu_fsdp
import shardwright
import shardwright.transformers
import torch
import torch.distributed as dist
import transformers as T
from accelerate import Accelerator, FullyShardedDataParallelPlugin, state
from worker import calls, check, reference, run_each, size, wrap

FSDP = {"auto_wrap_policy": "transformer_based_wrap", "cpu_ram_efficient_loading": True}
TOKENS = torch.arange(8).view(1, 8)


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@contextlib.contextmanager
def accelerator(fallback=False):
    """An accelerator that shards by FSDP2, with `from_pretrained` through shardwright."""
    with shardwright.transformers.patched(fallback=fallback, fsdp2=True):
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, **FSDP)
        try:
            yield Accelerator(cpu=True, fsdp_plugin=plugin)
        finally:
            state.AcceleratorState._reset_state(True)
            for name in ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
                os.environ.pop(name, None)


def is_deferred(model):
    return all(p.is_meta for p in model.parameters())


def expect(name, kind, text, attempt):
    try:
        attempt()
    except kind as error:
        check(f"{name}: {error}", text in str(error))
    else:
        check(f"{name}: no error", False)


def prepare(folder):
    """Every parameter and buffer is that of the whole model, each rank reads its part, and nothing is broadcast."""
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        want = reference(path)
        for dtype in (torch.float32, torch.float16):
            with accelerator() as acc:
                model = T.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
                check(f"{path.name} is read later", is_deferred(model))
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
                kinds = {n: p.dtype for n, p in model.named_parameters()}
                calls.clear()
                model, optimizer = acc.prepare(model, optimizer)
                moved = [c for c in calls if c != "all_reduce"]
                check(f"{path.name}: collectives {calls}", not moved and calls.count("all_reduce") == 1)
            for n, t in [*model.named_parameters(), *model.named_buffers()]:
                check(f"{path.name} {dtype} {n}", torch.equal(whole(t), want[n].to(t.dtype)) and t.dtype == kinds.get(n, t.dtype))
            check(f"{path.name} is sharded", all(hasattr(p, "placements") for p in model.parameters()))
            mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
            check(f"{path.name}: the optimizer's parameters", mine == {id(p) for p in model.parameters()})
    path = folder / "qwen3"
    with accelerator() as acc:
        model = T.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        with reports() as made:
            acc.prepare(model, torch.optim.AdamW(model.parameters()))
    read = torch.tensor([sum(report.bytes_read for report in made)])
    dist.all_reduce(read)
    check(f"{int(read)} bytes read of {size(path)}", int(read) == size(path))


@contextlib.contextmanager
def reports():
    """The reports of what is filled meanwhile."""
    from shardwright import _deferred

    made, fill = [], _deferred.fill_within
    _deferred.fill_within = lambda *args: made.append(fill(*args)) or made[-1]
    try:
        yield made
    finally:
        _deferred.fill_within = fill


def trainer(folder):
    """transformers' Trainer: losses and gradient norms are those of a run without us, to the last digit."""
    os.environ["FSDP_VERSION"] = "2"  # which the arguments do not say with transformers 4

    def losses(path, ours, change, dtype, **options):
        with shardwright.transformers.patched(fallback=False, fsdp2=True) if ours else contextlib.nullcontext():
            T.set_seed(0)
            fsdp = {"fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 2, "cpu_ram_efficient_loading": True}}
            arguments = T.TrainingArguments(
                str(folder.parent / "out"),
                max_steps=3,
                logging_steps=1,
                report_to=[],
                use_cpu=True,
                save_strategy="no",
                disable_tqdm=True,
                **fsdp,
                **options,
            )
            model = T.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
            check(f"{path.name} is read later", is_deferred(model) == ours)
            torch.manual_seed(1)
            model = change(model)
            rows = [{"input_ids": torch.randint(0, 60, (16,)), "labels": torch.randint(0, 60, (16,))} for _ in range(32)]
            run = T.Trainer(model, arguments, train_dataset=rows)
            run.train()
            state.AcceleratorState._reset_state(True)
        return [(h["loss"], h["grad_norm"]) for h in run.state.log_history if "loss" in h]

    def adapters(model):
        from peft import LoraConfig, get_peft_model

        return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))

    def computed_adapters(model):
        from peft import LoraConfig, get_peft_model

        return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, modules_to_save=["lm_head"]))

    def merged(model):
        model = adapters(model)
        with torch.no_grad():
            for n, p in model.named_parameters():
                if "lora_B" in n:
                    p.fill_(0.25)
        return model.merge_and_unload().requires_grad_()

    def longer(model):
        model.resize_token_embeddings(model.config.vocab_size + 5, mean_resizing=False)
        return model

    for name, change, dtype, options in (
        ("qwen3", lambda m: m, torch.float32, {}),
        ("qwen3-tied", lambda m: m, torch.bfloat16, {"bf16": True}),
        ("qwen3-tied", adapters, torch.bfloat16, {"bf16": True}),
        ("qwen3", adapters, torch.float32, {}),
        ("qwen3", computed_adapters, torch.float32, {}),
        ("qwen3", longer, torch.float32, {}),
        ("qwen3", merged, torch.float32, {}),
        ("gpt_oss", copy.deepcopy, torch.float32, {}),
    ):
        stock, ours = (losses(folder / name, side, change, dtype, **options) for side in (False, True))
        check(f"{name} {change.__name__} {options}: {ours} instead of {stock}", ours == stock and len(ours) == 3)


def changes(folder):
    """What is done to a model before it is sharded is kept, or refused."""
    path, want = folder / "qwen3", reference(folder / "qwen3")

    def prepared(acc, model):
        return acc.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))[0]

    with accelerator() as acc:
        model = T.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        logits = model(input_ids=TOKENS).logits  # loads it whole
        check("a forward", torch.equal(logits, T.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to("cpu")(input_ids=TOKENS).logits))
        with torch.no_grad():
            model.lm_head.weight.mul_(2)
        model = prepared(acc, model)
        check("a change of what was loaded", torch.equal(whole(model.lm_head.weight), want["lm_head.weight"] * 2))
    with accelerator() as acc:
        model = T.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        with torch.no_grad():
            model.lm_head.weight.mul_(2)
        expect("changed", shardwright.UnsupportedError, "tensor 'lm_head.weight' was changed between from_pretrained", lambda: prepared(acc, model))
    with accelerator() as acc:
        model = T.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        torch.manual_seed(dist.get_rank())
        model.lm_head = torch.nn.Linear(32, 7)
        model = prepared(acc, model)
        torch.manual_seed(0)
        check("replaced", torch.equal(whole(model.lm_head.weight), torch.nn.Linear(32, 7).weight))
        check("not replaced", torch.equal(whole(model.model.norm.weight), want["model.norm.weight"]))
    with accelerator() as acc:
        model = T.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        with torch.device("meta"):
            model.extra = torch.nn.Linear(32, 7)
        expect("on meta", shardwright.UnsupportedError, "tensor 'extra.weight' was made without values", lambda: prepared(acc, model))
    # What is elsewhere or another one by then is refused on all ranks, whatever has its name.
    for name, change, text in (
        ("scaled", lambda m: setattr(m.lm_head.weight, "data", m.lm_head.weight.data * 2), "'lm_head.weight' was changed"),
        ("moved", lambda m: setattr(m.model, "layers", m.model.layers[1:]), "was moved or tied by hand"),
        ("tied", lambda m: setattr(m.lm_head, "weight", m.model.embed_tokens.weight), "was moved or tied by hand"),
        ("made anew", lambda m: setattr(m.lm_head, "weight", torch.nn.Parameter(m.lm_head.weight.detach() * 2)), "was replaced by one without"),
        ("copied", lambda m: m.model.layers.insert(0, copy.deepcopy(m.model.layers[0])), "was replaced by one without"),
    ):
        with accelerator() as acc:
            model = T.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            if dist.get_rank() == 0 or name != "scaled":
                change(model)
            expect(name, shardwright.UnsupportedError, text, lambda: prepared(acc, model))  # noqa: B023

    # Several in one module, one of them in another's place.
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = T.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            self.b = T.AutoModelForCausalLM.from_pretrained(folder / "qwen3-tied", dtype=torch.float32)
            self.a.model = T.AutoModel.from_pretrained(folder / "qwen3-tied", dtype=torch.float32)

    other = reference(folder / "qwen3-tied")
    with accelerator() as acc:
        both = prepared(acc, Two())
        for n, t in [*both.named_parameters(), *both.named_buffers()]:
            name = n.partition(".")[2]
            check(f"two: {n}", torch.equal(whole(t), want[name] if n == "a.lm_head.weight" else other[name]))
    # A rank that has loaded it whole meanwhile makes the others do so.
    with accelerator() as acc:
        model = T.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        if dist.get_rank() == 0:
            model(input_ids=TOKENS)
        for n, t in prepared(acc, model).named_parameters():
            check(f"one rank whole: {n}", torch.equal(whole(t), want[n]))
    # A head that the checkpoint lacks is alike on all ranks; what the user adds is rank 0's.
    with accelerator() as acc:
        model = T.AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32, num_labels=3)
        torch.manual_seed(dist.get_rank())
        model.register_module("extra", torch.nn.Linear(32, 7))
        model.register_buffer("scale", torch.full((3,), 2.0))
        model = prepared(acc, model)
        torch.manual_seed(0)
        first = torch.nn.Linear(32, 7)
        check("the user's module", torch.equal(whole(model.extra.weight), first.weight) and torch.equal(whole(model.extra.bias), first.bias))
        check("the user's buffer", torch.equal(model.scale, torch.full((3,), 2.0)))
        score = whole(model.score.weight).detach()
        check("a new head", bool(torch.isfinite(score).all()) and float(score.std()) > 0)
        every = [torch.empty_like(score) for _ in range(dist.get_world_size())]
        dist.all_gather(every, score.contiguous())
        check("a new head is alike", all(torch.equal(e, score) for e in every))
        check("the rest", torch.equal(whole(model.model.norm.weight), want["model.norm.weight"]))
        check("it runs", bool(torch.isfinite(model(input_ids=TOKENS).logits).all()))
    # Saved before it is sharded, copied, and moved.
    with accelerator() as acc:
        model = T.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        twin = copy.deepcopy(model)
        check("a copy is read later too", is_deferred(twin))
        twin.save_pretrained(folder.parent / f"saved-{dist.get_rank()}")
        check("it is saved whole", all(torch.equal(t, want[n]) for n, t in twin.named_parameters()))
        moved = T.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to("cpu")
        check("it is moved whole", all(torch.equal(t, want[n]) for n, t in moved.named_parameters()))
        for n, p in prepared(acc, model).named_parameters():
            check(f"the copied one: {n}", torch.equal(whole(p), want[n]))
    # Sharded by somebody else, as TRL does with its reference models.
    with accelerator():
        model = T.AutoModelForCausalLM.from_pretrained(folder / "qwen3-tied", dtype=torch.float32)
        wrap(model, dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),)))
        logits = model(input_ids=TOKENS).logits
    whole_model = T.AutoModelForCausalLM.from_pretrained(folder / "qwen3-tied", dtype=torch.float32)
    check("sharded by hand", torch.equal(logits, whole_model(input_ids=TOKENS).logits))
    # A model without its outer one, which has the note.
    with accelerator() as acc:
        model = torch.nn.Sequential(T.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).model)
        model._no_split_modules = ["Qwen3DecoderLayer"]
        expect("without its note", shardwright.UnsupportedError, "it was taken out of the model", lambda: prepared(acc, model))
    # What shardwright does not read goes the usual way, by which ranks may have parameters on meta.
    pickled = folder.parent / "pickled"
    if dist.get_rank() == 0:
        pickled.mkdir()
        torch.save(T.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict(), pickled / "pytorch_model.bin")
        (pickled / "config.json").write_text((path / "config.json").read_text())
    dist.barrier()
    with accelerator(fallback=True) as acc:
        model = T.AutoModelForSequenceClassification.from_pretrained(pickled, dtype=torch.float32, num_labels=3)
        check("a pickle is not read later", not is_deferred(model))
        model = prepared(acc, model)
        check("a pickle's values", torch.equal(whole(model.model.norm.weight), want["model.norm.weight"]))
    # Without an accelerator, or with another one, nothing is deferred.
    with shardwright.transformers.patched(fsdp2=True):
        model = T.AutoModelForCausalLM.from_pretrained(path)
        check("no accelerator", not is_deferred(model))


if __name__ == "__main__":
    cpu_fsdp.allow()
    run_each(globals())
