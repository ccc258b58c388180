"""The ways in through other libraries, on two ranks in real processes."""

import pytest
from launch import HERE, torchrun

pytest.importorskip("transformers")

WAYS = {"lora": "peft", "freeze": "torch"}


@pytest.mark.parametrize("way", WAYS)
def test_other_libraries(folder, way):
    pytest.importorskip(WAYS[way])
    assert f"{way}: as it should be" in torchrun(2, HERE / "trainers.py", folder, way)
