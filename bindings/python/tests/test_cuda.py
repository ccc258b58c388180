"""Models that lie on a card. Without one the tests are skipped; `scripts/gpu-check.sh` runs them where there is one."""

import pytest
from launch import HERE, torchrun

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


@pytest.mark.parametrize("ranks", [1, 3])
def test_models_on_a_card_have_the_values_of_the_checkpoint(folder, ranks):
    assert "on the card: all exact" in torchrun(ranks, HERE / "cuda_worker.py", folder, timeout=300)
