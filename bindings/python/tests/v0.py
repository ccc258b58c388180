"""v0.py stock|ours CONFIG: LLaMA-Factory's v0 as `llamafactory-cli train` runs it in each process, on a CPU; `ours` by way of shardwright."""

import os
import sys
import types
from importlib.machinery import ModuleSpec

# For audio alone, and the newest release does not load beside this torch.
torchaudio = sys.modules["torchaudio"] = types.ModuleType("torchaudio")
torchaudio.__spec__ = ModuleSpec("torchaudio", None)

import torch  # noqa: E402

side = sys.argv.pop(1)
if "fsdp" in sys.argv[1]:
    import cpu_fsdp

    os.environ["ACCELERATE_USE_CPU"] = "true"
    cpu_fsdp.allow()
if side == "ours":
    from shardwright.llamafactory import main

    sys.argv.insert(1, "train")
    main()
else:
    from llamafactory.train.tuner import run_exp

    run_exp()
if torch.distributed.is_initialized():
    torch.distributed.barrier()
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
