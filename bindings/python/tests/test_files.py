"""`resolve`, `plan`, `load`, `convert`, `diff`: the command line's steps as Python objects."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
import numpy as np  # noqa: E402
import shardwright  # noqa: E402
import shardwright.dcp  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


@pytest.fixture
def home(tmp_path):
    torch.manual_seed(0)
    tensors = {
        "model.embed.weight": torch.randn(11, 6).bfloat16(),
        "model.layers.0.w": torch.randn(7, 6).bfloat16(),
        "model.layers.0.b": torch.randn(7).bfloat16(),
        "model.step": torch.arange(5),
    }
    (tmp_path / "model").mkdir()
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    (tmp_path / "train.yaml").write_text("model: model\ndist_config: {name: fsdp2}\n")
    return tmp_path, tensors


def test_resolve_says_what_a_config_means(home):
    path, _ = home
    found = shardwright.resolve(path / "train.yaml", world_size=4)
    assert found and found["mesh.mp_shard"] == 4 and "0 errors" in repr(found)
    assert "mp_shard" in found.explain("mesh.mp_shard") and found.lock()
    with pytest.raises(KeyError):
        found["mesh.nothing"]
    with pytest.raises(shardwright.ConfigError, match="nothing"):
        found.explain("nothing")
    assert found.raise_for_errors() is found


def test_resolve_reports_what_is_wrong_with_its_place(home):
    path, _ = home
    (path / "bad.yaml").write_text("model: model\ndist_config: {name: fsdp9}\n")
    bad = shardwright.resolve(path / "bad.yaml")
    assert not bad and "fsdp9" in bad.findings and "bad.yaml:2:" in bad.findings and "\x1b" not in bad.findings
    with pytest.raises(shardwright.ConfigError, match=r"fsdp9(.|\n)*bad\.yaml:2"):
        bad.raise_for_errors()
    with pytest.raises(shardwright.ConfigError, match=r"bad\.yaml:2"):
        shardwright.plan(path / "bad.yaml")
    with pytest.raises(shardwright.ConfigError, match="nowhere"):
        shardwright.resolve(path / "nowhere.yaml")
    with pytest.raises(shardwright.ConfigError, match="expected a dict"):
        shardwright.resolve(path / "train.yaml", "model=x")
    with pytest.raises(shardwright.CheckpointError):
        shardwright.plan(path / "train.yaml", {"model": str(path)})


def test_plan_has_every_tensor_on_every_rank(home):
    path, tensors = home
    plan = shardwright.plan(path / "train.yaml", world_size=3)
    assert set(plan.tensors) == set(tensors) and plan.world_size == 3 and "4 tensors" in repr(plan)
    shards = [plan.shards(rank)["model.embed.weight"] for rank in range(3)]
    assert [s.shape for s in shards] == [(4, 6), (4, 6), (3, 6)] and shards[2].padded == 24
    assert plan.tensors["model.step"].kind == "buffer" and plan.tensors["model.embed.weight"].source == "bfloat16"
    with pytest.raises(shardwright.WorldError, match="below 3"):
        plan.shards(3)
    with pytest.raises(shardwright.PlanError, match="no such rank"):
        plan.load([7])


@pytest.mark.parametrize("to", ["float32", "bfloat16"])
def test_loaded_shards_are_shared_not_copied(home, to):
    path, tensors = home
    seen = []
    loaded = shardwright.load(path / "train.yaml", {"bf16": to == "bfloat16"}, world_size=3, progress=lambda done, total: seen.append((done, total)))
    assert len(loaded) == 3 and loaded.bytes_read == sum(t.nbytes for t in tensors.values()) and seen[-1][0] == seen[-1][1]
    parts = [shards["model.embed.weight"] for shards in loaded]
    whole = torch.cat([part.torch() for part in parts])
    assert torch.equal(whole, tensors["model.embed.weight"].to(whole.dtype))
    part = parts[0]
    a, b = torch.from_dlpack(part), torch.from_dlpack(part)
    assert a.data_ptr() == b.data_ptr() and "embed" in repr(part) and part.nbytes == a.nbytes
    array = np.asarray(loaded[1]["model.step"])
    assert array.tolist() == list(range(5)) and not array.flags.writeable
    step = loaded[1]["model.step"]
    view = step.memoryview()
    assert view.readonly and view.tolist() == list(range(5))
    with pytest.raises(BufferError):
        part.__dlpack__(copy=True)
    # The memory outlives the objects that it came from.
    del loaded, parts, part, step, b
    assert torch.equal(a, tensors["model.embed.weight"][:4].to(a.dtype)) and view.tolist() == list(range(5)) and array[4] == 4


def test_float8_and_bfloat16_cross_by_dlpack_and_as_bytes(tmp_path):
    tensors = {
        "a": torch.arange(24).float().view(4, 6).to(torch.float8_e4m3fn),
        "b": torch.arange(24).float().view(4, 6).to(torch.float8_e5m2),
        "c": torch.arange(24).view(4, 6).bfloat16(),
        "d": torch.tensor([True, False, True]),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "train.yaml").write_text(f"model: {tmp_path}\ndist_config: {{name: replicate}}\nshardwright: {{buffers: ['*']}}\n")
    shards = shardwright.load(tmp_path / "train.yaml")[0]
    for name, want in tensors.items():
        got = torch.from_dlpack(shards[name])
        assert got.dtype == want.dtype and torch.equal(got.view(torch.uint8), want.view(torch.uint8)), name
        assert bytes(shards[name].memoryview()) == bytes(want.view(torch.uint8).numpy().tobytes())


FIXTURES = Path(__file__).parents[3] / "tests/convert/fixtures"
"""Checkpoints of the real engines on 2 ranks, with AdamW's states."""


@pytest.mark.parametrize(("name", "kind"), [("zero2", "DeepSpeed ZeRO-2"), ("zero3", "DeepSpeed ZeRO-3"), ("fsdp2", "torch distributed checkpoint")])
def test_other_formats_are_inspected(name, kind):
    found = shardwright.inspect(FIXTURES / name)
    assert (found.format, found.ranks, found.step) == (kind, 2, 3) and kind in repr(found)
    weight = found.tensors["a.weight"]
    assert (weight.shape, weight.numel, weight.bytes, weight.kind) == ((5, 3), 15, 60, "parameter")
    assert found.tensors["buf"].kind == "buffer" and sum(found.files.values()) > found.bytes
    optimizer = found.optimizer
    assert optimizer.states == ("exp_avg", "exp_avg_sq") and optimizer.step == 3
    assert optimizer.groups[0]["values"]["lr"] == (0.01 if name == "fsdp2" else 0.0025)


def test_what_convert_writes_is_verified(tmp_path):
    source, ties = FIXTURES / "zero3", {"head.weight": "emb.weight"}
    for to in ("hf", "hf-sharded", "dcp", "zero3", "zero3-universal"):
        target = tmp_path / to
        done = shardwright.convert(source, target, to, ranks=2 if to != "hf" else 1, ties=ties, verify=True)
        alone, found = shardwright.verify(target), shardwright.verify(target, source, ties=ties)
        assert done.verified > 0 and alone and found and found.elements > 0
        assert (alone.bytes_with_checksums > 0) == (not to.startswith("hf"))
    other = shardwright.verify(tmp_path / "dcp", FIXTURES / "fsdp2", ties=ties)
    assert not other and any("'a.weight'" in problem and "15 elements differ" in problem for problem in other.problems)
    (tmp_path / "dcp" / "model" / "__1_0.distcp").unlink()
    with pytest.raises(shardwright.CheckpointError, match=r"__1_0\.distcp"):
        shardwright.verify(tmp_path / "dcp")


@pytest.mark.parametrize("source", ["sharded", "file.bin"])
def test_shards_of_ranks_and_files_of_torch_save_are_sources(home, tmp_path, source):
    path, tensors = home
    if source == "sharded":
        shardwright.convert(path / "model", tmp_path / source, "hf-sharded", ranks=3)
    else:
        torch.save(tensors, tmp_path / source)
    net = torch.nn.Module()
    for name, tensor in tensors.items():
        value = torch.nn.Parameter(torch.full_like(tensor, 9), requires_grad=tensor.is_floating_point())
        at = net
        *modules, last = name.split(".")
        for module in modules:
            if not hasattr(at, module):
                at.add_module(module, torch.nn.Module())
            at = getattr(at, module)
        at.register_parameter(last, value)
    shardwright.fill(net, tmp_path / source)
    assert all(torch.equal(parameter, tensors[name]) for name, parameter in net.named_parameters())
    read = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    torch.distributed.checkpoint.load(read, storage_reader=shardwright.dcp.SafetensorsReader(tmp_path / source), no_dist=True)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in read.items())


def test_convert_and_diff(home, tmp_path):
    path, tensors = home
    planned = shardwright.convert(path / "model", tmp_path / "dcp", "dcp", ranks=2, params_only=True, dry_run=True)
    assert not planned.written and not (tmp_path / "dcp").exists() and "nothing is written" in repr(planned)
    done = shardwright.convert(path / "model", tmp_path / "dcp", "dcp", ranks=2, params_only=True)
    assert done.written and done.files and all((tmp_path / "dcp" / name).stat().st_size == size for name, size in done.files.items())
    assert not shardwright.diff(path / "model", tmp_path / "dcp")
    with pytest.raises(shardwright.ExistsError):
        shardwright.convert(path / "model", tmp_path / "dcp", "dcp")
    shardwright.convert(tmp_path / "dcp", tmp_path / "hf", "hf", dtype="float32")
    back = load_file(tmp_path / "hf" / "model.safetensors")
    assert all(torch.equal(back[n], t.float() if t.is_floating_point() else t) for n, t in tensors.items())
    changed = {**tensors, "model.layers.0.b": tensors["model.layers.0.b"] + 1}
    (tmp_path / "changed").mkdir()
    save_file(changed, tmp_path / "changed" / "model.safetensors")
    found = shardwright.diff(path / "model", tmp_path / "changed")
    assert found and list(found.different) == ["model.layers.0.b"] and found.equal == 3
    with pytest.raises(shardwright.ConfigError, match="hf-sharded"):
        shardwright.convert(path / "model", tmp_path / "x", "pickle")


def test_warnings_go_to_logging(home, caplog):
    path, _ = home
    with caplog.at_level(logging.WARNING, "shardwright"):
        shardwright.plan(path / "train.yaml", {"shardwright.buffers": ["nothing.*"]})
    assert "nothing.*" in caplog.text


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint whose load takes a while on one thread."""
    path = tmp_path_factory.mktemp("large")
    save_file({f"w{i}": torch.zeros(1 << 24, dtype=torch.bfloat16) for i in range(8)}, path / "model.safetensors")
    (path / "train.yaml").write_text(f"model: {path}\ndist_config: {{name: fsdp2}}\n")
    return path


CALLS = {
    "load": "shardwright.plan(f'{path}/train.yaml', world_size=2).load(threads=1, force=True)",
    "fill": "shardwright.fill(model(), path, threads=1)",
}


@pytest.mark.parametrize("call", ["load", "fill"])
def test_ctrl_c_ends_a_read_that_is_under_way(tmp_path, call):
    """Of a file that takes a while, sparse so that it costs nothing: what counts is how much of it had been read when the exception came."""
    count, size = 16, 1 << 27
    entries = {f"w{i}": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [i * size, (i + 1) * size]} for i in range(count)}
    header = json.dumps(entries).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + count * size)
    (tmp_path / "train.yaml").write_text(f"model: {tmp_path}\ndist_config: {{name: fsdp2}}\n")
    code = f"""
import os, shardwright, signal, threading, time, torch
path = {str(tmp_path)!r}
def model():
    made = torch.nn.Module()
    for i in range({count}):
        made.register_parameter(f"w{{i}}", torch.nn.Parameter(torch.empty({size // 2}, dtype=torch.bfloat16, device="meta")))
    return made
def read():
    return int(open("/proc/self/io").readline().split()[1])
shardwright.inspect(path), model()
before, sent = read(), []
def press():
    while read() < before + (16 << 20):
        time.sleep(0.001)
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=press).start()
try:
    {CALLS[call]}
except KeyboardInterrupt:
    print(read() - before, time.perf_counter() - sent[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout, done.stderr
    assert int(done.stdout.split()[0]) < count * size, "everything was read before the exception came"


def test_other_threads_run_meanwhile(large):
    plan = shardwright.plan(large / "train.yaml", world_size=2)
    stop, turns = threading.Event(), []

    def turn():
        while not stop.is_set():
            turns.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=turn)
    thread.start()
    started = time.perf_counter()
    plan.load(threads=1)
    ended = time.perf_counter()
    stop.set()
    thread.join()
    assert sum(started < t < ended for t in turns) >= 2


def test_an_exception_in_a_progress_callback_stops_the_load(large):
    def fail(done, total):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        shardwright.load(large / "train.yaml", world_size=2, threads=1, progress=fail)


def test_tqdm_shows_progress(home, capfd):
    pytest.importorskip("tqdm")
    path, _ = home
    shardwright.load(path / "train.yaml", progress=True)
    assert "shardwright" in capfd.readouterr().err


def test_ranks_come_from_the_launcher(home):
    path, _ = home
    code = f"import shardwright; print([s.rank for s in shardwright.load({str(path / 'train.yaml')!r})])"
    env = {**os.environ, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert json.loads(done.stdout) == [1]
