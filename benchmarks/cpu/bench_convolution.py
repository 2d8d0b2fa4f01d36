"""The 3x3 convolutions between the blocks against PyTorch's (oneDNN), 4 images of 64x64, channels adjacent in both."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.cpu.work import FLOAT, Work
from masked_swin.kernels import convolution

PIXELS = (4, 64, 64)


def torch_convolution(x, weight, bias):
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)


@pytest.mark.parametrize(("channels", "out_channels"), [(60, 15), (15, 60), (60, 60), (180, 180)])
def test_convolution(report, channels, out_channels):
    x = torch.randn(*PIXELS, channels, requires_grad=True)
    weight = torch.randn(out_channels, channels, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    bias = torch.randn(out_channels, requires_grad=True)
    grad = torch.randn(*PIXELS, out_channels)

    def run(function):
        return lambda: torch.autograd.grad(function(x, weight, bias), [x, weight, bias], grad)

    tokens = grad.numel() // out_channels
    work = Work(3 * 9 * channels * out_channels * tokens, 3 * (channels + out_channels) * tokens * FLOAT)
    name = f"convolution forward+backward, {channels} -> {out_channels}"
    report.times(name, run(torch_convolution), run(convolution), pairs=21, work=work)
