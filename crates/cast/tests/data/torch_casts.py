"""torch_casts.py > torch_casts.tsv: digests of torch's casts between all pairs of float dtypes, over inputs that cast.rs makes likewise.

Columns: source dtype, destination dtype, elements, sha256 over the little-endian results. All inputs of 8- and 16-bit dtypes are taken;
of float32 and float64 those around every boundary of a smaller dtype, and pseudo-random ones. NaN results in bfloat16 count as 0x7fc0:
torch's scalar code makes that of any NaN, its vector code 0xffff.
"""
import hashlib

import numpy as np
import torch

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
INTS = {1: (np.uint8, torch.uint8), 2: (np.uint16, torch.int16), 4: (np.uint32, torch.int32), 8: (np.uint64, torch.int64)}


def splitmix64(count):
    with np.errstate(over="ignore"):
        z = (np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def inputs32():
    """Every value that has only 16 upper bits, and every float16, each with offsets around the halfway points of the smaller dtypes."""
    upper = np.arange(65536, dtype=np.uint32) << np.uint32(16)
    half = np.arange(65536, dtype=np.uint16).view(np.float16)
    half = half[np.isfinite(half)].astype(np.float32).view(np.uint32)
    around16 = [upper + np.uint32(o) for o in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    around_half = [half + np.uint32(o) for o in (0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF)]
    return np.concatenate(around16 + around_half + [(splitmix64(1 << 18) >> np.uint64(32)).astype(np.uint32)])


def inputs64():
    """The float32 inputs, each with offsets around the halfway points of float32, then random bits, then random bits in float32's range."""
    wide = inputs32()
    wide = wide.view(np.float32)
    wide = wide[np.isfinite(wide)].astype(np.float64).view(np.uint64)
    offsets = [np.uint64(o) for o in (0, 1, (1 << 28) - 1, 1 << 28, (1 << 28) + 1)]
    bits = splitmix64(1 << 18)
    exponent = np.uint64(1023 - 160) + (bits >> np.uint64(52)) % np.uint64(300)
    near = (bits & np.uint64(0x800FFFFFFFFFFFFF)) | (exponent << np.uint64(52))
    return np.concatenate([wide + o for o in offsets] + [bits, near])


def inputs(dtype):
    if dtype == torch.float64:
        return inputs64()
    if dtype == torch.float32:
        return inputs32()
    return np.arange(1 << (8 * dtype.itemsize), dtype=np.uint32).astype(INTS[dtype.itemsize][0])


for source in DTYPES:
    bits = inputs(source)
    tensor = torch.from_numpy(bits.view(np.int64 if source.itemsize == 8 else bits.dtype)).view(source)
    for target in DTYPES:
        if target == source:
            continue
        out = tensor.to(target)
        raw = out.view(INTS[target.itemsize][1]).numpy().view(INTS[target.itemsize][0]).copy()
        if target == torch.bfloat16:
            raw[torch.isnan(out).numpy()] = 0x7FC0
        print(str(source)[6:], str(target)[6:], len(raw), hashlib.sha256(raw.tobytes()).hexdigest(), sep="\t")
