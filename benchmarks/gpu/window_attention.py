"""window_attention beside what PyTorch has: 60 channels, 6 heads, 8x8 windows, 64 images of 64x64, bf16.

The masked forms compute the published attention mask; dense attention computes it from full windows, as PyTorch's ways
have to at any share of masked tokens.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.measuring import Comparison, Way
from masked_swin.kernels import VisibleTokens, Windows, window_attention

HEADS, HEAD_DIM = 6, 10
SCALE = HEAD_DIM**-0.5


def eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The public module's operators, on (windows, heads, tokens, head_dim)."""
    return ((q * SCALE) @ k.transpose(-2, -1) + bias).softmax(-1) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=SCALE)


def flex(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    def add_bias(score: Tensor, window: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + bias[head, query, key]

    return flex_attention(q, k, v, score_mod=add_bias, scale=SCALE)  # type: ignore[return-value]


def comparisons(
    device: str,
    *,
    batch: int = 64,
    side: int = 64,
    masked: tuple[float, ...] = (0.5, 0.75, 0.9),
    dtype: torch.dtype = torch.bfloat16,
    compiler: Callable[[Any], Any] = torch.compile,
) -> Iterator[Comparison]:
    windows = Windows(side, side, (8, 8), (0, 0))

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype).requires_grad_()

    qkv = [leaf(batch * windows.count, windows.size, HEADS, HEAD_DIM) for _ in range(3)]
    bias = leaf(HEADS, windows.size, windows.size)

    def heads_first(way: Callable[..., Tensor]) -> Way:
        return Way(lambda: way(*(t.transpose(1, 2) for t in qkv), bias).transpose(1, 2), [*qkv, bias])

    ways = {
        "eager": heads_first(eager),
        "torch.compile": heads_first(compiler(eager)),
        "SDPA": heads_first(sdpa),
        "masked_swin": Way(lambda: window_attention(*qkv, bias, scale=SCALE), [*qkv, bias]),
    }
    if device != "cpu":  # where it has no backward
        ways["FlexAttention, compiled"] = heads_first(compiler(flex))
    for share in masked:
        plan = VisibleTokens.from_keep(torch.rand(batch, windows.tokens, device=device) >= share, windows)
        rows, token = leaf(len(plan.token_index), 3, HEADS, HEAD_DIM), leaf(3, HEADS, HEAD_DIM)
        ways[f"masked_swin, {share:.0%} masked"] = Way(
            lambda plan=plan, rows=rows, token=token: window_attention(
                *rows.unbind(1), bias, scale=SCALE, visible=plan, shared_qkv=tuple(token.unbind())
            ),
            [rows, token, bias],
        )
    yield Comparison("window_attention", ways, frozenset(name for name in ways if name.endswith(" masked")))
