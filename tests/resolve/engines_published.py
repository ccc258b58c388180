"""Records in `engines_published.json` what the engines make of the configs in `published.json`.

Those have the shapes of the example configs of LLaMA-Factory, accelerate, TRL, axolotl and DeepSpeedExamples: their field names, with values
of our own where a value does not matter. Each DeepSpeed config is tried under LLaMA-Factory and beside an accelerate YAML, and
`deepspeed.initialize` starts on a toy model. Run as `engines.py` beside it is run; with `--released` for the rows of LLaMA-Factory 0.9.5,
whose package the argument then holds:

    DS_ACCELERATOR=cpu python tests/resolve/engines_published.py LLAMA_FACTORY/src [--released]
"""

import importlib
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import engines
from engines_matrix import kept

HERE = Path(__file__).parent
LLAMA_FACTORY = "model: m\ntrain_dataset: d\nmicro_batch_size: 2\ndist_config: {name: deepspeed, config_file: ds.json}\n"
ACCELERATE = (
    "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\nnum_processes: 8\n"
    "deepspeed_config: {deepspeed_config_file: ds.json, zero3_init_flag: true}\n"
)
SIMPLE = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}, "train_batch_size": "auto",
          "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}


def llama_factory(text, deepspeed, world, model):
    answer = engines.llama_factory("a.yaml", deepspeed and "ds.json", world, {}, model)
    if "deepspeed" in answer:
        return with_start(answer, json.loads(deepspeed))
    del answer["args"]
    return answer


def accelerate(text, deepspeed, world, model):
    answer = engines.accelerate("a.yaml", deepspeed and "ds.json", model)
    if "deepspeed" in answer:
        file = json.loads(deepspeed) if deepspeed else {"zero_optimization": {}}
        return {"num_processes": answer["num_processes"], **with_start(answer, file)}
    return kept(answer, None)


def with_start(answer, file):
    start = answer["deepspeed"].pop("initialize", None)
    answer = kept(answer, {"zero_optimization": {}, **file})
    return {**answer, "initialize": start} if start else answer


def rows(released):
    groups = json.loads((HERE / "published.json").read_text())
    lines = lambda config: json.dumps(config)
    plain = [("llamafactory", lines(c), None) for c in groups["llamafactory v0"] + groups["axolotl"]]
    if released:
        for config in groups["llamafactory 0.9.5"]:
            uses = (config.get("dist_config") or {}).get("config_file")
            yield "llamafactory 0.9.5", lines(config), json.dumps(SIMPLE) if uses else None
        for config in groups["deepspeed"]:
            yield "llamafactory 0.9.5", LLAMA_FACTORY, json.dumps(config)
        return
    for config in groups["llamafactory v1"]:
        uses = (config.get("dist_config") or {}).get("config_file")
        yield "llamafactory", lines(config), json.dumps(SIMPLE) if uses else None
    for config in groups["accelerate"]:
        yield "accelerate", lines(config), None
    for config in groups["deepspeed"]:
        yield "llamafactory", LLAMA_FACTORY, json.dumps(config)
    for config in groups["deepspeed"]:
        yield "accelerate", ACCELERATE, json.dumps(config)
    yield from plain


def cpu_rows():
    """What is tried once more as a machine without a GPU starts it."""
    for micro in (1, 2):
        for batch in ({}, {"train_batch_size": "auto"}):
            file = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": "auto"}, "train_micro_batch_size_per_gpu": "auto", **batch}
            yield LLAMA_FACTORY.replace("micro_batch_size: 2", f"micro_batch_size: {micro}"), json.dumps(file)


def main():
    sys.path.insert(0, sys.argv[1])
    released = "--released" in sys.argv
    own = "hub" if released else "interface"
    for module in f"""accelerate.commands.launch deepspeed deepspeed.comm.torch omegaconf transformers.models.qwen3.modeling_qwen3
        llamafactory.v1.config.arg_parser llamafactory.v1.accelerator.interface llamafactory.v1.core.utils.batching
        llamafactory.v1.plugins.trainer_plugins.distributed.{own}
        llamafactory.v1.plugins.trainer_plugins.distributed.deepspeed""".split():
        importlib.import_module(module)
    engines.INITIALIZE = True
    model = tempfile.mkdtemp()
    engines.tiny_model(model)
    engines.HERE = Path(tempfile.mkdtemp())
    examples = engines.HERE / "examples"
    examples.mkdir()
    versions = {name: version(name) for name in ("accelerate", "deepspeed", "torch", "transformers")}
    name = "engines_released.json" if released else "engines_published.json"
    # What is recorded is kept: remove the file to record everything anew.
    out = json.loads((HERE / name).read_text())["rows"] if (HERE / name).exists() else []
    done = {(row["engine"], row["yaml"], row["deepspeed"]) for row in out}
    for engine, yaml, deepspeed in rows(released):
        if (engine, yaml, deepspeed) in done:
            continue
        (examples / "a.yaml").write_text(yaml)
        (examples / "ds.json").write_text(deepspeed or "")
        run = accelerate if engine == "accelerate" else llama_factory
        world = None if engine == "accelerate" else 8
        answer = engines.row(run, yaml, deepspeed, world, model)
        out.append({"engine": engine, "yaml": yaml, "deepspeed": deepspeed, "world": world, "answer": answer})
        print(len(out), end=" ", file=sys.stderr, flush=True)
        lines = ",\n".join(json.dumps(row) for row in out).replace(model, "MODEL").replace(str(engines.HERE), "HERE")
        (HERE / name).write_text(f'{{"versions": {json.dumps(versions)}, "rows": [\n{lines}\n]}}\n')
    if not released:
        engines.ON_CPU, engines.INITIALIZE = True, False
        on_cpu = []
        for yaml, deepspeed in cpu_rows():
            (examples / "a.yaml").write_text(yaml)
            (examples / "ds.json").write_text(deepspeed)
            answer = engines.row(llama_factory, yaml, deepspeed, 8, model)
            on_cpu.append({"yaml": yaml, "deepspeed": deepspeed, "world": 8, "answer": answer})
        lines = ",\n".join(json.dumps(row) for row in on_cpu)
        (HERE / "engines_cpu.json").write_text(f'{{"versions": {json.dumps(versions)}, "rows": [\n{lines}\n]}}\n')
    refused = sum("error" in row["answer"] for row in out)
    print(f"{len(out)} rows, {refused} refused")


if __name__ == "__main__":
    main()
