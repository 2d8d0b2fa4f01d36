"""The convolutions between the blocks, on (B, H, W, C)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import REGISTRY, Backend, choose, not_float32
from .cpu.library import CPU_LIBRARY


class ConvolutionInputs(NamedTuple):
    """What a backend is asked to compute."""

    x: Tensor
    weight: Tensor
    bias: Tensor


def convolution(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str | None = None) -> Tensor:
    """Stride 1, zero padding that keeps the size: x (B, H, W, I), weight (O, I, k, k), bias (O) -> (B, H, W, O).

    `backend` is "cpu", "reference" (PyTorch's), or None for the first that can run; ValueError if it cannot.
    """
    inputs = ConvolutionInputs(x, weight, bias)
    out: Tensor = choose("convolution", inputs, backend).run(inputs)
    return out


def _cpu_why_not(inputs: ConvolutionInputs) -> str | None:
    """3x3 in float32: oneDNN is slow where a channel number is no multiple of 16, as in SwinIR (60 -> 15 -> 60)."""
    x, weight, _ = inputs
    if x.device.type != "cpu":
        return f"needs CPU tensors, got {x.device}"
    if weight.shape[2:] != (3, 3):
        return f"needs a 3x3 kernel, got {tuple(weight.shape[2:])}"
    if torch.is_autocast_enabled("cpu"):
        return "under autocast convolutions are computed in its dtype, and this one computes in float32"
    return not_float32(inputs)


def _run_cpu(inputs: ConvolutionInputs) -> Tensor:
    out: Tensor = torch.ops.masked_swin.convolution_cpu(*inputs)
    return out


def _reference(inputs: ConvolutionInputs) -> Tensor:
    x, weight, bias = inputs
    # The permutes are views in the channels-last memory format: no copy.
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2)
    return y.permute(0, 2, 3, 1).contiguous()


REGISTRY["convolution"] += [
    Backend("cpu", _run_cpu, _cpu_why_not, lambda: CPU_LIBRARY.why_not),
    Backend("reference", _reference, lambda inputs: None),
]
