"""Starts torchrun for the tests; a run that hangs is ended with all its processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


ABORTED = "terminate called without an active exception"
"""What torch says where it aborts a rank whose script is done: a thread of gloo lets go of a tensor, for which it needs the GIL, as the interpreter
ends. Under load that is one run of four, without shardwright too."""


def made(attempt):
    """What `attempt()` gives, which is (exit code, output, errors); made again, four times at most, where torch aborted at the end."""
    for _ in range(4):
        code, out, err = attempt()
        if not (code and ABORTED in err):
            return code, out, err
    return attempt()


def torchrun(ranks, *arguments, cwd=None, env=None, timeout=600, ok=True):
    """Runs a script, or `-m` a module, on that many ranks, on a port that is free, and returns what it printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--standalone", *map(str, arguments)]
    code, out, err = made(lambda: run(command, cwd, env, timeout))
    if ok:
        assert code == 0, f"{' '.join(command)}\n{out[-2000:]}\n{err[-6000:]}"
    return out + err


def run(command, cwd, env, timeout):
    """Runs a command to its end, and gives its exit code and what it printed."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as late:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"no end after {timeout} s: {' '.join(command)}\n{out[-2000:]}\n{err[-4000:]}") from late
    return process.returncode, out, err
