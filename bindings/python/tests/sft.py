"""LLaMA-Factory's v1 trainer with one call patched, which a CUDA build of torch cannot answer on a machine without a driver."""

import torch

torch.accelerator.synchronize = lambda *_, **__: None
from llamafactory.v1.trainers.sft_trainer import run_sft  # noqa: E402

run_sft()
