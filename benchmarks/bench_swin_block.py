"""A whole Swin block against the eager public-style block: C=60, 6 heads, window 8, 4 images of 64x64."""

import pytest
import torch
from public_network import PublicBlock, windowed_keep
from test_swin_block import block_weights

from masked_swin.kernels import VisibleTokens, Windows, swin_block

SIZE, BATCH = (64, 64), 4
BARS = {(60, 0.75, False): 8.0, (60, 0.75, True): 7.0}


@pytest.mark.parametrize("channels", [60, 180])
@pytest.mark.parametrize("masked_share", [0.0, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_swin_block(report, channels, masked_share, backward):
    torch.manual_seed(0)
    shift = 4
    windows = Windows(*SIZE, (8, 8), (shift, shift))
    block = PublicBlock(channels, 6, 8, shift, 2.0, img_size=SIZE)
    weights, parameters = block_weights(block), list(block.parameters())
    keep = torch.rand(BATCH, windows.tokens) >= masked_share
    visible = VisibleTokens.from_keep(keep, windows) if masked_share else None
    public_keep = windowed_keep(keep, SIZE, 8, shift) if masked_share else None
    x = torch.randn(BATCH, *SIZE, channels, requires_grad=backward)
    flat = x.detach().flatten(1, 2).requires_grad_(backward)
    grad = torch.randn_like(x)

    def run_eager():
        with torch.set_grad_enabled(backward):
            y = block(flat, SIZE, public_keep)
        if backward:
            torch.autograd.grad(y, [flat, *parameters], grad.flatten(1, 2))

    def run_ours():
        with torch.set_grad_enabled(backward):
            y = swin_block(x, weights, window=(8, 8), shift=(shift, shift), visible=visible, backend="cpu")
        if backward:
            torch.autograd.grad(y, [x, *parameters], grad)

    what = "forward+backward" if backward else "forward"
    name = f"swin_block {what}, C={channels}, {masked_share:.0%} masked"
    report(name, run_eager, run_ours, BARS.get((channels, masked_share, backward)))
