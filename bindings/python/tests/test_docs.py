"""The walk in docs/first-training-run.md, followed as it is written: its files are made, its commands run, their output compared but for numbers."""

import os
import re
import sys
from pathlib import Path

import pytest
from launch import made, run

pytest.importorskip("transformers")
WALK = Path(__file__).parents[3] / "docs" / "first-training-run.md"
LOG = re.compile(r"\[\d{4}-\d\d-\d\d ")
BLOCK = re.compile(r"^```(python|console)(?: file=(\S+))?\n(.*?)^```$", re.M | re.S)


def masked(text):
    """Without numbers, and without what programs warn of on their own."""
    return [re.sub(r"\d+(\.\d+)?", "#", line).strip() for line in text.splitlines() if line.strip() and not LOG.match(line)]


def printed_by(command, folder):
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    code, out, err = made(lambda: run(["bash", "-c", command], folder, env, 600))
    assert code == 0, f"$ {command}\n{out}\n{err[-4000:]}"
    return out


def test_the_first_training_run_is_as_written(tmp_path):
    seen = []
    for kind, name, text in BLOCK.findall(WALK.read_text()):
        if kind == "python":
            (tmp_path / name).write_text(text)
            continue
        for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
            command, _, want = part.partition("\n")
            printed = printed_by(command, tmp_path)
            assert masked(printed) == masked(want), f"$ {command}\n{printed}"
            seen.append(printed)
    losses = [float(x) for x in re.findall(r"loss (\d+\.\d+)", "".join(seen))]
    assert len(losses) == 5 and losses[-1] < losses[0] - 1, losses
