"""The attention operation against eager operators, published shape: C=60, 6 heads, window 8, 4 images of 64x64."""

import pytest
import torch

from benchmarks.cpu import work
from masked_swin.kernels import VisibleTokens, Windows, window_attention

HEADS, HEAD_DIM, BATCH = 6, 10, 4
WINDOWS = Windows(64, 64, (8, 8), (0, 0))


def eager(qkv, bias):
    """What the public module computes between its qkv and its projection."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    attention = (q * HEAD_DIM**-0.5) @ k.transpose(-2, -1) + bias
    return (attention.softmax(-1) @ v).transpose(1, 2).reshape(len(q), WINDOWS.size, -1)


@pytest.mark.parametrize("masked_share", [0.0, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_window_attention(report, masked_share, backward):
    torch.manual_seed(0)
    full = torch.randn(BATCH * WINDOWS.count, WINDOWS.size, 3, HEADS, HEAD_DIM, requires_grad=backward)
    bias = torch.randn(HEADS, WINDOWS.size, WINDOWS.size, requires_grad=backward)
    plan = VisibleTokens.from_keep(torch.rand(BATCH, WINDOWS.tokens) >= masked_share, WINDOWS)
    rows = torch.randn(len(plan.token_index), 3, HEADS, HEAD_DIM, requires_grad=backward)
    masked = torch.randn(3, HEADS, HEAD_DIM, requires_grad=backward)
    grad = torch.randn(BATCH * WINDOWS.count, WINDOWS.size, HEADS * HEAD_DIM)

    def run_eager():
        out = eager(full, bias)
        if backward:
            torch.autograd.grad(out, [full, bias], grad)

    def run_ours():
        # Nothing masked: dense, as other nets call it.
        if masked_share:
            out = window_attention(
                *rows.unbind(1),
                bias,
                scale=HEAD_DIM**-0.5,
                visible=plan,
                shared_qkv=tuple(masked.unbind()),
                backend="cpu",
            )
            inputs = [rows, bias, masked]
        else:
            out = window_attention(*full.unbind(2), bias, scale=HEAD_DIM**-0.5, backend="cpu")
            inputs = [full, bias]
        if backward:
            torch.autograd.grad(out.flatten(2), inputs, grad)

    forward_work, backward_work = work.attention(
        BATCH * WINDOWS.tokens, HEADS * HEAD_DIM, 1 - masked_share, WINDOWS.size
    )
    name = f"window_attention {'forward+backward' if backward else 'forward'}, {masked_share:.0%} masked"
    ratio = report.times(name, run_eager, run_ours, work=forward_work + backward_work if backward else forward_work)
    assert ratio > 1, "slower than the eager operators"
