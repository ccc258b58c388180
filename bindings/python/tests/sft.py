"""LLaMA-Factory's v1 trainer, unchanged but for one call that a CUDA build of torch cannot answer where there is no driver."""

import torch

torch.accelerator.synchronize = lambda *_, **__: None
from llamafactory.v1.trainers.sft_trainer import run_sft  # noqa: E402

run_sft()
