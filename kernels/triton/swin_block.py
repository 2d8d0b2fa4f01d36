"""The backend "triton" of swin_block: kernels for NVIDIA and AMD devices, compiled at first use.

`forward` and `backward` take the arguments of the operators (ops.py). Four kernels make a forward pass: LayerNorm with
the q, k, v product, attention, projection with the residual, MLP. The backward pass keeps nothing but the inputs and
makes them again. Nothing here waits for the device.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..geometry import Windows
from ..swin_block import MODES, SwinBlockWeights
from ..visible import VisibleTokens
from .linear import (
    Layout,
    Packed,
    Rows,
    add_norm_gradient,
    pack_projection,
    pack_qkv,
    project,
    rows_to_heads,
    weight_gradient,
)
from .mlp import MlpWeights, mlp, mlp_backward
from .position import position_bias, shift_regions, table_gradient
from .window_attention import Attention, padded_head_dim, prepare, run_backward, run_forward


class _Block(NamedTuple):
    x: Tensor
    weights: SwinBlockWeights
    layout: Layout
    plan: VisibleTokens | None
    mode: str
    attention_scale: Tensor | None  # (B,), of drop path
    mlp_scale: Tensor | None
    packed: Packed  # weights of q, k, v
    packed_projection: Packed

    @property
    def visible_rows(self) -> Rows | None:
        return None if self.plan is None else Rows(len(self.plan.token_index), self.plan.token_index, self.plan.offsets)

    @property
    def only_rows(self) -> Rows | None:
        """All that the block computes, where that is not every token."""
        return self.visible_rows if self.mode == "visible" else None

    @property
    def rows(self) -> Rows:
        """What leaves the attention."""
        return self.only_rows or Rows(self.x.shape[0] * self.layout.windows.tokens)

    @property
    def qkv_rows(self) -> list[tuple[Rows, slice]]:
        """Rows, and which of q, k, v are computed of them."""
        visible = self.visible_rows
        if visible is None:
            return [(self.rows, slice(0, 3))]
        if self.mode == "drop":
            return [(self.rows, slice(0, 1)), (visible, slice(1, 3))]
        return [(visible, slice(0, 3))]

    @property
    def mlp(self) -> MlpWeights:
        return MlpWeights(*self.weights[7:13])

    def by_part(self, buffers: list[Tensor]) -> list[Tensor]:
        """q, k, v, each (rows, heads, head_dim) or (windows, tokens, heads, head_dim), from what `qkv_rows` says."""
        parts = [part for buffer in buffers for part in buffer[..., : self.layout.head_dim].unbind(1)]
        windowed = 3 if self.plan is None else 1 if self.mode == "drop" else 0
        size = self.layout.windows.size
        return [part.unflatten(0, (-1, size)) if i < windowed else part for i, part in enumerate(parts)]

    def by_window(self, heads: Tensor) -> Tensor:
        """(windows, tokens, heads, head_dim), or (rows, heads, head_dim) where only visible tokens have a row."""
        heads = heads[:, 0, :, : self.layout.head_dim]
        return heads if self.only_rows else heads.unflatten(0, (-1, self.layout.windows.size))


def _prepare(
    x: Tensor,
    weights: list[Tensor],
    mask_token: Tensor | None,
    keep: Tensor | None,
    drop_path_scale: Tensor | None,
    window_height: int,
    window_width: int,
    shift_height: int,
    shift_width: int,
    mode: int,
    dtype: torch.dtype,
) -> _Block:
    windows = Windows(x.shape[1], x.shape[2], (window_height, window_width), (shift_height, shift_width))
    w = SwinBlockWeights(*(weight.contiguous() for weight in weights))._replace(mask_token=mask_token)
    heads = w.position_bias_table.shape[1]
    head_dim = x.shape[-1] // heads
    layout = Layout(windows, heads, head_dim, padded_head_dim(head_dim, dtype), dtype)
    scales = (None, None) if drop_path_scale is None else drop_path_scale.float().contiguous().unbind()
    return _Block(
        x.contiguous(),
        w,
        layout,
        None if keep is None else VisibleTokens.from_keep(keep, windows),
        MODES[mode],
        scales[0],
        scales[1],
        pack_qkv(layout, w.qkv_weight, w.qkv_bias, (w.norm1_weight, w.norm1_bias)),
        pack_projection(layout, w.proj_weight),
    )


def _masked(block: _Block) -> Tensor | None:
    """q, k, v of masked tokens, (3, heads, head_dim)."""
    if block.plan is None or block.mode in ("drop", "visible"):
        return None
    w = block.weights
    masked = w.qkv_bias.float()
    if w.mask_token is not None:
        masked = masked + w.qkv_weight.float() @ w.mask_token.float()
    return masked.view(3, block.layout.heads, block.layout.head_dim).to(block.layout.dtype)


def _queries_and_keys(block: _Block) -> list[Tensor]:
    return [rows_to_heads(block.layout, block.x, rows, block.packed.part(parts)) for rows, parts in block.qkv_rows]


def _prepare_attention(block: _Block, qkv: list[Tensor]) -> Attention:
    windows, plan = block.layout.windows, block.plan
    regions = shift_regions(windows, block.x.device) if plan is None else plan.regions
    if regions is not None:
        regions = regions.view(windows.height // windows.window[0], -1, windows.size)
    q, k, v = block.by_part(qkv)
    return prepare(
        *(q, k, v),
        position_bias(block.weights.position_bias_table, windows.window),
        _masked(block),
        None if plan is None else plan.offsets,
        None if plan is None else plan.position,
        regions,
        None,
        block.layout.head_dim**-0.5,
        padded=True,
    )


def _attend(block: _Block, attention: Attention, stats: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What the attention gives, (rows, 1, heads, head_stride), and x with its projection."""
    layout, rows = block.layout, block.rows
    heads = block.x.new_empty(rows.capacity, 1, layout.heads, layout.head_stride, dtype=layout.dtype)
    run_forward(attention, block.by_window(heads), stats)
    bias = block.weights.proj_bias
    return heads, project(layout, heads, rows, block.packed_projection, bias, block.x, block.attention_scale)


def forward(*inputs: Any) -> Tensor:
    """The operator swin_block_triton."""
    with torch.autocast(inputs[0].device.type, enabled=False):
        block = _prepare(*inputs)
        _, y = _attend(block, _prepare_attention(block, _queries_and_keys(block)))
        return mlp(y, block.mlp, block.mlp_scale, block.layout.dtype, block.only_rows)


def backward(grad_out: Tensor, *inputs: Any) -> list[Tensor]:
    """The operator swin_block_triton_backward: gradients of x, the 13 weights and, if there is one, the mask token."""
    with torch.autocast(inputs[0].device.type, enabled=False):
        block = _prepare(*inputs)
        dx, grads = _gradients(block, grad_out.contiguous())
        likes = [weight for weight in block.weights if weight is not None]
        return [dx, *(g.to(like.dtype).contiguous() for g, like in zip(grads, likes, strict=True))]


def _gradients(block: _Block, grad_out: Tensor) -> tuple[Tensor, list[Tensor]]:
    w, layout, rows = block.weights, block.layout, block.rows
    qkv = _queries_and_keys(block)
    attention = _prepare_attention(block, qkv)
    stats = torch.empty(layout.heads, 3, rows.capacity, dtype=torch.float32, device=block.x.device)
    heads, y = _attend(block, attention, stats)
    dx, d_mlp = mlp_backward(grad_out, y, block.mlp, block.mlp_scale, layout.dtype, block.only_rows)

    d_proj, d_proj_bias = weight_gradient(layout, heads, rows, dx, block.attention_scale, norm=False)
    d_heads = rows_to_heads(layout, dx, rows, block.packed_projection, scale=block.attention_scale)
    d_qkv = [torch.empty_like(part) for part in qkv]
    d_bias, d_masked = run_backward(
        attention, block.by_window(d_heads), block.by_window(heads), stats, *block.by_part(d_qkv)
    )
    d_table = table_gradient(d_bias, w.position_bias_table, layout.windows.window)

    weights, biases = [], []
    for (qkv_rows, parts), part in zip(block.qkv_rows, d_qkv, strict=True):
        add_norm_gradient(layout, part, qkv_rows, block.packed.part(parts), block.x, dx)
        d_weight, d_part_bias = weight_gradient(layout, part, qkv_rows, block.x, norm=True)
        weights.append(d_weight)
        biases.append(d_part_bias)
    # The kernels normalise without weight and bias: W (n * weight + bias) = (W weight) n + W bias
    d_joined, d_qkv_bias, qkv_weight = torch.cat(weights), torch.cat(biases), w.qkv_weight.float()
    d_norm_weight, d_norm_bias = (qkv_weight * d_joined).sum(0), d_qkv_bias @ qkv_weight
    d_qkv_weight = torch.addr(d_joined * w.norm1_weight.float(), d_qkv_bias, w.norm1_bias.float())

    d_token = []
    if d_masked is not None:  # masked q, k, v are the bias, or W token + bias
        d_masked = d_masked.flatten()
        d_qkv_bias = d_qkv_bias + d_masked
        if w.mask_token is not None:
            d_qkv_weight = torch.addr(d_qkv_weight, d_masked, w.mask_token.float())
            d_token = [d_masked @ qkv_weight]
    d_attention = [d_norm_weight, d_norm_bias, d_qkv_weight, d_qkv_bias, d_table, d_proj.mT, d_proj_bias]
    return dx, [*d_attention, *d_mlp, *d_token]
