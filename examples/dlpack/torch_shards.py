"""torch_shards.py LIBRARY MODEL [cpu|cuda]: takes shards into torch without a copy, and compares them with what the files hold, bit for bit.

The library is `examples/dlpack/lib.rs`, built: `cargo build --release --example dlpack`. Needs torch and safetensors.
"""
import ctypes
import sys
from pathlib import Path

import torch
from safetensors import safe_open

CAPSULE = b"dltensor"
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def library(path):
    lib = ctypes.CDLL(path)
    lib.shards_load.restype = ctypes.c_void_p
    lib.shards_load.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    lib.shards_len.restype, lib.shards_len.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    lib.shards_name.restype, lib.shards_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_size_t]
    lib.shards_take.restype, lib.shards_take.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t]
    lib.shards_free.restype, lib.shards_free.argtypes = None, [ctypes.c_void_p]
    return lib


def load(lib, model, strategy, rank, world_size, device):
    """One rank's tensors by name. They outlive the library's handle, which is freed here."""
    error = ctypes.create_string_buffer(1000)
    shards = lib.shards_load(str(model).encode(), strategy.encode(), rank, world_size, device.encode(), error, len(error))
    if not shards:
        sys.exit(f"{model}: {error.value.decode()}")
    tensors = {}
    for i in range(lib.shards_len(shards)):
        raw = lib.shards_take(shards, i)
        if not raw:
            sys.exit(f"{lib.shards_name(shards, i).decode()}: DLPack has no such dtype")
        tensors[lib.shards_name(shards, i).decode()] = torch.from_dlpack(new_capsule(raw, CAPSULE, None))
    lib.shards_free(shards)
    return tensors


def expected(whole, strategy, rank, world_size):
    if not whole.is_floating_point():
        return whole  # a buffer: whole on every rank
    if strategy == "fsdp2":
        rows = -(-whole.shape[0] // world_size)
        return whole[min(rank * rows, whole.shape[0]) : (rank + 1) * rows]
    part = -(-whole.numel() // world_size)
    return whole.reshape(-1)[min(rank * part, whole.numel()) : (rank + 1) * part]


def bits(tensor):
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def main():
    lib, model, device = library(sys.argv[1]), Path(sys.argv[2]), (sys.argv[3:] or ["cpu"])[0]
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device")
    whole = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            whole |= {name: tensors.get_tensor(name) for name in tensors.keys()}
    compared = 0
    for strategy, world_size in [("fsdp2", 1), ("fsdp2", 3), ("zero3", 4)]:
        for rank in range(world_size):
            shards = load(lib, model, strategy, rank, world_size, device)
            if shards.keys() != whole.keys():
                sys.exit(f"{strategy}: other names: {shards.keys() ^ whole.keys()}")
            for name, shard in shards.items():
                want = expected(whole[name], strategy, rank, world_size)
                if shard.device.type != device or shard.dtype != want.dtype or shard.shape != want.shape or not torch.equal(bits(shard), bits(want)):
                    sys.exit(f"{strategy} rank {rank} of {world_size}: {name} differs: {shard.dtype} {tuple(shard.shape)} on {shard.device}")
                compared += 1
    print(f"{compared} shards on {device} are what the files hold, bit for bit")


if __name__ == "__main__":
    main()
