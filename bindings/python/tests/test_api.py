"""Bad input, options, other ways in: one process, no engine."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
import shardwright  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


class Net(torch.nn.Module):
    def __init__(self, device="cpu"):
        super().__init__()
        self.a = torch.nn.Linear(6, 4, device=device)
        self.b = torch.nn.Linear(4, 6, bias=False, device=device)
        self.register_buffer("scale", torch.ones(3, device=device))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    net = Net()
    save_file({n: t.detach().clone() for n, t in net.state_dict().items()}, tmp_path / "model.safetensors")
    return net, tmp_path


def test_importing_does_not_import_torch():
    code = "import sys, shardwright; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_is_there():
    done = subprocess.run([sys.executable, "-m", "shardwright", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"shardwright {shardwright.__version__}\n")
    assert subprocess.run([sys.executable, "-m", "shardwright", "nothing"], capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_plain_model_is_filled(saved, device):
    net, path = saved
    model = Net(device)
    report = shardwright.fill(model, path)
    assert all(torch.equal(model.state_dict()[n], t) for n, t in net.state_dict().items())
    assert len(report.filled) == 4 and report.bytes_read == sum(t.nbytes for t in net.state_dict().values())
    assert "4 tensors filled" in repr(report)


def test_ties_survive_meta(saved):
    net, path = saved
    model = Net("meta")
    model.c = torch.nn.Linear(6, 4, device="meta")
    model.c.weight = model.a.weight
    model.c.bias = model.a.bias
    report = shardwright.fill(model, path)
    assert model.c.weight is model.a.weight and torch.equal(model.c.weight, net.a.weight)
    assert report.tied == {"c.weight": "a.weight", "c.bias": "a.bias"}


def test_missing_and_unexpected_tensors(saved):
    _, path = saved
    model = Net("meta")
    model.extra = torch.nn.Linear(3, 3, device="meta")
    with pytest.raises(shardwright.PlanError, match=r"lacks 2 .*extra\.weight"):
        shardwright.fill(model, path)
    report = shardwright.fill(model, path, missing="init")
    assert set(report.initialised) == {"extra.weight", "extra.bias"} and torch.isfinite(model.extra.weight).all()
    small = torch.nn.Sequential()
    small.a = torch.nn.Linear(6, 4)
    with pytest.raises(shardwright.PlanError, match=r"no place for 2 .*b\.weight"):
        shardwright.fill(small, path, unexpected="error")


def test_other_shapes_are_refused_before_anything_is_written(saved):
    _, path = saved
    model = Net()
    model.b = torch.nn.Linear(5, 6, bias=False)
    before = model.a.weight.detach().clone()
    with pytest.raises(shardwright.PlanError, match=r"'b\.weight': expected \(6, 5\) as in the model, found \(6, 4\)"):
        shardwright.fill(model, path)
    assert torch.equal(before, model.a.weight)


def test_memory_that_is_not_contiguous_or_of_another_dtype(saved):
    net, path = saved
    model = Net()
    model.a.weight = torch.nn.Parameter(torch.empty(6, 4).t())
    model.b = model.b.to(torch.bfloat16)
    shardwright.fill(model, path, round_to=None)
    assert torch.equal(model.a.weight, net.a.weight) and torch.equal(model.b.weight, net.b.weight.bfloat16())
    model.b.requires_grad_(False)
    model.b.weight.data = model.b.weight.data.to(torch.int8)
    with pytest.raises(shardwright.UnsupportedError, match=r"b\.weight.*quantised"):
        shardwright.fill(model, path)


def test_freed_memory_is_an_error(saved):
    _, path = saved
    model = Net()
    model.a.weight.untyped_storage().resize_(0)
    with pytest.raises(shardwright.ConfigError, match="freed"):
        shardwright.fill(model, path)


def test_bad_checkpoints_and_options(saved, tmp_path):
    _, path = saved
    with pytest.raises(shardwright.ShardwrightError, match="nowhere"):
        shardwright.fill(Net(), tmp_path / "nowhere")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(shardwright.CheckpointError, match=r"model\.safetensors"):
        shardwright.fill(Net(), tmp_path / "bad")
    with pytest.raises(shardwright.ConfigError, match="missing"):
        shardwright.fill(Net(), path, missing="perhaps")
    with pytest.raises(TypeError, match="unknown option 'mising'"):
        shardwright.fill(Net(), path, mising="init")
    with pytest.raises(shardwright.ConfigError, match="threads"):
        shardwright.fill(Net(), path, threads=0)


def test_dcp_reads_any_target(saved):
    import torch.distributed.checkpoint as dcp
    from shardwright.dcp import SafetensorsReader
    from torch.distributed.checkpoint.api import CheckpointException

    net, path = saved
    state = {"a.weight": torch.empty(6, 4).t(), "b.weight": torch.empty(6, 4, dtype=torch.bfloat16), "scale": torch.empty(3)}
    dcp.load(state, storage_reader=SafetensorsReader(path), no_dist=True)
    assert torch.equal(state["a.weight"], net.a.weight) and torch.equal(state["b.weight"], net.b.weight.bfloat16())
    with pytest.raises(CheckpointException, match="nothing"):
        dcp.load({"nothing": torch.empty(1)}, storage_reader=SafetensorsReader(path), no_dist=True)


def test_inspect_and_verify(saved, tmp_path):
    net, path = saved
    found = shardwright.inspect(path)
    assert found.tensors["a.weight"].shape == (4, 6) and found.bytes == sum(t.nbytes for t in net.state_dict().values())
    assert "4 tensors" in repr(found)
    with pytest.raises(shardwright.CheckpointError):
        shardwright.verify(tmp_path / "nothing")
    (tmp_path / "train.yaml").write_text(f"model: {path}\ndist_config: {{name: fsdp2}}\n")
    out = tmp_path / "out"
    command = ["load", str(tmp_path / "train.yaml"), "--world-size", "2", "--save", str(out)]
    done = subprocess.run([sys.executable, "-m", "shardwright", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    good = shardwright.verify(out, against=path)
    assert good and good.elements > 0
    file = next(f for f in out.rglob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    bad = shardwright.verify(out)
    assert not bad and file.name in bad.problems[0]
    with pytest.raises(shardwright.MismatchError):
        bad.raise_for_problems()
