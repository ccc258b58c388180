"""Checkpoints of codes and scales: undone by transformers' own conversions, or refused. Codes are never taken for weights."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

import shardwright  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

FP8 = torch.float8_e4m3fn


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.l = torch.nn.Linear(8, 4, bias=False)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"l.weight": torch.ones(4, 8).to(FP8), "l.weight_scale_inv": torch.ones(1, 1)},
            r"'l\.weight'.*codes of float8_e4m3fn.*'l\.weight_scale_inv'",
        ),
        ({"l.weight": torch.ones(4, 8, dtype=torch.int8), "l.SCB": torch.ones(4)}, r"'l\.weight'.*codes of int8.*'l\.SCB'"),
        ({"l.weight": torch.ones(4, 8, dtype=torch.int8)}, r"'l\.weight'.*float32 in the model, int8 in the checkpoint"),
    ],
)
def test_codes_are_refused(tmp_path, state, message):
    save_file(state, tmp_path / "model.safetensors")
    model = Linear()
    before = model.l.weight.clone()
    with pytest.raises(shardwright.UnsupportedError, match=message):
        shardwright.fill(model, tmp_path)
    assert torch.equal(model.l.weight, before)


def test_values_of_a_narrow_dtype_are_cast(tmp_path):
    values = torch.arange(32).reshape(4, 8).to(FP8)
    save_file({"l.weight": values}, tmp_path / "model.safetensors")
    model = Linear()
    shardwright.fill(model, tmp_path)
    assert torch.equal(model.l.weight, values.float())


def test_the_reader_of_distributed_checkpoints_refuses_codes(tmp_path):
    import torch.distributed.checkpoint as checkpoint
    from shardwright.dcp import SafetensorsReader

    save_file({"w": torch.ones(4, 8).to(FP8), "w_scale_inv": torch.ones(1, 1)}, tmp_path / "model.safetensors")
    reader = SafetensorsReader(tmp_path)
    both = {"w": torch.zeros(4, 8), "w_scale_inv": torch.zeros(1, 1)}
    checkpoint.load(both, storage_reader=reader, no_dist=True)  # who asks for the scales will use them
    with pytest.raises(BaseException, match="codes of float8_e4m3fn"):
        checkpoint.load({"w": torch.zeros(4, 8)}, storage_reader=SafetensorsReader(tmp_path), no_dist=True)


def test_the_checkpoints_own_config_says_how_to_undo_it(tmp_path):
    """The model was built from a config without the section, as for training in bfloat16."""
    T = pytest.importorskip("transformers")
    from models import BASE

    torch.manual_seed(0)
    model = T.Qwen3ForCausalLM(T.Qwen3Config(**{**BASE, "intermediate_size": 48})).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "plain")
    state = {n: t.clone() for n, t in model.state_dict().items()}
    for name in [n for n in state if "proj" in n]:
        values = state[name].float()
        scale = values.abs().max() / 448
        state[name], state[name + "_scale_inv"] = (values / scale).to(FP8), scale.repeat(values.shape[0] // 16, values.shape[1] // 16)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "plain/config.json").read_text())
    section = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": section}))
    filled = T.Qwen3ForCausalLM(model.config).to(torch.bfloat16)
    if T.__version__.startswith("4."):
        with pytest.raises(shardwright.ShardwrightError, match=r"quanti[sz]ed"):
            shardwright.fill(filled, tmp_path)
        return
    report = shardwright.fill(filled, tmp_path)
    assert len(report.computed) == sum(n.endswith("_scale_inv") for n in state)
    for name, parameter in filled.named_parameters():
        want = state[name].float() * state[name + "_scale_inv"][0, 0] if name + "_scale_inv" in state else state[name]
        assert torch.equal(parameter, want.to(torch.bfloat16)), name
