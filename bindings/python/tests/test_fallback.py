"""Where a library has what shardwright hooks into elsewhere, in another form, or not at all: it is found, or the library loads itself and the log
says so."""

import logging
import sys
import types

import pytest

torch = pytest.importorskip("torch")
import shardwright  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

USUAL = "plugins/trainer_plugins/distributed/fsdp2.py"
WHOLE = """
class FSDP2Engine:
    rank, dcp_path = 0, None
    def {seam}(self, model, {arguments}):
        model.stock = [hf_model_path, locals().get("dcp_path")]
        return model
"""


@pytest.fixture
def llamafactory(tmp_path, monkeypatch):
    """Makes a package `llamafactory` of these files, and installs shardwright in it."""
    from shardwright import llamafactory as ours

    for name in [n for n in sys.modules if n.split(".")[0] == "llamafactory"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(ours, "_installed", False)
    monkeypatch.setattr(ours.transformers, "enable", lambda: None)
    monkeypatch.syspath_prepend(tmp_path / "site")

    def make(**files):
        for path, text in {"../__init__.py": "", "__init__.py": "", **files}.items():
            file = tmp_path / "site" / "llamafactory" / "v1" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        ours.install()

    yield make
    for name in [n for n in sys.modules if n.split(".")[0] == "llamafactory"]:
        del sys.modules[name]


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"weight": torch.arange(12.0).view(3, 4)}, folder / "model.safetensors")
    return str(folder)


@pytest.mark.parametrize("path", [USUAL, "engines/fsdp.py", "engines/__init__.py"])
@pytest.mark.parametrize(
    ("seam", "arguments"),
    [
        ("materialize_and_load", "hf_model_path, dcp_path=None"),
        ("materialize_and_load", "hf_model_path"),
        ("_load_weights_from_hf_checkpoint", "hf_model_path"),
    ],
)
def test_an_engine_is_found_where_it_is(llamafactory, checkpoint, path, seam, arguments):
    llamafactory(**{path: WHOLE.format(seam=seam, arguments=arguments)})
    engine = sys.modules[f"llamafactory.v1.{path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"].FSDP2Engine
    model = torch.nn.Linear(4, 3, bias=False, device="meta")
    assert getattr(engine(), seam)(model, checkpoint) is model
    assert not hasattr(model, "stock") and torch.equal(model.weight, torch.arange(12.0).view(3, 4))


def test_what_shardwright_cannot_do_the_engine_does(llamafactory, checkpoint, tmp_path, monkeypatch, caplog):
    llamafactory(**{USUAL: WHOLE.format(seam="materialize_and_load", arguments="hf_model_path, dcp_path=None")})
    engine = sys.modules["llamafactory.v1." + USUAL.removesuffix(".py").replace("/", ".")].FSDP2Engine()
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save({"weight": torch.zeros(3, 4)}, pickled / "weights-of-mine.bin")
    reasons = {str(pickled): "LLaMA-Factory does: ", "": "names no checkpoint"}
    for path, why in reasons.items():
        model = engine.materialize_and_load(torch.nn.Linear(4, 3), path)
        assert model.stock[0] == path and why in caplog.text
    assert engine.materialize_and_load(torch.nn.Linear(4, 3), checkpoint, dcp_path=checkpoint).stock[1] == checkpoint
    with pytest.raises(shardwright.PlanError, match="shapes differ"):
        engine.materialize_and_load(torch.nn.Linear(4, 5, bias=False, device="meta"), checkpoint)

    def moved(*_, **__):
        raise AttributeError("'FSDPParam' has no attribute 'sharded_param'")

    monkeypatch.setattr("shardwright.llamafactory.fill", moved)
    assert engine.materialize_and_load(torch.nn.Linear(4, 3), checkpoint).stock and "no attribute 'sharded_param'" in caplog.text


@pytest.mark.parametrize(
    "text", ["", "class FSDP2Engine: pass\nclass DeepSpeedEngine: pass", "raise ImportError('no such backend')\nclass FSDP2Engine: pass"]
)
def test_an_engine_that_is_not_there_is_left_alone(llamafactory, caplog, text):
    llamafactory(**{USUAL: text})
    assert "FSDP2 loads without shardwright" in caplog.text and "fp32 masters stay" in caplog.text


def test_a_from_pretrained_of_another_form_is_left_alone(monkeypatch, caplog):
    transformers = pytest.importorskip("transformers")
    from shardwright import transformers as ours

    other = staticmethod(lambda model, plan: None)
    monkeypatch.setattr(transformers.PreTrainedModel, "_load_pretrained_model", other)
    ours.enable()
    assert transformers.PreTrainedModel.__dict__["_load_pretrained_model"] is other and "loads without shardwright" in caplog.text
    with pytest.raises(shardwright.UnsupportedError, match="_load_pretrained_model"):
        ours.enable(fallback=False)


def test_a_load_that_meets_something_moved_goes_the_usual_way(monkeypatch, caplog):
    transformers = pytest.importorskip("transformers")
    from shardwright import transformers as ours

    calls, config = [], types.SimpleNamespace(is_quantized=False)

    def stock(model, state_dict, checkpoint_files, load_config, expected_keys=None, *, more=None):
        calls.append(more)
        return "stock"

    def moved(*_):
        raise ImportError("cannot import name 'LoadStateDictInfo'")

    monkeypatch.setattr(transformers.PreTrainedModel, "_load_pretrained_model", staticmethod(stock))
    monkeypatch.setattr(ours, "_sharded", lambda model: "FSDP2")
    monkeypatch.setattr(ours, "_why_not", lambda *_: None)
    monkeypatch.setattr(ours, "_ours", moved)
    with ours.patched():
        assert transformers.PreTrainedModel._load_pretrained_model("model", None, [], load_config=config, more=1) == "stock"
    assert calls == [1] and "cannot import name 'LoadStateDictInfo'" in caplog.text
    with ours.patched(fallback=False), pytest.raises(shardwright.UnsupportedError, match="LoadStateDictInfo"):
        transformers.PreTrainedModel._load_pretrained_model("model", None, [], config)


def test_zero_init_of_another_form_broadcasts(monkeypatch, caplog):
    deepspeed = pytest.importorskip("deepspeed")
    from shardwright.deepspeed import quiet_init_class

    class Init:
        pass

    monkeypatch.setattr(deepspeed.zero, "Init", Init)
    with caplog.at_level(logging.WARNING):
        assert quiet_init_class() is Init
    assert "broadcast first" in caplog.text


def test_a_model_is_built_in_the_training_dtype_where_deepspeed_leaves_constructors_in_subclasses(folder, monkeypatch):
    transformers = pytest.importorskip("transformers")
    from shardwright.deepspeed import _default_dtype

    class Model(transformers.Qwen3PreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.inside = torch.get_default_dtype()
            self.post_init()

    config = transformers.AutoConfig.from_pretrained(folder / "qwen3")
    for own in (False, True):
        if own:
            monkeypatch.setattr(transformers.Qwen3PreTrainedModel, "__init__", transformers.PreTrainedModel.__init__)
        with _default_dtype(torch.float16):
            assert Model(config).inside == torch.float16
            assert torch.get_default_dtype() == torch.float32
        assert Model(config).inside == torch.float32


def _on_meta(transformers, path, auto):
    from accelerate import init_empty_weights

    with init_empty_weights():
        model = auto.from_config(transformers.AutoConfig.from_pretrained(path), dtype=torch.float32)
    model.tie_weights()
    return model


@pytest.mark.parametrize("head", ["AutoModelForCausalLM", "AutoModel"])
def test_where_conversions_are_of_an_unknown_form_the_architecture_data_decides(folder, monkeypatch, caplog, head):
    transformers = pytest.importorskip("transformers")

    def moved(*_):
        raise TypeError("rename_source_key() got an unexpected keyword argument 'prefix'")

    monkeypatch.setattr("shardwright._architecture.trace", moved)
    auto = getattr(transformers, head)
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        want = auto.from_pretrained(path, dtype=torch.float32)
        model = _on_meta(transformers, path, auto)
        with caplog.at_level(logging.INFO):
            report = shardwright.fill(model, path, unexpected="ignore")
        old = transformers.__version__.startswith("4.")
        assert ("has no conversions" if old else "(rename_source_key() got an unexpected keyword argument 'prefix')") in caplog.text
        assert not report.missing and not report.initialised
        assert set(report.unexpected) <= {"lm_head.weight"}, path.name
        found = model.state_dict()
        assert found.keys() == want.state_dict().keys()
        for name, tensor in want.state_dict().items():
            assert torch.equal(found[name], tensor), f"{path.name}: {name}"


def test_conversions_of_another_version_are_compared_with_the_architecture_data(folder, monkeypatch, caplog):
    transformers = pytest.importorskip("transformers", minversion="5")
    from shardwright import _architecture, _trace

    monkeypatch.setattr(_architecture, "_version", lambda: "5.99.0")
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        shardwright.fill(_on_meta(transformers, path, transformers.AutoModelForCausalLM), path)
    assert "from other elements" not in caplog.text

    def halves_exchanged(*args):
        traced = _trace.trace(*args)
        recipe = traced.recipes["model.layers.0.mlp.experts.gate_up_proj"]
        half = max(target for _, _, target, _ in recipe.pieces if target < recipe.shape[1] * recipe.shape[2])
        recipe.pieces = [(n, s, t + half if t % (2 * half) < half else t - half, loops) for n, s, t, loops in recipe.pieces]
        return traced

    monkeypatch.setattr(_architecture, "trace", halves_exchanged)
    shardwright.fill(_on_meta(transformers, folder / "qwen3_moe", transformers.AutoModelForCausalLM), folder / "qwen3_moe")
    assert "transformers 5.99.0 builds 1 parameter(s) from other elements" in caplog.text
    assert "'model.layers.0.mlp.experts.gate_up_proj'" in caplog.text


def test_a_model_with_attributes_of_transformers_needs_no_transformers(checkpoint, monkeypatch):
    class Model(torch.nn.Linear):
        base_model_prefix = "model"
        config = None

    monkeypatch.setattr("shardwright._trace.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    model = Model(4, 3, bias=False)
    shardwright.fill(model, checkpoint)
    assert torch.equal(model.weight, torch.arange(12.0).view(3, 4))


@pytest.mark.parametrize("config", [{}, object()])
def test_a_model_of_a_class_that_nobody_knows_takes_tensors_by_their_names(checkpoint, monkeypatch, caplog, config):
    pytest.importorskip("transformers")

    def moved(*_):
        raise AttributeError("no conversions")

    monkeypatch.setattr("shardwright._architecture.trace", moved)
    model = torch.nn.Linear(4, 3, bias=False)
    model.base_model_prefix, model.config = "model", config
    shardwright.fill(model, checkpoint)
    assert torch.equal(model.weight, torch.arange(12.0).view(3, 4))
    assert "no conversions are known for Linear" in caplog.text
