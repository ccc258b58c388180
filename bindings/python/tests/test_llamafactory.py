"""LLaMA-Factory with and without shardwright: the same losses, and what it saves it resumes."""

import re

import pytest
import tiny
from launch import HERE, torchrun

pytest.importorskip("llamafactory")
ENV = {"USE_V1": "1", "DS_ACCELERATOR": "cpu", "PYTHONHASHSEED": "0"}
STEP = re.compile(r"'?step'?\W+(\d+).*?'?loss'?\W+([-\d.e]+).*?'?grad_norm'?\W+([-\d.e]+)")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("llamafactory")
    for kind in ("dense", "tied", "moe"):
        tiny.save_model(home / kind, kind)
    tiny.save_data(home)
    return home


def steps(printed):
    found = {int(step): (loss, norm) for step, loss, norm in STEP.findall(printed)}
    assert found, printed[-4000:]
    return found


def train(home, config, *launched, ok=True):
    printed = torchrun(2, *launched, config, cwd=home, env=ENV, ok=ok)
    return steps(printed), printed


STOCK, OURS = (HERE / "sft.py",), ("-m", "shardwright.llamafactory", "sft")


@pytest.mark.parametrize(
    ("engine", "kind", "resumes"),
    [("fsdp2", "dense", True), ("fsdp2", "moe", False), ("zero3", "tied", True), ("zero3", "moe", False)],
)
def test_ten_steps_are_those_without_us(home, engine, kind, resumes):
    """Both save at step 5, and both resume what they saved to the same five steps. What LLaMA-Factory saves of a mixture of experts under ZeRO-3
    at the end of a run fails, with us and without; its losses before that are compared."""
    name, ok = f"{engine}-{kind}", (engine, kind) != ("zero3", "moe")
    saves = {"save_steps": 5} if resumes else {}
    want, _ = train(home, tiny.save_config(home, f"{name}-stock", kind, engine, **saves), *STOCK, ok=ok)
    got, printed = train(home, tiny.save_config(home, f"{name}-ours", kind, engine, **saves), *OURS, ok=ok)
    assert len(want) == 10 and got == want
    assert "shardwright filled the model" in printed
    if resumes:
        for side, launched in (("stock", STOCK), ("ours", OURS)):
            again = {"resume_from_checkpoint": f"out-{name}-{side}/checkpoint-5"}
            resumed, _ = train(home, tiny.save_config(home, f"{name}-{side}-again", kind, engine, **again), *launched)
            assert resumed == {step: want[step] for step in range(6, 11)}, side


@pytest.mark.parametrize(
    ("command", "text", "message"),
    [
        ("sft", "model_name_or_path: m\nstage: sft\n", "config of LLaMA-Factory v0; run it with '-m shardwright.llamafactory train"),
        ("train", "model: m\n", "config of LLaMA-Factory v1; run it with '-m shardwright.llamafactory sft"),
        ("train", None, "no such file"),
    ],
)
def test_a_config_of_the_other_version_is_named(tmp_path, monkeypatch, command, text, message):
    import shardwright.llamafactory

    path = tmp_path / "train.yaml"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr("sys.argv", ["shardwright.llamafactory", command, str(path)])
    with pytest.raises(shardwright.ConfigError, match=message):
        shardwright.llamafactory.main()


FSDP = {"fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 2, "cpu_ram_efficient_loading": True}, "use_cpu": True, "bf16": True}
LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all"}


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("zero3", "dense", {"deepspeed": "ds_zero3.json"}),
        ("zero3-lora", "tied", {"deepspeed": "ds_zero3.json", **LORA}),
        ("fsdp", "tied", FSDP),
        ("fsdp-lora", "dense", {**FSDP, **LORA}),
        ("fsdp-freeze", "dense", {**FSDP, "finetuning_type": "freeze", "freeze_trainable_layers": 1}),
    ],
)
def test_five_steps_of_v0_are_those_without_us(home, name, kind, options):
    pytest.importorskip("trl")
    env = {"DS_ACCELERATOR": "cpu", "DISABLE_VERSION_CHECK": "1", "PYTHONHASHSEED": "0"}

    def losses(side):
        config = tiny.save_v0_config(home, f"v0-{name}-{side}", home / kind, **options)
        printed = torchrun(2, HERE / "v0.py", side, config, cwd=home, env=env)
        return sorted(set(re.findall(r"'loss': '([\d.]+)', 'grad_norm': '([\d.]+)'", printed))), printed

    want, _ = losses("stock")
    got, printed = losses("ours")
    assert len(want) == 5 and got == want
    assert "shardwright filled the model" in printed
