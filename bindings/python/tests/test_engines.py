"""The real engines, in real processes. One torchrun goes through all models: starting processes is what costs."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    import models

    folder = tmp_path_factory.mktemp("models") / "saved"
    models.save(folder)
    return folder


def torchrun(ranks, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--standalone", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


@pytest.mark.parametrize("ranks", [3, 4])
def test_fsdp2_is_exact(folder, ranks):
    assert "fsdp2: all exact" in torchrun(ranks, HERE / "worker.py", folder, "fsdp2")


def test_zero3_is_exact_and_masters_keep_the_sources_precision(folder):
    pytest.importorskip("deepspeed")
    out = torchrun(3, HERE / "worker.py", folder, "zero3", "masters")
    assert "zero3: all exact" in out and "masters: all exact" in out
