"""The attention operation: against eager operators in the published shape (C=60, 6 heads, window 8, 4 images of 64x64),
and dense, as other nets call it, against its floor and PyTorch's fused attention."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.cpu import peak, work
from benchmarks.cpu.measuring import seconds
from masked_swin.kernels import CPU_LIBRARY, VisibleTokens, Windows, window_attention

HEADS, HEAD_DIM, BATCH = 6, 10, 4
WINDOWS = Windows(64, 64, (8, 8), (0, 0))
DENSE_TOKENS = 16384
DENSE_SIZES = pytest.mark.parametrize(
    ("size", "head_dim"), [(49, 32), (64, 30), (64, 32), (144, 30), (256, 30), (256, 32)]
)
BARRED_SIZES = (64, 256)
AVX512 = (CPU_LIBRARY.instruction_set or "").startswith("avx512")
RATES = {"forward": 0.6 if AVX512 else 0.5, "forward+backward": 0.5 if AVX512 else 0.45}  # of the FMA peak
SDPA_BAR = 2.0 if AVX512 else 1.5


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


def dense_inputs(size, head_dim):
    """qkv (windows, size, 3, heads, head_dim), as a qkv product makes it, and bias."""
    torch.manual_seed(0)
    return torch.randn(DENSE_TOKENS // size, size, 3, HEADS, head_dim), torch.randn(HEADS, size, size)


@DENSE_SIZES
@pytest.mark.parametrize("what", RATES)
def test_dense_rate(report, size, head_dim, what):
    """Here the baseline is the time that the multiply-adds take at the bar's share of the peak."""
    qkv, bias = (t.requires_grad_(what != "forward") for t in dense_inputs(size, head_dim))
    grad = torch.randn(len(qkv), size, HEADS, head_dim)

    def run():
        out = window_attention(*qkv.unbind(2), bias, scale=head_dim**-0.5, backend="cpu")
        if what != "forward":
            torch.autograd.grad(out, [qkv, bias], grad)

    forward, backward = work.attention(len(qkv) * size, HEADS * head_dim, 1.0, size)
    macs = forward.macs if what == "forward" else (forward + backward).macs
    run()
    pairs = []
    for _ in range(21):
        rate = peak.macs_per_second()
        run()  # wakes torch's threads, which slept meanwhile
        pairs.append((macs / (rate * RATES[what]) * 1e3, seconds(run) * 1e3))
    name = f"rate of window_attention {what} / {RATES[what]:.0%} of peak, N={size}, heads of {head_dim}"
    report.row(name, pairs, "ms", bar=1.0 if size in BARRED_SIZES else None, peak_gflops=2e-9 * rate)


@DENSE_SIZES
@torch.no_grad()
def test_dense_against_sdpa(report, size, head_dim):
    qkv, bias = dense_inputs(size, head_dim)
    heads_first = [t.transpose(1, 2) for t in qkv.unbind(2)]

    def run_sdpa():
        F.scaled_dot_product_attention(*heads_first, attn_mask=bias[None], scale=head_dim**-0.5)

    def run_ours():
        window_attention(*qkv.unbind(2), bias, scale=head_dim**-0.5, backend="cpu")

    forward, _ = work.attention(len(qkv) * size, HEADS * head_dim, 1.0, size)
    bar = SDPA_BAR if size in BARRED_SIZES else None
    name = f"window_attention forward, N={size}, heads of {head_dim} / SDPA"
    report.times(name, run_sdpa, run_ours, bar=bar, work=forward)
