"""The specification: both operations in plain PyTorch, any floating dtype, on any device. Read it beside
kernels/README.md.

Masked tokens take part as the method defines it (arXiv 2303.13132): they are expanded to full windows here, and an
ordinary softmax follows. The fast backends compute the same numbers from visible tokens only.

Shape legend: W windows of the batch, T queries, S keys, H heads, D head dim; R compact rows.
"""

import torch
from torch import Tensor

from .visible import VisibleTokens


def expand(compact: Tensor, visible: VisibleTokens, fill: Tensor | float) -> Tensor:
    """Compact rows (R, H, D) -> windows (W, N, H, D), masked places holding `fill` (H, D).

    Per-head masks: compact rows are (R, D), each of one (window, head) segment.
    """
    spare = compact.new_zeros(1, *compact.shape[1:])  # so that an empty list has a row to look at
    full = torch.cat([compact, spare])[visible.compact_index()]
    if visible.heads is not None:
        full = full.unflatten(0, (-1, visible.heads)).transpose(1, 2)
    return torch.where(keep_per_head(visible)[..., None], full, fill)


def keep_per_head(visible: VisibleTokens) -> Tensor:
    """(W, N, 1) for a mask shared by the heads, or (W, N, H): True = visible."""
    if visible.heads is None:
        return visible.keep[:, :, None]
    return visible.keep.unflatten(0, (-1, visible.heads)).transpose(1, 2)


def compress(full: Tensor, visible: VisibleTokens) -> Tensor:
    """Windows (W, N, H, D) -> compact rows in the plan's order, the inverse of `expand`; unused rows are 0."""
    per_segment = full if visible.heads is None else full.transpose(1, 2).flatten(0, 1)
    capacity = len(visible.token_index)
    row = torch.where(visible.keep, visible.compact_index(), capacity).flatten()
    rows = full.new_zeros(capacity + 1, *per_segment.shape[2:])
    return rows.index_copy(0, row, per_segment.flatten(0, 1))[:-1]


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    *,
    scale: float,
    visible: VisibleTokens | None = None,
    shared_qkv: tuple[Tensor, Tensor, Tensor] | None = None,
    window_mask: Tensor | None = None,
) -> Tensor:
    """See `masked_swin.kernels.window_attention`, whose numbers this defines; `bias` is dense (H, T, S) here."""
    masked_take_part = shared_qkv is not None or k.dim() == 4
    only_visible_queries = not masked_take_part and q.dim() < 4
    if visible is not None:
        q_fill, k_fill, v_fill = shared_qkv if shared_qkv is not None else (0.0, 0.0, 0.0)
        q = expand(q, visible, q_fill) if q.dim() < 4 else q
        k = expand(k, visible, k_fill) if k.dim() < 4 else k
        v = expand(v, visible, v_fill) if v.dim() < 4 else v
    score = scale * torch.einsum("wthd,wshd->whts", q, k) + bias
    if window_mask is not None:
        score = (score.unflatten(0, (-1, len(window_mask))) + window_mask[None, :, None]).flatten(0, 1)
    if visible is None:
        return torch.einsum("whts,wshd->wthd", _softmax(score), v)

    foreign = torch.zeros((), dtype=torch.bool, device=q.device)  # keys of another shift region
    if visible.regions is not None:
        foreign = visible.regions[:, None, :, None] != visible.regions[:, None, None, :]
        foreign = foreign.repeat(visible.batch, 1, 1, 1)
    if masked_take_part:
        probability = _softmax(torch.where(foreign, score - 100.0, score))
    else:
        gone = foreign | ~keep_per_head(visible).transpose(1, 2)[:, :, None, :]
        probability = _softmax(score.masked_fill(gone, float("-inf")))
    out = torch.einsum("whts,wshd->wthd", probability, v)
    return compress(out, visible) if only_visible_queries else out


def _softmax(score: Tensor) -> Tensor:
    """Over the keys; those at or below -1e29 are no keys, and a query without any gets 0."""
    gone = score <= -1e29
    alone = gone.all(-1, keepdim=True)
    return score.masked_fill(gone & ~alone, float("-inf")).masked_fill(alone, 0.0).softmax(-1).masked_fill(alone, 0.0)
