"""The backend "composed" of `swin_block`: PyTorch's layers around the fastest `window_attention`.

Masked tokens are left out of the first LayerNorm and the qkv product. Two cases need all tokens there: mode "drop", for
its queries, and masks per head. In mode "visible" masked tokens are left out of the whole block.

Shape legend: B images, C channels, W windows of the batch, N positions of a window, H heads, D head dim; R entries of
the compact list.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import Backend
from .geometry import NORM_EPSILON, Windows, relative_position_bias, shift_mask, token_order
from .swin_block import BlockInputs, SwinBlockWeights
from .visible import VisibleTokens
from .window_attention import window_attention


def swin_block(inputs: BlockInputs) -> Tensor:
    x, w, windows, visible, mode, drop_path_scale = inputs
    if visible is not None and mode == "visible":
        return _visible_only(inputs, visible)
    scales = None if drop_path_scale is None else drop_path_scale.view(2, -1, 1, 1, 1)
    to_windows, to_image = _orders(windows, x)
    tokens = _norm1(x.reshape(-1, x.shape[-1]), w)
    if visible is None or visible.heads is not None:
        attended = _attend_to_all(inputs, tokens[to_windows])
    elif mode == "drop":
        attended = _attend_without_masked(inputs, visible, tokens, to_windows)
    else:
        attended = _attend_with_shared(inputs, visible, tokens[visible.token_index])
    branch = F.linear(attended.reshape(-1, x.shape[-1]), w.proj_weight, w.proj_bias)
    return _add_mlp(_add(x, branch[to_image].view_as(x), scales, 0), w, scales)


def _orders(windows: Windows, x: Tensor) -> tuple[Tensor, Tensor]:
    """(B * L,) token of the batch at each position of each window, and the inverse."""
    first_token = windows.tokens * torch.arange(len(x), device=x.device)[:, None]
    order = token_order(windows, x.device).flatten()
    return (first_token + order).flatten(), (first_token + order.argsort()).flatten()


def _attend_to_all(inputs: BlockInputs, tokens: Tensor) -> Tensor:
    """Dense, or with a mask per head: (W, N, H, D) of normalised tokens (W * N, C)."""
    x, w, windows, visible, _, _ = inputs
    q_WNHD, k_WNHD, v_WNHD = _heads(F.linear(tokens, w.qkv_weight, w.qkv_bias), inputs).unbind(2)
    if visible is not None:
        keep = visible.keep_by_head()[..., None]
        full = zip((q_WNHD, k_WNHD, v_WNHD), _shared_qkv(inputs), strict=True)
        q_WNHD, k_WNHD, v_WNHD = (torch.where(keep, tensor, shared) for tensor, shared in full)
    mask = None if windows.shift == (0, 0) else shift_mask(windows, x.device).to(x.dtype)
    bias = relative_position_bias(w.position_bias_table, windows.window)
    return window_attention(q_WNHD, k_WNHD, v_WNHD, bias, scale=_scale(inputs), window_mask=mask)


def _attend_without_masked(inputs: BlockInputs, visible: VisibleTokens, tokens: Tensor, to_windows: Tensor) -> Tensor:
    """Mode "drop": queries of all tokens (B * L, C), keys of the visible ones."""
    w, channels = inputs.weights, tokens.shape[-1]
    split = (channels, 2 * channels)
    (q_weight, kv_weight), (q_bias, kv_bias) = w.qkv_weight.split(split), w.qkv_bias.split(split)
    q_WNHD = _heads(F.linear(tokens[to_windows], q_weight, q_bias), inputs, parts=1)[:, :, 0]
    kv = F.linear(tokens[visible.token_index], kv_weight, kv_bias)
    k_RHD, v_RHD = kv.unflatten(1, (2, *_head_shape(inputs))).unbind(1)
    return window_attention(q_WNHD, k_RHD, v_RHD, w.position_bias_table, scale=_scale(inputs), visible=visible)


def _attend_with_shared(inputs: BlockInputs, visible: VisibleTokens, tokens: Tensor) -> Tensor:
    """Modes "zero" and "token": (W, N, H, D) from visible tokens (R, C); masked tokens share q, k and v."""
    w = inputs.weights
    qkv = F.linear(tokens, w.qkv_weight, w.qkv_bias).unflatten(1, (3, *_head_shape(inputs)))
    q_RHD, k_RHD, v_RHD = qkv.unbind(1)
    shared_q, shared_k, shared_v = _shared_qkv(inputs)
    return window_attention(
        *(q_RHD, k_RHD, v_RHD, w.position_bias_table),
        scale=_scale(inputs),
        visible=visible,
        shared_qkv=(shared_q, shared_k, shared_v),
    )


def _visible_only(inputs: BlockInputs, visible: VisibleTokens) -> Tensor:
    """Mode "visible": the block on the compact list, whose results then replace their tokens."""
    x, w, windows, _, _, drop_path_scale = inputs
    tokens = x.reshape(-1, x.shape[-1])
    # Unused entries repeat some token: they become 0 here, and a spare token receives them.
    used = torch.arange(len(visible.token_index), device=x.device) < visible.offsets[-1]
    entries = tokens[visible.token_index].masked_fill(~used[:, None], 0.0)
    qkv = F.linear(_norm1(entries, w), w.qkv_weight, w.qkv_bias).unflatten(1, (3, *_head_shape(inputs)))
    q_RHD, k_RHD, v_RHD = qkv.unbind(1)
    attended = window_attention(q_RHD, k_RHD, v_RHD, w.position_bias_table, scale=_scale(inputs), visible=visible)
    branch = F.linear(attended.flatten(1), w.proj_weight, w.proj_bias)
    scales = None if drop_path_scale is None else drop_path_scale[:, visible.token_index // windows.tokens, None]
    entries = _add_mlp(_add(entries, branch, scales, 0), w, scales)
    target = torch.where(used, visible.token_index, len(tokens))
    return torch.cat([tokens, tokens.new_zeros(1, x.shape[-1])]).index_copy(0, target, entries)[:-1].view_as(x)


def _head_shape(inputs: BlockInputs) -> tuple[int, int]:
    heads = inputs.weights.position_bias_table.shape[1]
    return heads, inputs.x.shape[-1] // heads


def _scale(inputs: BlockInputs) -> float:
    return float(_head_shape(inputs)[1] ** -0.5)


def _heads(projected: Tensor, inputs: BlockInputs, parts: int = 3) -> Tensor:
    """(W * N, parts * C) -> (W, N, parts, H, D)."""
    return projected.view(-1, inputs.windows.size, parts, *_head_shape(inputs))


def _shared_qkv(inputs: BlockInputs) -> Tensor:
    """(3, H, D) of every masked token, which is 0 or `mask_token` in place of the normalised token."""
    w = inputs.weights
    shared = w.qkv_bias
    if inputs.mode == "token" and w.mask_token is not None:
        shared = F.linear(w.mask_token, w.qkv_weight, w.qkv_bias)
    return shared.view(3, *_head_shape(inputs))


def _norm1(tokens: Tensor, w: SwinBlockWeights) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], w.norm1_weight, w.norm1_bias, NORM_EPSILON)


def _add_mlp(x: Tensor, w: SwinBlockWeights, scales: Tensor | None) -> Tensor:
    hidden = F.layer_norm(x, x.shape[-1:], w.norm2_weight, w.norm2_bias, NORM_EPSILON)
    hidden = F.gelu(F.linear(hidden, w.fc1_weight, w.fc1_bias))
    return _add(x, F.linear(hidden, w.fc2_weight, w.fc2_bias), scales, 1)


def _add(x: Tensor, branch: Tensor, scales: Tensor | None, index: int) -> Tensor:
    return x + (branch if scales is None else branch * scales[index].to(branch.dtype))


BACKENDS = [Backend("swin_block", "composed", swin_block, lambda inputs: None)]
