"""What a caller can get wrong: an exception each time, never a crash, and nothing written before it."""

import mmap
import os
import threading

import pytest

torch = pytest.importorskip("torch")
import numpy as np  # noqa: E402
import shardwright  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from shardwright import _native  # noqa: E402


def net(device="cpu"):
    return torch.nn.Sequential(torch.nn.Linear(64, 64, device=device), torch.nn.Linear(64, 64, bias=False, device=device))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = net()
    save_file({n: t.detach().clone() for n, t in model.state_dict().items()}, tmp_path / "model.safetensors")
    return model, tmp_path


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def refused(model, path, message, error=shardwright.ShardwrightError):
    before = model[1].weight.detach().clone()
    with pytest.raises(error, match=message):
        shardwright.fill(model, path)
    assert torch.equal(before, model[1].weight), "something was written before the error"


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_dtypes_that_hold_no_weights(saved, dtype):
    _, path = saved
    model = net()
    model[0].weight = torch.nn.Parameter(torch.zeros(64, 64, dtype=dtype), requires_grad=False)
    refused(model, path, r"0\.weight.*float32 in the checkpoint")


def test_memory_that_is_read_only(saved, tmp_path):
    _, path = saved
    file = tmp_path / "zeros"
    file.write_bytes(bytes(64 * 64 * 4))
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    model = net()
    with pytest.warns(UserWarning, match="not writable"):
        model[0].weight.data = torch.from_numpy(np.frombuffer(mapped, dtype=np.float32).reshape(64, 64))
    refused(model, path, r"0\.weight.*read-only", shardwright.ConfigError)


def test_an_address_that_is_nobodys(saved):
    _, path = saved
    checkpoint = _native.Checkpoint.open(path)
    for address in (0, 8, 2**63):
        with pytest.raises(shardwright.ShardwrightError):
            _native.fill(checkpoint, [("w", [64, 64], "0.weight", None, [(0, 64), (0, 64)], None, address, 64 * 64 * 4, "float32")])


def test_freed_and_missing_memory(saved):
    _, path = saved
    model = net()
    model[0].weight.untyped_storage().resize_(0)
    refused(model, path, "freed")
    model = net()
    model[0].weight.data = torch.empty(0)
    refused(model, path, "shapes differ")


def test_elements_that_share_memory(saved):
    _, path = saved
    model = net()
    model[0].weight = torch.nn.Parameter(torch.zeros(1, 64).expand(64, 64))
    refused(model, path, r"0\.weight.*share memory", shardwright.ConfigError)


def test_parameters_that_overlap(saved):
    _, path = saved
    model = net()
    memory = torch.zeros(64 * 96)
    model[0].weight = torch.nn.Parameter(memory[: 64 * 64].view(64, 64))
    model[1].weight = torch.nn.Parameter(memory[32 * 64 :].view(64, 64))
    refused(model, path, r"'0\.weight' and '1\.weight' share memory", shardwright.ConfigError)


def test_views_are_filled_and_their_neighbours_left_alone(saved):
    want, path = saved
    model = net()
    around = torch.full((66, 66), 7.0)
    model[0].weight = torch.nn.Parameter(around[1:65, 1:65])
    flat = torch.full((64 * 64 + 2,), 7.0)
    model[1].weight = torch.nn.Parameter(flat[1:-1].view(64, 64))
    shardwright.fill(model, path)
    assert equal(model, want)
    assert bool((around[0] == 7).all() and (around[:, 65] == 7).all()) and flat[0] == flat[-1] == 7


def test_one_memory_for_two_values_is_refused(tmp_path):
    value = torch.randn(64, 64)
    save_file({"a": value, "b": value.clone()}, tmp_path / "model.safetensors")
    model = torch.nn.Module()
    model.a = torch.nn.Parameter(torch.zeros(64, 64))
    model.b = torch.nn.Parameter(torch.zeros(64, 64))
    model.b.data = model.a.data
    with pytest.raises(shardwright.ConfigError, match="share memory"):
        shardwright.fill(model, tmp_path)


def test_sparse_parameters(saved):
    _, path = saved
    model = net()
    model[0].weight = torch.nn.Parameter(torch.zeros(64, 64).to_sparse())
    refused(model, path, "layout")


def test_files_that_change_or_vanish_after_opening(saved):
    _, path = saved
    checkpoint = _native.Checkpoint.open(path)
    (path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(shardwright.ShardwrightError, match=r"model\.safetensors"):
        shardwright.fill(net(), checkpoint)
    (path / "model.safetensors").unlink()
    with pytest.raises(shardwright.ShardwrightError, match=r"model\.safetensors"):
        shardwright.fill(net(), checkpoint)


def test_threads_share_a_checkpoint(saved):
    want, path = saved
    checkpoint = _native.Checkpoint.open(path)
    models, errors = [net("meta") for _ in range(8)], []

    def one(model):
        try:
            for _ in range(5):
                shardwright.fill(model, checkpoint)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(m,)) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and all(equal(m, want) for m in models)


def test_a_forked_child_fills_too(saved):
    want, path = saved
    checkpoint = _native.Checkpoint.open(path)
    shardwright.fill(net(), checkpoint)
    child = os.fork()
    if not child:
        try:
            model = net()
            shardwright.fill(model, checkpoint)
            os._exit(0 if equal(model, want) else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_exceptions_in_callbacks(saved):
    _, path = saved

    class Mine(Exception):
        pass

    def fail(done, total):
        raise Mine

    with pytest.raises(Mine):
        shardwright.fill(net(), path, progress=fail)
    with pytest.raises(TypeError):
        shardwright.fill(net(), path, progress=lambda: None)


def test_arguments_of_the_wrong_type(saved):
    _, path = saved
    checkpoint = _native.Checkpoint.open(path)
    for items in ([1], ["x"], [("w", [64], "0.weight", None, [(0, -1)], None, 0, 0, "float32")], None):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            _native.fill(checkpoint, items)
    for bad in (None, 3, b"\xff"):
        with pytest.raises((TypeError, shardwright.ShardwrightError)):
            shardwright.inspect(bad)
