"""Checkpoints written and read by the real engines, for the tests of `shardwright convert`. Run under torchrun with gloo.

    engines.py save-fsdp DIR            FSDP2 with AdamW: DIR/{model,optimizer} as torch.distributed.checkpoint writes them
    engines.py save-ds STAGE DIR        DeepSpeed of that ZeRO stage, bf16 with fp32 masters
    engines.py load-fsdp DIR EXPECTED   loads DIR into a model and an optimizer, and compares with EXPECTED
    engines.py load-ds STAGE DIR EXPECTED [universal]
    engines.py load-hf DIR EXPECTED     every tensor of a directory of safetensors files

The savers write DIR/expected.pt beside the checkpoint: what every parameter, master, moment, step and buffer was. Loaders print one line
"equal" or fail.
"""
import importlib, json, os, sys

os.environ.setdefault("DS_ACCELERATOR", "cpu")
import torch, torch.distributed as dist, torch.nn as nn

KIND = os.environ.get("NET", "net")


class Net(nn.Module):
    """Uneven, frozen and one-element parameters, a buffer, a tied weight, and experts of three dims."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(7, 3)
        self.a = nn.Linear(3, 5)
        self.b = nn.Linear(5, 3, bias=False)
        self.one = nn.Parameter(torch.ones(1))
        self.experts = nn.Parameter(torch.randn(3, 3, 2))
        self.c = nn.Linear(3, 3)
        self.c.weight.requires_grad_(False)
        self.c.bias.requires_grad_(False)
        self.register_buffer("buf", torch.arange(4.0))
        self.register_buffer("count", torch.tensor(5))
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids):
        x = self.b(self.a(self.emb(ids))) * self.one
        x = self.c(x) + torch.einsum("bi,eij->bj", x, self.experts).sum(-1, keepdim=True)
        return self.head(x)


def batch(rank, step):
    g = torch.Generator().manual_seed(100 * step + rank)
    return torch.randint(0, 7, (4,), generator=g)


def groups(model):
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    dims = lambda p: len(getattr(p, "ds_shape", p.shape))
    decay = [p for n, p in trainable if dims(p) > 1]
    rest = [p for n, p in trainable if dims(p) <= 1]
    return [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0, "lr": 5e-3}]


def train(step, rank, forward, backward):
    out = forward(batch(rank, step))
    backward(out.float().pow(2).mean())


def config(stage, universal):
    zero = {"stage": stage}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = 0
        if os.environ.get("SUB_GROUP"):
            zero["sub_group_size"] = int(os.environ["SUB_GROUP"])
    ds = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "bf16": {"enabled": True}, "zero_allow_untested_optimizer": True, "zero_optimization": zero}
    if universal:
        ds["checkpoint"] = {"load_universal": True}
    return ds


def deepspeed_engine(stage, universal=False):
    import deepspeed

    # An extension that would be compiled first, and that gloo can do without.
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    ds = config(stage, universal)
    if stage == 3:
        with deepspeed.zero.Init(config_dict_or_path=ds):
            model = Net()
    else:
        model = Net()
    opt = torch.optim.AdamW(groups(model), lr=1e-2, betas=(0.8, 0.99))
    sched = None if os.environ.get("NO_SCHEDULER") else torch.optim.lr_scheduler.LambdaLR(opt, lambda s: 1.0 / (1 + s))
    engine, opt, _, sched = deepspeed.initialize(model=model, optimizer=opt, lr_scheduler=sched, config=ds)
    return engine, opt, model


def ds_state(engine, opt, model):
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
    import deepspeed

    state = {"params": {}, "frozen": {}, "exp_avg": {}, "exp_avg_sq": {}, "buffers": {n: b.clone() for n, b in model.named_buffers()}}
    for n, p in model.named_parameters():
        if p.requires_grad:
            state["params"][n] = safe_get_full_fp32_param(p).clone()
            for key in ("exp_avg", "exp_avg_sq") if hasattr(p, "ds_id") else ():
                state[key][n] = safe_get_full_optimizer_state(p, key).clone()
        elif hasattr(p, "ds_id"):
            with deepspeed.zero.GatheredParameters([p]):
                state["frozen"][n] = p.data.clone()
        else:
            state["frozen"][n] = p.data.clone()
    names = {id(p): n for n, p in model.named_parameters()}
    for flat, group in zip(getattr(opt, "single_partition_of_fp32_groups", []), getattr(opt, "round_robin_bit16_groups", [])):
        for key in ("exp_avg", "exp_avg_sq"):  # stages 1 and 2: the ranks' parts, one after another
            parts = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, opt.optimizer.state[flat][key])
            whole, at = torch.cat(parts), 0
            for p in group:
                state[key][names[id(p)]] = whole[at : at + p.numel()].view(p.shape).clone()
                at += p.numel()
    state["lr"] = [g["lr"] for g in opt.param_groups]
    state["steps"] = engine.global_steps
    return state


def save_ds(stage, out):
    engine, opt, model = deepspeed_engine(stage)
    rank = dist.get_rank()
    for step in range(3):
        train(step, rank, engine, lambda loss: (engine.backward(loss), engine.step()))
    engine.save_checkpoint(out, client_state={"epoch": 2, "note": "kept"})
    state = ds_state(engine, opt, model)
    if rank == 0:
        torch.save(state, out + "/expected.pt")


def fsdp():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    torch.manual_seed(1)
    model = Net()
    placement = None
    if os.environ.get("COLUMNS"):
        from torch.distributed.tensor import Shard

        placement = lambda p: Shard(1) if p.dim() > 1 and p.shape[1] % dist.get_world_size() == 0 else None
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)), shard_placement_fn=placement)
    return model, torch.optim.AdamW(groups(model), lr=1e-2, betas=(0.8, 0.99))


def options():
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=False, cpu_offload=True)


def fsdp_state(model, opt):
    full = lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t
    state = {"params": {}, "frozen": {}, "exp_avg": {}, "exp_avg_sq": {}, "buffers": {n: b.clone() for n, b in model.named_buffers()}}
    for n, p in model.named_parameters():
        if p.requires_grad:
            state["params"][n] = full(p.data).clone()
            for key in ("exp_avg", "exp_avg_sq"):
                state[key][n] = full(opt.state[p][key]).clone()
            state["steps"] = int(full(opt.state[p]["step"]))
        else:
            state["frozen"][n] = full(p.data).clone()
    state["lr"] = [g["lr"] for g in opt.param_groups]
    return state


def save_fsdp(out):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

    model, opt = fsdp()
    for step in range(3):
        opt.zero_grad()
        train(step, dist.get_rank(), model, lambda loss: loss.backward())
        opt.step()
    dcp.save(get_model_state_dict(model, options=options()), checkpoint_id=out + "/model")
    dcp.save(get_optimizer_state_dict(model, opt, options=options()), checkpoint_id=out + "/optimizer")
    state = fsdp_state(model, opt)
    if dist.get_rank() == 0:
        torch.save(state, out + "/expected.pt")


def compare(found, expected, bf16_ok=False, what=("params", "frozen", "exp_avg", "exp_avg_sq", "buffers")):
    bad = []
    for kind in what:
        if sorted(found[kind]) != sorted(expected[kind]):
            bad.append(f"{kind}: names {sorted(found[kind])} expected {sorted(expected[kind])}")
            continue
        for n, t in expected[kind].items():
            f = found[kind][n]
            same = torch.equal(f.to(t.dtype), t) if not bf16_ok else torch.equal(f.float().bfloat16(), t.float().bfloat16())
            if not same or f.shape != t.shape:
                bad.append(f"{kind} {n}: {f.flatten()[:4].tolist()} expected {t.flatten()[:4].tolist()}")
    return bad


def finish(bad):
    rank = dist.get_rank() if dist.is_initialized() else 0
    for b in bad:
        print(f"rank {rank}: {b}", flush=True)
    if not bad and rank == 0:
        print("equal", flush=True)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    sys.exit(1 if bad else 0)


def load_fsdp(at, expected):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict, set_model_state_dict, set_optimizer_state_dict

    model, opt = fsdp()
    for p in model.parameters():
        (p.to_local() if hasattr(p, "to_local") else p).data.fill_(-7)
    model.buf.fill_(-7)
    sd = get_model_state_dict(model, options=options())
    dcp.load(sd, checkpoint_id=at + "/model")
    set_model_state_dict(model, sd, options=options())
    sd = get_optimizer_state_dict(model, opt, options=options())
    dcp.load(sd, checkpoint_id=at + "/optimizer")
    set_optimizer_state_dict(model, opt, sd, options=options())
    found, want = fsdp_state(model, opt), torch.load(expected)
    bad = compare(found, want)
    if found["steps"] != want["steps"] or [round(x, 9) for x in found["lr"]] != [round(x, 9) for x in want["lr"]]:
        bad.append(f"steps {found['steps']}, lr {found['lr']}: expected {want['steps']}, {want['lr']}")
    opt.zero_grad()
    train(3, dist.get_rank(), model, lambda loss: loss.backward())
    opt.step()
    finish(bad)


def load_ds(stage, at, expected, universal):
    engine, opt, model = deepspeed_engine(stage, universal)
    for n, b in model.named_buffers():
        b.fill_(-7)
    path, client = engine.load_checkpoint(at)
    assert path, "nothing was loaded"
    found, want = ds_state(engine, opt, model), torch.load(expected)
    what = ("params", "exp_avg", "exp_avg_sq") if universal else ("params", "frozen", "exp_avg", "exp_avg_sq", "buffers")
    if not universal:  # frozen parameters and buffers are bf16 under DeepSpeed
        bad = compare(found, want, what=("params", "exp_avg", "exp_avg_sq"))
        bad += compare(found, want, bf16_ok=True, what=("frozen", "buffers"))
    else:
        bad = compare(found, want, what=what)
    if found["steps"] != want["steps"] or not universal and [round(x, 9) for x in found["lr"]] != [round(x, 9) for x in want["lr"]]:
        bad.append(f"steps {found['steps']}, lr {found['lr']}: expected {want['steps']}, {want['lr']}")
    steps = {int(s["step"]) for s in opt.optimizer.state.values() if "step" in s}
    if steps != {want["steps"]}:
        bad.append(f"optimizer steps {steps}, expected {want['steps']}")
    if os.environ.get("CLIENT") and client.get("note") != "kept":
        bad.append(f"client state {client}")
    train(3, dist.get_rank(), engine, lambda loss: (engine.backward(loss), engine.step()))
    finish(bad)


def load_hf(at, expected, dtype=None):
    import glob
    from safetensors.torch import load_file

    found = {}
    for f in glob.glob(at + "/*.safetensors"):
        found |= load_file(f)
    want = torch.load(expected)
    names = {**want["params"], **want["frozen"], **want["buffers"]}
    bad = [f"missing {n}" for n in names if n not in found and n != "head.weight"]
    bad += [f"unexpected {n}" for n in found if n not in names and n != "head.weight"]
    for n, t in found.items():
        w = names.get(n, names["emb.weight"])
        if not torch.equal(t, w.to(t.dtype)) or t.shape != w.shape:
            bad.append(f"{n} differs")
    index = glob.glob(at + "/*.index.json")
    if index:
        listed = json.load(open(index[0]))["weight_map"]
        if sorted(listed) != sorted(found):
            bad.append("the index lists other tensors")
    finish(bad)


command, *rest = sys.argv[1:]
if command == "save-fsdp":
    save_fsdp(*rest)
elif command == "save-ds":
    save_ds(int(rest[0]), rest[1])
elif command == "load-fsdp":
    load_fsdp(*rest)
elif command == "load-ds":
    load_ds(int(rest[0]), rest[1], rest[2], len(rest) > 3)
elif command == "load-hf":
    load_hf(*rest)
else:
    sys.exit(__doc__)
if dist.is_initialized():
    dist.barrier()
    dist.destroy_process_group()
