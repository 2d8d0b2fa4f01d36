"""One Swin block, eager public-style and ours, on the same input, parameters and mask."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.cpu import work
from masked_swin.kernels import VisibleTokens, Windows, swin_block
from tests.support.block_cases import block_weights
from tests.support.public_network import PublicBlock, windowed_keep

WINDOW, HEADS, MLP_RATIO = 8, 6, 2.0


class BlockRuns(NamedTuple):
    """What can be timed, and the work of ours, for `forward`, `backward` and both."""

    eager: dict[str, Callable[[], object]]
    ours: dict[str, Callable[[], object]]
    work: dict[str, work.Work]


def block_runs(
    channels: int,
    masked_share: float,
    *,
    mode: str = "zero",
    batch: int = 4,
    side: int = 64,
    dtype: torch.dtype = torch.float32,
) -> BlockRuns:
    """Shifted windows, `batch` images of `side` x `side`; `dtype` is what ours computes in, by autocast.

    Eager has no mode but "zero", whatever `mode` is.
    """
    torch.manual_seed(0)
    size, shift = (side, side), WINDOW // 2
    windows = Windows(side, side, (WINDOW, WINDOW), (shift, shift))
    module = PublicBlock(channels, HEADS, WINDOW, shift, MLP_RATIO, img_size=size)
    weights, parameters = block_weights(module), list(module.parameters())
    keep = torch.rand(batch, windows.tokens) >= masked_share
    visible = VisibleTokens.from_keep(keep, windows) if masked_share else None
    public_keep = windowed_keep(keep, size, WINDOW, shift) if masked_share else None
    x = torch.randn(batch, *size, channels)
    grad = torch.randn_like(x)

    def eager(x: torch.Tensor) -> torch.Tensor:
        return module(x.flatten(1, 2), size, public_keep).view(x.shape)

    def ours(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            options = {"window": (WINDOW, WINDOW), "shift": (shift, shift), "visible": visible, "mode": mode}
            return swin_block(x, weights, backend="cpu", **options)

    def runs(block: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Callable[[], object]]:
        leaf = x.clone().requires_grad_()
        kept: list[torch.Tensor] = []

        def forward() -> None:
            with torch.no_grad():
                block(x)

        def backward() -> None:
            if not kept:
                kept.append(block(leaf))
            torch.autograd.grad(kept[0], [leaf, *parameters], grad, retain_graph=True)

        def both() -> None:
            torch.autograd.grad(block(leaf), [leaf, *parameters], grad)

        return {"forward": forward, "backward": backward, "forward+backward": both}

    forward, backward = work.block(batch * side * side, channels, 1 - masked_share, WINDOW**2, MLP_RATIO, mode)
    works = {"forward": forward, "backward": backward, "forward+backward": forward + backward}
    return BlockRuns(runs(eager), runs(ours), works)
