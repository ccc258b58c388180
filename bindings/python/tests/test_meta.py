"""Models of which nothing has memory, their buffers included: what the checkpoint has is its own, whatever else is initialised."""

import pytest

torch = pytest.importorskip("torch")
T = pytest.importorskip("transformers")

import shardwright  # noqa: E402

TOWER = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES = {**TOWER, "image_size": 12, "patch_size": 4}
TEXTS = {**TOWER, "vocab_size": 61, "max_position_embeddings": 24}

# Their classes initialise the parameters of modules within along with their own buffers.
CLASSES = {
    "CLIPModel": lambda: T.CLIPConfig(text_config=TEXTS, vision_config=IMAGES, projection_dim=12),
    "SiglipModel": lambda: T.SiglipConfig(text_config={**TEXTS, "projection_size": 16}, vision_config=IMAGES),
}


@pytest.fixture(params=CLASSES)
def saved(request, tmp_path):
    torch.manual_seed(0)
    model = getattr(T, request.param)(CLASSES[request.param]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_what_the_checkpoint_has_is_not_initialised(saved):
    model, path = saved
    with torch.device("meta"):
        empty = type(model)(model.config)
    report = shardwright.fill(empty, path)
    want = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in [*empty.named_parameters(), *empty.named_buffers()]:
        assert torch.equal(tensor, want[name]), name
    assert report.initialised == []


def test_what_it_lacks_is(saved):
    from safetensors.torch import load_file, save_file

    model, path = saved
    lost = "vision_model.embeddings.position_embedding.weight"
    state = load_file(path / "model.safetensors")
    del state[lost]
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    with torch.device("meta"):
        empty = type(model)(model.config)
    report = shardwright.fill(empty, path, missing="init")
    assert report.initialised == [lost]
    for name, parameter in empty.named_parameters():
        if name == lost:
            assert bool(torch.isfinite(parameter).all()) and not torch.equal(parameter, model.get_parameter(name)) and bool(parameter.any())
        else:
            assert torch.equal(parameter, model.get_parameter(name)), name
