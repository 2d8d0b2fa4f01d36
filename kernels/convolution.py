"""The 3x3 convolutions between the blocks, on (B, H, W, C)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .native import CPU_LIBRARY


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Stride 1, zero padding that keeps the size: x (B, H, W, I), weight (O, I, k, k), bias (O) -> (B, H, W, O).

    In float32 on the CPU 3x3 runs in this library: oneDNN is slow where a channel number is no multiple of 16, as in
    SwinIR (60 -> 15 -> 60). Everything else is PyTorch's.
    """
    ours = CPU_LIBRARY.loaded and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if ours and weight.shape[2:] == (3, 3) and {x.dtype, weight.dtype, bias.dtype} == {torch.float32}:
        out: Tensor = torch.ops.masked_swin.convolution_cpu(x, weight, bias)
        return out
    # The permutes are views in the channels-last memory format: no copy.
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2)
    return y.permute(0, 2, 3, 1).contiguous()
