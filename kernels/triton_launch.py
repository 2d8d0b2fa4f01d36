"""The one place from which Triton kernels are started, and what all of them are started with.

The tests start them on an emulator from here, too.
"""

from typing import Any

import torch
from torch import Tensor

# A window has one or two tiles of keys: too few for loads ahead to pay for their shared memory.
NUM_STAGES = 1


def tile_side(extent: int) -> int:
    """The power of two that holds `extent`, at least the 16 of a matrix instruction."""
    return max(16, 1 << (extent - 1).bit_length())


def product_precision() -> str:
    """Of float32 products, as `tl.dot` names it: exact unless PyTorch is told that less will do."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int, **constants: Any) -> None:
    """Start `kernel` on the device of its first tensor; `constants` are its constexpr parameters."""
    first = next(argument for argument in arguments if isinstance(argument, Tensor))
    with torch.cuda.device_of(first):
        kernel[grid](*arguments, num_warps=num_warps, num_stages=NUM_STAGES, **constants)
