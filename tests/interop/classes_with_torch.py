"""Checks that torch's HuggingFaceStorageReader fills `model.state_dict()` of transformers' own classes from a save.

    python classes_with_torch.py make DIR NAME ...                              checkpoints of recorded architectures, random values
    torchrun --nproc-per-node N classes_with_torch.py check SHARDS=MODEL=CLASS ...

For each: the class is built on the meta device, sharded over N ranks, filled by torch, gathered, and every entry compared bit for bit with what
`from_pretrained` makes of the checkpoint. N is another world size than the one that was saved. Runs on CPU with gloo.
"""
import json, os, pathlib, sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

CASES = pathlib.Path(__file__).parents[2] / "crates/arch/tests/cases.jsonl"


def make(at, names):
    from safetensors.torch import save_file

    for case in map(json.loads, CASES.read_text().splitlines()):
        if case["name"] not in names:
            continue
        model = at / case["name"]
        model.mkdir()
        (model / "config.json").write_text(json.dumps(case["config"]))
        torch.manual_seed(7)
        tensors = {}
        for name, (dtype, shape) in case["tensors"].items():
            dtype = getattr(torch, dtype)
            tensors[name] = torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.randint(0, 9, shape, dtype=dtype)
        save_file(tensors, model / "model.safetensors", {"format": "pt"})
        print(f"{case['name']}={case['class']}")


def shaped(cls, config, plan):
    """The class on the meta device, in the plan's dtypes."""
    with torch.device("meta"):
        model = cls._from_config(config)
    second = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for table in (module._parameters, module._buffers):
            for leaf, tensor in table.items():
                told = plan.get(f"{path}.{leaf}".lstrip("."))
                if tensor is None or told is None:
                    continue
                dtype = getattr(torch, told)
                if id(tensor) not in second:
                    new = torch.empty(tensor.shape, dtype=dtype, device="meta")
                    second[id(tensor)] = torch.nn.Parameter(new, dtype.is_floating_point) if table is module._parameters else new
                table[leaf] = second[id(tensor)]
    return model


def check(shards, checkpoint, name):
    import transformers
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    manifest = json.loads((shards / "shardwright.manifest.json").read_text())
    assert manifest["world_size"] != dist.get_world_size()
    plan = {t["name"]: t["precision"]["storage"] for t in manifest["plan"]["tensors"]}
    plan.update({alias: plan[name] for alias, name in manifest["aliases"].items()})
    cls = getattr(transformers, name)
    expected = cls.from_pretrained(checkpoint, dtype="auto").state_dict()
    model = shaped(cls, transformers.AutoConfig.from_pretrained(checkpoint), plan)
    for module in list(model.modules()):
        if isinstance(module, torch.nn.ModuleList):
            for block in module:
                # T5's blocks are lists themselves: what is in a sharded block is sharded already.
                if not any(isinstance(p, DTensor) for p in block.parameters()):
                    fully_shard(block)
    fully_shard(model)
    model.to_empty(device="cpu")
    state = model.state_dict()
    for value in state.values():
        local = value.to_local() if isinstance(value, DTensor) else value
        local.fill_(1 if local.dtype == torch.bool else 77)  # nothing passes that was not read
    dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(shards)))
    assert set(state) == set(expected), f"{sorted(set(state) ^ set(expected))[:5]}"
    for key, value in sorted(state.items()):
        full = value.full_tensor() if isinstance(value, DTensor) else value
        want = expected[key].to(full.dtype)
        assert full.dtype == getattr(torch, plan[key]), f"{key} is {full.dtype}, planned {plan[key]}"
        assert torch.equal(full, want), f"{shards.name}: {key} is not what from_pretrained makes of the checkpoint"
    if dist.get_rank() == 0:
        print(f"{shards.name}: {name}, saved by {manifest['world_size']} ranks, read by {dist.get_world_size()}: {len(state)} equal", flush=True)


if sys.argv[1] == "make":
    make(pathlib.Path(sys.argv[2]), sys.argv[3:])
else:
    dist.init_process_group("gloo")
    for line in sys.argv[2:]:
        shards, checkpoint, name = line.split("=")
        try:
            check(pathlib.Path(shards), pathlib.Path(checkpoint), name)
        except Exception as error:
            raise SystemExit(f"{shards}: {type(error).__name__}: {error}") from error
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # without the interpreter's own end, during which gloo's threads may drop their last tensors, whereupon torch 2.15 aborts
