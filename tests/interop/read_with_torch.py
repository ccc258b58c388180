"""torchrun --nproc-per-node N read_with_torch.py SHARDS=MODEL ...

Proof that torch reads what `shardwright load --save SHARDS` kept of the checkpoint MODEL: for each pair, a model is built on the meta
device, sharded over N ranks with fully_shard, filled by the lines that docs/save-format.md prints, gathered, and compared bit for bit with
MODEL's own tensors cast by torch. N is another world size than the one that was saved. Runs on CPU with gloo.

The model is transformers' own class where config.json, which was copied along, names a causal one; else a tree of modules with the
tensors' names.
"""
import importlib.util, json, os, pathlib, re, sys

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def originals(model):
    """The checkpoint's tensors by name."""
    found = {}
    for file in sorted(pathlib.Path(model).glob("*.safetensors")):
        with safe_open(file, "pt") as f:
            found.update({name: f.get_tensor(name) for name in f.keys()})
    return found


def tree(plan):
    """Modules whose parameters and buffers have the names, shapes and dtypes of the plan."""
    root = torch.nn.Module()
    for t in plan:
        *path, leaf = t["name"].split(".")
        module = root
        for name in path:
            if name not in module._modules:
                module.add_module(name, torch.nn.Module())
            module = module._modules[name]
        tensor = torch.empty(t["shape"], dtype=getattr(torch, t["precision"]["storage"]), device="meta")
        if t["kind"] == "parameter":
            module.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(leaf, tensor)
    return root, []


def transformers_model(shards, architecture, plan):
    """The model's own class and its blocks."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(shards)
    with torch.device("meta"):
        model = getattr(transformers, architecture)._from_config(config)
    dtypes = {t["precision"]["storage"] for t in plan if t["kind"] == "parameter"}
    if len(dtypes) == 1:
        model = model.to(getattr(torch, dtypes.pop()))
    return model, list(model.model.layers)


def build(shards, plan):
    config = shards / "config.json"
    architecture = json.loads(config.read_text())["architectures"][0] if config.exists() else ""
    causal = architecture.endswith("ForCausalLM") and importlib.util.find_spec("transformers")
    model, units = transformers_model(shards, architecture, plan) if causal else tree(plan)
    for unit in [*units, model]:
        fully_shard(unit)
    return model.to_empty(device="cpu")


def snippet():
    """The Python of docs/save-format.md, as it is printed there."""
    text = (pathlib.Path(__file__).parents[2] / "docs/save-format.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert "HuggingFaceStorageReader(\"DIR\")" in code
    return code


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def check(shards, model):
    manifest = json.loads((shards / "shardwright.manifest.json").read_text())
    plan = manifest["plan"]["tensors"]
    assert manifest["world_size"] != dist.get_world_size(), f"{shards} was saved for this very world size"
    sharded = build(shards, plan)
    for value in sharded.state_dict().values():
        local = value.to_local() if isinstance(value, DTensor) else value
        local.fill_(1 if local.dtype == torch.bool else 77)  # nothing passes that was not read
    scope = {"model": sharded}
    exec(snippet().replace('"DIR"', repr(str(shards))), scope)
    state, aliases = scope["state"], manifest["aliases"]
    tensors = {t["name"] for t in plan}
    assert set(state) == tensors | set(aliases), f"model and shards differ in {sorted(set(state) ^ (tensors | set(aliases)))}"
    source = originals(model)
    # The class makes its position_ids anew.
    left_out = {name for name in set(source) - tensors if not name.endswith("position_ids")}
    assert tensors <= set(source) and not left_out, f"tensors were left out: {sorted(left_out)}"
    source.update({alias: source[name] for alias, name in aliases.items()})
    plan = [*plan, *({**next(t for t in plan if t["name"] == name), "name": alias} for alias, name in aliases.items())]
    for name, value in sorted(state.items()):
        full = value.full_tensor() if isinstance(value, DTensor) else value
        expected = source[name].to(full.dtype)
        planned = next(t for t in plan if t["name"] == name)["precision"]["storage"]
        assert full.dtype == getattr(torch, planned), f"{name} is {full.dtype}, planned {planned}"
        assert full.shape == expected.shape and torch.equal(bits(full), bits(expected)), f"{shards}: {name} differs from the checkpoint"
    if dist.get_rank() == 0:
        sizes = " x ".join(str(n) for n in manifest["mesh"].values())
        kinds = "+".join(sorted({t["precision"]["storage"] for t in plan}))
        print(f"{shards.name}: {type(sharded).__name__}, saved by {sizes} ranks, read by {dist.get_world_size()}: "
              f"{len(state)} tensors of {kinds} equal", flush=True)


dist.init_process_group("gloo")
for pair in sys.argv[1:]:
    check(*map(pathlib.Path, pair.split("=")))
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # without the interpreter's own end, during which gloo's threads may drop their last tensors, whereupon torch 2.15 aborts
