"""The tables of swin_block in docs/triton-tables.md: linear layers around the attention, and the sum of all kernels."""

from functools import partial

import torch
from torch import Tensor

from benchmarks.tools.triton_attention import _Bytes
from benchmarks.tools.triton_mlp import products
from benchmarks.tools.triton_resources import Compiled, Counted
from masked_swin.kernels import VisibleTokens, Windows, token_mask
from masked_swin.kernels.triton import linear
from masked_swin.kernels.triton.window_attention import padded_head_dim
from tests.support.block_cases import run
from tests.support.public_network import PublicBlock, windowed_keep
from tests.support.triton_on_ptxsim import Launch, on_ptxsim

TITLE = "Swin block"
BATCH, SIDE, CHANNELS, HEADS = 64, 64, 60, 6
EVERY = 64  # ptxsim runs one program of so many
WINDOWS = Windows(SIDE, SIDE, (8, 8), (4, 4))
CASES = [
    ("bfloat16", 60, 6),
    ("bfloat16", 96, 3),
    ("bfloat16", 180, 6),
    ("bfloat16", 240, 8),
    ("float32", 60, 6),
    ("tf32", 180, 6),
]
LINEAR = {"tokens_to_heads", "projection", "norm_backward", "weight_gradient"}
ACTIVATIONS = {
    *("x_ptr", "y_ptr", "heads_ptr", "out_ptr", "dx_ptr", "grad_ptr"),
    *("q_ptr", "k_ptr", "v_ptr", "dq_ptr", "dk_ptr", "dv_ptr"),
}


def linear_layers(dtype: torch.dtype, channels: int, heads: int, only_visible: bool = False) -> None:
    """Start every kernel of linear_kernels.py, on a small image with a mask."""
    windows = Windows(8, 16, (8, 8), (4, 4))
    head_dim = channels // heads
    layout = linear.Layout(windows, heads, head_dim, padded_head_dim(head_dim, dtype), dtype)
    visible = VisibleTokens.from_keep(torch.rand(1, windows.tokens) < 0.25, windows)
    listed = linear.Tokens(len(visible.token_index), visible.token_index, visible.offsets)
    tokens = listed if only_visible else linear.Tokens(windows.tokens)
    x, channel = torch.zeros(1, 8, 16, channels), torch.zeros(channels)
    packed = linear.pack_qkv(layout, torch.zeros(3 * channels, channels), torch.zeros(3 * channels), (channel, channel))
    qkv = linear.tokens_to_heads(layout, x, listed, packed)
    projection = linear.pack_projection(layout, torch.zeros(channels, channels))
    out = linear.tokens_to_heads(layout, x, tokens, projection, torch.ones(1))
    linear.project(layout, out, tokens, projection, channel, x, torch.ones(1))
    linear.add_norm_gradient(layout, qkv, listed, packed, x, x)
    linear.weight_gradient(layout, qkv, listed, x, norm=True)
    linear.weight_gradient(layout, out, tokens, x, torch.ones(1), norm=False)


def start(case: str, channels: int, heads: int, only_visible: bool = False) -> None:
    with products(case) as dtype:
        linear_layers(dtype, channels, heads, only_visible)


def compiled() -> list[Compiled]:
    every = [Compiled(f"{case[0]}, {case[1]} channels, {case[2]} heads", partial(start, *case)) for case in CASES]
    visible = [
        Compiled(f"bfloat16, {c} channels, 6 heads, mode `visible`", partial(start, "bfloat16", c, 6, True))
        for c in (60, 180)
    ]
    return every + visible


def keep() -> Tensor:
    """75 % of the tokens masked."""
    return ~token_mask(torch.tensor(1), torch.tensor(0), torch.arange(BATCH), WINDOWS.tokens, 0.75, backend="reference")


def launches(mode: str) -> list[Launch]:
    """Forward and backward pass of the published block under autocast, a sample of each kernel's programs run."""
    with on_ptxsim(every=EVERY, checks=False) as emulator:
        run(mode, torch.float32, "triton", mask=keep(), size=(SIDE, SIDE), batch=BATCH, autocast=True)
    return emulator.launches


def counted() -> list[Counted]:
    found = {}
    tokens = BATCH * SIDE * SIDE
    visible = keep().sum().item()
    for launch in launches("zero"):
        kernel = launch.kernel.removesuffix("_kernel")
        if kernel in LINEAR:
            of_qkv = kernel == "norm_backward" or "token_index_ptr" in launch.arguments
            flops = 2 * CHANNELS**2 * (3 * visible if of_qkv else tokens)
            case = kernel if kernel == "projection" else f"{kernel}, {'q, k, v' if of_qkv else 'projection'}"
            found[case] = Counted(case, launch, BATCH * WINDOWS.count, ACTIVATIONS, flops)
    return [*found.values()]


def kib_of_a_window(launch: Launch) -> float:
    """KiB of unique sectors that a kernel reads and writes, of all its arguments."""
    stats = launch.stats
    assert stats is not None
    scale = stats.ctas_total / stats.ctas_run
    sectors = sum(a.sectors_read + a.sectors_written for a in stats.arguments)
    return sectors * scale / 32 / BATCH / WINDOWS.count


def eager_kib() -> tuple[float, float]:
    """KiB a window that the public code's operators read and write under autocast, forward and backward."""
    block = PublicBlock(CHANNELS, HEADS, 8, 4, 2.0, img_size=(SIDE, SIDE))
    x = torch.randn(1, SIDE * SIDE, CHANNELS, requires_grad=True)
    visible = windowed_keep(keep()[:1], (SIDE, SIDE), 8, 4)
    with _Bytes() as counted_bytes:
        with torch.autocast("cpu", torch.bfloat16):
            y = block(x, (SIDE, SIDE), visible)
        forward = counted_bytes.total
        y.sum().backward()
    return forward / 1024 / WINDOWS.count, (counted_bytes.total - forward) / 1024 / WINDOWS.count


def passes(mode: str) -> list[tuple[int, float]]:
    """The number of kernels of the forward and of the backward pass, and the KiB a window that they move."""
    kernels = launches(mode)
    last = 1 + max(i for i, launch in enumerate(kernels) if launch.kernel == "mlp_kernel")
    return [(len(part), sum(map(kib_of_a_window, part))) for part in (kernels[:last], kernels[last:])]


def notes() -> list[str]:
    (count, forward), (count_backward, backward) = passes("zero")
    (_, visible_forward), (_, visible_backward) = passes("visible")
    copy = 2 * 4 * CHANNELS * WINDOWS.size / 1024
    eager_forward, eager_backward = eager_kib()
    return [
        f"The {count} kernels of a block's forward pass read and write {forward:.0f} KiB a window, the "
        f"{count_backward} of its backward pass {backward:.0f} KiB: the unique sectors of every argument. "
        f"In mode `visible` they move {visible_forward:.0f} and {visible_backward:.0f} KiB, and copies of x and of the "
        f"gradient move {copy:.0f} KiB each. "
        f"PyTorch's eager operators for the public code move {eager_forward:.0f} and {eager_backward:.0f} KiB, each "
        "operator's inputs and outputs counted once. Masks and lists are left out of both, and sums of partial "
        "gradients out of ours."
    ]
