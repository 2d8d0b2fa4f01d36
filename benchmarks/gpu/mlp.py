"""The MLP half of a Swin block, x + MLP(LayerNorm(x)), 64 images of 64x64, in bf16 under autocast."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.measuring import Comparison, Way
from masked_swin.kernels.triton.mlp import MlpWeights, mlp, mlp_backward

MLP_RATIO = 2


def eager(x: Tensor, scale: Tensor, dtype: torch.dtype, *weights: Tensor) -> Tensor:
    """PyTorch's operators, with the drop-path factor of each image."""
    norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias = weights
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        hidden = F.linear(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias), fc1_weight, fc1_bias)
        return x + F.linear(F.gelu(hidden), fc2_weight, fc2_bias) * scale.to(dtype).view(-1, 1, 1, 1)


class Fused(torch.autograd.Function):
    """The fused functions, as the block's operator calls them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, dtype: torch.dtype, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, *weights)
        ctx.dtype = dtype
        return mlp(x, MlpWeights(*weights), scale, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, *weights = ctx.saved_tensors
        dx, d_weights = mlp_backward(grads[0], x, MlpWeights(*weights), scale, ctx.dtype)
        return dx, None, None, *d_weights


def comparisons(
    device: str,
    *,
    batch: int = 64,
    side: int = 64,
    channels: tuple[int, ...] = (60, 96, 180),
    dtype: torch.dtype = torch.bfloat16,
    compiler: Callable[[Any], Any] = torch.compile,
) -> Iterator[Comparison]:
    for c in channels:
        hidden = MLP_RATIO * c
        shapes = (c,), (c,), (hidden, c), (hidden,), (c, hidden), (c,)
        weights = [torch.randn(shape, device=device) / shape[-1] ** 0.5 for shape in shapes]
        x = torch.randn(batch, side, side, c, device=device)
        leaves = [leaf.requires_grad_() for leaf in (x, *weights)]
        scale = torch.rand(batch, device=device)
        compiled = compiler(eager)
        ways = {
            "eager": lambda x=x, w=weights, s=scale: eager(x, s, dtype, *w),
            "torch.compile": lambda x=x, w=weights, s=scale, run=compiled: run(x, s, dtype, *w),
            "masked_swin": lambda x=x, w=weights, s=scale: Fused.apply(x, s, dtype, *w),
        }
        yield Comparison(f"mlp, C={c}", {name: Way(run, leaves) for name, run in ways.items()})
