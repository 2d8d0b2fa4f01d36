"""The backend "triton" of swin_block: kernels for NVIDIA and AMD devices, compiled at first use.

`forward` and `backward` take the arguments of the operators (ops.py). A forward pass is four kernels: LayerNorm with
the q, k, v product, attention, projection with the residual, MLP. The backward pass keeps only the inputs, and computes
the rest again. Nothing here waits for the device.
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
    Tokens,
    add_norm_gradient,
    pack_projection,
    pack_qkv,
    project,
    tokens_to_heads,
    weight_gradient,
)
from .mlp import MlpWeights, mlp, mlp_backward
from .position import position_bias, shift_regions, table_gradient
from .window_attention import Attention, padded_head_dim, prepare, run_backward, run_forward


class _QkvParts(NamedTuple):
    """Some of q, k, v, and the tokens that they are computed of."""

    tokens: Tokens
    parts: slice


class _Block(NamedTuple):
    x: Tensor
    weights: SwinBlockWeights
    layout: Layout
    visible: VisibleTokens | None
    mode: str
    attention_scale: Tensor | None  # (B,), of drop path
    mlp_scale: Tensor | None
    packed_qkv: Packed
    packed_projection: Packed

    @property
    def visible_tokens(self) -> Tokens | None:
        if self.visible is None:
            return None
        return Tokens(len(self.visible.token_index), self.visible.token_index, self.visible.offsets)

    @property
    def only_tokens(self) -> Tokens | None:
        """All tokens that the block computes, if these are not all."""
        return self.visible_tokens if self.mode == "visible" else None

    @property
    def tokens(self) -> Tokens:
        """The tokens of the attention's output."""
        return self.only_tokens or Tokens(self.x.shape[0] * self.layout.windows.tokens)

    @property
    def qkv_parts(self) -> list[_QkvParts]:
        visible = self.visible_tokens
        if visible is None:
            return [_QkvParts(self.tokens, slice(0, 3))]
        if self.mode == "drop":
            return [_QkvParts(self.tokens, slice(0, 1)), _QkvParts(visible, slice(1, 3))]
        return [_QkvParts(visible, slice(0, 3))]

    @property
    def mlp_weights(self) -> MlpWeights:
        w = self.weights
        return MlpWeights(w.norm2_weight, w.norm2_bias, w.fc1_weight, w.fc1_bias, w.fc2_weight, w.fc2_bias)

    def split_qkv(self, buffers: list[Tensor]) -> list[Tensor]:
        """q, k, v from buffers of `qkv_parts`: (windows, N, heads, head_dim) or compact, (tokens, heads, head_dim)."""
        parts = [part for buffer in buffers for part in buffer[..., : self.layout.head_dim].unbind(1)]
        windowed = 3 if self.visible is None else 1 if self.mode == "drop" else 0
        size = self.layout.windows.size
        return [part.unflatten(0, (-1, size)) if i < windowed else part for i, part in enumerate(parts)]

    def by_window(self, heads: Tensor) -> Tensor:
        """(windows, N, heads, head_dim), or (tokens, heads, head_dim) where the block computes visible tokens only."""
        heads = heads[:, 0, :, : self.layout.head_dim]
        return heads if self.only_tokens else heads.unflatten(0, (-1, self.layout.windows.size))


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
    attention_scale = mlp_scale = None
    if drop_path_scale is not None:
        attention_scale, mlp_scale = drop_path_scale.float().contiguous().unbind()
    return _Block(
        x.contiguous(),
        w,
        layout,
        None if keep is None else VisibleTokens.from_keep(keep, windows),
        MODES[mode],
        attention_scale,
        mlp_scale,
        pack_qkv(layout, w.qkv_weight, w.qkv_bias, (w.norm1_weight, w.norm1_bias)),
        pack_projection(layout, w.proj_weight),
    )


def _shared_qkv(block: _Block) -> Tensor | None:
    """q, k, v of masked tokens, (3, heads, head_dim)."""
    if block.visible is None or block.mode in ("drop", "visible"):
        return None
    w = block.weights
    qkv = w.qkv_bias.float()
    if w.mask_token is not None:
        qkv = qkv + w.qkv_weight.float() @ w.mask_token.float()
    return qkv.view(3, block.layout.heads, block.layout.head_dim).to(block.layout.dtype)


def _qkv(block: _Block) -> list[Tensor]:
    return [
        tokens_to_heads(block.layout, block.x, tokens, block.packed_qkv.part(parts))
        for tokens, parts in block.qkv_parts
    ]


def _prepare_attention(block: _Block, qkv: list[Tensor]) -> Attention:
    windows, visible = block.layout.windows, block.visible
    regions = shift_regions(windows, block.x.device) if visible is None else visible.regions
    if regions is not None:
        regions = regions.view(windows.height // windows.window[0], -1, windows.size)
    q, k, v = block.split_qkv(qkv)
    return prepare(
        *(q, k, v),
        position_bias(block.weights.position_bias_table, windows.window),
        _shared_qkv(block),
        None if visible is None else visible.offsets,
        None if visible is None else visible.position,
        regions,
        None,
        block.layout.head_dim**-0.5,
        padded=True,
    )


def _attend(block: _Block, attention: Attention, stats: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The attention's output, (tokens, 1, heads, head_stride), and x with its projection."""
    layout, tokens = block.layout, block.tokens
    heads = block.x.new_empty(tokens.capacity, 1, layout.heads, layout.head_stride, dtype=layout.dtype)
    run_forward(attention, block.by_window(heads), stats)
    bias = block.weights.proj_bias
    return heads, project(layout, heads, tokens, block.packed_projection, bias, block.x, block.attention_scale)


def forward(*arguments: Any) -> Tensor:
    """The operator swin_block_triton."""
    x, *_ = arguments
    with torch.autocast(x.device.type, enabled=False):
        block = _prepare(*arguments)
        _, y = _attend(block, _prepare_attention(block, _qkv(block)))
        return mlp(y, block.mlp_weights, block.mlp_scale, block.layout.dtype, block.only_tokens)


def backward(grad_out: Tensor, *arguments: Any) -> list[Tensor]:
    """The operator swin_block_triton_backward: gradients of x, the weights and, if there is one, the mask token."""
    with torch.autocast(grad_out.device.type, enabled=False):
        block = _prepare(*arguments)
        dx, grads = _gradients(block, grad_out.contiguous())
        given = [grad for grad in grads if grad is not None]
        weights = [weight for weight in block.weights if weight is not None]
        return [dx, *(grad.to(like.dtype).contiguous() for grad, like in zip(given, weights, strict=True))]


def _gradients(block: _Block, grad_out: Tensor) -> tuple[Tensor, SwinBlockWeights]:
    w, layout, tokens = block.weights, block.layout, block.tokens
    qkv = _qkv(block)
    attention = _prepare_attention(block, qkv)
    stats = torch.empty(layout.heads, 3, tokens.capacity, dtype=torch.float32, device=block.x.device)
    heads, y = _attend(block, attention, stats)
    dx, d_mlp = mlp_backward(grad_out, y, block.mlp_weights, block.mlp_scale, layout.dtype, block.only_tokens)

    d_proj, d_proj_bias = weight_gradient(layout, heads, tokens, dx, block.attention_scale, norm=False)
    d_heads = tokens_to_heads(layout, dx, tokens, block.packed_projection, scale=block.attention_scale)
    d_qkv = [torch.empty_like(part) for part in qkv]
    d_bias, d_shared_qkv = run_backward(
        attention, block.by_window(d_heads), block.by_window(heads), stats, *block.split_qkv(d_qkv)
    )
    d_table = table_gradient(d_bias, w.position_bias_table, layout.windows.window)

    d_weights, d_biases = [], []
    for (qkv_tokens, parts), d_part in zip(block.qkv_parts, d_qkv, strict=True):
        add_norm_gradient(layout, d_part, qkv_tokens, block.packed_qkv.part(parts), block.x, dx)
        d_weight, d_part_bias = weight_gradient(layout, d_part, qkv_tokens, block.x, norm=True)
        d_weights.append(d_weight)
        d_biases.append(d_part_bias)
    # The kernels normalise without weight and bias: W (n * weight + bias) = (W weight) n + W bias
    d_folded, d_qkv_bias, qkv_weight = torch.cat(d_weights), torch.cat(d_biases), w.qkv_weight.float()
    d_norm_weight, d_norm_bias = (qkv_weight * d_folded).sum(0), d_qkv_bias @ qkv_weight
    d_qkv_weight = torch.addr(d_folded * w.norm1_weight.float(), d_qkv_bias, w.norm1_bias.float())

    d_mask_token = None
    if d_shared_qkv is not None:  # shared q, k, v are the bias, or W token + bias
        d_shared_qkv = d_shared_qkv.flatten()
        d_qkv_bias = d_qkv_bias + d_shared_qkv
        if w.mask_token is not None:
            d_qkv_weight = torch.addr(d_qkv_weight, d_shared_qkv, w.mask_token.float())
            d_mask_token = d_shared_qkv @ qkv_weight
    return dx, SwinBlockWeights(
        norm1_weight=d_norm_weight,
        norm1_bias=d_norm_bias,
        qkv_weight=d_qkv_weight,
        qkv_bias=d_qkv_bias,
        position_bias_table=d_table,
        proj_weight=d_proj.mT,
        proj_bias=d_proj_bias,
        norm2_weight=d_mlp.norm_weight,
        norm2_bias=d_mlp.norm_bias,
        fc1_weight=d_mlp.fc1_weight,
        fc1_bias=d_mlp.fc1_bias,
        fc2_weight=d_mlp.fc2_weight,
        fc2_bias=d_mlp.fc2_bias,
        mask_token=d_mask_token,
    )
