"""The real engines save checkpoints, `shardwright convert` converts them, and the real engines load the results on other numbers of ranks.

    python engines.py BINARY [--quick | --whole | --hub]

Without a flag a kind of net that has everything goes from FSDP2, ZeRO-2 and ZeRO-3 to every target on every pair of worlds of 1 to 4 ranks, and
all others to one world each; --whole takes every pair of them all, --quick the worlds of 1 and 3, --hub only the names of the hub.

Engines: FSDP2 with torch.distributed.checkpoint, DeepSpeed ZeRO-1, 2, 3 and its universal checkpoints, safetensors, torch.save. Every
parameter, frozen parameter, buffer, moment, step and learning rate must come out equal, and the loss of the steps after the resume must be
the loss without the detour. Ranks are forked from this process, which imports the engines once. Prints a line for each case that fails,
"skipped: WHAT: WHY" where a package is missing, and at the end how many cases passed; the exit code is 1 where one failed.
"""

import contextlib, glob, importlib, io, json, os, shutil, socket, subprocess, sys, tempfile, time, traceback

os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
for launcher in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
    os.environ.pop(launcher, None)

import torch, torch.distributed as dist, torch.nn as nn

try:
    with contextlib.redirect_stdout(io.StringIO()):
        import deepspeed

        # Compiled first otherwise, and gloo can do without.
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
except ImportError:
    deepspeed = None

WORLDS = (1, 2, 3, 4)
STEPS, MORE = 3, 2
LR, BETAS = 1e-2, (0.8, 0.99)


class Net(nn.Module):
    """What `kind` asks for; "all" has everything, and parameters of one element and of fewer rows than ranks besides."""

    def __init__(self, kind):
        super().__init__()
        has = lambda what: kind in (what, "all")
        dim, mid, words = (3, 5, 7) if has("uneven") else (4, 8, 8)
        self.emb = nn.Embedding(words, dim)
        self.a = nn.Linear(dim, mid)
        self.b = nn.Linear(mid, dim, bias=False)
        self.head = nn.Linear(dim, words, bias=False)
        if has("uneven"):
            self.one = nn.Parameter(torch.ones(1))
        if has("moe"):
            self.experts = nn.Parameter(torch.randn(3, dim, 2))
        if has("frozen"):
            self.c = nn.Linear(dim, dim)
            self.c.requires_grad_(False)
            self.register_buffer("buf", torch.arange(4.0))
            self.register_buffer("count", torch.tensor(5))
        if has("tied"):
            self.head.weight = self.emb.weight

    def forward(self, ids):
        x = self.b(self.a(self.emb(ids)))
        if hasattr(self, "one"):
            x = x * self.one
        if hasattr(self, "c"):
            x = self.c(x)
        if hasattr(self, "experts"):
            x = x + torch.einsum("bi,eij->bj", x, self.experts).sum(-1, keepdim=True)
        return self.head(x)


def net(kind):
    torch.manual_seed(1)
    return Net(kind)


def batch(step):
    """The same on every rank, so that the loss does not depend on their number."""
    return torch.randint(0, 7, (4,), generator=torch.Generator().manual_seed(step))


def groups(model):
    trained = [p for p in model.parameters() if p.requires_grad]
    dims = lambda p: len(getattr(p, "ds_shape", p.shape))
    wide, rest = [p for p in trained if dims(p) > 1], [p for p in trained if dims(p) <= 1]
    out = [{"params": wide, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0, "lr": 5e-3}]
    return [group for group in out if group["params"]]


class DeepSpeed:
    """An engine of one ZeRO stage, bf16 with fp32 masters."""

    def __init__(self, kind, stage, universal=False, scheduler=True):
        zero = {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})}
        config = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_optimization": zero}
        config |= {"zero_allow_untested_optimizer": True, **({"checkpoint": {"load_universal": True}} if universal else {})}
        self.kind, self.stage, self.universal, self.scheduler = kind, stage, universal, scheduler
        if not dist.is_initialized():
            raise RuntimeError("no process group")
        if not deepspeed.comm.is_initialized():
            deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
        with deepspeed.zero.Init(config_dict_or_path=config) if stage == 3 else contextlib.nullcontext():
            self.model = net(kind)
        optimizer = torch.optim.AdamW(groups(self.model), lr=LR, betas=BETAS)
        sched = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1.0 / (1 + s)) if scheduler else None
        self.engine, self.opt, _, _ = deepspeed.initialize(model=self.model, optimizer=optimizer, lr_scheduler=sched, config=config)

    def step(self, number):
        loss = self.engine(batch(number)).float().pow(2).mean()
        self.engine.backward(loss)
        self.engine.step()
        return loss.item()

    def save(self, out):
        self.engine.save_checkpoint(out, client_state={"epoch": 2, "note": "kept"})

    def poison(self):
        for buffer in self.model.buffers():
            buffer.fill_(-7)
        for tensor in [t for s in self.opt.optimizer.state.values() for t in s.values() if torch.is_tensor(t)]:
            tensor.fill_(-7)
        for flat in getattr(self.opt, "fp32_partitioned_groups_flat", []) + getattr(self.opt, "single_partition_of_fp32_groups", []):
            flat.data.fill_(-7)

    def load(self, at):
        path, client = self.engine.load_checkpoint(at, load_lr_scheduler_states=self.scheduler)
        assert path, "nothing was loaded"
        assert not self.scheduler or self.universal or client.get("note") == "kept", f"client state {client}"

    def state(self):
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        state = {key: {} for key in ("params", "frozen", "exp_avg", "exp_avg_sq")}
        state["buffers"] = {n: b.clone() for n, b in self.model.named_buffers()}
        names = {id(p): n for n, p in self.model.named_parameters()}
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                state["params"][name] = safe_get_full_fp32_param(p).clone()
                for key in ("exp_avg", "exp_avg_sq") if self.stage == 3 else ():
                    state[key][name] = safe_get_full_optimizer_state(p, key).clone()
            elif hasattr(p, "ds_id"):
                with deepspeed.zero.GatheredParameters([p]):
                    state["frozen"][name] = p.data.clone()
            else:
                state["frozen"][name] = p.data.clone()
        if self.stage < 3:  # the ranks' parts, one after another
            for flat, group in zip(self.opt.single_partition_of_fp32_groups, self.opt.round_robin_bit16_groups):
                for key in ("exp_avg", "exp_avg_sq"):
                    parts = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
                    dist.all_gather(parts, self.opt.optimizer.state[flat][key])
                    whole, at = torch.cat(parts), 0
                    for p in group:
                        state[key][names[id(p)]] = whole[at : at + p.numel()].view(p.shape).clone()
                        at += p.numel()
        state["lr"] = [g["lr"] for g in self.opt.param_groups]
        steps = {int(s["step"]) for s in self.opt.optimizer.state.values() if "step" in s}
        state["steps"] = sorted(steps | {self.engine.global_steps})
        return state


class Fsdp:
    """FSDP2 with AdamW."""

    def __init__(self, kind, columns=False):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import Shard

        self.model = net(kind)
        world = dist.get_world_size()
        by_columns = lambda p: Shard(1) if p.dim() > 1 and p.shape[1] % world == 0 else None
        fully_shard(self.model, mesh=init_device_mesh("cpu", (world,)), shard_placement_fn=by_columns if columns else None)
        self.opt = torch.optim.AdamW(groups(self.model), lr=LR, betas=BETAS)

    def step(self, number):
        self.opt.zero_grad()
        loss = self.model(batch(number)).float().pow(2).mean()
        loss.backward()
        self.opt.step()
        return loss.item()

    def options(self):
        from torch.distributed.checkpoint.state_dict import StateDictOptions

        return StateDictOptions(full_state_dict=False, cpu_offload=True)

    def dicts(self):
        from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

        return (get_model_state_dict(self.model, options=self.options()), get_optimizer_state_dict(self.model, self.opt, options=self.options()))

    def save(self, out, accelerate=False, native=False, together=False):
        import torch.distributed.checkpoint as dcp

        model, opt = self.dicts()
        if native or together:  # as transformers' save_optimizer_distributed does, and torchtitan
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

            opt = get_optimizer_state_dict(self.model, self.opt, options=StateDictOptions(flatten_optimizer_state_dict=True))
        if together:
            trainer = {"train_state": {"step": torch.tensor(STEPS), "tokens": STEPS}, "lr_scheduler": {"last_epoch": STEPS}}
            dcp.save({**model, "optimizer": opt, **trainer}, checkpoint_id=out)
            return
        if native:
            dcp.save(model, checkpoint_id=out + "/model")
            dcp.save({"optimizer": opt}, checkpoint_id=out + "/optimizer")
            return
        dcp.save({"model": model} if accelerate else model, checkpoint_id=out + ("/pytorch_model_fsdp_0" if accelerate else "/model"))
        dcp.save({"optimizer": opt} if accelerate else opt, checkpoint_id=out + ("/optimizer_0" if accelerate else "/optimizer"))

    def poison(self):
        local = lambda t: t.to_local() if hasattr(t, "to_local") else t
        states = [t for s in self.opt.state.values() for t in s.values() if torch.is_tensor(t)]
        with torch.no_grad():
            for tensor in [p.data for p in self.model.parameters()] + list(self.model.buffers()) + states:
                local(tensor).fill_(-7)

    def load(self, at, safetensors=False):
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

        model, opt = self.dicts()
        if safetensors:
            from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

            dcp.load(model, storage_reader=HuggingFaceStorageReader(at))
            set_model_state_dict(self.model, model, options=self.options())
            return
        dcp.load(model, checkpoint_id=at + "/model")
        set_model_state_dict(self.model, model, options=self.options())
        if os.path.isdir(at + "/optimizer"):
            dcp.load(opt, checkpoint_id=at + "/optimizer")
            set_optimizer_state_dict(self.model, self.opt, opt, options=self.options())

    def state(self):
        full = lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t
        state = {key: {} for key in ("params", "frozen", "exp_avg", "exp_avg_sq")}
        state["buffers"] = {n: b.clone() for n, b in self.model.named_buffers()}
        steps = set()
        for name, p in self.model.named_parameters():
            state["params" if p.requires_grad else "frozen"][name] = full(p.data).clone()
            if p.requires_grad:
                for key in ("exp_avg", "exp_avg_sq"):
                    state[key][name] = full(self.opt.state[p][key]).clone()
                steps.add(int(full(self.opt.state[p]["step"])))
        state["lr"], state["steps"] = [g["lr"] for g in self.opt.param_groups], sorted(steps)
        return state


MOMENTS = ("exp_avg", "exp_avg_sq")


def compare(found, want, what, rounded=("frozen", "buffers")):
    """What differs. DeepSpeed keeps frozen parameters and buffers in bf16: `rounded` ones are compared so."""
    bad = []
    for kind in what:
        if sorted(found[kind]) != sorted(want[kind]):
            bad.append(f"{kind}: names {sorted(found[kind])}, expected {sorted(want[kind])}")
            continue
        for name, expected in want[kind].items():
            f = found[kind][name]
            cast = (lambda t: t.float().bfloat16()) if kind in rounded else (lambda t: t.to(expected.dtype))
            if f.shape != expected.shape or not torch.equal(cast(f), cast(expected)):
                bad.append(f"{kind} {name}: {f.flatten()[:4].tolist()}, expected {expected.flatten()[:4].tolist()}")
    return bad


def ranks(world, work, out):
    """Forks `world` ranks that do `work`, one process group for all of it; each returns a list of failures."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    children = []
    for rank in range(world):
        log = f"{out}/log-{rank}"
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with open(log, "w") as text:
                    os.dup2(text.fileno(), 1), os.dup2(text.fileno(), 2)
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
                torch.set_num_threads(1)
                dist.init_process_group("gloo")
                bad = work(rank)
                with open(f"{out}/bad-{rank}.json", "w") as f:
                    json.dump(bad, f)
                dist.barrier()
                code = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        children.append((pid, rank, log))
    bad = []
    for pid, rank, log in children:
        if os.waitpid(pid, 0)[1] != 0:
            bad.append(f"rank {rank} of {world} failed:\n" + open(log).read()[-3000:])
        else:
            bad += json.load(open(f"{out}/bad-{rank}.json"))
    return bad


class Source:
    """A checkpoint that an engine has saved, with what was in it."""

    def __init__(self, kind, engine, world, at):
        self.kind, self.engine, self.world, self.at = kind, engine, world, at
        # What ZeRO-3 and files of safetensors do not record.
        untold = engine in ("zero3", "universal", "safetensors", "shards") and kind in ("tied", "all")
        self.tie = ["--tie", "head.weight=emb.weight"] if untold else []
        self._want = None

    @property
    def want(self):
        if self._want is None:
            self._want = torch.load(self.at + ".expected")
        return self._want

    def __str__(self):
        return f"{self.kind} of {self.engine} on {self.world}"


def saving(kinds, world, out):
    """One group of ranks saves "all" with each engine, the other kinds with FSDP2 and ZeRO-3."""

    def pairs():
        yield from (("fsdp2", kind, lambda kind=kind: Fsdp(kind)) for kind in kinds)
        yield "columns", "all", lambda: Fsdp("all", columns=True)
        yield "accelerate", "all", lambda: Fsdp("all")
        yield "native", "all", lambda: Fsdp("all")
        yield "together", "all", lambda: Fsdp("all")
        for stage in (1, 2, 3) if deepspeed else ():
            for kind in kinds if stage == 3 else ["all"]:
                yield f"zero{stage}", kind, lambda kind=kind, stage=stage: DeepSpeed(kind, stage)

    def work(rank):
        for name, kind, make in pairs():
            at = f"{out}/{kind}-{name}-{world}"
            engine = make()
            for step in range(STEPS):
                engine.step(step)
            engine.save(at, **({name: True} if name in ("accelerate", "native", "together") else {}))
            state = engine.state()
            state["losses"] = [engine.step(STEPS + n) for n in range(MORE)]
            if rank == 0:
                torch.save(state, at + ".expected")
        return []

    bad = ranks(world, work, out)
    return bad, [Source(kind, name, world, f"{out}/{kind}-{name}-{world}") for name, kind, _ in pairs()]


def derived(binary, sources, worlds):
    """Universal checkpoints by DeepSpeed's own script, plain weights as files of safetensors and torch.save, and shards by `load --save`."""
    out = []
    for source in sources:
        if source.engine == "zero3":
            from deepspeed.checkpoint.ds_to_universal import main as to_universal
            import argparse

            tag = open(source.at + "/latest").read().strip()
            args = dict(num_extract_workers=1, num_merge_workers=1, keep_temp_folder=False, strict=True, inject_missing_state=False)
            at = source.at.replace("zero3", "universal")
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                to_universal(argparse.Namespace(input_folder=f"{source.at}/{tag}", output_folder=f"{at}/{tag}_universal", **args))
            open(f"{at}/latest_universal", "w").write(f"{tag}_universal")
            shutil.copy(source.at + ".expected", at + ".expected")
            out.append(Source(source.kind, "universal", source.world, at))
        if source.engine == "fsdp2" and source.world == 1:
            weights = {**source.want["params"], **source.want["frozen"], **source.want["buffers"]}
            for engine in ("safetensors", "bin"):
                at = source.at.replace("fsdp2", engine)
                os.makedirs(at)
                if engine == "bin":
                    if source.kind in ("tied", "all"):
                        weights["head.weight"] = weights["emb.weight"]
                    torch.save(weights, at + "/pytorch_model.bin")
                else:
                    from safetensors.torch import save_file

                    save_file(weights, at + "/model.safetensors")
                shutil.copy(source.at + ".expected", at + ".expected")
                out.append(Source(source.kind, engine, 1, at))
            plain = source.at.replace("fsdp2", "safetensors")
            for world in worlds if source.kind == "all" else ():
                at = f"{plain}-shards-{world}"
                with open(at + ".yaml", "w") as f:
                    f.write(f"model: {plain}\ndist_config:\n  name: fsdp2\n")
                subprocess.run([binary, "load", at + ".yaml", "--world-size", str(world), "--save", at], check=True, capture_output=True)
                shutil.copy(source.at + ".expected", at + ".expected")
                out.append(Source(source.kind, "shards", world, at))
    return out


class Case:
    def __init__(self, source, to, world, at):
        self.source, self.to, self.world, self.at = source, to, world, at

    def __str__(self):
        return f"{self.source} to {self.to} on {self.world}"


def convert(binary, case):
    more = ["--max-file-size", "200B"] if case.to == "hf" else []
    command = [binary, "convert", case.source.at, case.at, "--to", case.to, "--ranks", str(case.world), "--verify", *case.source.tie, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    return [] if done.returncode == 0 else [f"{case}: exit code {done.returncode}: {done.stdout}{done.stderr}"]


def whole_files(case):
    """Every tensor of a directory of safetensors files, and its index."""
    from safetensors.torch import load_file

    found, want = {}, case.source.want
    for file in glob.glob(case.at + "/*.safetensors"):
        found |= load_file(file)
    names = {**want["params"], **want["frozen"], **want["buffers"]}
    tied = {"head.weight"} if case.source.kind in ("tied", "all") else set()
    left_out = set(want["frozen"]) if case.source.engine == "universal" and case.source.world > 1 else set()
    bad = [f"missing {n}" for n in names if n not in found and n not in tied | left_out]
    for name, tensor in found.items():
        expected = names.get(name, names["emb.weight"] if name in tied else None)
        if expected is None or tensor.shape != expected.shape or not torch.equal(tensor, expected.to(tensor.dtype)):
            bad.append(f"{name} differs")
    for index in glob.glob(case.at + "/*.index.json"):
        if sorted(json.load(open(index))["weight_map"]) != sorted(found):
            bad.append("the index lists other tensors")
    return [f"{case}: {b}" for b in bad]


def checked(case, engine):
    """Loads a converted checkpoint into an engine that holds something else, compares, and goes on training."""
    source, bad = case.source, []
    want = source.want
    from_zero = source.engine.startswith("zero") or source.engine == "universal"
    weights_only = source.engine in ("safetensors", "bin", "shards") or case.to == "hf-sharded"
    engine.poison()
    engine.load(case.at, **({"safetensors": True} if case.to == "hf-sharded" else {}))
    found = engine.state()
    what = ["params"] if weights_only else ["params", *MOMENTS]
    # DeepSpeed leaves frozen parameters and buffers of universal checkpoints aside, and its own script writes them for one rank only.
    if case.to != "zero3-universal" and source.engine != "universal":
        what += ["frozen", "buffers"]
    bad += compare(found, want, what, rounded=("frozen", "buffers") if case.to == "zero3" else ())
    if not weights_only:
        keeps_lr = from_zero or case.to == "dcp" or not getattr(engine, "scheduler", True)
        same_lr = case.to == "zero3-universal" or not keeps_lr or [round(x, 9) for x in found["lr"]] == [round(x, 9) for x in want["lr"]]
        if found["steps"] != want["steps"] or not same_lr:
            bad.append(f"steps {found['steps']}, lr {found['lr']}: expected {want['steps']}, {want['lr']}")
        losses = [engine.step(STEPS + n) for n in range(MORE)]
        # The same arithmetic where the engine is the same; the other computes in another precision, by another schedule.
        like = (case.to == "dcp") != from_zero
        near = lambda a, b: abs(a - b) <= (2e-2 if from_zero else 1e-5) * max(abs(a), abs(b))
        if like and source.engine != "universal" and case.to != "zero3-universal" and not all(map(near, losses, want["losses"])):
            bad.append(f"losses {losses} after the resume, {want['losses']} without")
    return [f"{case}: {b}" for b in bad]


def loading(cases, world, out):
    """One group of ranks loads all the cases of its world, an engine for each kind of net and target."""

    def make(kind, to, scheduler):
        if to in ("dcp", "hf-sharded"):
            return Fsdp(kind)
        return DeepSpeed(kind, 3, universal=to == "zero3-universal", scheduler=scheduler)

    def work(rank):
        bad, engines = [], {}
        for case in sorted(cases, key=str):
            # FSDP2's checkpoints have no scheduler.
            scheduler = case.source.engine.startswith("zero") or case.source.engine == "universal"
            key = (case.source.kind, case.to if case.to != "hf-sharded" else "dcp", scheduler or case.to in ("dcp", "hf-sharded"))
            if key not in engines:
                engines.clear()
                engines[key] = make(*key)
                engines[key].step(0)
            try:
                bad += checked(case, engines[key])
            except Exception as e:
                bad.append(f"{case}: rank {rank}: {str(e).strip().splitlines()[-1]}")
        return bad

    return ranks(world, work, out)


def matrix(binary, out, quick, whole):
    worlds = (1, 3) if quick else WORLDS
    bad, sources, clock = [], [], time.time()
    for world in worlds:
        alone = whole or world in (2, 3) and not quick
        more, saved = saving(["all", "dense", "tied", "moe", "frozen", "uneven"] if alone else ["all"], world, out)
        bad += more
        sources += saved
    if bad:
        return bad, 0
    sources += derived(binary, sources, worlds)
    print(f"{len(sources)} checkpoints saved, {time.time() - clock:.0f} s", flush=True)
    cases = []
    for number, source in enumerate(sources):
        targets = ["hf", "hf-sharded", "dcp"]
        if source.engine == "universal" and source.world > 1 and source.kind in ("all", "frozen"):
            targets = ["hf"]  # its script keeps partitions of frozen parameters only, which the trainers' loads miss
        elif source.engine not in ("safetensors", "bin", "shards") and deepspeed:
            targets += ["zero3", "zero3-universal"]
        # Everything at once on every pair of worlds; each kind alone on one that turns.
        for turn, to in enumerate(targets):
            turned = worlds[(number + turn) % len(worlds)]
            every = whole or source.kind == "all" and source.engine in ("fsdp2", "zero3", "zero2") and to in ("dcp", "zero3")
            for world in [1] if to == "hf" else worlds if every else [turned]:
                cases.append(Case(source, to, world, f"{out}/{len(cases)}-of-{number}"))
    clock = time.time()
    for case in cases:
        bad += convert(binary, case)
        if case.to == "hf" and not bad:
            bad += whole_files(case)
    print(f"{len(cases)} conversions, {time.time() - clock:.0f} s", flush=True)
    if bad:
        return bad, len(cases)
    clock = time.time()
    for world in worlds:
        bad += loading([c for c in cases if c.world == world and c.to != "hf"], world, out)
    print(f"loaded by the engines, {time.time() - clock:.0f} s", flush=True)
    return bad, len(cases)


def hub(binary, out):
    """Tied models, models of experts and of images: saved by their class's names, converted to the hub's, read by from_pretrained."""
    try:
        import transformers
    except ImportError as e:
        print(f"skipped: names of the hub: {e}")
        return [], 0
    from safetensors import safe_open
    import torch.distributed.checkpoint as dcp

    def config(name, **more):
        return getattr(transformers, name + "Config")(**more)

    small = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=32)
    experts = dict(moe_intermediate_size=12, num_experts_per_tok=2)
    routed = dict(n_routed_experts=4, n_group=2, topk_group=1, first_k_dense_replace=1, **experts)
    latent = dict(num_key_value_heads=2, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8)
    rope = dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1]))
    patches = dict(hidden_size=16, intermediate_size=24, patch_size=4)
    merged = dict(depth=2, num_heads=2, out_hidden_size=16, temporal_patch_size=1, spatial_merge_size=1, in_channels=3, **patches)
    qwen = dict(vision_config=dict(**merged, num_position_embeddings=16, deepstack_visual_indexes=[0]))
    square = dict(num_hidden_layers=2, num_attention_heads=2, image_size=16, **patches)
    configs = [
        config("Llama", **small, tie_word_embeddings=True),
        config("Qwen3Moe", **small, head_dim=8, num_experts=3, **experts),
        config("Qwen2Moe", **small, num_experts=3, shared_expert_intermediate_size=12, **experts),
        config("Mixtral", **small, num_local_experts=3),
        config("Olmoe", **small, num_experts=3, num_experts_per_tok=2),
        config("DeepseekV3", **{**small, **latent}, **routed),
        config("Glm4Moe", **small, head_dim=8, **routed),
        config("Phimoe", **small, num_local_experts=3),
        config("MiniMaxM2", **small, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
        config("GptOss", **small, head_dim=8, num_local_experts=3, num_experts_per_tok=2),
        config("Qwen2_5_VL", text_config=dict(**small, **rope), vision_config=dict(**merged, fullatt_block_indexes=[0])),
        config("Qwen3VL", text_config=dict(**small, head_dim=8, **rope), **qwen),
        config("Qwen3VLMoe", text_config=dict(**small, head_dim=8, num_experts=3, **experts, **rope), **qwen),
        config("Gemma3", text_config=dict(**small, head_dim=8), vision_config=square, mm_tokens_per_image=4),
        config("Llava", text_config=dict(model_type="llama", **small), vision_config=dict(model_type="clip_vision_model", **square)),
    ]
    bad = []
    names = lambda at: sorted(n for f in glob.glob(at + "/*.safetensors") for n in safe_open(f, "pt").keys())
    for config in configs:
        kind = config.model_type
        auto = transformers.AutoModelForImageTextToText if hasattr(config, "vision_config") else transformers.AutoModelForCausalLM
        torch.manual_seed(2)
        model, at = auto.from_config(config), f"{out}/hub-{kind}"
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        dcp.save(model.state_dict(), checkpoint_id=at + "-dcp/model")
        model.save_pretrained(at + "-theirs")
        command = [binary, "convert", at + "-dcp", at, "--to", "hf", "--names", "hub", "--config", at + "-theirs", "--verify"]
        for alias, name in (getattr(model, "all_tied_weights_keys", None) or {}).items():
            command += ["--tie", f"{alias}={name}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            bad.append(f"{kind} to the hub's names: exit code {done.returncode}: {done.stdout}{done.stderr}")
            continue
        theirs = names(at + "-theirs")
        if kind in ("gemma3", "llava"):
            # save_pretrained leaves a prefix out that the files on the hub have, and that other readers look for.
            theirs = [name.replace("vision_tower.", "vision_tower.vision_model.", 1) for name in theirs]
        if names(at) != theirs:
            bad.append(f"{kind}: names {names(at)}, save_pretrained has {theirs}")
        # Names that are the hub's already stay, as those of a trainer with transformers 4 are.
        for source, to, more in ((at + "-theirs", "dcp", []), (at + "-kept", "hf", ["--names", "hub", "--config", at + "-theirs", "--verify"])):
            command = [binary, "convert", source, at + ("-kept" if to == "dcp" else "-again"), "--to", to, *more]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                bad.append(f"{kind}: the hub's names again: exit code {done.returncode}: {done.stdout}{done.stderr}")
        if names(at + "-again") != names(at + "-theirs"):
            bad.append(f"{kind}: names {names(at + '-again')}, they were {names(at + '-theirs')}")
        found, want = auto.from_pretrained(at, dtype=torch.float32).state_dict(), model.state_dict()
        bad += [f"{kind}: {n} differs" for n in want if n not in found or not torch.equal(found[n], want[n])]
    return bad, len(configs)


def main():
    binary, *flags = sys.argv[1:]
    if deepspeed is None:
        print("skipped: DeepSpeed's checkpoints: this Python cannot import deepspeed")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as out:
        binary = os.path.abspath(binary)
        bad, count = hub(binary, out)
        if "--hub" not in flags:
            more, cases = matrix(binary, out, "--quick" in flags, "--whole" in flags)
            bad, count = bad + more, count + cases
    for line in bad[:40]:
        print(line)
    print(f"{count} cases, {len(bad)} failures", flush=True)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
