"""What every peer reports, one JSON line a rank: seconds from after its imports until its shard is in memory, and its memory."""
import json
import os
import sys


def status_mb(field):
    """A line of /proc/self/status, in MB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field + ":")) * 1024 / 1e6


def ready():
    """Waits until the machine is prepared for this load and nothing else."""
    print("ready", flush=True)
    sys.stdin.readline()


def report(seconds, shard_bytes, idle_mb):
    line = {
        "rank": int(os.environ.get("RANK", 0)),
        "seconds": seconds,
        "shard_mb": shard_bytes / 1e6,
        "idle_mb": idle_mb,
        "peak_mb": status_mb("VmHWM"),
    }
    print(json.dumps(line), flush=True)


def rows_of(rank, world, rows):
    """torch.chunk's part of `rows` rows."""
    step = -(-rows // world)
    return min(rank * step, rows), min((rank + 1) * step, rows)
