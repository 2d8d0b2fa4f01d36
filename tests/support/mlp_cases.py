"""The fused MLP for the tests: inputs by shape, PyTorch's operators, and errors against float64."""

import pytest
import torch
from torch.nn import functional as F

from masked_swin.kernels.triton.linear import Tokens
from masked_swin.kernels.triton.mlp import MlpWeights, mlp, mlp_backward
from tests.support.attention_cases import relative_error

SHAPES = {
    "published": {},
    "180 channels": {"channels": 180, "hidden": 360, "tokens": 20},
    "240 channels": {"channels": 240, "hidden": 480, "tokens": 20},
    "96 channels": {"channels": 96, "hidden": 384, "tokens": 20},
    "odd": {"channels": 7, "hidden": 10, "batch": 2, "tokens": 37},
}


def make_case(channels=60, hidden=120, batch=3, tokens=45):
    """x, weights and scale in float64; LayerNorm's weight and bias far from 1 and 0, an image with scale 0."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = random(batch, tokens, channels) + 0.5
    weights = MlpWeights(
        random(channels),
        random(channels),
        random(hidden, channels) / channels**0.5,
        random(hidden),
        random(channels, hidden) / hidden**0.5,
        random(channels),
    )
    scale = torch.tensor([1.25, 0.0, 0.7][:batch], dtype=torch.float64)
    return x, weights, scale, random(batch, tokens, channels)


def eager(x, weights, scale, dtype=None, keep=None):
    """PyTorch's operators, with products in `dtype`, as under autocast. Tokens outside of `keep` stay."""
    norm_weight, norm_bias, *fc = weights
    normed = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias).to(dtype or x.dtype)
    fc1, b1, fc2, b2 = (tensor.to(normed.dtype) for tensor in fc)
    branch = F.linear(F.gelu(F.linear(normed, fc1, b1)), fc2, b2)
    y = x + (branch if scale is None else branch * scale.view(-1, 1, 1).to(branch.dtype))
    return y if keep is None else torch.where(keep[..., None], y, x)


def list_of(keep):
    """The list of visible tokens as on a device: with room for every token, and in an order of its own."""
    visible = keep.flatten().nonzero().flatten().flip(0)
    index = visible.new_zeros(keep.numel())
    index[: len(visible)] = visible
    offsets = torch.tensor([0, len(visible) // 2, len(visible)], dtype=torch.int32, device=keep.device)
    return Tokens(len(index), index, offsets)


def errors(dtype, stream=None, with_scale=True, device="cpu", share=None, precision="highest", **shape):
    """Errors of y and every gradient against float64: ours, and PyTorch's.

    stream: the dtype of x and weights.
    share: of visible tokens in a list; None = no list.
    precision: PyTorch's setting for float32 products; the interpreter's are exact anyway.
    """
    stream = stream or dtype
    x, weights, scale, grad = make_case(**shape)
    scale = scale.to(device) if with_scale else None
    keep = None if share is None else torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(1)) < share
    if keep is not None:
        keep = keep.to(device)
    tokens = None if keep is None else list_of(keep)
    found = {}

    def gradients(x, weights, grad, dtype=None):
        leaves = [tensor.detach().requires_grad_() for tensor in (x, *weights)]
        y = eager(leaves[0], MlpWeights(*leaves[1:]), scale, dtype, keep)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad)]

    x, grad, *weights = (tensor.to(device, stream) for tensor in (x, grad, *weights))
    truth = gradients(x.double(), [w.double() for w in weights], grad.double())
    theirs = gradients(x, weights, grad, dtype)
    scale32 = None if scale is None else scale.float()
    weights = MlpWeights(*weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
        dx, d_weights = mlp_backward(grad, x, weights, scale32, dtype, tokens)
        ours = [mlp(x.clone(), weights, scale32, dtype, tokens), dx, *d_weights]
    for name, wanted, value, yardstick in zip(("y", "dx", *MlpWeights._fields), truth, ours, theirs, strict=True):
        assert value.dtype == stream
        assert value.shape == wanted.shape
        found[name] = relative_error(value, wanted), relative_error(yardstick, wanted)
    return found
