"""Optimizer states of another engine's checkpoint, read where they lie."""

from pathlib import Path

import pytest
from launch import HERE, torchrun

FIXTURES = Path(__file__).parents[3] / "tests/convert/fixtures"


@pytest.mark.parametrize("source", ["zero3", "fsdp2"])
def test_states_of_two_ranks_go_into_fsdp2_on_three(source):
    out = torchrun(3, HERE / "optimizer_worker.py", FIXTURES / source, timeout=300)
    assert out.count("states are exact") == 3
