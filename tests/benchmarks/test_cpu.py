"""What the benchmarks count as work, against PyTorch's own count of the public network's operations."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cpu import work
from masked_swin import ModelConfig
from tests.support.public_network import PublicBlock, PublicNetwork


def macs(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2


def test_block():
    block, x = PublicBlock(24, 3, 4, 2, 2.0, img_size=8), torch.randn(2, 64, 24, requires_grad=True)
    forward, backward = work.block(2 * 64, 24, 1.0, 16, 2.0)
    assert forward.macs == macs(lambda: block(x, (8, 8)))
    y = block(x, (8, 8))
    again = forward.macs - 2 * 24**2 * 128  # computed again: all but fc2
    assert backward.macs == macs(lambda: y.sum().backward()) + again


def test_masked_tokens_need_no_qkv_and_are_no_keys():
    dense, _ = work.block(1, 60, 1.0, 64, 2.0)
    masked, _ = work.block(1, 60, 0.25, 64, 2.0)
    assert dense.macs - masked.macs == 0.75 * (3 * 60**2 + 2 * 64 * 60)


def test_visible_only_is_the_work_of_the_visible_tokens_and_a_copy_of_all():
    visible, alone = work.block(4, 60, 0.25, 64, 2.0, "visible"), work.block(1, 60, 1.0, 16, 2.0)
    assert [v.macs for v in visible] == [a.macs for a in alone]
    masked_rows = 3 * 4 * 60  # bytes
    assert [v.bytes - a.bytes for v, a in zip(visible, alone, strict=True)] == [2 * masked_rows] * 2


@pytest.mark.parametrize(("connection", "kernel"), [("3conv", 1), ("1conv", 3)])
def test_network(connection, kernel):
    options = {"embed_dim": 24, "depths": (2, 1), "num_heads": (3, 3), "window_size": 4}
    public = PublicNetwork(**options, resi_connection=connection, conv_first_kernel=kernel, img_size=16)
    config = ModelConfig(**options, resi_connection=connection, conv_first_kernel=kernel, attention_mask=None)
    forward, _ = work.network(config, 2 * 16 * 16)
    assert forward.macs == macs(lambda: public(torch.rand(2, 3, 16, 16)))


def test_attention():
    q, k, v = torch.randn(3, 5, 2, 16, 8, requires_grad=True)
    forward, backward = work.attention(5 * 16, 16, 1.0, 16)

    def run():
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v

    assert forward.macs == macs(run)
    out = run()
    assert backward.macs == macs(lambda: out.sum().backward()) + forward.macs / 2  # the scores again
