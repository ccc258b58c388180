"""The walk in docs/first-training-run.md, followed as it is written: its files are made, its commands run, their output compared but for numbers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from launch import ABORTED

pytest.importorskip("transformers")
WALK = Path(__file__).parents[3] / "docs" / "first-training-run.md"
LOG = re.compile(r"\[\d{4}-\d\d-\d\d ")
BLOCK = re.compile(r"^```(python|console)(?: file=(\S+))?\n(.*?)^```$", re.M | re.S)


def masked(text):
    """Without numbers, and without what programs warn of on their own."""
    return [re.sub(r"\d+(\.\d+)?", "#", line).strip() for line in text.splitlines() if line.strip() and not LOG.match(line)]


def run(command, folder):
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    for _ in range(2):
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False)
        if not (done.returncode and ABORTED in done.stderr):
            break
    assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout


def test_the_first_training_run_is_as_written(tmp_path):
    seen = []
    for kind, name, text in BLOCK.findall(WALK.read_text()):
        if kind == "python":
            (tmp_path / name).write_text(text)
            continue
        for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
            command, _, want = part.partition("\n")
            printed = run(command, tmp_path)
            assert masked(printed) == masked(want), f"$ {command}\n{printed}"
            seen.append(printed)
    losses = [float(x) for x in re.findall(r"loss (\d+\.\d+)", "".join(seen))]
    assert len(losses) == 5 and losses[-1] < losses[0] - 1, losses
