"""The ways in through other libraries, on two ranks in real processes."""

import pytest
from launch import HERE, torchrun

pytest.importorskip("transformers")

WAYS = {"native": "transformers.distributed", "zero3": "deepspeed", "lora": "peft", "freeze": "torch", "accelerate": "accelerate"}


@pytest.mark.parametrize("way", WAYS)
def test_other_libraries(folder, way):
    pytest.importorskip(WAYS[way])
    if way == "native":
        from transformers.distributed import DistributedConfig

        if "fsdp_size" not in DistributedConfig.__dataclass_fields__:
            pytest.skip("this transformers loads no FSDP2 models")
    assert f"{way}: as it should be" in torchrun(2, HERE / "trainers.py", folder, way)
