#!/usr/bin/env python3
"""Times `shardwright convert` beside the tools that it replaces, on one checkpoint, both sides in one run.

    python scripts/convert-peers.py BINARY [--gb 3] [--dir DIR] [--rounds 3] [--only ROW]

Peers: DeepSpeed's zero_to_fp32 and ds_to_universal, torch's dcp_to_torch_save, what LLaMA-Factory's scripts hf2dcp.py and dcp2hf.py do with
transformers, and a bare copy of the source's bytes, synced. Each run is a process of its own. A peer's time is that of its function, without imports; shardwright's is that of the whole process. Memory is the process's
peak (VmHWM). Before each run the source's files are read once, so that all find them in the page cache. Best of the rounds.
Needs torch, deepspeed and transformers, and three times the checkpoint's size on the disk.
"""

import argparse, json, os, shutil, subprocess, sys, tempfile, time

MAKE = """
import os, sys, importlib, torch, torch.nn as nn, torch.distributed as dist
import deepspeed
importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
out, layers = sys.argv[1], int(sys.argv[2])
deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
config = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_allow_untested_optimizer": True, "zero_optimization": {"stage": 3}}
with deepspeed.zero.Init(config_dict_or_path=config):
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=i % 2 == 0) for i in range(layers)))
engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3), config=config)
loss = engine(torch.randn(1, 1024, dtype=torch.bfloat16)).float().sum()
engine.backward(loss)
engine.step()
engine.save_checkpoint(out)
dist.barrier()
os._exit(0)  # torch 2.15 may abort as the interpreter ends
"""

QWEN = """
import sys, torch
from transformers import Qwen3Config, Qwen3ForCausalLM
config = Qwen3Config(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, tie_word_embeddings=True)
torch.set_default_dtype(torch.bfloat16)
Qwen3ForCausalLM(config).save_pretrained(sys.argv[1])
"""

PEER = """
import sys, time, json
what, source, target = sys.argv[1:]
if what == "zero_to_fp32":
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict as run
    call = lambda: run(source, target, safe_serialization=True)
elif what == "ds_to_universal":
    import argparse, os
    from deepspeed.checkpoint.ds_to_universal import main as run
    tag = open(source + "/latest").read().strip()
    args = argparse.Namespace(input_folder=f"{source}/{tag}", output_folder=f"{target}/{tag}_universal", num_extract_workers=2,
        num_merge_workers=2, keep_temp_folder=False, strict=True, inject_missing_state=False)
    call = lambda: run(args)
elif what == "hf2dcp":
    import torch, torch.distributed.checkpoint as dcp
    from transformers import Qwen3ForCausalLM as cls
    call = lambda: dcp.save(cls.from_pretrained(source, device_map="cpu", dtype=torch.bfloat16).state_dict(), checkpoint_id=target)
elif what == "dcp2hf":
    import torch, torch.distributed.checkpoint as dcp
    from transformers import AutoConfig, Qwen3ForCausalLM as cls
    def call():
        model = cls(AutoConfig.from_pretrained(source + "-config")).to(torch.bfloat16)
        state = model.state_dict()
        dcp.load(state, checkpoint_id=source)
        model.load_state_dict(state)
        model.save_pretrained(target)
else:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save as run
    call = lambda: run(source, target)
start = time.perf_counter()
call()
import os
os.sync()
seconds = time.perf_counter() - start
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("RESULT " + json.dumps([seconds, peak / 1024]))
"""


def size(path):
    return sum(os.path.getsize(os.path.join(at, f)) for at, _, files in os.walk(path) for f in files)


def warm(path):
    for at, _, files in os.walk(path):
        for f in files:
            with open(os.path.join(at, f), "rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass


def remove(path):
    shutil.rmtree(path) if os.path.isdir(path) else os.path.exists(path) and os.remove(path)


def ours(binary, source, target, *args):
    start = time.perf_counter()
    child = subprocess.Popen([binary, "convert", source, target, *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(errors.decode())
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def peer(what, source, target):
    done = subprocess.run([sys.executable, "-c", PEER, what, source, target], capture_output=True, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        sys.exit(f"{what}: {done.stderr[-2000:]}")
    return tuple(json.loads(line[7:]))


def copy(source, target):
    start = time.perf_counter()
    for at, _, files in os.walk(source):
        to = os.path.join(target, os.path.relpath(at, source))
        os.makedirs(to, exist_ok=True)
        for f in files:
            with open(os.path.join(at, f), "rb", buffering=0) as read, open(os.path.join(to, f), "wb", buffering=0) as write:
                while block := read.read(1 << 20):
                    write.write(block)
                os.fsync(write.fileno())
    return time.perf_counter() - start, 0


def of_deepspeed(binary, out, target, gb):
    make = os.path.join(out, "make.py")
    with open(make, "w") as f:
        f.write(MAKE)
    zero, layers = os.path.join(out, "zero3"), max(2, int(gb * 1e9 / (1024 * 1024 * 12)))
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", make, zero, str(layers)]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    dcp = os.path.join(out, "dcp")
    ours(binary, zero, dcp, "--to", "dcp", "--ranks", "2")
    print(f"{size(zero) / 1e9:.2f} GB of ZeRO-3 on 2 ranks, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    return [
        ("zero_to_fp32", lambda: peer("zero_to_fp32", zero, target), lambda: ours(binary, zero, target, "--to", "hf"), zero),
        ("ds_to_universal", lambda: peer("ds_to_universal", zero, target), lambda: ours(binary, zero, target, "--to", "zero3-universal"), zero),
        ("dcp_to_torch_save", lambda: peer("dcp_to_torch_save", dcp + "/model", target),
         lambda: ours(binary, dcp + "/model", target, "--to", "hf"), dcp + "/model"),
        ("copy", lambda: copy(zero, target), lambda: ours(binary, zero, target, "--to", "zero3", "--ranks", "2"), zero),
    ]


def of_transformers(binary, out, target):
    model, dcp = os.path.join(out, "qwen3"), os.path.join(out, "qwen3-dcp")
    subprocess.run([sys.executable, "-c", QWEN, model], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peer("hf2dcp", model, dcp)
    shutil.copytree(model, dcp + "-config", ignore=lambda _, names: [n for n in names if n.endswith(".safetensors")])
    print(f"{size(model) / 1e9:.2f} GB of safetensors, a tied Qwen3, load {os.getloadavg()[0]:.1f}")
    return [
        ("hf2dcp", lambda: peer("hf2dcp", model, target), lambda: ours(binary, model, target, "--to", "dcp", "--ranks", "1"), model),
        ("dcp2hf", lambda: peer("dcp2hf", dcp, target), lambda: ours(binary, dcp, target, "--to", "hf"), dcp),
    ]


def main():
    parse = argparse.ArgumentParser()
    parse.add_argument("binary")
    parse.add_argument("--gb", type=float, default=3)
    parse.add_argument("--dir")
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--only", action="append", help="zero_to_fp32, ds_to_universal, dcp_to_torch_save, copy, hf2dcp, or dcp2hf")
    args = parse.parse_args()
    binary = os.path.abspath(args.binary)
    with tempfile.TemporaryDirectory(dir=args.dir) as out:
        os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
        target = os.path.join(out, "target")
        rows = []
        if not args.only or {"zero_to_fp32", "ds_to_universal", "dcp_to_torch_save", "copy"} & set(args.only):
            rows += of_deepspeed(binary, out, target, args.gb)
        if not args.only or {"hf2dcp", "dcp2hf"} & set(args.only):
            rows += of_transformers(binary, out, target)
        for name, theirs, own, source in (row for row in rows if not args.only or row[0] in args.only):
            best = {}
            for _ in range(args.rounds):
                for who, run in (("peer", theirs), ("shardwright", own)):
                    warm(source)
                    found = run()
                    remove(target)
                    best[who] = min(best.get(who, found), found)
            (a, x), (b, y) = best["peer"], best["shardwright"]
            memory = f", memory {x:.0f} MiB against {y:.0f}: 1/{x / y:.0f}" if x else ""
            load = f", load {os.getloadavg()[0]:.1f}"
            print(f"{name}: {a:.2f} s, shardwright {b:.2f} s: {a / b:.1f} times as fast{memory}{load}", flush=True)


if __name__ == "__main__":
    main()
