"""The one place from which Triton kernels are started, and what all of them are started with.

The tests start them on an emulator from here, too.
"""

from typing import Any

import torch
from torch import Tensor

from . import tuning

# A window has one or two tiles of keys: too few for loads ahead to pay for their shared memory.
NUM_STAGES = 1


def tile_side(extent: int) -> int:
    """The power of two that holds `extent`, at least the 16 of a matrix instruction."""
    return max(16, 1 << (extent - 1).bit_length())


@torch.compiler.assume_constant_result  # graphs are guarded by PyTorch's own setting
def product_precision() -> str:
    """Of float32 products, as `tl.dot` names it: exact unless PyTorch is told that less will do, and the device can."""
    exact = torch.get_float32_matmul_precision() == "highest"
    # Of AMD's devices, Triton has tf32 on CDNA 3 only.
    return "ieee" if exact or (torch.version.hip and tuning.architecture() != "gfx942") else "tf32"


def exact_products(dtype: torch.dtype) -> bool:
    """Whether products in `dtype` are of exact float32, for which NVIDIA's devices have no matrix instructions."""
    return dtype == torch.float32 and product_precision() == "ieee"


def compile_options(num_warps: int, maxnreg: int | None, nvidia: bool) -> dict[str, int]:
    """What Triton compiles a kernel with, besides its constants."""
    options = {"num_warps": num_warps, "num_stages": NUM_STAGES}
    return options | {"maxnreg": maxnreg} if nvidia and maxnreg is not None else options


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int, maxnreg: int | None = None, **constants: Any
) -> None:
    """Start `kernel` on the device of its first tensor; `constants` are its constexpr parameters.

    maxnreg: the registers that a thread may have on NVIDIA devices. Without a limit ptxas may spill a few of them to
        make room for one more program.
    """
    first = next(argument for argument in arguments if isinstance(argument, Tensor))
    with torch.cuda.device_of(first):
        kernel[grid](*arguments, **compile_options(num_warps, maxnreg, torch.version.hip is None), **constants)
