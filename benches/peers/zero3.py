"""zero3.py MODEL: what LLaMA-Factory v1 does under DeepSpeed ZeRO-3: the config is registered first, then `from_pretrained` builds the
model under `zero.Init`. Storage is bfloat16."""
import os
import sys
import time

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch.distributed as dist
from accelerate.utils import DeepSpeedPlugin
from transformers import AutoModelForCausalLM

from common import ready, report, status_mb

deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
config = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 3},
}
plugin = DeepSpeedPlugin(hf_ds_config=config, zero3_init_flag=True)
plugin.set_mixed_precision("bf16")
plugin.set_deepspeed_weakref()
idle = status_mb("VmRSS")
ready()
dist.barrier()
start = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
dist.barrier()
seconds = time.perf_counter() - start
report(seconds, sum(p.ds_tensor.nbytes for p in model.parameters()), idle)
dist.destroy_process_group()
