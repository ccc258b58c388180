"""LLaMA-Factory v1 with and without shardwright: the same losses, and what it saves it resumes."""

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


def stock(home, config):
    return steps(torchrun(2, HERE / "sft.py", config, cwd=home, env=ENV))


def ours(home, config):
    printed = torchrun(2, "-m", "shardwright.llamafactory", "sft", config, cwd=home, env=ENV)
    return steps(printed), printed


@pytest.mark.parametrize(("engine", "kind"), [("fsdp2", "dense"), ("fsdp2", "moe"), ("zero3", "tied")])
def test_ten_steps_are_those_without_us(home, engine, kind):
    name = f"{engine}-{kind}"
    want = stock(home, tiny.save_config(home, f"{name}-stock", kind, engine))
    got, printed = ours(home, tiny.save_config(home, f"{name}-ours", kind, engine))
    assert len(want) == 10 and got == want
    if engine == "fsdp2":
        assert "shardwright filled the model" in printed
