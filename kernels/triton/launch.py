"""The one place that starts Triton kernels, and the options that they share.

Tests replace `launch` to run the kernels on an emulator.
"""

from typing import Any

import torch
from torch import Tensor

from . import tuning

# A window has one or two tiles of keys: too few for loads ahead to pay for their shared memory.
NUM_STAGES = 1


def tile_side(extent: int) -> int:
    """Return the power of two that holds `extent`, at least the 16 of a matrix instruction."""
    return max(16, 1 << (extent - 1).bit_length())


@torch.compiler.assume_constant_result  # graphs are guarded by PyTorch's own setting
def product_precision() -> str:
    """Return `input_precision` of float32 `tl.dot`: "tf32" if the user allows it and the device has it, else "ieee"."""
    exact = torch.get_float32_matmul_precision() == "highest"
    # On AMD devices, Triton has tf32 on CDNA 3 only.
    return "ieee" if exact or (torch.version.hip and tuning.architecture() != "gfx942") else "tf32"


def exact_products(dtype: torch.dtype) -> bool:
    """Whether products in `dtype` are of exact float32, for which NVIDIA's devices have no matrix instructions."""
    return dtype == torch.float32 and product_precision() == "ieee"


def arguments_of(kernel: Any, **named: Any) -> tuple[Any, ...]:
    """Return the arguments of `kernel` in its order, picked by name; its parameters in capitals are constants.

    Names that the kernel does not have are left out. Raises KeyError if one is missing.
    """
    return tuple(named[name] for name in kernel.arg_names if not name.isupper())


def compile_options(num_warps: int, maxnreg: int | None, nvidia: bool) -> dict[str, int]:
    """Return the options that Triton compiles a kernel with, besides its constants."""
    options = {"num_warps": num_warps, "num_stages": NUM_STAGES}
    return options | {"maxnreg": maxnreg} if nvidia and maxnreg is not None else options


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int, maxnreg: int | None = None, **constants: Any
) -> None:
    """Start `kernel` on the device of its first tensor.

    Args:
        arguments: in the order of the kernel's parameters.
        maxnreg: limit of registers per thread on NVIDIA devices. Without it ptxas may spill a few registers to make
            room for one more program.
        constants: the kernel's constexpr parameters.
    """
    first = next(argument for argument in arguments if isinstance(argument, Tensor))
    with torch.cuda.device_of(first):
        kernel[grid](*arguments, **compile_options(num_warps, maxnreg, torch.version.hip is None), **constants)
