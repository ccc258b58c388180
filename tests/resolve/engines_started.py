"""Records in `engines_started.json` which configs LLaMA-Factory 0.9.5's own `run_sft` runs to its end, and where it fails on the others.

Each config trains a tiny Qwen3 for one step in one process on a CPU, by the package's own code. It needs llamafactory 0.9.5 with what it requires,
and a folder of the models `tiny` and `tied` (a Qwen3 with a tokenizer, its embeddings apart or one), `data.yaml` and the data that it names:

    DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 python tests/resolve/engines_started.py FOLDER
"""

import copy
import importlib
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

OUT = Path(__file__).parent / "engines_started.json"
SECONDS = 90
BASE = (
    "model: tiny\ntrain_dataset: data.yaml\noutput_dir: out\nmicro_batch_size: 1\ncutoff_len: 64\nmax_steps: 1\nbatching_workers: 0\n"
    "enable_activation_checkpointing: true\n"
)
FSDP2 = BASE + "dist_config: {name: fsdp2}\n"
DEEPSPEED = BASE + "dist_config: {name: deepspeed, config_file: ds.json}\n"
FILE = {
    "zero_optimization": {"stage": 3, "overlap_comm": False, "stage3_gather_16bit_weights_on_model_save": True}, "bf16": {"enabled": True},
    "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
}


def file(zero=None, **keys):
    out = copy.deepcopy(FILE)
    out["zero_optimization"].update(zero or {})
    out.update(keys)
    return json.dumps(out)


def with_text(text):
    return json.dumps(FILE)[:-1] + "," + text + "}"


LORA = """{name: lora}; {name: lora, target_modules: []}; {name: lora, target_modules: null}; {name: lora, target_modules: q_proj}; {name: lora, target_modules: [nope]}
{name: lora, target_modules: [q_proj, nope]}; {name: lora, target_modules: [self_attn.q_proj]}; {name: lora, target_modules: [model.layers.0.self_attn.q_proj]}
{name: lora, target_modules: [q_norm]}; {name: lora, target_modules: [mlp]}; {name: lora, target_modules: [embed_tokens]}; {name: lora, target_modules: [lm_head, q_proj]}
{name: lora, target_modules: ['.*q_proj']}; {name: lora, target_modules: [q_proj.weight]}; {name: lora, target_modules: ''}; {name: lora, modules_to_save: [lm_head]}
{name: lora, modules_to_save: [embed_tokens]}; {name: lora, modules_to_save: [norm]}; {name: lora, modules_to_save: [nope]}; {name: lora, modules_to_save: lm_head}
{name: lora, modules_to_save: []}; {name: lora, modules_to_save: [layers]}; {name: lora, modules_to_save: ''}; {name: lora, modules_to_save: [head]}
{name: lora, modules_to_save: auto}; {name: lora, modules_to_save: [t]}; {name: lora, modules_to_save: [dropout]}; {name: lora, modules_to_save: [default]}
{name: lora, modules_to_save: [x]}; {name: lora, modules_to_save: [o]}; {name: lora, modules_to_save: [A]}; {name: lora, modules_to_save: [r]}
{name: lora, foo: 1}; {name: lora, loraplus_lr_ratio: 16}; {name: lora, target_modules: [embed_tokens, q_proj]}; {name: lora, r: 0}; {name: lora, r: '8'}
{name: lora, r: 8.0}; {name: lora, lora_alpha: abc}; {name: lora, lora_alpha: -1}; {name: lora, lora_dropout: 2.0}; {name: lora, use_dora: true}
{name: lora, target_modules: all}; {name: lora, target_modules: [all]}
{name: lora, target_modules: 3}; {name: lora, target_modules: {a: b}}; {name: lora, target_modules: [q_proj, 3]}"""

FREEZE = """{name: freeze}; {name: freeze, freeze_trainable_modules: [nope]}; {name: freeze, freeze_trainable_modules: [mlp]}
{name: freeze, freeze_extra_modules: [embed_tokens]}; {name: freeze, freeze_extra_modules: lm_head}; {name: freeze, freeze_extra_modules: [nope]}
{name: freeze, foo: 1}; {name: freeze, freeze_trainable_modules: [mlp.up_proj]}; {name: freeze, freeze_trainable_modules: []}
{name: freeze, freeze_trainable_modules: ''}; {name: freeze, freeze_extra_modules: ''}; {name: freeze, freeze_extra_modules: [model]}
{name: freeze, freeze_trainable_modules: 'mlp, self_attn'}; {name: freeze, freeze_extra_modules: 'norm,lm_head'}; {name: freeze, freeze_trainable_layers: 99}
{name: freeze, freeze_trainable_modules: null}; {name: freeze, freeze_extra_modules: null}; {name: freeze, cast_trainable_params_to_fp32: 'no'}"""

KEYS = """dtype: bfloat16; optim_config: {name: muon}; kernel_config: {name: auto, foo: 1}; init_config: {name: init_on_rank0, foo: 1}; save_total_limit: '3'
save_total_limit: '3'\\nsave_steps: 1; save_total_limit: 'abc'\\nsave_steps: 1; save_total_limit: 3.0\\nsave_steps: 1; save_total_limit: 0\\nsave_steps: 1
save_total_limit: 1.5\\nsave_steps: 1; save_total_limit: -1\\nsave_steps: 1; save_total_limit: '3'\\nsave_epochs: 1; save_total_limit: [3]
save_epochs: '1'; save_epochs: '0.5'; save_epochs: 'abc'; save_epochs: 0; save_steps: '1'; save_steps: {}; save_steps: ''; save_steps: []; save_epochs: {}; max_steps: ''
eval_dataset: !!binary aGVsbG8=; eval_dataset: !!omap [a: 1]; eval_dataset: !!pairs [a: 1, a: 2]; eval_dataset: !!set {a, b}; eval_dataset: !!timestamp 2001-12-14
flash_attn: flash_attention_3; flash_attn: eager; learning_rate: '1e-4'; learning_rate: -1.0; seed: -1; seed: '42'; seed: 42.0; max_grad_norm: 0
max_grad_norm: null; logging_steps: 0; resume_from_checkpoint: auto; init_config: {name: init_on_meta}; init_config: {name: init_on_rank0}
init_config: {name: init_on_meta}\\npeft_config: {name: freeze}; init_config: {name: init_on_rank0}\\npeft_config: {name: lora}
quant_config: {name: auto}; kernel_config: {name: auto}; kernel_config: {name: auto, include_kernels: auto}; kernel_config: {name: liger_kernel}
batching_strategy: padding_free; batching_strategy: dynamic_batching; batching_strategy: dynamic_padding_free; global_batch_size: 3; global_batch_size: 0
kernel_config: {name: auto, include_kernels: nope}; kernel_config: {name: auto, include_kernels: [auto]}; kernel_config: {name: auto, include_kernels: true}
kernel_config: {name: auto, include_kernels: ''}; kernel_config: {name: auto, include_kernels: 'cuda_fused_moe, npu_fused_rope'}; kernel_config: {name: ''}
kernel_config: {name: 'auto,liger_kernel'}; kernel_config: {name: liger_kernel, include_kernels: [rope]}; cp_size: 1; mp_shard_size: 1; pref_beta: 0.1
custom_chat_template: null; dist_timeout: 600; template: qwen3; template: llama3; max_steps: 1\\nmodel_class: cls; model_class: other"""

BATCHES = """0.5; 1.5; 2.0; 1.0; '1'; '2'; true; false; null; -1; 0; [1]; 0x1; 01"""

# Line breaks, tags, and documents that YAML's readers take in several ways.
YAMLS = """eval_dataset: a\\u2028b; # \\u2028 comment; eval_dataset: a\\u0085b; eval_dataset: 'a\\u2029 b'; \\u2028seed: 3; eval_dataset: "\\\\ud800"; eval_dataset: "\\\\u2028"
eval_dataset: =; eval_dataset: <<; eval_dataset: '='; seed: !!binary aGVsbG8=; bf16: !!binary aGVsbG8=; eval_dataset: !foo 3; seed: !!int '3'; seed: !!str 3
seed: !!int 3.5; seed: 3\\nseed: 4; peft_config: {name: lora, r: 8, r: 4}; seed: &s 3\\nlogging_steps: *s; seed: *nope; seed: &a 3\\nlogging_steps: &a 1
<<: {seed: 7}; <<: 3; peft_config: {<<: {name: lora, r: 4}, r: 8}; peft_config: {<<: [{name: lora}, {r: 4}]}; peft_config: &a {name: lora, target_modules: *a}
3: 4; true: 4; null: 4; ? [seed] : 3; seed:3; \\tseed: 3; seed:\\t3; seed: ${logging_steps}\\nlogging_steps: 1; seed: ${x}; seed: ???; %YAML 1.1"""
EMPTY = ["", "\n", "# nothing\n", "---\n", "---\n---\n", "null\n", "[]\n", "{}\n", "a\n", "3\n", "model: tiny\n---\nmodel: tied\n"]

DIST = """{name: fsdp2, foo: 1}; {name: fsdp2, reshard_after_forward: 1}; {name: fsdp2, reshard_after_forward: 'true'}; {name: fsdp2, reshard_after_forward: 0}
{name: fsdp2, reshard_after_forward: 1.0}; {name: fsdp2, mp_replicate_size: '1', mp_shard_size: '1'}; {name: fsdp2, mp_shard_size: 1.0}
{name: fsdp2, mp_shard_size: 0}; {name: fsdp2, mp_replicate_size: 2, mp_shard_size: 4}; {name: fsdp2, mp_shard_size: null, dp_size: null}; {name: fsdp2, cp_size: null}
{name: fsdp2, timeout: '60'}; {name: fsdp2, timeout: 1.5}; {name: fsdp2, timeout: 0}; {name: fsdp2, cp_mode: ring}; {name: fsdp2, reshard_after_forward: 'no'}
{name: fsdp2, offload_params: null}; {name: fsdp2, dcp_path: ''}; {name: fsdp2, pin_memory: 'false'}"""


# Of datasets, adapters and checkpoints to go on from.
DATASETS = """nope.yaml; data/nope.yaml; a/b/c/nope.yaml; /nowhere/x.yaml; ./nope.yaml; ../nope.yaml; ~/x.yaml; nope.json; data/nope.json; /nowhere/x.json
./x.json; a/b/c.json; ~/x.json; owner/name; name; /nowhere; data.json; ./data.json; tiny; tiny/config.json; tiny/model.safetensors; a.yaml; data.yml
owner/name/dataset_info.yaml; hf://datasets/owner/name/x.json; tiny/tokenizer"""
ADAPTERS = "nope; owner/nope; /nowhere/a; ./nope; a/b/c; tiny; data.json; ~/x"
CHECKPOINTS = "nope; out; /nowhere; tiny; data.json; ~/x; auto"


def words(text):
    return [word.strip() for line in text.splitlines() for word in line.split("; ")]


def nested(open, close, depth):
    return open * depth + (close * depth if open == "[" else "1" + close * depth)


def cases():
    """YAML and DeepSpeed file."""
    yield FSDP2, None
    yield DEEPSPEED, file()
    yield FSDP2.replace("data.yaml", "null"), None
    yield FSDP2.replace("data.yaml", "''"), None
    yield FSDP2.replace("train_dataset: data.yaml\n", ""), None
    for path in words(DATASETS):
        yield FSDP2.replace("data.yaml", f"'{path}'"), None
    for path in words(ADAPTERS):
        yield FSDP2 + f"peft_config: {{name: lora, adapter_name_or_path: '{path}'}}\n", None
    for path in words(CHECKPOINTS):
        yield FSDP2 + f"resume_from_checkpoint: '{path}'\n", None
    for peft in words(LORA) + words(FREEZE):
        yield FSDP2 + f"peft_config: {peft}\n", None
    for peft in words(LORA):
        if "_to_save: " in peft or "embed" in peft:
            yield FSDP2.replace("tiny", "tied") + f"peft_config: {peft}\n", None
            yield BASE + f"peft_config: {peft}\n", None
            yield DEEPSPEED + f"peft_config: {peft}\n", file()
    for stage in (2, 3):
        for peft in ("{name: lora}", "{name: lora, modules_to_save: [lm_head]}", "{name: freeze}"):
            yield DEEPSPEED + f"peft_config: {peft}\n", file({"stage": stage})
        for init in ("init_on_meta", "init_on_rank0", "init_on_default"):
            yield DEEPSPEED + f"init_config: {{name: {init}}}\n", file({"stage": stage})
    for keys in words(KEYS):
        yield FSDP2 + keys.replace("\\n", "\n") + "\n", None
    for size in words(BATCHES):
        yield FSDP2.replace("micro_batch_size: 1", f"micro_batch_size: {size}"), None
        yield FSDP2 + f"global_batch_size: {size}\n", None
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"):
        for size in (1.0, 1.5, 0.5, "1", True, -1, 0, None, 2, [1]):
            yield DEEPSPEED, file(**{key: size})
    for lines in words(YAMLS):
        yield FSDP2 + lines.encode().decode("unicode_escape") + "\n", None
    for text in EMPTY:
        yield text, None
    for text in ('"foo": "\\ud800"', '"\\udfff": 1', '"foo": "\\ud83d\\ude00"', '"foo": "\t"', '"foo": "\u2028"'):
        yield DEEPSPEED, with_text(text)
    for key in ("reduce_bucket_size", "allgather_bucket_size", "stage3_max_live_parameters", "sub_group_size"):
        for size in (1e30, 10**18, 10**30):
            yield DEEPSPEED, file({key: size})
    for kernels in ("rope", "''", "null", "[rope]", "3", "0", "{a: b}"):
        yield FSDP2 + f"kernel_config: {{name: auto, include_kernels: {kernels}}}\n", None
        yield FSDP2 + f"kernel_config: {{name: liger_kernel, include_kernels: {kernels}}}\n", None
    for dist in words(DIST):
        yield BASE + f"dist_config: {dist}\n", None
    yield BASE + "dist_config: {name: deepspeed, config_file: ds.json, foo: 1}\n", file()
    for keys in ('"name": "fsdp2", "mp_replicate_size": 1', '"name": "fsdp2", "cp_size": "1", "timeout": 60', '"name": "fsdp2", "mp_shard_size": 2'):
        yield BASE + f"dist_config: '{{{keys}}}'\n", None
    for keys in ("", ', "dp_size": 1'):
        yield BASE + f"""dist_config: '{{"name": "deepspeed", "config_file": "ds.json"{keys}}}'\n""", file()
    for init in ("init_on_meta", "init_on_rank0"):
        yield BASE + f"init_config: {{name: {init}}}\n", None
    for brackets, depths in (("[]", (60, 70, 90, 100, 300)), ("{}", (60, 66, 80))):
        for depth in depths:
            yield FSDP2 + f"eval_dataset: {nested('[' if brackets == '[]' else '{a: ', brackets[1], depth)}\n", None
    for depth in (100, 200, 900):
        yield DEEPSPEED, with_text(f'"foo": {nested("[", "]", depth)}')
    for text in ('"foo": NaN', '"foo": -Infinity', '"gradient_clipping": Infinity', '"gradient_clipping": NaN', '"steps_per_print": Infinity'):
        yield DEEPSPEED, with_text(text)
    for key in ("reduce_bucket_size", "stage3_max_live_parameters"):
        yield DEEPSPEED, file({key: float("nan")})
    on_host = {"offload_optimizer": {"device": "cpu"}}
    for stage in (1, 2, 3):
        for more in ({}, {"update_interval": 2}):
            yield DEEPSPEED, file({"stage": stage, **on_host, "zenflow": {"topk_ratio": 0.1, "select_interval": 2, **more}})
        if stage < 3:
            yield DEEPSPEED, file({"stage": stage, **on_host, "zenflow": {"topk_ratio": 0.1}})
        for strategy in ("step", "epoch", "layer"):
            yield DEEPSPEED, file({"stage": stage, **on_host, "zenflow": {"select_strategy": strategy}})
    for zenflow in ({}, {"topk_ratio": 0.1}, {"topk_ratio": 0.1, "select_strategy": "step", "select_interval": 1, "update_interval": 1}):
        for offload in ({}, on_host):
            yield DEEPSPEED, file({"stage": 3, **offload, "zenflow": zenflow})
    for size in ("1", 1, 0, 1.0, None):
        yield DEEPSPEED, file(tensor_parallel={"autotp_size": size})
    for section in (True, "x", None, [], {}):
        yield DEEPSPEED, file(expert_parallel=section)
    for norm in (None, "", "none", "1.0", True, [1.0], {}, -1, 0):
        yield DEEPSPEED, file(gradient_clipping=norm)
    for stage in (0, 1, 2, 3):
        for zero in ({"cpu_offload": True}, {"cpu_offload": False}, {"offload_optimizer": {"device": "cpu"}}):
            yield DEEPSPEED, file({"stage": stage, **zero})
        for dtype in ("bf16", "fp32", "int8", "fp64"):
            yield DEEPSPEED, file({"stage": stage}, data_types={"grad_accum_dtype": dtype})
    yield DEEPSPEED, file({"cpu_offload": True}, zero_force_ds_cpu_optimizer=False)
    for size in (0, 1, 2, 3):
        yield DEEPSPEED, file({"zero_hpz_partition_size": size})
    for key in ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients"):
        for stage in (2, 3):
            yield DEEPSPEED, file({"stage": stage, key: True})
    on = {"enabled": True}
    for sections in (
        {"data_sampling": {"enabled": True, "curriculum_learning": on}, "enabled": True}, {"data_sampling": {"curriculum_learning": on}}, on,
        {"data_sampling": {"dynamic_batching": on}}, {"data_routing": {"enabled": True, "random_ltd": on}},
        {"data_routing": {"random_ltd": {**on, "total_layer_num": 3, "random_ltd_layer_num": 1, "random_ltd_schedule": {}}}},
    ):
        yield DEEPSPEED, file(data_efficiency=sections)
    for gds in (True, False):
        yield DEEPSPEED, file(aio={"use_gds": gds})
    yield FSDP2.replace("max_steps: 1", "max_steps: -1\nnum_train_epochs: 1"), None
    yield FSDP2.replace("max_steps: 1", "num_train_epochs: 0"), None
    yield FSDP2.replace("cutoff_len: 64", "cutoff_len: 0"), None
    yield FSDP2.replace("batching_workers: 0", "batching_workers: 2"), None


def train(folder, yaml, deepspeed, write):
    """In a process of its own: what `run_sft` answers."""
    work = Path(tempfile.mkdtemp())
    for path in folder.iterdir():
        (work / path.name).symlink_to(path)
    (work / "a.yaml").write_text(yaml)
    if deepspeed is not None:
        (work / "ds.json").write_text(deepspeed)
    os.chdir(work)
    os.setpgid(0, 0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    port = str(20000 + os.getpid() % 20000)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    sys.argv = ["train", "a.yaml"]
    from llamafactory.v1.trainers.sft_trainer import run_sft

    try:
        run_sft()
        answer = {}
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}".replace(str(work), "WORK")[:200]}
    os.write(write, json.dumps(answer).encode())
    shutil.rmtree(work)
    os._exit(0)


def row(folder, yaml, deepspeed):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        train(folder, yaml, deepspeed, write)
    os.close(write)
    ready, _, _ = select.select([read], [], [], SECONDS)
    text = os.read(read, 1 << 16) if ready else b""
    os.close(read)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    os.waitpid(child, 0)
    answer = json.loads(text) if text else {"error": "no answer"}
    return {"yaml": yaml, "deepspeed": deepspeed, "answer": answer}


def main():
    folder = Path(sys.argv[1]).resolve()
    import torch

    torch.set_num_threads(1)
    # A CUDA build of torch without a driver has no answer to this.
    torch.accelerator.synchronize = lambda *_, **__: None
    # A kernel of its own for sums within a node, which would have to be compiled.
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    # Imported once: rows are forks of this process.
    for module in """datasets peft transformers.models.qwen3.modeling_qwen3 llamafactory.v1.trainers.sft_trainer
        llamafactory.v1.plugins.trainer_plugins.distributed.fsdp2 llamafactory.v1.plugins.trainer_plugins.distributed.deepspeed
        llamafactory.v1.plugins.model_plugins.peft""".split():
        importlib.import_module(module)
    rows = []
    start = time.time()
    for yaml, deepspeed in cases():
        rows.append(row(folder, yaml, deepspeed))
        print(len(rows), round(time.time() - start), rows[-1]["answer"], flush=True)
    from importlib.metadata import version

    versions = {name: version(name) for name in ("llamafactory", "accelerate", "deepspeed", "peft", "torch", "transformers")}
    lines = ",\n".join(json.dumps(row) for row in rows)
    OUT.write_text(f'{{"versions": {json.dumps(versions)}, "rows": [\n{lines}\n]}}\n')
    print(f"{len(rows)} rows, {sum('error' in row['answer'] for row in rows)} refused")


if __name__ == "__main__":
    main()
