#!/usr/bin/env python3
"""Makes crates/engine/src/device/kernels/cast.ptx from cast.cu beside it, with NVRTC. Needs no GPU and no CUDA toolkit.

    scripts/cuda-tools.sh                  # gets it
    python3 scripts/make-ptx.py            # writes cast.ptx
    python3 scripts/make-ptx.py --check    # compiles again and compares; exit code 77 where that very NVRTC is not found

An old NVRTC is used on purpose: its PTX is read by every driver since CUDA 12.0, and the target is the oldest that it makes sense for.
"""

import ctypes
import hashlib
import pathlib
import sys
import sysconfig

NVRTC = "12.0.76"
OPTIONS = ["--gpu-architecture=compute_70"]
SKIPPED = 77
ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCE = ROOT / "crates/engine/src/device/kernels/cast.cu"


def library():
    """The pinned NVRTC of this interpreter or of target/cuda-tools; None where there is none."""
    sites = [pathlib.Path(sysconfig.get_path("purelib")), *ROOT.glob("target/cuda-tools/lib/python3*/site-packages")]
    for site in sites:
        if (site / f"nvidia_cuda_nvrtc_cu12-{NVRTC}.dist-info").exists():
            return ctypes.CDLL(str(site / "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"))
    return None


def compile_ptx(nvrtc, source):
    program = ctypes.c_void_p()
    call = lambda name, *args: (code := getattr(nvrtc, name)(*args)) and sys.exit(f"{name}: error {code}\n{log(nvrtc, program)}")
    call("nvrtcCreateProgram", ctypes.byref(program), source, b"cast.cu", 0, None, None)
    options = (ctypes.c_char_p * len(OPTIONS))(*[o.encode() for o in OPTIONS])
    call("nvrtcCompileProgram", program, len(OPTIONS), options)
    size = ctypes.c_size_t()
    call("nvrtcGetPTXSize", program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    call("nvrtcGetPTX", program, ptx)
    # NVRTC's own constants, which nothing here uses.
    return "".join(line for line in ptx.value.decode().splitlines(keepends=True) if "nv6target" not in line)


def log(nvrtc, program):
    size = ctypes.c_size_t()
    if not program or nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)):
        return ""
    text = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, text)
    return text.value.decode()


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    nvrtc = library()
    if nvrtc is None:
        print(f"no NVRTC {NVRTC} in this interpreter or in target/cuda-tools; scripts/cuda-tools.sh gets it", file=sys.stderr)
        sys.exit(SKIPPED)
    source = SOURCE.read_bytes()
    head = f"// Made by scripts/make-ptx.py from cast.cu: do not edit.\n// sha256 of cast.cu: {hashlib.sha256(source).hexdigest()}\n"
    head += f"// NVRTC {NVRTC}, {' '.join(OPTIONS)}\n"
    ptx = head + compile_ptx(nvrtc, source).strip() + "\n"
    target = SOURCE.with_suffix(".ptx")
    if not check:
        target.write_text(ptx)
        print(f"{target.relative_to(ROOT)}: {len(ptx)} bytes")
    elif target.read_text() != ptx:
        sys.exit(f"{target.relative_to(ROOT)} is not what {SOURCE.name} compiles to; run scripts/make-ptx.py")


main()
