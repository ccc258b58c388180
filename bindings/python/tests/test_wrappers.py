"""Models within the wrappers that trainers put around them."""

import pytest

torch = pytest.importorskip("torch")
T = pytest.importorskip("transformers")

import shardwright  # noqa: E402
from models import BASE  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("wrapped")
    model = T.Qwen3ForCausalLM(T.Qwen3Config(**BASE))
    model.save_pretrained(path)
    return model, path


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A process group of one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('group')}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def lora(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))


WRAPS = {
    "DDP": DistributedDataParallel,
    "DataParallel": torch.nn.DataParallel,
    "compile": torch.compile,
    "DDP of a compiled one": lambda m: DistributedDataParallel(torch.compile(m)),
    "a compiled DDP": lambda m: torch.compile(DistributedDataParallel(m)),
    "DDP of PEFT": lambda m: DistributedDataParallel(lora(m)),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_the_model_within_is_filled(saved, group, wrap):
    want, path = saved
    torch.manual_seed(1)
    model = T.Qwen3ForCausalLM(want.config)
    kept = {n: p for n, p in model.named_parameters()}
    report = shardwright.fill(wrap(model), path, unexpected="error")
    assert len(report.filled) == len(kept)
    for name, parameter in want.named_parameters():
        assert torch.equal(kept[name], parameter), name


class FullyShardedDataParallel(torch.nn.Module):
    """By its name torch's, which does not run without an accelerator."""

    def __init__(self, inner):
        super().__init__()
        self._fsdp_wrapped_module = inner


def test_fsdp1_is_refused_by_name(saved):
    with pytest.raises(shardwright.UnsupportedError, match="FSDP1"):
        shardwright.fill(FullyShardedDataParallel(torch.nn.Linear(2, 2)), saved[1])


def test_a_model_within_another_module_is_named(saved):
    class WithHead(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.pretrained, self.value = model, torch.nn.Linear(32, 1)

    model = WithHead(T.Qwen3ForCausalLM(saved[0].config))
    with pytest.raises(shardwright.PlanError, match="'pretrained' is a model of transformers: fill that one"):
        shardwright.fill(model, saved[1])
    shardwright.fill(model.pretrained, saved[1], unexpected="error")


def test_buffers_go_where_the_shards_do(saved, group, monkeypatch):
    """On a device's mesh there is a card for them; what is asked for its device here is a shard, whatever the tensor."""
    from shardwright import _model
    from torch.distributed.fsdp import fully_shard

    want, _ = saved
    asked = []
    monkeypatch.setattr(_model, "_device_of", lambda tensor: asked.append(tensor) or torch.device("cpu"))
    with torch.device("meta"):
        model = T.Qwen3ForCausalLM(want.config)
    model.register_buffer("mask", torch.zeros(3, device="meta"), persistent=True)
    fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
    _model.materialise(model, list(model.modules()), None)
    assert all(not b.is_meta for b in model.buffers())
    assert asked and all(hasattr(tensor, "placements") for tensor in asked)
