"""accelerate's FSDP2 with `cpu_ram_efficient_loading`, as transformers' Trainer uses it, on two ranks."""

import pytest
from launch import HERE, torchrun

pytest.importorskip("transformers")
pytest.importorskip("accelerate")


@pytest.mark.parametrize("what", ["prepare", "trainer", "changes"])
def test_from_pretrained_and_prepare(folder, what):
    if what == "trainer":
        pytest.importorskip("peft")
    assert f"{what}: as it should be" in torchrun(2, HERE / "deferred.py", folder, what)
