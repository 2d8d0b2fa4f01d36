"""A whole Swin block, 6 heads, shifted 8x8 windows, 64 images of 64x64, in bf16 under autocast."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.measuring import Comparison, Way
from masked_swin.kernels import VisibleTokens, Windows, swin_block
from tests.support.block_cases import block_weights
from tests.support.public_network import PublicBlock, windowed_keep

WINDOW, SHIFT, HEADS, MLP_RATIO = (8, 8), (4, 4), 6, 2.0


def comparisons(
    device: str,
    *,
    batch: int = 64,
    side: int = 64,
    channels: tuple[int, ...] = (60, 180),
    masked: tuple[float, ...] = (0.0, 0.5, 0.75, 0.9),
    dtype: torch.dtype = torch.bfloat16,
    compiler: Callable[[Any], Any] = torch.compile,
) -> Iterator[Comparison]:
    """The public block, the same compiled, ours of PyTorch's layers and the attention kernel, and ours fused."""
    for c in channels:
        for share in masked:
            ways = _ways(device, batch, side, c, share, dtype, compiler)
            yield Comparison(f"swin_block, C={c}, {share:.0%} masked", ways)


def _ways(
    device: str, batch: int, side: int, channels: int, share: float, dtype: torch.dtype, compiler: Callable[[Any], Any]
) -> dict[str, Way]:
    size = (side, side)
    windows = Windows(*size, WINDOW, SHIFT)
    block = PublicBlock(channels, HEADS, WINDOW[0], SHIFT[0], MLP_RATIO, img_size=size).to(device)
    compiled = compiler(block)
    weights = block_weights(block)
    keep = torch.rand(batch, windows.tokens, device=device) >= share
    visible = VisibleTokens.from_keep(keep, windows) if share else None
    public_keep = windowed_keep(keep, size, WINDOW[0], SHIFT[0]) if share else None
    x = torch.randn(batch, *size, channels, device=device, requires_grad=True)

    def public(module: Any) -> Tensor:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return module(x.flatten(1, 2), size, public_keep).view(x.shape)

    def ours(backend: str | None) -> Tensor:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return swin_block(x, weights, window=WINDOW, shift=SHIFT, visible=visible, backend=backend)

    ways = {
        "eager": lambda: public(block),
        "torch.compile": lambda: public(compiled),
        "masked_swin, composed": lambda: ours("composed"),
        "masked_swin": lambda: ours(None),
    }
    leaves = [x, *block.parameters()]
    return {name: Way(run, leaves) for name, run in ways.items()}
