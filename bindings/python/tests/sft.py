"""LLaMA-Factory's v1 trainer with one call patched, which a CUDA build of torch cannot answer on a machine without a driver."""

import os
import sys

import torch

torch.accelerator.synchronize = lambda *_, **__: None
from llamafactory.v1.trainers.sft_trainer import run_sft  # noqa: E402

run_sft()
# The end of an interpreter whose threads still run was seen to abort a rank that was done, and torchrun then ends the others while they save.
if torch.distributed.is_initialized():
    torch.distributed.barrier()
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
