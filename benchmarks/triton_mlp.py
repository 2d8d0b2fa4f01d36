"""What of the fused MLP is in the tables of kernels/TRITON.md."""

from functools import partial
from typing import Any

import pytest
import torch
from triton_on_ptxsim import on_ptxsim
from triton_resources import Compiled, Counted

from masked_swin.kernels import triton_mlp
from masked_swin.kernels.triton_mlp import MlpWeights, mlp, mlp_backward

TITLE = "MLP"
MLP_RATIO = 2
CASES = [
    (torch.bfloat16, 60),
    (torch.bfloat16, 96),
    (torch.bfloat16, 180),
    (torch.bfloat16, 240),
    (torch.float32, 60),
]
IMAGES = {60: 64, 180: 8}  # of 64x64, for the counters
EVERY = 32  # ptxsim runs one tile or chunk of rows of so many
PRODUCTS = {"mlp": 2, "inputs": 3, "weights": 4}  # matrix products of a kernel's formulas
ACTIVATIONS = {"x_ptr", "y_ptr", "grad_ptr", "dx_ptr"}


def start(dtype: torch.dtype, channels: int, images: int = 1, side: int = 16) -> None:
    """Forward and backward, products in `dtype`, all else float32, as under autocast."""
    hidden = MLP_RATIO * channels
    shapes: list[Any] = [(channels,), (channels,), (hidden, channels), (hidden,), (channels, hidden), (channels,)]
    weights = MlpWeights(*(torch.randn(shape) for shape in shapes))
    x, grad = torch.randn(2, images, side, side, channels)
    scale = torch.ones(images)
    mlp(x, weights, scale, dtype)
    mlp_backward(grad, x, weights, scale, dtype)


def start_with_few_chunks(dtype: torch.dtype, channels: int) -> None:
    """A chunk of one tile only would be compiled without a loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_mlp, "CHUNKS", 1)
        start(dtype, channels)


def compiled() -> list[Compiled]:
    found = []
    for dtype, channels in CASES:
        run = partial(start_with_few_chunks, dtype, channels)
        found.append(Compiled(f"{str(dtype)[6:]}, {channels} channels", run))
    return found


def counted() -> list[Counted]:
    """Every kernel in bf16, a sample of the rows run."""
    found = []
    for channels, images in IMAGES.items():
        with on_ptxsim(every=EVERY, checks=False) as emulator:  # kernels read what others, not run, have not written
            start(torch.bfloat16, channels, images, 64)
        windows = images * 64
        for launch in emulator.launches:
            kernel = launch.kernel.removesuffix("_kernel")
            if kernel in PRODUCTS:
                flops = PRODUCTS[kernel] * 2 * MLP_RATIO * channels**2 * 64 * windows
                found.append(Counted(f"{kernel}, {channels} channels", launch, windows, ACTIVATIONS, flops))
    return found


def notes() -> list[str]:
    return []
