"""The real engines, in real processes. One torchrun goes through all models: starting processes is what costs."""

import pytest
from launch import HERE, torchrun

pytest.importorskip("transformers")


@pytest.mark.parametrize("ranks", [3, 4])
def test_fsdp2_is_exact(folder, ranks):
    assert "fsdp2: all exact" in torchrun(ranks, HERE / "worker.py", folder, "fsdp2", timeout=900)


def test_zero3_is_exact_and_masters_keep_the_sources_precision(folder):
    pytest.importorskip("deepspeed")
    out = torchrun(3, HERE / "worker.py", folder, "zero3", "masters", timeout=900)
    assert "zero3: all exact" in out and "masters: all exact" in out
