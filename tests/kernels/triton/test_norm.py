"""LayerNorm of a tile of rows, alone: in Triton's interpreter, and compiled for sm_80 and executed by ptxsim."""

import pytest
import torch
import triton
import triton.language as tl

from masked_swin.kernels.triton import launch
from masked_swin.kernels.triton.norm import load_rows, normalise, normalise_backward, store_rows
from tests.support.triton_on_ptxsim import Emulator


@triton.jit
def norm_kernel(
    x_ptr, index_ptr, grad_ptr, out_ptr, dx_ptr, rows, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = entry < rows
    row = tl.load(index_ptr + entry, mask=valid, other=0)
    normed, scale = normalise(load_rows(x_ptr, row, valid, CHANNELS, BLOCK_C), CHANNELS)
    grad = load_rows(grad_ptr, entry, valid, CHANNELS, BLOCK_C)
    store_rows(out_ptr, entry, valid, normed, CHANNELS, BLOCK_C)
    store_rows(dx_ptr, entry, valid, normalise_backward(grad, normed, scale, CHANNELS), CHANNELS, BLOCK_C)


def gathered_and_normalised(channels, dtype):
    """Some rows of x in any order, next to PyTorch's in float64; a mean that is large beside the deviation."""
    torch.manual_seed(0)
    x = (torch.randn(50, channels) + 10).to(dtype)
    index = torch.randperm(50)[:37].int()
    grad = torch.randn(37, channels).to(dtype)
    out, dx = torch.full_like(grad, float("nan")), torch.full_like(grad, float("nan"))
    constants = {"CHANNELS": channels, "BLOCK_C": triton.next_power_of_2(channels), "BLOCK_R": 16}
    launch.launch(norm_kernel, (3,), x, index, grad, out, dx, 37, num_warps=2, **constants)
    rows = x.double()[index.long()].requires_grad_()
    truth = torch.nn.functional.layer_norm(rows, (channels,))
    (wanted,) = torch.autograd.grad(truth, rows, grad.double())
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 2e-5 if dtype == torch.float32 else 1e-3}
    torch.testing.assert_close(out.double(), truth.detach(), **tolerance)
    torch.testing.assert_close(dx.double(), wanted, **tolerance)


@pytest.mark.parametrize("channels", [60, 96, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_interpreted(interpreted, channels, dtype):
    interpreted(gathered_and_normalised, channels, dtype)


@pytest.mark.parametrize("channels", [60, 180])
def test_compiled(channels, monkeypatch):
    emulator = Emulator()
    monkeypatch.setattr(launch, "launch", emulator.launch)
    gathered_and_normalised(channels, torch.float32)
    gathered_and_normalised(channels, torch.bfloat16)
