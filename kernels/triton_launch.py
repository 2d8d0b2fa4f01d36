"""The one place from which Triton kernels are started; the tests start them on an emulator from here, too."""

from typing import Any

import torch
from torch import Tensor

# A window has one or two tiles of keys: too few for loads ahead to pay for their shared memory.
NUM_STAGES = 1


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int, **constants: Any) -> None:
    """Start `kernel` on the device of its first tensor; `constants` are its constexpr parameters."""
    first = next(argument for argument in arguments if isinstance(argument, Tensor))
    with torch.cuda.device_of(first):
        kernel[grid](*arguments, num_warps=num_warps, num_stages=NUM_STAGES, **constants)
