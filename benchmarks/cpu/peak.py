"""What the machine could do at best, measured in the same run as what it does."""

import ctypes
import functools
import os
import platform
import subprocess
import tempfile
from pathlib import Path

import torch

from benchmarks.cpu.measuring import seconds
from masked_swin.kernels import CPU_LIBRARY

SOURCE = Path(__file__).parent / "peak.cpp"
X86_FLAGS = {
    "portable": [],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4"],
    "avx512_bf16": ["-march=x86-64-v4", "-mavx512bf16"],
}


def _flags() -> list[str]:
    """For the instruction set in use: a forced lesser one is compared with its own peak."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return X86_FLAGS[CPU_LIBRARY.instruction_set] if x86 and CPU_LIBRARY.instruction_set else ["-march=native"]


@functools.cache
def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "peak.so")
        options = ["-std=c++20", "-O3", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread", *_flags()]
        subprocess.run([os.environ.get("CXX", "c++"), *options, str(SOURCE), "-o", str(library)], check=True)
        loaded = ctypes.CDLL(str(library))
    for function in (loaded.fp32_macs_per_second, loaded.bf16_macs_per_second):
        function.argtypes, function.restype = [ctypes.c_int, ctypes.c_double], ctypes.c_double
    return loaded


def macs_per_second(dtype: torch.dtype = torch.float32, measured_for: float = 0.03) -> float:
    """Multiply-adds a second on all of torch's threads; bf16: of dot products, 0 if the processor has none."""
    library = _library()
    run = library.bf16_macs_per_second if dtype == torch.bfloat16 else library.fp32_macs_per_second
    return float(run(torch.get_num_threads(), measured_for))


@functools.cache
def bytes_per_second() -> float:
    """Read plus written by a copy between arrays far larger than the caches."""
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(5))
