"""The extension's fill against torch: random moves, every kind of region, casts, padding; and what it refuses."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
import shardwright  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from shardwright import _native  # noqa: E402
from shardwright._trace import Lazy, Opaque, pieces  # noqa: E402
from test_trace import MOVES, sources  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fill")
    save_file({n: t.float() for n, t in sources().items()}, folder / "model.safetensors")
    return _native.Checkpoint.open(folder)


def run(checkpoint, shape, assembly, ranges, flat, out, rounded=None, **options):
    name = str(out.dtype).removeprefix("torch.")
    item = ("p", list(shape), assembly, rounded, ranges, flat, out.data_ptr(), out.numel() * out.element_size(), name)
    return _native.fill(checkpoint, [item], threads=2, **options)


@pytest.mark.parametrize("seed", range(200))
def test_any_region_of_any_moves_is_what_torch_has(checkpoint, seed):
    r = random.Random(seed)
    real = {n: t.float() for n, t in sources().items()}
    lazy = {n: Lazy.leaf(n, t.shape) for n, t in real.items()}
    start = r.choice([lambda s: torch.cat([s["a"], s["c"]], 1), lambda s: torch.stack([s["b"], s["a"]]), lambda s: s["d"]])
    x, y = start(lazy), start(real)
    for _ in range(r.randrange(5)):
        move, choices = r.choice(MOVES), r.random()
        try:
            z = move(x, random.Random(choices))
        except Opaque:
            break
        x, y = z, move(y, random.Random(choices))
    y = y.contiguous()
    dtype = r.choice([torch.float32, torch.bfloat16])
    if r.random() < 0.5:
        first = r.randrange(y.numel() + 1)
        end = r.randint(first, y.numel())
        want, ranges, flat, padding = y.reshape(-1)[first:end].to(dtype), [(0, n) for n in y.shape], (first, end), r.randrange(4)
    else:
        ranges = []
        want = y
        for dim, n in enumerate(y.shape):
            first = r.randrange(n + 1) if r.random() < 0.5 else 0
            end = r.randint(first, n) if r.random() < 0.5 else n
            ranges.append((first, end))
            want = want.narrow(dim, first, end - first)
        want, flat, padding = want.to(dtype).reshape(-1), None, 0
    out = torch.full((want.numel() + padding,), 7, dtype=dtype)
    stats = run(checkpoint, y.shape, pieces(x), ranges, flat, out, block_size=4096)
    assert torch.equal(out[: want.numel()], want)
    assert bool((out[want.numel() :] == 0).all())
    # Gaps of up to a page are read with what is around them.
    assert stats["bytes_needed"] == want.numel() * 4 <= stats["bytes_read"]
    assert want.numel() or not stats["bytes_read"]


def test_values_are_rounded_on_their_way(tmp_path):
    value = torch.randn(1000)
    save_file({"w": value}, tmp_path / "model.safetensors")
    out = torch.empty(1000)
    run(_native.Checkpoint.open(tmp_path), (1000,), "w", [(0, 1000)], None, out, rounded="bfloat16")
    assert torch.equal(out, value.bfloat16().float())


@pytest.mark.parametrize(
    ("assembly", "message"),
    [
        ("nothing", "no tensor 'nothing'"),
        ([("a", 0, 0, [(10, 1, 1)])], "10 elements, expected 240"),
        ([("a", 0, 0, [(240, 1, 1)]), ("b", 0, 0, [(240, 1, 1)])], "480 elements, expected 240"),
        ([("a", 0, 0, [(120, 1, 1)]), ("b", 0, 60, [(120, 1, 1)])], "overlap"),
        ([("a", 1, 0, [(240, 1, 1)])], "reaches element 240"),
        ([("a", 0, 0, [(2, 120, 60), (120, 1, 1)])], "twice"),
        ([("a", 0, 0, [(240, 2**63, 1)])], "overflows"),
        ([("a", 2**64 - 1, 2**64 - 1, [])], "reaches element"),
        ([("a", 0, 0, [(0, 1, 1)])], "overflows"),
    ],
)
def test_pieces_that_do_not_tile_are_refused(checkpoint, assembly, message):
    out = torch.empty(6, 4, 10)
    with pytest.raises(shardwright.PlanError, match=message):
        run(checkpoint, (6, 4, 10), assembly, [(0, 6), (0, 4), (0, 10)], None, out)


def test_memory_and_regions_are_checked(checkpoint):
    whole = [(0, 6), (0, 4), (0, 10)]
    with pytest.raises(shardwright.PlanError, match="too small"):
        run(checkpoint, (6, 4, 10), "a", whole, None, torch.empty(239))
    with pytest.raises(shardwright.PlanError, match=r"does not lie inside|are asked for"):
        run(checkpoint, (6, 4, 10), "a", [(0, 7), (0, 4), (0, 10)], None, torch.empty(280))
    with pytest.raises(shardwright.PlanError, match=r"does not lie inside|are asked for"):
        run(checkpoint, (6, 4, 10), "a", whole, (10, 5), torch.empty(240))
    with pytest.raises(shardwright.PlanError, match="cast"):
        run(checkpoint, (6, 4, 10), "a", whole, None, torch.empty(240, dtype=torch.int8))


def test_an_exception_in_a_callback_is_raised(checkpoint):
    class Mine(Exception):
        pass

    def fail(done, total):
        raise Mine

    with pytest.raises(Mine):
        run(checkpoint, (6, 4, 10), "a", [(0, 6), (0, 4), (0, 10)], None, torch.empty(240), progress=fail)


ON_A_DEVICE = """
import ctypes, sys
from shardwright import _native

cuda = ctypes.CDLL("libcuda.so.1")
context, address = ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == 0 and cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0 and cuda.cuCtxSetCurrent(context) == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(4096)) == 0
assert _native.device_refused(0) is None and "there is no device 7" in _native.device_refused(7)
checkpoint = _native.Checkpoint.open(sys.argv[1])
item = ("a", [6, 4, 10], "a", None, [(1, 4), (0, 4), (2, 9)], None, address.value + 8, 3 * 4 * 7 * 2 + 6, "bfloat16")
stats = _native.fill(checkpoint, [item], device=0, threads=2)
assert stats["bytes_needed"] == 3 * 4 * 7 * 4, stats
for wrong in ({**dict(enumerate(item)), 6: id(item)}, {**dict(enumerate(item)), 6: address.value + 4090}):
    try:
        _native.fill(checkpoint, [tuple(wrong.values())], device=0)
    except Exception as error:
        assert type(error).__name__ == "PlanError" and "'a'" in str(error) and "not on device 0" in str(error), error
    else:
        raise AssertionError("memory that is not on the device was taken")
out = (ctypes.c_uint8 * 4096)()
stream = ctypes.c_void_p()
assert cuda.cuStreamCreate(ctypes.byref(stream), 1) == 0 and cuda.cuMemcpyDtoHAsync_v2(out, address, ctypes.c_size_t(4096), stream) == 0
assert cuda.cuStreamSynchronize(stream) == 0 and cuda.cuStreamDestroy_v2(stream) == 0
sys.stdout.write(bytes(out).hex())
"""


def test_memory_on_a_device_is_filled_in_place(tmp_path, checkpoint):
    """On a libcuda that runs the kernels on the host: that a card does the same is for test_cuda.py to show."""
    tests = Path(__file__).parents[3] / "tests" / "gpu"
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    kernels = tests.parents[1] / "crates" / "engine"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wno-unknown-pragmas", "-shared", "-fPIC", f"-I{kernels / 'tests' / 'kernels'}"]
    source = f'-DCAST_CU="{kernels / "src" / "device" / "kernels" / "cast.cu"}"'
    subprocess.run([compiler, *flags, source, tests / "fake_cuda.cpp", "-o", tmp_path / "libcuda.so.1", "-ldl"], check=True)
    (tmp_path / "libcuda.so").symlink_to("libcuda.so.1")
    real = sources()["a"].float()
    save_file({"a": real}, tmp_path / "model.safetensors")
    found = subprocess.run(
        [sys.executable, "-c", ON_A_DEVICE, tmp_path], env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    memory = bytes.fromhex(found.stdout)
    want = real[1:4, :, 2:9].bfloat16().contiguous().view(torch.uint8).numpy().tobytes() + bytes(6)
    assert memory[8 : 8 + len(want)] == want
    assert memory[:8] == memory[8 + len(want) : 16 + len(want)], "it wrote beside its memory"
