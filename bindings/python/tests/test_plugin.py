"""Strategies and precision policies in Python: registered, chosen from a YAML, proven."""

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
import shardwright  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from shardwright import testkit  # noqa: E402


@shardwright.strategy("test/rows")
class Rows:
    """Cuts matrices by a dim; keeps the rest whole."""

    def __init__(self, dim: int = 0):
        self.dim = dim

    def plan(self, input):
        def place(tensor):
            if len(tensor.shape) < 2:
                return input.replicated(tensor)
            return input.chunked(tensor, self.dim)

        return input.plan(place, lambda tensor: ".".join(tensor.name.split(".")[:2]) if "." in tensor.name else "")


@shardwright.precision("test/wide")
class Wide:
    """Everything in one dtype."""

    def __init__(self, dtype: str = "float32"):
        self.dtype = dtype

    def decide(self, tensor, trainable):
        return self.dtype, "bfloat16", "float32"


@pytest.fixture
def home(tmp_path):
    torch.manual_seed(0)
    tensors = {"layers.0.w": torch.randn(5, 6).bfloat16(), "layers.1.w": torch.randn(4, 6).bfloat16(), "norm": torch.randn(6).bfloat16()}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path, tensors


def config(home, dist, own=""):
    (home / "train.yaml").write_text(f"model: {home}\ndist_config: {{{dist}}}\n{own}")
    return home / "train.yaml"


def test_a_yaml_chooses_a_strategy_and_its_options(home):
    path, tensors = home
    plan = shardwright.plan(config(path, "name: test/rows"), world_size=2)
    assert plan.strategy == "test/rows" and plan.shards(1)["layers.0.w"].shape == (2, 6) and plan.shards(1)["norm"].shape == (6,)
    assert [u["name"] for u in plan.groups] == ["layers.0", "layers.1", ""]
    loaded = shardwright.load(config(path, "name: test/rows, dim: 1"), world_size=2)
    whole = torch.cat([shards["layers.0.w"].torch() for shards in loaded], 1)
    assert torch.equal(whole, tensors["layers.0.w"].to(whole.dtype))


def test_sections_are_checked_with_their_places(home):
    path, _ = home
    bad = shardwright.resolve(config(path, "name: test/rows, dum: 1"))
    assert not bad and "dum" in bad.findings and "dim" in bad.findings and "train.yaml:2:" in bad.findings
    assert "expected a value of type integer" in shardwright.resolve(config(path, "name: test/rows, dim: x")).findings
    assert "test/rows" in shardwright.resolve(config(path, "name: test/rowz")).findings


def test_a_precision_policy_is_chosen_too(home):
    path, _ = home
    own = "shardwright: {precision: {name: test/wide, dtype: float16}}\n"
    plan = shardwright.plan(config(path, "name: fsdp2", own), world_size=2)
    assert {t.storage for t in plan.tensors.values()} == {"float16"} and {t.compute for t in plan.tensors.values()} == {"bfloat16"}


def test_the_conformance_kit_finds_what_is_wrong():
    class Tall:
        def plan(self, input):
            return input.plan(input.replicated)

    assert "plans" in testkit.strategy("test/whole", Tall())
    testkit.precision("test/wide", Wide())

    class Gap(Tall):
        def plan(self, input):
            plan = super().plan(input)
            plan["units"] = []
            return plan

    with pytest.raises(shardwright.PlanError):
        testkit.strategy("test/gap", Gap())


def test_errors_of_a_class_are_errors_of_the_plan(home):
    path, _ = home

    @shardwright.strategy("test/fails")
    class Fails:
        def plan(self, input):
            raise ValueError("no luck")

    with pytest.raises(shardwright.PlanError, match=r"test/fails(.|\n)*ValueError: no luck"):
        shardwright.plan(config(path, "name: test/fails"))

    @shardwright.strategy("test/refuses")
    class Refuses:
        def plan(self, input):
            raise shardwright.refuse(input.parameters[0], "too small")

    with pytest.raises(shardwright.PlanError, match=r"'layers\.0\.w': too small"):
        shardwright.plan(config(path, "name: test/refuses"))
    with pytest.raises(shardwright.PlanError, match=r"no dim 5"):
        shardwright.plan(config(path, "name: test/rows, dim: 5"))
    with pytest.raises(shardwright.ConfigError, match="vendor/name"):
        shardwright.strategy("rows")(Rows)
    with pytest.raises(shardwright.ConfigError, match="plan"):
        shardwright.strategy("test/none")(object)


PLUGIN = '''
import shardwright

@shardwright.strategy("{name}/halves")
class Halves:
    """Cuts matrices along their last dim."""

    def plan(self, input):
        return input.plan(lambda t: input.chunked(t, len(t.shape) - 1) if len(t.shape) > 1 else input.replicated(t))

@shardwright.precision("{name}/narrow")
class Narrow:
    """Everything in float16."""

    def decide(self, tensor, trainable):
        return "float16"
'''


def command(*arguments, cwd, path=""):
    run = [sys.executable, "-m", "shardwright", *map(str, arguments)]
    return subprocess.run(run, cwd=cwd, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(path), "RUST_BACKTRACE": "0"})


def test_the_command_takes_plugins(home):
    path, tensors = home
    (path / "mine.py").write_text(PLUGIN.format(name="mine"))
    own = "shardwright: {precision: {name: mine/narrow}}\n"
    train = config(path, "name: mine/halves", own)
    for plugin in (path / "mine.py", "mine"):
        load = command("load", train, "--world-size", "2", "--save", path / "out", "--overwrite", "--plugin", plugin, cwd=path)
        assert load.returncode == 0, load.stderr
    saved = {n: t for f in sorted((path / "out").glob("*.safetensors")) for n, t in load_file(f).items()}
    assert saved and {t.dtype for t in saved.values()} == {torch.float16} and tensors["layers.0.w"].shape == (5, 6)
    assert "mine/halves" in command(f"--plugin={path / 'mine.py'}", "strategies", cwd=path).stdout
    for subcommand in ("resolve", "plan"):
        shown = command(subcommand, train, "--plugin", "mine", "--world-size", "2", cwd=path)
        assert shown.returncode == 0 and "mine/halves" in shown.stdout, shown.stderr
    assert "mine/halves" in command("--plugin", "mine", "schema", cwd=path).stdout
    without = command("load", train, cwd=path)
    assert without.returncode and "mine/halves" in without.stderr
    assert "--plugin" in command("--help", cwd=path).stdout


def test_what_is_wrong_with_a_plugin_is_said(home):
    path, _ = home
    (path / "broken.py").write_text("1/0")
    for given, message in (
        (["--plugin", "broken"], "--plugin broken: cannot be imported: ZeroDivisionError"),
        (["--plugin", "nowhere.py"], "nowhere.py: cannot be imported: FileNotFoundError"),
        (["--plugin"], "--plugin needs a value"),
    ):
        said = command("strategies", *given, cwd=path)
        assert said.returncode == 2 and message in said.stderr and "Traceback" not in said.stderr, said


def test_installed_packages_bring_plugins(home):
    path, _ = home
    site = path / "site"
    for name, text in (("good", PLUGIN.format(name="good")), ("bad", "import nothing_of_that_name")):
        (site / f"{name}-1.0.dist-info").mkdir(parents=True)
        (site / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (site / f"{name}-1.0.dist-info" / "entry_points.txt").write_text(f"[shardwright.plugins]\n{name} = {name}_plugin\n")
        (site / f"{name}_plugin.py").write_text(text)
    listed = command("strategies", cwd=path, path=site)
    assert listed.returncode == 0 and "good/halves" in listed.stdout
    assert "warning: plugin 'bad' (bad_plugin) cannot be imported: ModuleNotFoundError" in listed.stderr
    train = config(path, "name: good/halves")
    code = f"import shardwright; print(shardwright.plan({str(train)!r}, world_size=2).strategy)"
    plan = subprocess.run([sys.executable, "-c", code], cwd=path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(site)})
    assert "good/halves" in plan.stdout, plan.stderr
