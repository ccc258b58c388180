"""The tracer against torch: chains of moves on lazy tensors and on real ones have the same result."""

import random
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from shardwright._trace import Lazy, Opaque, _convert, pieces, recipe  # noqa: E402


def assemble(lazy, sources):
    """What the pieces say, done with torch."""
    flat = torch.full((lazy.numel(),), -1, dtype=torch.int64)
    written = 0
    for name, source, target, loops in pieces(lazy):
        size, strides, steps = [n for n, _, _ in loops], [s for _, s, _ in loops], [t for _, _, t in loops]
        to = flat.as_strided(size, steps, target)
        assert bool((to == -1).all()), "an element has two sources"
        to.copy_(sources[name].reshape(-1).as_strided(size, strides, source))
        written += to.numel()
    assert written == lazy.numel()
    return flat.reshape(lazy.shape)


def sources():
    shapes = {"a": (6, 4, 10), "b": (6, 4, 10), "c": (6, 2, 10), "d": (24, 10)}
    out, at = {}, 0
    for name, shape in shapes.items():
        n = torch.Size(shape).numel()
        out[name] = torch.arange(at, at + n).reshape(shape)
        at += n
    return out


MOVES = [
    lambda x, r: x.narrow(d := r.randrange(x.dim()), s := r.randrange(x.shape[d]), r.randint(1, x.shape[d] - s)),
    lambda x, r: x.transpose(r.randrange(x.dim()), r.randrange(x.dim())),
    lambda x, r: x.unsqueeze(r.randrange(x.dim() + 1)),
    lambda x, r: x.flatten(0, min(1, x.dim() - 1)),
    lambda x, r: r.choice(torch.chunk(x, 2, dim=r.randrange(x.dim()))) if x.dim() else x,
    lambda x, r: x.reshape(-1, x.shape[-1]),
    lambda x, r: x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2).transpose(-1, -2).reshape(x.shape) if x.shape[-1] % 2 == 0 else x,
    lambda x, r: x.reshape(2, x.shape[0] // 2, *x.shape[1:]).transpose(0, 1).reshape(x.shape) if x.shape[0] % 2 == 0 else x,
    lambda x, r: x[:, [min(1, x.shape[1] - 1), 0]] if x.dim() > 1 else x,
    lambda x, r: torch.stack(torch.unbind(x, 0), dim=min(1, x.dim() - 1)),
    lambda x, r: x.contiguous().permute(*reversed(range(x.dim()))),
]


@pytest.mark.parametrize("seed", range(300))
def test_chains_of_moves_are_those_of_torch(seed):
    real = sources()
    lazy = {n: Lazy.leaf(n, t.shape) for n, t in real.items()}
    starts = [
        lambda s: s["a"],
        lambda s: torch.cat([s["a"], s["c"]], dim=1),
        lambda s: torch.stack([s["a"], s["b"]], dim=0),
        lambda s: torch.cat([torch.stack([s["a"][0], s["b"][1]]), torch.stack([s["b"][0], s["a"][2]])], dim=1),
        lambda s: s["d"],
        lambda s: torch.cat([s["d"], s["c"].flatten(0, 1)], dim=0),
    ]
    start = random.Random(seed).randrange(len(starts))
    x, y = starts[start](lazy), starts[start](real)
    for step in range(5):
        pick = random.Random(seed * 31 + step)
        move = MOVES[pick.randrange(len(MOVES))]
        choices = pick.random()
        try:
            z = move(x, random.Random(choices))
        except Opaque as why:
            assert "reshape" in str(why)
            break
        x, y = z, move(y, random.Random(choices))
        assert tuple(x.shape) == tuple(y.shape)
        assert torch.equal(assemble(x, real), y), f"move {step}"


def test_a_computation_is_opaque():
    with pytest.raises(Opaque):
        torch.mul(Lazy.leaf("a", (2, 2)), 2)
    with pytest.raises(Opaque):
        Lazy.leaf("a", (2, 2)).float()


def test_a_reshaped_whole_tensor_is_whole():
    assert recipe(Lazy.leaf("a", (2, 3, 4)).reshape(6, 4), {"a": 24}).source == "a"
    assert recipe(Lazy.leaf("a", (2, 3)).transpose(0, 1), {"a": 6}).source is None


@pytest.mark.parametrize("shape", [(5, 8, 6), (5, 6, 8)])
def test_a_conversion_sees_the_whole_shape_of_a_partitioned_parameter(shape):
    """Experts are transposed unless they have the parameter's shape already, which under ZeRO-3 is in `ds_shape`."""
    core = pytest.importorskip("transformers.core_model_loading")
    parameter = torch.nn.Parameter(torch.empty(0))
    parameter.ds_shape = torch.Size((5, 6, 8))
    try:
        converter = core.WeightConverter("w", "w", operations=[core.Transpose(1, 2, check_dims=True)])
    except (AttributeError, TypeError):
        pytest.skip("this transformers has no Transpose that checks dims")
    model = SimpleNamespace(config=None, get_parameter=lambda name: parameter)
    made = _convert(converter, "layers.0.w", {"w": [torch.ones(shape)]}, model)
    assert made["layers.0.w"].shape == (5, 6, 8)


@pytest.mark.parametrize("shape", [(24,), (24, 10)])
def test_an_op_that_asks_for_a_tensor_gets_one(shape):
    """transformers' PermuteForRope takes a tensor as it is, and the first item of all else."""
    core = pytest.importorskip("transformers.core_model_loading")
    if not hasattr(core, "PermuteForRope"):
        pytest.skip("this transformers has no PermuteForRope")
    targets = ["attn.q_proj", "attn.k_proj"]
    converter = core.WeightConverter("wqkv", targets, operations=[core.Chunk(dim=0), core.PermuteForRope()])
    model = SimpleNamespace(config=SimpleNamespace(num_attention_heads=2))
    real = torch.arange(torch.Size(shape).numel()).reshape(shape)
    try:
        expected = _convert(converter, "layers.0.attn.q_proj.weight", {"wqkv": [real]}, model)
    except ValueError as why:
        pytest.skip(f"this transformers' PermuteForRope does not follow Chunk: {why}")
    lazy = _convert(converter, "layers.0.attn.q_proj.weight", {"wqkv": [Lazy.leaf("a", shape)]}, model)
    assert lazy.keys() == expected.keys() == {f"layers.0.{t}.weight" for t in targets}
    for name, tensor in lazy.items():
        assert torch.equal(assemble(tensor, {"a": real}), expected[name])
        assert not torch.equal(expected[name], real.chunk(2)[targets.index(name[9:-7])])
