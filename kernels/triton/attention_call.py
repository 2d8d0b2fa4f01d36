"""A call of the attention as its kernels take it: pointers, sizes and constants by name, and the masked key's bias."""

import math
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from . import launch
from .attention_pairs import compact_index_kernel
from .launch import arguments_of, product_precision, tile_side
from .masked_key import shared_bias_kernel

LOG2E = math.log2(math.e)


class WindowGroups(NamedTuple):
    """Windows of one mask pattern, in groups; the fields but the last two are parameters of `windows_of_group`."""

    period: int
    pattern_groups: int | None
    across: int | None
    last_row: int | None
    last_column: int | None
    corner: int | None
    windows_each: int
    total: int

    def arguments(self) -> dict[str, int | None]:
        """By the names of the kernels' parameters."""
        fields = self._asdict()
        del fields["windows_each"]
        return {"groups": fields.pop("total"), **fields}


class HeadRows(NamedTuple):
    """Tensors as (rows, heads, head_dim), the strides of their rows, and the one of heads, which they share."""

    tensors: list[Tensor]
    strides: list[int]
    head_stride: int


class Attention(NamedTuple):
    """A call, as the kernels take it. Scores are in units of log 2."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor  # (heads, keys, queries)
    shared_qkv: Tensor | None  # (3, heads, BLOCK_D)
    shared_bias: Tensor | None  # (heads, windows, queries): of the masked key
    offsets: Tensor | None
    position: Tensor | None
    compact_index: Tensor | None  # (windows, keys): the row of each visible token, -1 for masked ones
    regions: Tensor | None
    window_mask: Tensor | None
    scale: float
    windows: int
    head_dim: int
    padded: bool
    constants: dict[str, Any]
    groups: WindowGroups

    @property
    def heads(self) -> int:
        return self.bias.shape[0]

    @property
    def keys(self) -> int:
        return self.bias.shape[1]

    @property
    def queries(self) -> int:
        return self.bias.shape[2]

    @property
    def compact_keys(self) -> bool:
        return self.offsets is not None

    @property
    def compact_output(self) -> bool:
        return bool(self.constants["COMPACT_Q"]) and self.shared_qkv is None

    @property
    def bias_constants(self) -> dict[str, Any]:
        """Constants of the kernels of the masked key's bias."""
        # Triton's interpreter multiplies bfloat16 wrongly.
        halves = self.q.dtype != torch.float32 and not triton.knobs.runtime.interpret
        return {"HEADS": self.heads, "QUERIES": self.queries, "KEYS": self.keys, "HALVES": halves, "num_warps": 4}

    def arguments(self) -> dict[str, Any]:
        """What the kernels share, by the names of their parameters."""
        return {
            "q_ptr": self.q,
            "k_ptr": self.k,
            "v_ptr": self.v,
            "bias_ptr": self.bias,
            "shared_qkv_ptr": self.shared_qkv,
            "shared_bias_ptr": self.shared_bias,
            "offsets_ptr": self.offsets,
            "position_ptr": self.position,
            "compact_index_ptr": self.compact_index,
            "regions_ptr": self.regions,
            "mask_ptr": self.window_mask,
            "windows": self.windows,
            "region_windows": 1 if self.regions is None else self.regions[..., 0].numel(),
            "mask_windows": 1 if self.window_mask is None else len(self.window_mask),
            "scale": self.scale * LOG2E,
        }


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    shared_qkv: Tensor | None,
    offsets: Tensor | None,
    position: Tensor | None,
    regions: Tensor | None,
    window_mask: Tensor | None,
    scale: float,
    padded: bool = False,
) -> Attention:
    """Make what all kernels of a call share. Arguments are the operator's, and:

    regions: (windows of an image, tokens), or with the windows as a grid, (down, across, tokens), where they are those
        of a cyclic shift: only windows of the last row and column then differ from the others.
    padded: q, k, v are views [..., :head_dim] of tensors with `padded_head_dim(...)` elements a head, zeros behind the
        head_dim. So are then all outputs, which get zeros there, too.
    """
    compact_queries = q.dim() == 3
    windows = q.shape[0] if offsets is None else offsets.shape[0] - 1
    q, k, v, head_dim, head_stride = _adjacent_heads(q, k, v, padded)
    # Keys first: the visible keys of a window then pick rows of adjacent queries.
    bias = (bias.transpose(1, 2).float() * LOG2E).contiguous()
    heads, keys, queries = bias.shape
    if window_mask is not None:
        window_mask = (window_mask.transpose(1, 2).float() * LOG2E).contiguous()
    compact_index = shared_bias = None
    if shared_qkv is not None:
        compact_index = _compact_index(offsets, position, windows, keys, q.device)
        shared_qkv = F.pad(shared_qkv, (0, tile_side(head_dim) - head_dim)).contiguous()
        shared_bias = torch.empty(heads, windows, queries, dtype=torch.float32, device=q.device)
    constants = {
        "HEADS": heads,
        "QUERIES": queries,
        "KEYS": keys,
        "COMPACT_Q": compact_queries,
        "Q_STRIDE": q.stride(0),
        "K_STRIDE": k.stride(0),
        "V_STRIDE": v.stride(0),
        "HEAD_STRIDE": head_stride,
        "LANES": min(head_stride, tile_side(head_dim)) if padded else head_dim,
        "PADDED": padded,
        "PRECISION": product_precision(),
        "BLOCK_D": tile_side(head_dim),
    }
    call = Attention(
        *(q, k, v, bias, shared_qkv, shared_bias, offsets, position, compact_index, regions, window_mask),
        scale=scale,
        windows=windows,
        head_dim=head_dim,
        padded=padded,
        constants=constants,
        groups=_window_groups(windows, regions, window_mask),
    )
    if shared_bias is not None:
        _make_shared_bias(call, shared_bias)
    return call


def _adjacent_heads(q: Tensor, k: Tensor, v: Tensor, padded: bool) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """q, k, v as (rows, heads, elements of a head), the head_dim, and the stride of heads, which they share."""
    q, k, v = _rows(q), _rows(k), _rows(v)
    head_dim = q.shape[2]
    head_stride = _head_stride(padded, q, k, v)
    if head_stride is not None:
        if padded:
            q, k, v = _with_padding(q), _with_padding(k), _with_padding(v)
        return q, k, v, head_dim, head_stride
    if padded:
        raise ValueError(f"padded q, k, v must have equal strides of heads, and 1 of elements, got {q.stride()} of q")
    return q.contiguous(), k.contiguous(), v.contiguous(), head_dim, head_dim


def _compact_index(
    offsets: Tensor | None, position: Tensor | None, windows: int, keys: int, device: torch.device
) -> Tensor:
    compact_index = torch.full((windows, keys), -1, dtype=torch.int32, device=device)
    arguments = (offsets, position, compact_index)
    launch.launch(compact_index_kernel, (windows,), *arguments, num_warps=1, SIZE=keys, BLOCK=tile_side(keys))
    return compact_index


def _make_shared_bias(call: Attention, shared_bias: Tensor) -> None:
    tile = min(64, tile_side(call.queries))
    launch.launch(
        shared_bias_kernel,
        (call.heads * call.groups.total, -(-call.queries // tile)),
        *arguments_of(shared_bias_kernel, **call.arguments(), **call.groups.arguments(), out_ptr=shared_bias),
        **call.bias_constants,
        BLOCK_W=call.groups.windows_each,
        BLOCK_N=min(64, tile_side(call.keys)),
        BLOCK_T=tile,
    )


def _window_groups(windows: int, regions: Tensor | None, window_mask: Tensor | None) -> WindowGroups:
    region_windows = 1 if regions is None else regions[..., 0].numel()
    period = math.lcm(region_windows, 1 if window_mask is None else len(window_mask))
    images = windows // period
    if regions is None or window_mask is not None or regions.dim() == 2:
        windows_each = min(64, tile_side(images))
        pattern_groups = -(-images // windows_each)
        return WindowGroups(period, pattern_groups, None, None, None, None, windows_each, period * pattern_groups)
    down, across, _ = regions.shape
    windows_each = min(64, tile_side(windows // 64))  # small batches: enough programs rather than large ones
    counts = [images * count for count in ((down - 1) * (across - 1), across - 1, down - 1, 1)]
    last_row, last_column, corner, total = accumulate(-(-count // windows_each) for count in counts)
    return WindowGroups(period, None, across, last_row, last_column, corner, windows_each, total)


def head_rows(call: Attention, *tensors: Tensor) -> HeadRows:
    """Outputs or gradients as the kernels take them."""
    rows = [_rows(tensor) for tensor in tensors]
    head_stride = _head_stride(call.padded, *rows)
    if head_stride is None or (call.padded and head_stride != call.constants["HEAD_STRIDE"]):
        strides = [tensor.stride() for tensor in tensors]
        raise ValueError(f"elements of a head must be adjacent, and heads equally far apart, got strides {strides}")
    if call.padded:
        rows = [_with_padding(tensor) for tensor in rows]
    return HeadRows(rows, [tensor.stride(0) for tensor in rows], head_stride)


def padded_head_dim(head_dim: int, dtype: torch.dtype) -> int:
    """Elements of a head that fills whole 32-byte sectors."""
    elements = 32 // dtype.itemsize
    return -(-head_dim // elements) * elements


def _rows(tensor: Tensor) -> Tensor:
    """(rows, heads, head_dim), a view where rows have one stride."""
    return tensor.flatten(0, 1) if tensor.dim() == 4 else tensor


def _head_stride(padded: bool, *tensors: Tensor) -> int | None:
    """The stride of heads that the tensors share, whose dims are adjacent; None if there is none."""
    _, heads, head_dim = tensors[0].shape
    strides = {tensor.stride(1) if padded or heads > 1 else head_dim for tensor in tensors}
    adjacent = head_dim == 1 or all(tensor.stride(2) == 1 for tensor in tensors)
    return strides.pop() if adjacent and len(strides) == 1 else None


def _with_padding(tensor: Tensor) -> Tensor:
    """The whole tensor of a view [..., :head_dim]; an error if its memory ends before."""
    tensor = _rows(tensor)
    return tensor.as_strided((*tensor.shape[:2], tensor.stride(1)), tensor.stride())
