"""The tables of the fused MLP in docs/triton-tables.md."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.tools.triton_resources import Compiled, Counted
from masked_swin.kernels import VisibleTokens, Windows
from masked_swin.kernels.triton import linear
from masked_swin.kernels.triton import mlp as triton_mlp
from masked_swin.kernels.triton.linear import Tokens
from masked_swin.kernels.triton.mlp import MlpWeights, mlp, mlp_backward
from tests.support.triton_on_ptxsim import on_ptxsim

TITLE = "MLP"
MLP_RATIO = 2
CASES = [
    ("bfloat16", 60),
    ("bfloat16", 96),
    ("bfloat16", 180),
    ("bfloat16", 240),
    ("float32", 60),
    ("tf32", 180),
]
IMAGES = {60: 64, 180: 8}  # of 64x64, for the counters
EVERY = 32  # ptxsim runs one tile or chunk of so many
PRODUCTS = {"mlp": 2, "inputs": 3, "weights": 4}  # matrix products of a kernel's formulas
ACTIVATIONS = {"x_ptr", "y_ptr", "grad_ptr", "dx_ptr"}


def start(dtype: torch.dtype, channels: int, images: int = 1, side: int = 16, tokens: Tokens | None = None) -> None:
    """Forward and backward, products in `dtype`, all else float32, as under autocast."""
    hidden = MLP_RATIO * channels
    shapes: list[Any] = [(channels,), (channels,), (hidden, channels), (hidden,), (channels, hidden), (channels,)]
    weights = MlpWeights(*(torch.randn(shape) for shape in shapes))
    x, grad = torch.randn(2, images, side, side, channels)
    scale = torch.ones(images)
    mlp(x, weights, scale, dtype, tokens)
    mlp_backward(grad, x, weights, scale, dtype, tokens)


def start_with_few_chunks(case: str, channels: int, masked: bool = False) -> None:
    """Start with few chunks: with one tile in a chunk, kernels are compiled without a loop."""
    tokens = None
    if masked:
        visible = VisibleTokens.from_keep(torch.ones(1, 256, dtype=torch.bool), Windows(16, 16, (8, 8)))
        tokens = Tokens(256, visible.token_index, visible.offsets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_mlp, "CHUNKS", 1)
        patch.setattr(linear, "WEIGHT_CHUNKS", 1)
        with products(case) as dtype:
            start(dtype, channels, tokens=tokens)


@contextmanager
def products(case: str) -> Iterator[torch.dtype]:
    """The dtype of products; "tf32" is float32 with PyTorch's setting that allows it."""
    with pytest.MonkeyPatch.context() as patch:
        if case == "tf32":
            patch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
        yield torch.float32 if case == "tf32" else getattr(torch, case)


def compiled() -> list[Compiled]:
    every = [Compiled(f"{case}, {c} channels", partial(start_with_few_chunks, case, c)) for case, c in CASES]
    of_list = [
        Compiled(f"bfloat16, {c} channels, tokens of a list", partial(start_with_few_chunks, "bfloat16", c, True))
        for c in (60, 180)
    ]
    return every + of_list


def counted() -> list[Counted]:
    """Every kernel in bf16; a sample of the tiles is run."""
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
