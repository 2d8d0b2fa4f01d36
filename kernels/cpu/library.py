"""Loads the C++ library, if this machine can run one. The package imports without it."""

import ctypes
import struct
from pathlib import Path
from typing import NamedTuple

import torch


class NativeLibrary(NamedTuple):
    """A loaded library (`why_not` is None) with its instruction set, or the reason why there is none."""

    why_not: str | None
    instruction_set: str | None = None

    @property
    def loaded(self) -> bool:
        return self.why_not is None

    @property
    def bfloat16(self) -> bool:
        """Whether the instruction set has dot products of bfloat16."""
        return (self.instruction_set or "").endswith("_bf16")


def _load() -> NativeLibrary:
    found = sorted(Path(__file__).parent.glob("_cpu*.so"))
    if not found:
        return NativeLibrary(
            "the package was built without its C++ kernels; install a C++ compiler, then reinstall with "
            "pip install --no-cache-dir --force-reinstall"
        )
    try:
        if _cut_short(found[0]):
            raise OSError("the file is cut short")  # the loader would crash
        torch.ops.load_library(found[0])
        instruction_set = ctypes.CDLL(str(found[0])).masked_swin_cpu_isa
    except (OSError, RuntimeError, AttributeError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]  # torch says that it failed, the cause says why
        return NativeLibrary(f"{found[0].name} cannot be loaded here ({reason}); reinstall the package")
    instruction_set.restype = ctypes.c_char_p
    return NativeLibrary(None, instruction_set().decode())


def _cut_short(path: Path) -> bool:
    """Whether a 64-bit ELF file ends before its section table, the last thing in it."""
    with open(path, "rb") as file:
        header = file.read(64)
    if len(header) < 64 or not header.startswith(b"\x7fELF\x02\x01"):
        return False  # another format: the loader reports it
    (table,) = struct.unpack_from("<Q", header, 0x28)
    entry_size, entries = struct.unpack_from("<HH", header, 0x3A)
    return bool(table + entry_size * entries > path.stat().st_size)


# MASKED_SWIN_CPU_ISA=portable|avx2|avx512|avx512_bf16|neon_bf16 in the environment forbids better instruction sets.
CPU_LIBRARY = _load()
