"""Records in `engines_matrix.json` which of some hundreds of configs LLaMA-Factory v1, accelerate and DeepSpeed take, and what they read.

Run as `engines.py` beside it is run, on whose calls into the engines it rests:

    DS_ACCELERATOR=cpu python tests/resolve/engines_matrix.py LLAMA_FACTORY/src

The configs are made here, key by key. An answer is `{"error": …}` or what is kept of the values that were read.
"""

import copy
import itertools
import json
import sys
import tempfile
from pathlib import Path

import engines

OUT = Path(__file__).parent / "engines_matrix.json"
BASE = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}

ZERO = """contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce allgather_partitions allgather_bucket_size overlap_comm
compute_grad_norm load_from_fp32_weights elastic_checkpoint sub_group_size stage3_prefetch_bucket_size prefetch_bucket_size
stage3_param_persistence_threshold param_persistence_threshold stage3_model_persistence_threshold stage3_max_live_parameters
stage3_max_reuse_distance stage3_gather_16bit_weights_on_model_save gather_16bit_weights_on_model_save stage3_module_granularity_threshold
stage3_use_all_reduce_for_fetch_params stage3_allgather_sequential ignore_unused_parameters legacy_stage1 round_robin_gradients parameter_alignment
zero_hpz_partition_size zero_quantized_weights zero_quantized_nontrainable_weights zero_quantized_gradients memory_efficient_linear
pipeline_loading_checkpoint override_module_apply log_trace_cache_warnings enable_sanity_checks save_muon_momentum_buffer_in_memory""".split()

REMOVED = """nebula compression_training amp quantize_training sparse_gradients eigenvalue sparse_attention elasticity graph_harvesting
curriculum_learning progressive_layer_drop""".split()

SCALARS = """wall_clock_breakdown memory_breakdown dump_state prescale_gradients gradient_predivide_factor steps_per_print disable_allgather
communication_data_type zero_allow_untested_optimizer zero_force_ds_cpu_optimizer dataloader_drop_last gradient_clipping train_batch_size
train_micro_batch_size_per_gpu gradient_accumulation_steps""".split()

STRICT = {
    "compile": {"deepcompile": False}, "tensorboard": {"enabled": False}, "wandb": {"enabled": False, "project": "p"},
    "csv_monitor": {"enabled": False}, "comet": {"enabled": False}, "comms_logger": {"enabled": False, "verbose": False},
    "hybrid_engine": {"enabled": False}, "weight_quantization": {"enabled": False}, "tensor_parallel": {"autotp_size": 1},
}


def merged(*parts):
    out = copy.deepcopy(BASE)
    for part in parts:
        for key, value in part.items():
            if isinstance(value, dict) and isinstance(out.get(key), dict):
                out[key] = {**out[key], **value}
            else:
                out[key] = value
    return out


def deepspeed_files():
    """DeepSpeed files, with the lines of the YAML that go with them."""
    zero = lambda **keys: merged({"zero_optimization": keys})
    for stage in (0, 1, 2, 3, 4, -1, "3", 3.0, 2.5, True, "auto", None, "three"):
        yield zero(stage=stage), ""
    for key in ZERO:
        yield zero(**{key: "auto"}), ""
        yield zero(**{key: "nonsense"}), ""
    for stage in (1, 2):
        for key in ("reduce_bucket_size", "stage3_prefetch_bucket_size", "overlap_comm", "sub_group_size"):
            yield zero(stage=stage, **{key: "auto"}), ""
    for key in ("unknown", "stage4_thing", "mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param"):
        yield zero(**{key: 2}), ""
    for value in (0, 1, 1e6, "1000000", "1e6", 1.5, -1, True, None, [1]):
        yield zero(reduce_bucket_size=value), ""
    for value in (0, "yes", "off", 1, 2, 1.0, None, []):
        yield zero(overlap_comm=value), ""
    for old in ("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory", "stage3_gather_fp16_weights_on_model_save"):
        for value in (True, False, "auto"):
            yield zero(**{old: value}), ""
    yield zero(cpu_offload=True, offload_optimizer={"device": "cpu"}), ""
    for part in ("offload_param", "offload_optimizer"):
        for section in ({"device": "cpu"}, {"device": "none"}, {"device": "auto"}, {"device": "gpu"}, {"device": "cpu", "pin_memory": False},
                        {"device": "cpu", "pin_memory": "auto"}, {"device": "cpu", "buffers": 3}, {"device": "cpu", "buffer_count": -1}, "cpu"):
            yield zero(**{part: section}), ""
    for stage in (2, 3):
        yield zero(stage=stage, offload_optimizer={"device": "cpu", "ratio": 0.5}), ""
        yield zero(stage=stage, compute_grad_norm=False), ""
    for key in REMOVED:
        yield merged({key: {"enabled": True}}), ""
    for key in SCALARS:
        yield merged({key: "auto"}), ""
    for key, section in STRICT.items():
        yield merged({key: section}), ""
        yield merged({key: {**section, "no_such_key": 1}}), ""
        yield merged({key: {**section, next(iter(section)): "auto"}}), ""
        yield merged({key: {**section, next(iter(section)): "nonsense"}}), ""
    yield merged({"compile": {"disable": False, "backend": "inductor"}}), ""
    for key, section in {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}, "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 2}}}.items():
        yield merged({key: section}), ""
        yield merged({key: {}}), ""
    for op in ("mean", "sum", "SUM", "average"):
        yield merged({"gradient_allreduce_op": op}), ""
        yield merged({"gradient_allreduce_op": op, "zero_optimization": {"stage": 2}}), ""
    for dtype in ("fp32", "bf16", "BF16", "fp8", "float32"):
        yield merged({"communication_data_type": dtype}), ""
    for bf16, fp16 in itertools.product((None, True, False, "auto", "true"), repeat=2):
        config = {"zero_optimization": {"stage": 3}}
        config |= {} if bf16 is None else {"bf16": {"enabled": bf16}}
        config |= {} if fp16 is None else {"fp16": {"enabled": fp16}}
        yield config, ""
    for section in ({"loss_scale": "auto"}, {"loss_scale_window": 10}, {"unknown": 1}, {"loss_scale_window": "10.0"}):
        yield merged({"fp16": {"enabled": False, **section}}), ""
    for section in ({"bf16_optimizer_states": True}, {"bf16_master_weights_and_grads": True}, {"unknown": 1}):
        yield merged({"bf16": section}), ""
    for train, micro, accumulation in itertools.product((None, "auto", 16), (None, "auto", 2), (None, "auto", 1, 2)):
        keys = {"train_batch_size": train, "train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": accumulation}
        batch = {k: v for k, v in keys.items() if v is not None}
        yield merged(batch), ""
        yield merged(batch), "micro_batch_size: 2\n"
    # Sixteen ranks' worth of steps in the YAML: what is absent from the file is not filled as what is "auto" is.
    for train, micro, accumulation in itertools.product((None, "auto", 128), (None, "auto", 2), (None, "auto", "null", 1, 8)):
        keys = {"train_batch_size": train, "train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": accumulation}
        batch = {k: None if v == "null" else v for k, v in keys.items() if v is not None}
        yield merged(batch), "micro_batch_size: 2\nglobal_batch_size: 128\n"
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu"):
        yield merged({key: None}), "micro_batch_size: 2\nglobal_batch_size: 128\n"
    for clipping in (0, 0.5, "auto", "1.0"):
        yield merged({"gradient_clipping": clipping}), ""
    for size in (0, 1, 2, 3, 8, 16):
        yield zero(zero_hpz_partition_size=size), ""
    for key in ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients"):
        for stage in (2, 3):
            yield zero(stage=stage, **{key: True}), ""
    sampling = lambda **keys: {"data_efficiency": {"enabled": False, "data_sampling": keys}}
    for section in (sampling(curriculum_learning={"enabled": True}), sampling(curriculum_learning={"enabled": True, "curriculum_metrics": {}}),
                    sampling(curriculum_learning={"enabled": False}), sampling(dynamic_batching={"enabled": True}),
                    sampling(dynamic_batching={"enabled": True, "max_tokens": 64}), sampling(enabled=True), {"data_efficiency": {"seed": 1}}):
        yield merged(section), ""
    yield merged({"aio": {"use_gds": False, "block_size": 1 << 20}}), ""
    deep = 1
    for _ in range(100):
        deep = [deep]
    yield merged({"no_such_key": deep}), ""
    yield {"bf16": {"enabled": True}}, ""
    yield merged({"activation_checkpointing": {"partition_activations": "auto"}}), ""
    yield merged({"no_such_section": {"a": "auto"}}), ""
    yield merged({"no_such_section": {"a": 1}}), ""
    yield merged({"data_types": {"grad_accum_dtype": "fp32"}}), ""


def texts():
    """Texts that are no strict JSON."""
    plain = json.dumps(BASE)
    yield "\ufeff" + plain
    yield "// a comment\n" + plain
    yield plain[:-1] + ",}"
    yield plain.replace('"stage"', "stage")
    for constant in ("NaN", "Infinity", "-Infinity"):
        yield plain[:-1] + f', "gradient_clipping": {constant}}}'
        yield plain[:-1] + f', "no_such_key": [{constant}]}}'
        yield plain.replace('"stage": 3', f'"stage": 3, "reduce_bucket_size": {constant}')
        yield plain.replace('"stage": 3', f'"stage": 3, "stage3_max_live_parameters": {constant}')


def accelerate_files():
    fsdp = lambda more="", keys="fsdp_version: 2, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP", n=8: (
        f"distributed_type: FSDP\nfsdp_config: {{{keys}}}\nmixed_precision: bf16\nnum_processes: {n}\n{more}"
    )
    for keys in ("version: 2", "fsdp_version: 1", "", "fsdp_version: '2'", "fsdp_version: 2, version: 1", "version: 2, reshard_after_forward: false",
                 "fsdp_version: 2, offload_params: true", "fsdp_version: 2, no_such_key: 1", "fsdp_version: 2, fsdp_no_such_key: 1",
                 "fsdp_version: 2, fsdp_sharding_strategy: FULL_SHARD", "fsdp_version: 2, fsdp_reshard_after_forward: 'false'",
                 "fsdp_version: 2, activation_checkpointing: true"):
        yield fsdp(keys=keys)
    for policy in ("NO_WRAP", "SIZE_BASED_WRAP", "TRANSFORMER_BASED_WRAP", "no_wrap", "BY_HAND"):
        yield fsdp(keys=f"fsdp_version: 2, fsdp_auto_wrap_policy: {policy}")
    for more in ("fsdp_activation_checkpointing_offload: true", "fsdp_activation_checkpointing: true, fsdp_activation_checkpointing_offload: true",
                 "fsdp_sync_module_states: false", "fsdp_sync_module_states: 'false'", "fsdp_state_dict_type: LOCAL_STATE_DICT",
                 "fsdp_cpu_ram_efficient_loading: false, fsdp_sync_module_states: false", "fsdp_cpu_ram_efficient_loading: 'nope'",
                 "fsdp_state_dict_type: full_state_dict", "fsdp_state_dict_type: whole", "fsdp_state_dict_type: null",
                 "fsdp_backward_prefetch: BAD", "fsdp_backward_prefetch: BACKWARD_PRE", "fsdp_offload_params: 'yes'", "fsdp_offload_params: 1",
                 "fsdp_offload_params: maybe", "fsdp_offload_params: null", "fsdp_reshard_after_forward: FULL_SHARD",
                 "fsdp_reshard_after_forward: 4", "fsdp_reshard_after_forward: 'No'", "fsdp_reshard_after_forward: null",
                 "fsdp_activation_checkpointing: 2"):
        yield fsdp(keys=f"fsdp_version: 2, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP, {more}")
    for number in ("'2000'", "1e6", "2000.5", "null", "-5"):
        yield fsdp(keys=f"fsdp_version: 2, fsdp_auto_wrap_policy: SIZE_BASED_WRAP, fsdp_min_num_params: {number}")
    for more in ("dynamo_backend: NO", "dynamo_backend: 'NO'", "dynamo_backend: nonsense", "dynamo_config: {backend: inductor}",
                 "dynamo_config: {dynamo_backend: foo}", "gpu_ids: 0", "gpu_ids: '0'", "gpu_ids: [0, 1]", "num_machines: null",
                 "num_machines: '2'", "main_process_port: '29501'", "compute_environment: nonsense", "num_processes: 4"):
        yield fsdp(f"{more}\n")
    yield fsdp().replace("num_processes: 8\n", "")
    yield "distributed_type: MULTI_GPU\nnum_processes: 2\ngpu_ids: '0'\n"
    for sizes in ("dp_shard_size: '8'", "dp_shard_size: 8.0", "dp_shard_size: null", "cp_size: '8'", "cp_size: null", "cp_backend: other",
                  "sp_backend: other"):
        rest = "" if sizes.startswith(("dp", "cp_size")) else "parallelism_config_dp_shard_size: 8, "
        yield fsdp(f"parallelism_config: {{{rest}parallelism_config_{sizes}}}\n")
    zero = lambda more: (f"distributed_type: DEEPSPEED\ndeepspeed_config: {{offload_optimizer_device: none, {more}}}\n"
                         "mixed_precision: bf16\nnum_processes: 4\n")
    for more in ("zero_stage: ' 3 '", "zero_stage: 3.0", "zero_stage: auto", "zero_stage: true", "zero_stage: null",
                 *(f"zero_stage: 3, gradient_accumulation_steps: {n}" for n in ("'2'", "2.0", "0", "null", "foo")),
                 *(f"zero_stage: 3, gradient_clipping: {n}" for n in ("0", "AUTO", "true", "none", "-1", "'0.5'")),
                 "zero_stage: 3, offload_param_device: CPU", "zero_stage: 3, offload_param_device: disk", "zero_stage: 3, zero3_init_flag: maybe",
                 "zero_stage: 3, zero3_init_flag: 'yes'", "zero_stage: 3, zero3_save_16bit_model: maybe"):
        yield zero(more)
    yield zero("zero_stage: 3").replace("bf16", "no")
    for mixed in ("'no'", "no", "BF16", "bf16", "fp16", "fp32"):
        yield fsdp().replace("mixed_precision: bf16", f"mixed_precision: {mixed}")
    yield fsdp("no_such_key: 1\n")
    sizes = ("dp_replicate", "dp_shard", "tp", "cp")
    for values in itertools.product((1, 2), (1, 2, 4), (1, 2), (1, 2)):
        keys = ", ".join(f"parallelism_config_{name}_size: {value}" for name, value in zip(sizes, values))
        yield fsdp(f"parallelism_config: {{{keys}}}\n", n=values[0] * values[1] * values[2] * values[3])
    yield fsdp("parallelism_config: {parallelism_config_dp_shard_size: 4}\n")
    yield fsdp("parallelism_config: {dp_shard_size: 8}\n")
    kinds = {"FSDP": fsdp(), "DEEPSPEED": zero("zero_stage: 3"), "MULTI_GPU": "distributed_type: MULTI_GPU\nmixed_precision: bf16\n",
             "MULTI_CPU": "distributed_type: MULTI_CPU\nuse_cpu: true\n", "NO": "distributed_type: 'NO'\n"}
    for text in kinds.values():
        text = "".join(line for line in text.splitlines(True) if not line.startswith("num_processes"))
        yield text
        for number in ("null", "'4'", "4.0", "0", "-1", "four", "1"):
            yield text + f"num_processes: {number}\n"
    for kind in ("fsdp", "Fsdp", "deepspeed", "GPU", "XLA", "MEGATRON_LM", "null", "2", "MULTI_XPU", "MULTI_NPU"):
        yield f"distributed_type: {kind}\nnum_processes: 4\nmixed_precision: bf16\n"
    # The keys of TRL's, axolotl's and accelerate's own files, with and without their prefix.
    both = {
        "auto_wrap_policy": ("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"),
        "transformer_layer_cls_to_wrap": ("Qwen3DecoderLayer", "'Qwen3DecoderLayer,Qwen3MLP'", "[Qwen3DecoderLayer]", "''", "null", "NoSuchLayer"),
        "min_num_params": ("1000", "'1000'"), "state_dict_type": ("SHARDED_STATE_DICT", "FULL_STATE_DICT"),
        "cpu_ram_efficient_loading": ("true", "false"), "sync_module_states": ("true",), "use_orig_params": ("true", "false"),
        "forward_prefetch": ("true", "maybe"), "limit_all_gathers": ("true",), "ignored_modules": ("null", "embed", "[embed]"),
        "backward_prefetch_policy": ("BACKWARD_PRE",), "backward_prefetch": ("NO_PREFETCH", "null"), "offload_params": ("false", "'false'"),
        "activation_checkpointing": ("true", "'true'"), "sharding_strategy": ("1", "HYBRID_SHARD", "nonsense"), "version": ("2.0", "3", "two"),
    }
    for key, values in both.items():
        for value in values:
            yield fsdp(keys=f"fsdp_version: 2, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP, fsdp_{key}: {value}".replace(
                "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP, fsdp_auto_wrap_policy", "fsdp_auto_wrap_policy"))
            yield fsdp(keys=f"version: 2, auto_wrap_policy: TRANSFORMER_BASED_WRAP, {key}: {value}".replace(
                "auto_wrap_policy: TRANSFORMER_BASED_WRAP, auto_wrap_policy", "auto_wrap_policy").replace("version: 2, auto_wrap_policy: TRANSFORMER_BASED_WRAP, version", "version"))
    for more in ("downcast_bf16: 'no'", "enable_cpu_affinity: false", "enable_cpu_affinity: true", "main_training_function: main", "rdzv_backend: static",
                 "rdzv_backend: c10d", "same_network: true", "tpu_env: []", "tpu_use_cluster: false", "use_cpu: false", "use_cpu: true", "debug: true",
                 "debug: false", "ipex_config: {}", "fp8_config: {}", "megatron_lm_config: {}", "deepspeed_config: {}", "command_file: null",
                 "commands: null", "tpu_name: null", "machine_rank: 0", "machine_rank: '0'", "machine_rank: null", "main_process_ip: null",
                 "main_process_ip: 10.0.0.1", "main_process_port: null", "main_process_port: 29501", "num_machines: 1", "num_machines: 2", "num_machines: 0",
                 "deepspeed_config: {zero_stage: 3}", "mpirun_config: {}", "gpu_ids: all", "gpu_ids: null", "gpu_ids: '0,1'",
                 "gradient_accumulation_steps: 4", "zero_stage: 3", "dynamo_config: {}", "dynamo_config: {dynamo_mode: default}",
                 "parallelism_config: {}", "parallelism_config: null", "fsdp_config: {}"):
        yield fsdp(f"{more}\n")
        yield zero("zero_stage: 3") + f"{more}\n"
    for more in ("zero_stage: 0", "zero_stage: 1", "zero_stage: 2", "zero_stage: 4", "zero_stage: -1", "zero_stage: three", "zero_stage: '2'",
                 "zero_stage: 3, offload_param_device: cpu", "zero_stage: 3, offload_param_device: none", "zero_stage: 3, offload_param_device: nvme",
                 "zero_stage: 3, offload_param_device: nvme, offload_param_nvme_path: /local_nvme", "zero_stage: 2, offload_param_device: cpu",
                 "zero_stage: 3, deepspeed_multinode_launcher: standard", "zero_stage: 3, deepspeed_multinode_launcher: pdsh",
                 "zero_stage: 3, deepspeed_multinode_launcher: nonsense", "zero_stage: 3, deepspeed_hostfile: null", "zero_stage: 3, deepspeed_hostfile: hosts",
                 "zero_stage: 3, deepspeed_moe_layer_cls_names: Qwen3MoeSparseMoeBlock", "zero_stage: 3, zero3_init_flag: true",
                 "zero_stage: 3, zero3_init_flag: false", "zero_stage: 2, zero3_init_flag: true", "zero_stage: 3, zero3_save_16bit_model: true",
                 "zero_stage: 3, gradient_accumulation_steps: auto", "zero_stage: 3, gradient_accumulation_steps: 4", "zero_stage: 3, gradient_clipping: auto",
                 "zero_stage: 3, gradient_clipping: 1.0", "zero_stage: 3, gradient_clipping: nan", "zero_stage: 3, train_batch_size: 8",
                 "zero_stage: 3, deepspeed_config_file: none"):
        yield zero(more)
        yield zero(more).replace("offload_optimizer_device: none, ", "")
    yield zero("zero_stage: 3").replace("bf16", "fp8")
    yield "distributed_type: DEEPSPEED\nnum_processes: 4\nmixed_precision: bf16\n"
    yield "distributed_type: DEEPSPEED\nnum_processes: 4\nmixed_precision: bf16\ndeepspeed_config: {}\n"
    yield "distributed_type: DEEPSPEED\nnum_processes: 4\nmixed_precision: bf16\ndeepspeed_config: null\n"
    yield "distributed_type: FSDP\nnum_processes: 4\nmixed_precision: bf16\n"
    yield "distributed_type: FSDP\nnum_processes: 4\nmixed_precision: bf16\nfsdp_config: null\n"
    for stage, device in itertools.product((0, 1, 2, 3), ("none", "cpu")):
        yield (f"distributed_type: DEEPSPEED\ndeepspeed_config: {{zero_stage: {stage}, offload_optimizer_device: {device}, no_such_key: 1}}\n"
               "mixed_precision: bf16\nnum_processes: 4\n")


def accelerate_with_files():
    """DeepSpeed files beside an accelerate YAML."""
    for train, micro, accumulation in itertools.product((None, "auto", 8, "null"), (None, "auto", 2, "null"), (None, "auto", 1)):
        keys = {"train_batch_size": train, "train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": accumulation}
        yield merged({k: None if v == "null" else v for k, v in keys.items() if v is not None})
    batch = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    for more in ({"train_micro_batch_size_per_gpu": "2"}, {"gradient_accumulation_steps": "2"}, {"gradient_clipping": -1},
                 {"zero_allow_untested_optimizer": "auto"}, {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
                 {"torch_autocast": {"enabled": True, "dtype": "foo"}}, {"torch_autocast": {"lower_precision_safe_modules": [1]}},
                 {"zero_optimization": {"offload_optimizer": None}}, {"zero_optimization": {"offload_param": None}}):
        yield merged({**batch, **more})


def initialized_files():
    """DeepSpeed files, each with the engine, with which `deepspeed.initialize` is called too."""
    both = lambda config: [("llamafactory", config), ("accelerate", config)]
    batch = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    whole = lambda *parts: merged(batch, *parts)
    stage = lambda number, **keys: {"zero_optimization": {"stage": number, **keys}}
    on_host = {"device": "cpu"}
    # Words that DeepSpeed takes for booleans, and LLaMA-Factory for an open question.
    for name in ("bf16", "fp16"):
        for value in ("yes", "no", "on", "off", "1", "0", 0, "Auto", "AUTO", "TRUE", "False", " true", "maybe", None, 2, [], {}):
            config = whole({name: {"enabled": value}})
            yield from both(config if name == "bf16" else {k: v for k, v in config.items() if k != "bf16"})
    for section in ("true", True, None, {}):
        yield from both(whole({"bf16": section}))
    for number, dtype in itertools.product((0, 1, 2, 3), ("fp32", "bf16", "float32", "int8", "fp64", "FP32", 32)):
        yield from both(whole(stage(number), {"data_types": {"grad_accum_dtype": dtype}}))
    for keys in ({}, {"zero_force_ds_cpu_optimizer": False}, {"zero_force_ds_cpu_optimizer": True}):
        for number, value in ((1, "true"), (2, True), (3, True), (2, False)):
            yield from both(whole(stage(number, cpu_offload=value), keys))
    adam = {"lr": "auto", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": "auto"}
    made = lambda optimizer, *parts: [("accelerate", whole({"optimizer": optimizer}, *parts))]
    for kind in ("Adam", "AdamW", "ADAMW", "SGD", "sgd", "Adagrad", "RMSprop", "Adafactor", "adafactor", "OneBitAdam", "ZeroOneAdam", "FusedAdam",
                 "DeepSpeedCPUAdam", "adamw_torch", "paged_adamw_8bit", "Muon", 3, ""):
        optimizer = {"type": kind, "params": {"lr": 1e-4}}
        yield from made(optimizer)
        yield from made(optimizer, {"zero_allow_untested_optimizer": True})
        yield from made(optimizer, stage(2))
        yield from made(optimizer, stage(3, offload_optimizer=on_host))
    values = {"lr": ("1e-4", None), "betas": ([0.9], "0.9,0.95", 0.9, [0.9, "0.95"]), "torch_adam": (True, False), "adam_w_mode": (True,), "eps": ("1e-8",),
              "max_grad_norm": (1.0,), "momentum": (0.9,), "foreach": (True,), "fused": (True,), "amsgrad": (True, False), "bias_correction": (False,),
              "beta1": (0.9,), "learning_rate": (1e-4,), "adamw_mode": (True,), "fp32_optimizer_states": (True,), "set_grad_none": (True,), "EPS": (1e-8,)}
    for key, more in ((key, value) for key in values for value in values[key]):
        optimizer = {"type": "AdamW", "params": {**adam, key: more}}
        yield from made(optimizer, stage(3, offload_optimizer=on_host))
        # Without offloading these are looked at in the first step, which is not taken here.
        if key not in ("lr", "betas", "eps"):
            yield from made(optimizer)
        if key in ("foreach", "fused", "amsgrad", "bias_correction", "set_grad_none"):
            yield from made({"type": "AdamW", "params": {**adam, "torch_adam": True, key: more}})
    for number, optimizer in itertools.product((2, 3), (
        None, [], "AdamW", "none", {}, {"type": "AdamW"}, {"type": "AdamW", "params": None}, {"type": "AdamW", "params": []}, {"params": {"lr": 1e-4}},
        {"type": "AdamW", "params": {}}, {"type": "AdamW", "params": {"lr": 1e-4}, "legacy_fusion": True}, {"type": "AdamW", "lr": 1e-4},
        {"name": "AdamW", "params": {"lr": 1e-4}},
    )):
        yield from made(optimizer, stage(number))
    warmup = {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}
    for kind, params in (
        ("WarmupLR", None), ("WarmupLR", {}), ("WarmupLR", warmup), ("warmuplr", warmup), ("WarmupLR", [warmup]), ("cosine", {}), (3, {}), (None, {}),
        ("WarmupDecayLR", warmup), ("WarmupDecayLR", {**warmup, "total_num_steps": "auto"}), ("WarmupCosineLR", {**warmup, "total_num_steps": 9}),
        ("WarmupCosineLR", {"total_num_steps": 9, "warmup_num_steps": 2}), ("WarmupCosineLR", {"warmup_num_steps": 2}), ("CosineAnnealingLR", {"T_max": 9}),
        ("OneCycle", {"cycle_min_lr": 1e-5, "cycle_max_lr": 1e-4}), ("OneCycle", {"cycle_min_lr": 1e-5}), ("LRRangeTest", {"lr_range_test_min_lr": 1e-4}),
        *(("WarmupLR", {**warmup, key: value}) for key, value in (
            ("warmup_num_steps", 0), ("warmup_num_steps", 0.1), ("warmup_num_steps", "10"), ("warmup_type", "cosine"), ("warmup_ratio", 0.1),
            ("total_num_steps", "auto"), ("warmup_max_lr", "1e-4"), ("warmup_min_lr", "none"))),
        ("WarmupDecayLR", {**warmup, "total_num_steps": "Auto"}),
    ):
        yield from made({"type": "AdamW", "params": adam}, {"scheduler": {"type": kind, "params": params}})
    for scheduler in ("WarmupLR", None, [], {}, {"type": "WarmupLR"}, {"params": warmup}):
        yield from made({"type": "AdamW", "params": adam}, {"scheduler": scheduler})


def parallel_files():
    """accelerate's context and sequence parallelism, and machines."""
    fsdp = "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\nmixed_precision: bf16\nnum_processes: 4\n"
    zero = "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3}\nmixed_precision: bf16\nnum_processes: 4\n"
    sizes = lambda **keys: "parallelism_config: {" + ", ".join(f"parallelism_config_{k}: {v}" for k, v in keys.items()) + "}\n"
    for cp, strategy in itertools.product((1, 2), ("allgather", "alltoall", "ring", "AllGather", "null", "''")):
        yield fsdp + sizes(dp_shard_size=4 // cp, cp_size=cp, cp_comm_strategy=strategy)
    for section in ("true", "[zero_stage]", "3", "auto", "false", "''"):
        yield zero.replace("{zero_stage: 3}", section)
    for kind in ("'NO'", "MULTI_CPU", "MULTI_GPU"):
        for more in ("", "main_process_ip: 10.0.0.1\n", "main_process_ip: 10.0.0.1\nmain_process_port: 29500\n"):
            yield f"distributed_type: {kind}\nnum_machines: 2\nnum_processes: 4\n{more}"


def machine_files():
    """Machines, ranks and processors in an accelerate YAML."""
    kinds = {"'NO'": "num_processes: 1\n", "MULTI_CPU": "num_processes: 2\n", "MULTI_GPU": "num_processes: 2\n",
             "FSDP": "num_processes: 2\nfsdp_config: {fsdp_version: 2}\n", "DEEPSPEED": "num_processes: 2\ndeepspeed_config: {zero_stage: 3}\n"}
    for kind, more in kinds.items():
        for machines in ("null", "'2'", "2.0", "true", "two"):
            yield f"distributed_type: {kind}\n{more}num_machines: {machines}\nmain_process_ip: 10.0.0.1\nmain_process_port: 29500\n"
        for rank in ("0", "1", "'1'", "1.0", "null", "first", "0e0"):
            for machines in (1, 2):
                yield (f"distributed_type: {kind}\n{more}num_machines: {machines}\nmachine_rank: {rank}\nmain_process_ip: 10.0.0.1\n"
                       "main_process_port: 29500\n")
        for cpu in ("null", "maybe", "'yes'", "'false'", "0.0", "1", "2", "[false]", "''"):
            yield f"distributed_type: {kind}\n{more}use_cpu: {cpu}\n"


def offload_files():
    """Offloading in an accelerate YAML."""
    for stage, part in itertools.product((1, 2, 3), ("optimizer", "param")):
        for device in ("auto", "AUTO", "'none'", "None", "gpu", "0", "true", "[cpu]", "''"):
            yield (f"distributed_type: DEEPSPEED\ndeepspeed_config: {{zero_stage: {stage}, offload_{part}_device: {device}}}\n"
                   "mixed_precision: bf16\nnum_processes: 2\n")


def deepspeed_row(yaml, deepspeed, world, model):
    answer = engines.llama_factory("a.yaml", "ds.json", world, {}, model)
    return kept(answer, deepspeed)


def kept(answer, deepspeed):
    """Without what the file does not speak of."""
    read = answer.get("deepspeed")
    if read is None:
        return {k: answer[k] for k in ("policy", "config", "num_processes", "parallelism", "fsdp_version", "type") if k in answer}
    written = deepspeed["zero_optimization"]
    written = {k.removeprefix("stage3_") for k in written} if isinstance(written, dict) else set()
    read["zero_optimization"] = {
        k: v for k, v in read["zero_optimization"].items() if k in ("stage", "overlap_comm") or k in written or k.removeprefix("stage3_") in written
    }
    for section in ("bf16", "fp16"):
        read[section] = {"enabled": read[section]["enabled"]}
    return {"deepspeed": read}


def accelerate_row(yaml, deepspeed, model):
    answer = engines.accelerate("a.yaml", "ds.json" if deepspeed else None, model)
    if answer.get("parallelism"):
        from accelerate.utils import ParallelismConfig

        class Started:
            multi_device = is_fsdp2 = is_main_process = True
            distributed_type = None
            num_processes = answer["num_processes"]

        ParallelismConfig()._validate_accelerator(Started())
    if "deepspeed" in answer:
        return {"num_processes": answer["num_processes"], **kept(answer, deepspeed or {"zero_optimization": {"offload_optimizer": {}}})}
    return kept(answer, None)


def main():
    sys.path.insert(0, sys.argv[1])
    # What every row needs, imported once: rows are forks of this process.
    import importlib
    from importlib.metadata import version

    for module in """accelerate.commands.launch deepspeed deepspeed.comm.torch omegaconf transformers.models.qwen3.modeling_qwen3
        llamafactory.v1.config.arg_parser llamafactory.v1.accelerator.interface llamafactory.v1.core.utils.batching
        llamafactory.v1.plugins.trainer_plugins.distributed.interface
        llamafactory.v1.plugins.trainer_plugins.distributed.deepspeed""".split():
        importlib.import_module(module)

    model = tempfile.mkdtemp()
    engines.tiny_model(model)
    engines.HERE = Path(tempfile.mkdtemp())
    examples = engines.HERE / "examples"
    examples.mkdir()
    rows = []

    def add(engine, yaml, deepspeed, world, run, *arguments):
        (examples / "a.yaml").write_text(yaml)
        if deepspeed is not None:
            (examples / "ds.json").write_text(deepspeed)
        answer = engines.row(run, *arguments)
        print(len(rows), end="\r", file=sys.stderr, flush=True)
        rows.append({"engine": engine, "yaml": yaml, "deepspeed": deepspeed, "world": world, "answer": answer})

    llama_factory = "model: m\ntrain_dataset: d\ndist_config: {name: deepspeed, config_file: ds.json}\n"
    for config, more in deepspeed_files():
        add("llamafactory", llama_factory + more, json.dumps(config), 8, deepspeed_row, llama_factory + more, config, 8, model)
    for text in texts():
        add("llamafactory", llama_factory, text, 8, deepspeed_row, llama_factory, BASE, 8, model)
    for yaml in accelerate_files():
        add("accelerate", yaml, None, None, accelerate_row, yaml, None, model)
    beside = "distributed_type: DEEPSPEED\nnum_processes: 4\ndeepspeed_config: {deepspeed_config_file: ds.json, zero3_init_flag: true}\n"
    for config in accelerate_with_files():
        add("accelerate", beside, json.dumps(config), None, accelerate_row, beside, config, model)
    for yaml in parallel_files():
        add("accelerate", yaml, None, None, accelerate_row, yaml, None, model)
    engines.INITIALIZE = True
    for engine, config in initialized_files():
        yaml, world, run = (llama_factory, 8, deepspeed_row) if engine == "llamafactory" else (beside, None, accelerate_row)
        arguments = (yaml, config, world, model) if world else (yaml, config, model)
        add(engine, yaml, json.dumps(config), world, run, *arguments)
    engines.INITIALIZE = False
    for make in (machine_files, offload_files):
        for yaml in make():
            add("accelerate", yaml, None, None, accelerate_row, yaml, None, model)
    versions = {name: version(name) for name in ("accelerate", "deepspeed", "torch", "transformers")}
    lines = ",\n".join(json.dumps(row) for row in rows).replace(model, "MODEL").replace(str(engines.HERE), "HERE")
    OUT.write_text(f'{{"versions": {json.dumps(versions)}, "rows": [\n{lines}\n]}}\n')
    refused = sum("error" in row["answer"] for row in rows)
    print(f"{len(rows)} rows, {refused} refused")


if __name__ == "__main__":
    main()
