#!/usr/bin/env python3
"""Holds `shardwright plan` against what torch and DeepSpeed allocate, on CPUs, with gloo.

    python scripts/plan-measure.py --program target/debug/shardwright

Needs torch, transformers, accelerate and deepspeed (see docs/plan.md for the versions), and a C compiler. For each architecture, engine and
number of ranks a model is trained for three steps under torchrun. Tensors of parameters, gradients, masters and optimizer states are summed up
by their storages, and the peak of each phase is read off an allocator hook (plan-allocations.c). Prints a table in Markdown, with the growth of resident memory
beside it, and exits with 1 where a prediction is off by more than 3 % for what stays, or 15 % for a peak. `--large` trains one larger model
instead, on two ranks, and holds the predicted peak against the operating system's count of resident memory as well, within 15 %.
"""

import argparse
import ctypes
import gc
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve()
BATCH, SEQUENCE = 2, 128
LARGE_BATCH, LARGE_SEQUENCE = 1, 32  # bfloat16 is slow on most CPUs


def configs(large):
    from transformers import GPT2Config, LlamaConfig, Qwen3Config

    same = dict(hidden_size=256, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=2, head_dim=32, max_position_embeddings=512)
    if large:
        # The small one comes first: it loads the libraries and starts gloo, whose memory is no part of the prediction.
        shape = dict(hidden_size=1024, num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=8, head_dim=64, intermediate_size=2816)
        return {
            "llama": LlamaConfig(vocab_size=2051, intermediate_size=700, tie_word_embeddings=False, **same),
            "llama-large": LlamaConfig(vocab_size=32000, max_position_embeddings=512, tie_word_embeddings=False, **shape),
        }
    return {
        "llama": LlamaConfig(vocab_size=2051, intermediate_size=700, tie_word_embeddings=False, **same),
        "qwen3": Qwen3Config(vocab_size=1531, intermediate_size=512, tie_word_embeddings=True, **same),
        "gpt2": GPT2Config(vocab_size=1999, n_embd=192, n_layer=8, n_head=6, n_positions=512, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
    }


# --- in each rank -----------------------------------------------------------------------------------------------------------------


def storages(tensors):
    """Bytes of the storages of tensors, each once."""
    seen = {}
    for tensor in tensors:
        tensor = getattr(tensor, "_local_tensor", tensor)
        storage = tensor.untyped_storage()
        if storage.nbytes():
            seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def status(key):
    """Bytes of a line of /proc/self/status."""
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024


def fsdp2(model, checkpointing, reshard):
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # As LLaMA-Factory wraps: blocks, embeddings that are not tied, then the root.
    mesh = init_device_mesh("cpu", (1, torch.distributed.get_world_size()), mesh_dim_names=("replicate", "shard"))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=True)
    model.to(torch.float32)
    base = model.model if hasattr(model, "model") else model.transformer
    blocks = base.layers if hasattr(base, "layers") else base.h
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    arguments = dict(mesh=mesh["shard"], mp_policy=policy, reshard_after_forward=reshard)
    for block in blocks:
        fully_shard(block, **arguments)
    if not model.config.tie_word_embeddings:
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                fully_shard(module, **arguments)
    fully_shard(model, **arguments)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4)


def rank(arguments):
    import torch.distributed as dist

    hook = ctypes.CDLL(os.environ["LD_PRELOAD"])
    for name in ("plan_held", "plan_peak"):
        getattr(hook, name).restype = ctypes.c_size_t
    dist.init_process_group("gloo")
    # One process for all cases: starting torch takes longer than training.
    found = []
    for case in json.loads(pathlib.Path(arguments.case).read_text()):
        found.append(train(case, hook))
        gc.collect()
    pathlib.Path(arguments.case).with_name(f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def train(case, hook):
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, resident = hook.plan_held(), status("VmRSS")
    found = {}

    def phase(name):
        """The peak since the last call, and what is held now."""
        found[name] = hook.plan_peak() - before
        hook.plan_reset()

    if case["engine"] == "fsdp2":
        model = AutoModelForCausalLM.from_pretrained(case["model"], dtype="auto")
        model, optimizer = fsdp2(model, case["checkpointing"], case["reshard"])
        step, backward, zero_grad = optimizer.step, lambda loss: loss.backward(), optimizer.zero_grad
    else:
        import deepspeed
        from transformers.integrations import HfDeepSpeedConfig

        config = json.loads(pathlib.Path(case["deepspeed"]).read_text())
        keep = HfDeepSpeedConfig(config)  # noqa: F841
        model = AutoModelForCausalLM.from_pretrained(case["model"], dtype="auto")
        if case["checkpointing"]:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        model, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        step, backward, zero_grad = model.step, model.backward, lambda: None
    model.train()
    gc.collect()
    ids = torch.randint(0, 1000, tuple(case["input"]))
    before_steps = hook.plan_held()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    for number in range(3):
        phase("between")
        output = model(input_ids=ids, labels=ids, use_cache=False)
        phase("forward")
        backward(output.loss)
        phase("backward")
        del output
        if case["engine"] == "fsdp2" and number == 2:
            found["gradients"] = storages(p.grad for p in model.parameters())
        step()
        phase("step")
        zero_grad()
    if case["engine"] == "fsdp2":
        found["parameters"] = storages(model.parameters())
        found["masters"] = 0
        states = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    else:
        zero = model.optimizer
        found["parameters"] = zero.lp_param_buffer.untyped_storage().nbytes()
        masters = [t for t in zero.fp32_partitioned_groups_flat if t.data_ptr() != zero.lp_param_buffer.data_ptr()]
        found["masters"] = storages(masters)
        found["gradients"] = zero.grad_partitions_flat_buffer.untyped_storage().nbytes()
        states = [t for s in zero.optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    found["optimizer_states"] = storages(states)
    found["before_steps"] = before_steps - before
    found["rss"] = status("VmHWM") - resident
    if case["engine"] == "zero3":
        model.destroy()
    return found


# --- around them ------------------------------------------------------------------------------------------------------------------


def run(cases, ranks, library, work):
    """What each rank measured, for each case."""
    work.joinpath("cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", str(HERE), "--case", str(work / "cases.json")]
    env = dict(os.environ, LD_PRELOAD=str(library), OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", PYTHONWARNINGS="ignore", TRANSFORMERS_VERBOSITY="error")
    # The C allocator gives every freed tensor back at once, so that resident memory is what is held.
    env |= dict(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
    # torchrun, and what it builds, need no hook.
    done = subprocess.run(["env", "-u", "LD_PRELOAD", *command[:1], "-c", LAUNCH, str(library), *command[1:]], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{ranks} ranks: {done.stdout[-3000:]}{done.stderr[-6000:]}")
    return list(zip(*(json.loads((work / f"{r}.json").read_text()) for r in range(ranks))))


# The hook is for the ranks: torchrun starts with it set for its children only.
LAUNCH = """
import os, sys
library = sys.argv[1]
os.environ["LD_PRELOAD"] = library
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def predict(program, yaml, ranks):
    done = subprocess.run([program, "plan", yaml, "--world-size", str(ranks), "--format", "json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    world = json.loads(done.stdout)["worlds"][0]

    def of(rank):
        return next(g for g in world["ranks"] if any(a <= rank <= b for a, b in g["ranks"]))

    def amounts(rank):
        phases = {p["phase"]: p for p in of(rank)["phases"]}
        kept = {i["category"]: i["bytes"] for i in phases["step"]["items"] if i["place"] == "device"}
        loaded = {i["category"]: i["bytes"] for i in phases["load"]["items"] if i["place"] == "device"}
        found = {c: kept.get(c, 0) for c in ("gradients", "optimizer_states")}
        found["masters"], found["parameters"] = loaded.get("masters", 0), loaded["parameters"]
        for name in ("forward", "backward", "step"):
            found[name] = phases[name]["device"]
        return found, phases

    return [amounts(r) for r in range(ranks)]


def others(model, ranks):
    """accelerate's estimate of training with Adam, and DeepSpeed's of ZeRO-3, both for a GPU."""
    from accelerate.commands.estimate import estimate_training_usage
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs, model_to_params

    total, largest = model_to_params(model)
    _, device, _ = estimate_zero3_model_states_mem_needs(total, largest, num_gpus_per_node=ranks, cpu_offload=False, cpu_offload_params=False)
    usage = estimate_training_usage(total * 4, "float32")
    return {"accelerate": max(usage.values()), "deepspeed": device}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default="target/debug/shardwright")
    parser.add_argument("--ranks", default=None, help="numbers of ranks; 2,4 unless given, 2 with --large")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--details", action="store_true")
    parser.add_argument("--case")
    arguments = parser.parse_args()
    if arguments.case:
        return rank(arguments)
    from transformers import AutoModelForCausalLM
    import torch

    arguments.ranks = arguments.ranks or ("2" if arguments.large else "2,4")
    off = []
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        library = work / "hook.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, HERE.with_name("plan-allocations.c"), "-ldl", "-lpthread"], check=True)
        print("| architecture | engine | ranks | " + " | ".join(f"{c} (error)" for c in COLUMNS) + " | resident | accelerate | DeepSpeed |")
        print("|---" * (len(COLUMNS) + 6) + "|")
        wanted, estimates = [], {}
        for name, config in configs(arguments.large).items():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            model.save_pretrained(work / name)
            for ranks in map(int, arguments.ranks.split(",")):
                estimates[name, ranks] = others(model, ranks)
                for engine, variant in CASES:
                    if arguments.large and variant:
                        continue
                    title = f"{name} {engine} {variant} {ranks}"
                    if all(word in title.split() for word in arguments.only.split()):
                        wanted.append((name, engine, variant, ranks, *case(work, name, engine, variant)))
        for ranks in map(int, arguments.ranks.split(",")):
            of_world = [w for w in wanted if w[3] == ranks]
            if not of_world:
                continue
            measured = run([w[4] for w in of_world], ranks, library, work)
            for (name, engine, variant, _, _, yaml), found in zip(of_world, measured):
                predicted = predict(arguments.program, yaml, ranks)
                row = compared(f"{name} {engine} {variant} on {ranks}", predicted, found, off, arguments.details)
                theirs = estimates[name, ranks]
                title = f"{engine}, {variant}" if variant else engine
                print(f"| {name} | {title} | {ranks} | {row} | {size(theirs['accelerate'])} | {size(theirs['deepspeed'])} |", flush=True)
    for line in off:
        print(line, file=sys.stderr)
    return 1 if off else 0


CASES = [("fsdp2", ""), ("fsdp2", "no-checkpointing"), ("fsdp2", "no-reshard"), ("zero3", ""), ("zero3", "small-limits")]
COLUMNS = {"parameters": 0.03, "masters": 0.03, "gradients": 0.03, "optimizer_states": 0.03, "forward": 0.15, "backward": 0.15, "step": 0.15}


def size(n):
    return f"{n / 1e6:.2f} MB"


def case(work, name, engine, variant):
    """What a rank needs to know, and the YAML of the same run."""
    batch, sequence = (LARGE_BATCH, LARGE_SEQUENCE) if name.endswith("-large") else (BATCH, SEQUENCE)
    case = dict(engine=engine, model=str(work / name), input=[batch, sequence], checkpointing=variant != "no-checkpointing", reshard=variant != "no-reshard")
    stem = f"{name}-{engine}-{variant}"
    yaml = work / f"{stem}.yaml"
    text = f"model: {work / name}\nmicro_batch_size: {batch}\ncutoff_len: {sequence}\nshardwright: {{device: cpu}}\n"
    text += f"enable_activation_checkpointing: {str(case['checkpointing']).lower()}\n"
    if engine == "fsdp2":
        text += "init_config: {name: init_on_meta}\n"
        text += f"dist_config: {{name: fsdp2, reshard_after_forward: {str(case['reshard']).lower()}}}\n"
    else:
        zero = {"stage": 3, "reduce_bucket_size": 300_000, "stage3_prefetch_bucket_size": 100_000, "stage3_param_persistence_threshold": 1000}
        if variant == "small-limits":
            zero |= {"stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 500_000}
        config = {"train_micro_batch_size_per_gpu": batch, "zero_optimization": zero, "bf16": {"enabled": True}, "zero_allow_untested_optimizer": True}
        case["deepspeed"] = str(work / f"{stem}.json")
        pathlib.Path(case["deepspeed"]).write_text(json.dumps(config))
        text += f"dist_config: {{name: deepspeed, config_file: {stem}.json}}\n"
    yaml.write_text(text)
    return case, yaml


def compared(title, predicted, measured, off, details):
    """The cells of a row, each for the rank that is furthest off."""
    cells = []
    for column, most in COLUMNS.items():

        def error(r):
            said, found = predicted[r][0][column], measured[r][column]
            return (said - found) / found if found else float(said != 0)

        worst = max(range(len(measured)), key=lambda r: abs(error(r)))
        cells.append(f"{size(measured[worst][column])} ({error(worst):+.1%})")
        if abs(error(worst)) > most:
            said, found = predicted[worst][0][column], measured[worst][column]
            off.append(f"{title}, rank {worst}: {column} predicted {said}, measured {found}")
    if details:
        for phase, row in predicted[0][1].items():
            print(phase, {i["category"]: i["bytes"] for i in row["items"]}, row["device"])
        print(measured[0])
    cells.append(resident(title, predicted, measured, off))
    return " | ".join(cells)


def resident(title, predicted, measured, off):
    """By how much resident memory grew on the fullest rank, and for the large model how far off the predicted peak is."""
    peaks = [max(p[0][phase] for phase in ("forward", "backward", "step")) for p in predicted]
    worst = max(range(len(measured)), key=lambda r: abs(peaks[r] / measured[r]["rss"] - 1))
    said, found = peaks[worst], measured[worst]["rss"]
    if not title.startswith("llama-large"):
        return size(found)
    if abs(said / found - 1) > 0.15:
        off.append(f"{title}, rank {worst}: resident memory predicted {said}, measured {found}")
    return f"{size(found)} ({said / found - 1:+.1%})"


if __name__ == "__main__":
    sys.exit(main())
