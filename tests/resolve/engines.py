"""Records in `engines.json` what LLaMA-Factory, accelerate and DeepSpeed themselves make of the configs in `examples`.

Run on a CPU with torch, deepspeed, transformers, accelerate, peft, torchdata and omegaconf, and LLaMA-Factory's source tree:

    DS_ACCELERATOR=cpu python tests/resolve/engines.py LLAMA_FACTORY/src

Every row runs in a process of its own. The world is one process that believes in `world` of them; `deepspeed.initialize` and the data are
all that is left out. Nothing of the engines' code is here, only calls into it.
"""

import importlib
import json
import math
import os
import sys
import tempfile
import traceback
from enum import Enum
from pathlib import Path

HERE = Path(__file__).parent
HIDDEN, LAYERS = 64, 4

LLAMA_FACTORY = [
    # file, DeepSpeed file, world, overrides
    ("full_fsdp2.yaml", None, 8, {}),
    ("lora_fsdp2.yaml", None, 8, {}),
    ("lora_rank0.yaml", None, 4, {}),
    ("lora_export.yaml", None, 1, {}),
    ("freeze_fsdp2.yaml", None, 2, {}),
    ("freeze_uncast.yaml", None, 2, {}),
    ("padding_free.yaml", None, 8, {}),
    ("dynamic_batching.yaml", None, 8, {}),
    ("dynamic_padding_free.yaml", None, 8, {}),
    ("dynamic_padding_free.yaml", None, 3, {}),
    ("ulysses_cp.yaml", None, 8, {}),
    ("ulysses_cp.yaml", None, 3, {}),
    ("hybrid_fsdp2.yaml", None, 8, {}),
    ("hybrid_fsdp2.yaml", None, 7, {}),
    ("muon.yaml", None, 8, {}),
    ("liger.yaml", None, 8, {}),
    ("qlora.yaml", None, 8, {}),
    ("ddp.yaml", None, 4, {}),
    ("fsdpturbo.yaml", None, 8, {}),
    ("full_deepspeed.yaml", "ds_z0.json", 8, {}),
    ("full_deepspeed.yaml", "ds_z2.json", 8, {}),
    ("full_deepspeed.yaml", "ds_z2_offload.json", 8, {}),
    ("full_deepspeed.yaml", "ds_z2_autotp.json", 8, {}),
    ("full_deepspeed.yaml", "ds_z3.json", 8, {}),
    ("full_deepspeed.yaml", "ds_z3_offload.json", 8, {}),
    ("full_deepspeed.yaml", "ds_z3_fp8.json", 8, {}),
    ("full_deepspeed.yaml", "ds_sequence.json", 8, {}),
    ("full_deepspeed.yaml", "ds_z1_optimizer.json", 8, {}),
    ("full_deepspeed.yaml", "ds_z3.json", 2, {"cp_size": 2}),
    ("lora_deepspeed.yaml", "ds_z3.json", 8, {}),
    ("lora_deepspeed.yaml", "ds_z3.json", 3, {}),
]

ACCELERATE = [
    # file, DeepSpeed file
    ("accelerate_fsdp2.yaml", None),
    ("accelerate_fsdp2_classes.yaml", None),
    ("accelerate_hsdp.yaml", None),
    ("accelerate_tp.yaml", None),
    ("accelerate_fsdp1.yaml", None),
    ("accelerate_multi_gpu.yaml", None),
    ("accelerate_single.yaml", None),
    ("accelerate_old_fp16.yaml", None),
    ("accelerate_deepspeed.yaml", None),
    ("accelerate_deepspeed_stage2.yaml", None),
    ("accelerate_deepspeed_file.yaml", "ds_z0.json"),
    ("accelerate_deepspeed_file.yaml", "ds_z2.json"),
    ("accelerate_deepspeed_file.yaml", "ds_z3.json"),
    ("accelerate_deepspeed_file.yaml", "ds_z3_offload.json"),
    ("accelerate_deepspeed_file.yaml", "ds_z3_fp8.json"),
    ("accelerate_deepspeed_file.yaml", "ds_z3_optimizer.json"),
    ("accelerate_deepspeed_file.yaml", "ds_z1_optimizer.json"),
    ("accelerate_deepspeed_file.yaml", "ds_sequence.json"),
    ("accelerate_deepspeed_mixed.yaml", "ds_z3.json"),
]


# Whether accelerate is left to count its ranks: without a GPU it finds one, where DeepSpeed finds all.
ON_CPU = False
# Whether `deepspeed.initialize` is called too, in a world of one process, with what the engine gave it.
INITIALIZE = False


class Captured(Exception):
    """What an engine would have started DeepSpeed with."""


def plain(value):
    """JSON of what engines hold: dtypes by name, enums by value, models as mappings."""
    import torch

    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Enum):
        return plain(value.value)
    if hasattr(value, "model_dump"):
        return plain({k: getattr(value, k) for k in type(value).model_fields if hasattr(value, k)})
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def model_config():
    from transformers import Qwen3Config

    return Qwen3Config(
        hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=128, tie_word_embeddings=False, dtype="bfloat16",
    )


def tiny_model(directory):
    import torch
    from transformers import Qwen3ForCausalLM

    Qwen3ForCausalLM(model_config()).to(torch.bfloat16).save_pretrained(directory)


def one_process():
    # A kernel of its own for sums within a node, which would have to be compiled.
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(20000 + os.getpid() % 20000))


def ranks(world):
    """What DeepSpeed asks for the number of ranks."""
    return type("Ranks", (), {"get_data_parallel_world_size": staticmethod(lambda: world)})


def captured(prepare, world):
    """The DeepSpeed config that accelerate fills, and what DeepSpeed reads out of it on `world` ranks."""
    import deepspeed
    from accelerate import Accelerator
    from deepspeed.runtime.config import DeepSpeedConfig

    def initialize(**kwargs):
        raise Captured(kwargs)

    start, deepspeed.initialize = deepspeed.initialize, initialize
    if not INITIALIZE:
        # The optimizer for offloading would have to be compiled.
        importlib.import_module("accelerate.accelerator").map_pytorch_optim_to_deepspeed = lambda optimizer: optimizer
    if not ON_CPU:
        Accelerator.num_processes = property(lambda self: world)
    try:
        prepare()
    except Captured as found:
        arguments = found.args[0]
        filled = arguments["config_params"]
    left = [k for k, v in flat(filled) if v == "auto"]

    read = DeepSpeedConfig(json.loads(json.dumps(plain(filled)).replace('"inf"', "1000000000")), mpu=ranks(world))
    started = {"initialize": initialized(start, arguments, read)} if INITIALIZE else {}
    return {
        **started,
        "left_auto": left,
        "zero_optimization": plain(read.zero_config),
        "bf16": plain(read.bfloat16_config),
        "fp16": plain(read.float16_config),
        "gradient_clipping": read.gradient_clipping,
        "batch": {
            "global": read.train_batch_size,
            "micro": read.train_micro_batch_size_per_gpu,
            "accumulation": read.gradient_accumulation_steps,
        },
    }


# What tells of this machine and not of the config: no GPU, no MPI, no NVMe library.
MACHINE = ("mpi4py", "cupy", "CUDA", "cuda", "nvcc", "NVCC", "async_io", "libaio", "/nvme", "compil", "Ninja", "No module named")


def initialized(start, arguments, read):
    """`deepspeed.initialize` in a world of one: "ok", or why this machine cannot tell. A refusal is raised."""
    config = dict(arguments["config_params"], train_batch_size=read.train_micro_batch_size_per_gpu * read.gradient_accumulation_steps)
    config.update(train_micro_batch_size_per_gpu=read.train_micro_batch_size_per_gpu, gradient_accumulation_steps=read.gradient_accumulation_steps)
    try:
        start(**{**arguments, "config_params": config})
    except Exception as error:
        if any(word in f"{type(error).__name__}: {error}" for word in MACHINE):
            return f"not on this machine: {type(error).__name__}"
        raise
    return "ok"


def flat(tree, path=""):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from flat(value, f"{path}.{key}" if path else key)
    else:
        yield path, tree


def llama_factory(file, deepspeed, world, overrides, model):
    import torch
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(HERE / "examples" / file), OmegaConf.create(overrides)))
    if deepspeed:
        config["dist_config"]["config_file"] = str(HERE / "examples" / deepspeed)
    config["model"] = model
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    from llamafactory.v1.config.arg_parser import get_args

    model_args, data_args, training_args, sample_args = get_args(config)
    answer = {"args": {}}
    for group in (model_args, data_args, training_args, sample_args):
        answer["args"].update({k: plain(v) for k, v in vars(group).items()})
    for key in ("model", "output_dir", "dist_config"):
        answer["args"].pop(key)

    # The mesh, as DistributedStrategy computes and checks it.
    if world > 1:
        os.environ.update(RANK="0", WORLD_SIZE=str(world))
    from llamafactory.v1.accelerator import interface

    sizes = {"mp_replicate_size": 1, "mp_shard_size": None, "dp_size": None, "cp_size": 1}
    # The release 0.9.5 has the sizes in dist_config, the tree after it on the top level.
    written = vars(training_args) if hasattr(training_args, "mp_shard_size") else (training_args.dist_config or {})
    strategy = interface.DistributedStrategy(**{k: written.get(k, default) for k, default in sizes.items()})
    for key in ("RANK", "WORLD_SIZE"):
        os.environ.pop(key, None)
    answer["mesh"] = {
        "mp_replicate": strategy.mp_replicate_size, "mp_shard": strategy.mp_shard_size, "dp": strategy.dp_size, "cp": strategy.cp_size,
    }

    # The batch, as BatchGenerator computes and checks it.
    from llamafactory.v1.core.utils import batching

    sizes = {interface.Dim.DP: strategy.dp_size, interface.Dim.CP: strategy.cp_size, None: world}
    interface.DistributedInterface.get_world_size = lambda self, dim=None: sizes[dim]
    batching.BatchGenerator._init_data_provider = lambda self: setattr(self, "_data_provider", [])
    batch = batching.BatchGenerator(
        dataset=[], renderer=None, micro_batch_size=training_args.micro_batch_size, global_batch_size=training_args.global_batch_size,
        batching_strategy=training_args.batching_strategy,
    )
    answer["batch"] = {"micro": batch.micro_batch_size, "accumulation": batch.num_micro_batch, "global": batch.global_batch_size}

    # What the model is kept in, as ModelEngine builds it.
    name = training_args.dist_config.name if training_args.dist_config else None
    if model_args.quant_config is None and name != "deepspeed":
        from llamafactory.v1.core.model_engine import ModelEngine
        from transformers import AutoConfig

        engine = ModelEngine.__new__(ModelEngine)
        model_args.kernel_config, model_args.flash_attn = None, "sdpa"
        if model_args.peft_config is not None:
            model_args.peft_config.pop("adapter_name_or_path", None)
        engine.args, engine.is_train, engine._deepspeed_zero3_enabled = model_args, True, False
        engine.model_config = AutoConfig.from_pretrained(model)
        built = engine._init_model()
        kept = {"trainable": set(), "frozen": set()}
        for path, parameter in built.named_parameters():
            if "lora_" not in path:
                kept["trainable" if parameter.requires_grad else "frozen"].add(plain(parameter.dtype))
        answer["storage"] = {k: sorted(v) for k, v in kept.items()}
        if kept["frozen"] and kept["trainable"]:
            answer["trainable"] = sorted(n for n, p in built.named_parameters() if p.requires_grad)
            answer["frozen"] = sorted(n for n, p in built.named_parameters() if not p.requires_grad)

    # What the backend makes of its section.
    if name is None:
        return answer
    answer["strategy"] = name
    if not hasattr(training_args, "mp_shard_size"):
        return released(answer, name, training_args, strategy, batch, world)
    from llamafactory.v1.plugins.trainer_plugins.distributed import interface as backends

    plugin = backends.DistributedPlugin(name)
    plugin._resolve()
    if name == "deepspeed":
        if training_args.cp_size > 1:
            # What BaseTrainer checks, whose constructor wants a dataset.
            raise ValueError("Context parallelism currently requires `dist_config.name: fsdp2`.")
        params = plugin.parse_params(training_args.dist_config, backends.DeepSpeedParams)
        answer["deepspeed"] = deepspeed_engine(vars(params), training_args, batch, world)
        return answer
    kind = {"fsdp2": backends.FSDP2Params, "fsdpturbo": backends.FSDPTurboParams}[name]
    params = plugin.parse_params(training_args.dist_config, kind)
    from llamafactory.v1.plugins.trainer_plugins.distributed.fsdp2 import FSDP2Engine

    engine = FSDP2Engine(vars(params), bf16=training_args.bf16)
    policy = engine.get_mp_policy()
    answer["config"] = plain({k: v for k, v in vars(params).items() if k != "name"})
    answer["policy"] = {"compute": plain(policy.param_dtype), "reduce": plain(policy.reduce_dtype), "output": plain(policy.output_dtype)}
    return answer


def deepspeed_engine(section, training_args, batch, world):
    import torch

    one_process()
    loading(section)
    from llamafactory.v1.plugins.trainer_plugins.distributed.deepspeed import DeepSpeedEngine
    from transformers import Qwen3ForCausalLM

    engine = DeepSpeedEngine(section, num_micro_batch=batch.num_micro_batch, micro_batch_size=batch.micro_batch_size)
    torch.distributed.device_mesh.init_device_mesh = lambda *args, **kwargs: None
    built = Qwen3ForCausalLM(model_config())
    optimizer = torch.optim.AdamW(built.parameters(), lr=training_args.learning_rate)
    # The trainer always makes a schedule of its own.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=lambda step: 1.0)
    return captured(lambda: engine.prepare(built, optimizer, schedule), world)


def loading(section):
    """What the model is built under, before the engine: `zero.Init` reads a config whose batch sizes are not yet the YAML's, and reads it before
    `deepspeed.comm` knows of any ranks."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from llamafactory.v1.plugins.model_plugins import deepspeed_utils

    if hasattr(deepspeed_utils, "register_deepspeed_dist_config"):
        deepspeed_utils.register_deepspeed_dist_config(section)
        plugin = deepspeed_utils.setup_deepspeed_zero3_model_loading()
    else:
        plugin = deepspeed_utils.setup_deepspeed_zero3_model_loading(True, section)
    if plugin is not None:
        DeepSpeedConfig(json.loads(json.dumps(plain(plugin.dschf.config))))
    deepspeed_utils.teardown_deepspeed_zero3_model_loading(plugin)
    for state in ("AcceleratorState", "PartialState"):
        getattr(importlib.import_module("accelerate.state"), state)._reset_state()


def released(answer, name, training_args, strategy, batch, world):
    """What the backends of the release 0.9.5 make of their section, which they take as a mapping."""
    from llamafactory.v1.plugins.trainer_plugins.distributed.hub import DistributedPlugin

    section = training_args.dist_config
    if name == "deepspeed":
        if strategy.cp_size > 1:
            raise ValueError("CP currently requires `dist_config.name: fsdp2`.")
        answer["deepspeed"] = deepspeed_engine(section, training_args, batch, world)
        return answer
    DistributedPlugin(name)["__call__"]
    from llamafactory.v1.plugins.trainer_plugins.distributed.fsdp2 import FSDP2Engine

    engine = FSDP2Engine(section, bf16=training_args.bf16)
    policy = engine.get_mp_policy()
    answer["config"] = {k: plain(getattr(engine, k)) for k in ("reshard_after_forward", "offload_params", "pin_memory", "dcp_path")}
    answer["policy"] = {"compute": plain(policy.param_dtype), "reduce": plain(policy.reduce_dtype), "output": plain(policy.output_dtype)}
    return answer


def accelerate(file, deepspeed, model):
    import torch

    work = Path(tempfile.mkdtemp())
    (work / file).write_text((HERE / "examples" / file).read_text())
    if deepspeed:
        (work / "ds.json").write_text((HERE / "examples" / deepspeed).read_text())
    os.chdir(work)
    from accelerate.commands import launch
    from accelerate.utils import launch as commands

    arguments = launch.launch_command_parser().parse_args(["--config_file", file, "script.py"])
    arguments, config, mixed_from_config = launch._validate_launch_command(arguments)
    answer = {"mixed_precision": arguments.mixed_precision, "num_processes": arguments.num_processes, "type": config.distributed_type.value}
    if answer["type"] == "DEEPSPEED":
        # As launch_command tells the plugin which keys stand in the file: beside a DeepSpeed file it refuses some.
        fields = list(config.deepspeed_config) + (["mixed_precision"] if mixed_from_config else [])
        arguments.deepspeed_fields_from_accelerate_config = ",".join(fields)
        _, environment = commands.prepare_deepspeed_cmd_env(arguments)
    elif answer["type"] in ("FSDP", "MULTI_GPU"):
        environment = commands.prepare_multi_gpu_env(arguments)
    else:
        _, environment = commands.prepare_simple_launcher_cmd_env(arguments)
    world = arguments.num_processes
    for key in list(os.environ):
        if key.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_")):
            del os.environ[key]
    os.environ.update({k: str(v) for k, v in environment.items() if k.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_"))})
    mixed = os.environ["ACCELERATE_MIXED_PRECISION"]
    from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin, ParallelismConfig

    if answer["type"] == "FSDP":
        answer["fsdp_version"] = int(os.environ["FSDP_VERSION"])
        if answer["fsdp_version"] != 2:
            return answer
        plugin = FullyShardedDataParallelPlugin()
        if mixed in ("bf16", "fp16"):
            plugin.set_mixed_precision(mixed)
        policy = plugin.mixed_precision_policy
        if policy is not None:
            answer["policy"] = {
                "compute": plain(policy.param_dtype), "reduce": plain(policy.reduce_dtype), "output": plain(policy.output_dtype),
            }
        answer["config"] = {
            "reshard_after_forward": plugin.reshard_after_forward,
            "offload_params": isinstance(plugin.cpu_offload, torch.distributed.fsdp.CPUOffloadPolicy),
        }
        answer["activation_checkpointing"] = plugin.activation_checkpointing
        answer["cpu_ram_efficient_loading"] = plugin.cpu_ram_efficient_loading
        if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG") == "true":
            sizes = ParallelismConfig()
            answer["parallelism"] = {
                "dp_replicate": sizes.dp_replicate_size, "dp_shard": sizes.dp_shard_size, "tp": sizes.tp_size, "cp": sizes.cp_size,
            }
    if answer["type"] == "DEEPSPEED":
        one_process()
        from accelerate import Accelerator
        from accelerate.utils import DummyOptim, DummyScheduler
        from transformers import Qwen3ForCausalLM

        plugin = DeepSpeedPlugin()
        accelerator = Accelerator(deepspeed_plugin=plugin, mixed_precision=mixed)
        answer["zero3_init_flag"] = plugin.zero3_init_flag
        built = Qwen3ForCausalLM(model_config())
        mine = plugin.deepspeed_config
        optimizer = DummyOptim(built.parameters(), lr=1e-4) if "optimizer" in mine else torch.optim.AdamW(built.parameters(), lr=1e-4)
        parts = [built, optimizer, torch.utils.data.DataLoader(list(range(64)), batch_size=1)]
        if "scheduler" in mine:
            parts.append(DummyScheduler(optimizer, total_num_steps=100, warmup_num_steps=10))
        answer["deepspeed"] = captured(lambda: accelerator.prepare(*parts), world)
    return answer


def row(run, *arguments):
    """Runs in a process of its own; an engine's refusal is its answer."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        devnull = os.open(os.devnull, os.O_WRONLY)
        if not os.environ.get("LOUD"):
            os.dup2(devnull, 1)
            os.dup2(devnull, 2)
        try:
            answer = run(*arguments)
        except Exception as error:
            if os.environ.get("LOUD"):
                traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}".replace(str(HERE) + "/", "")[:300]}
        with os.fdopen(write, "w") as out:
            json.dump(answer, out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as out:
        text = out.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"error": "the process died"}


def main():
    sys.path.insert(0, sys.argv[1])
    only = sys.argv[2:]
    wanted = lambda *names: not only or any(name in only for name in names)
    import accelerate as _
    import deepspeed as _
    import transformers as _
    from importlib.metadata import version

    model = tempfile.mkdtemp()
    tiny_model(model)
    rows = []
    for file, deepspeed, world, overrides in LLAMA_FACTORY:
        if wanted(file, deepspeed):
            answer = row(llama_factory, file, deepspeed, world, overrides, model)
            rows.append({"engine": "llamafactory", "file": file, "deepspeed": deepspeed, "world": world, "overrides": overrides, "answer": answer})
    for file, deepspeed in ACCELERATE:
        if wanted(file, deepspeed):
            answer = row(accelerate, file, deepspeed, model)
            rows.append({"engine": "accelerate", "file": file, "deepspeed": deepspeed, "answer": answer})
    versions = {name: version(name) for name in ("accelerate", "deepspeed", "peft", "torch", "transformers")}
    lines = ",\n".join(json.dumps(row) for row in rows).replace(model, "MODEL")
    text = f'{{"versions": {json.dumps(versions)}, "hidden_size": {HIDDEN}, "num_hidden_layers": {LAYERS}, "rows": [\n{lines}\n]}}'
    if only:
        print(text)
    else:
        (HERE / "engines.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
