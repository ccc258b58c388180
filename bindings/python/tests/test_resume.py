"""LLaMA-Factory v1 resumes from a checkpoint that went through another format and back: the losses are those without the detour."""

import pytest
import shardwright
import tiny
from launch import HERE, torchrun
from test_llamafactory import ENV, steps

pytest.importorskip("llamafactory")

# The engine, the kind of model, the formats on the way: each with the options of its conversion.
DETOURS = [
    ("fsdp2", "moe", [("zero3", {}), ("dcp", {}), ("dcp", {})]),
    ("zero3", "tied", [("dcp", {}), ("zero3", {"tag": "pytorch_model"})]),
]


@pytest.mark.parametrize(("engine", "kind", "way"), DETOURS)
def test_five_steps_after_a_detour_are_those_without_it(tmp_path, engine, kind, way):
    tiny.save_model(tmp_path / kind, kind)
    tiny.save_data(tmp_path)
    config = tiny.save_config(tmp_path, "whole", kind, engine, save_steps=5)
    want = steps(torchrun(2, HERE / "sft.py", config, cwd=tmp_path, env=ENV))
    at = tmp_path / "out-whole" / "checkpoint-5"
    for number, (to, options) in enumerate(way):
        last, at = at, tmp_path / f"detour-{number}"
        shardwright.convert(last, at, to, ranks=2, **options)
        found = shardwright.diff(last, at)
        assert not found, (found, found.different, found.notes)
    config = tiny.save_config(tmp_path, "resumed", kind, engine, resume_from_checkpoint=str(at))
    got = steps(torchrun(2, HERE / "sft.py", config, cwd=tmp_path, env=ENV))
    assert sorted(got) == [6, 7, 8, 9, 10]
    assert got == {step: want[step] for step in got}
