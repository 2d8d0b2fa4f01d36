"""The bias of masked keys as one, and its gradient, over windows that are grouped by their shift regions."""

import math

import pytest
import torch

from masked_swin.kernels import VisibleTokens, Windows
from masked_swin.kernels.geometry import shift_regions
from masked_swin.kernels.triton import window_attention as triton_backend
from masked_swin.kernels.triton.attention_call import LOG2E

HEADS, HEAD_DIM = 2, 4


def attend(windows, batch, regions):
    """The masked bias of a call in its window order, and the gradient of the position bias."""
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(batch, windows.tokens, generator=generator) < 0.4
    plan = VisibleTokens.from_keep(keep, windows)
    q, k, v = torch.randn(3, len(plan.token_index), HEADS, HEAD_DIM, generator=generator)
    bias = torch.randn(HEADS, windows.size, windows.size, generator=generator)
    masked = torch.randn(3, HEADS, HEAD_DIM, generator=generator)
    call = triton_backend.prepare(q, k, v, bias, masked, plan.offsets, plan.position, regions, None, 0.5)
    out = torch.empty(batch * windows.count, windows.size, HEADS, HEAD_DIM)
    stats = torch.empty(HEADS, 3, out.shape[0] * windows.size)
    triton_backend.run_forward(call, out, stats)
    grad = torch.randn(out.shape, generator=generator)
    d_bias, _ = triton_backend.run_backward(call, grad, out, stats, *(torch.empty_like(t) for t in (q, k, v)))
    foreign = shift_regions(windows)[:, :, None] != shift_regions(windows)[:, None, :]
    added = bias.double()[:, None, None] - 100.0 * foreign  # (heads, 1, windows, queries, keys)
    added = added.masked_fill(plan.keep.view(batch, windows.count, 1, windows.size), -math.inf)
    return call.shared_bias / LOG2E, added.logsumexp(-1).flatten(1, 2), d_bias


def check(windows, batch):
    down, across = windows.height // windows.window[0], windows.width // windows.window[1]
    regions = shift_regions(windows).int()
    ours, wanted, d_bias = attend(windows, batch, regions.view(down, across, -1))
    torch.testing.assert_close(ours.double(), wanted, rtol=1e-6, atol=1e-5)
    every_window_apart = attend(windows, batch, regions)[2]
    torch.testing.assert_close(d_bias, every_window_apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("windows", "batch"),
    [
        (Windows(2, 3, (2, 3), (1, 2)), 1),
        (Windows(12, 18, (2, 3), (1, 1)), 2),  # more windows than a group holds
        *(
            pytest.param(Windows(2 * down, 3 * across, (2, 3), shift), batch, marks=pytest.mark.slow)
            for down, across, shift in [(1, 3, (1, 2)), (4, 1, (1, 2)), (3, 3, (0, 2)), (3, 3, (1, 0))]
            for batch in (1, 3)
        ),
    ],
    ids=str,
)
def test_windows_of_a_cyclic_shift(interpreted, windows, batch):
    interpreted(check, windows, batch)
