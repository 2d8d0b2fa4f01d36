"""The backend "triton" of window_attention: NVIDIA and AMD devices, compiled at first use.

`forward` and `backward` take the arguments of the operators (ops.py); `prepare`, `run_forward` and `run_backward` are
their parts, for the block, which brings its own buffers. Nothing here waits for the device: every shape follows from
shapes, and what a mask leaves visible only the kernels read.
"""

import math
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from . import launch
from .attention_backward import backward_kernel
from .attention_forward import forward_kernel
from .attention_pairs import compact_index_kernel
from .attention_tiles import attention_tiles, max_registers
from .launch import product_precision, tile_side
from .masked_key import masked_bias_gradient_kernel, masked_bias_kernel

# The gradient of the bias is added up in so many parts, of so many elements at most: the same on every device, so that
# results do not depend on it.
BIAS_PARTS, BIAS_PART_ELEMENTS = 256, 2**23
MASKED_BIAS_PARTS = 32
LOG2E = math.log2(math.e)
WINDOWS_EACH = 4  # windows of a program of the forward kernel
MOST_PROGRAMS = 65535  # along the second axis of a grid


class Attention(NamedTuple):
    """A call, as the kernels take it."""

    pointers: tuple[Tensor | None, ...]  # with the next, in the order of the kernels' parameters
    scalars: tuple[Any, ...]
    scale: float
    constants: dict[str, Any]
    windows: int
    bias_pointers: tuple[Tensor | None, ...]  # of the kernels of the masked bias
    bias_constants: dict[str, Any]
    head_dim: int
    padded: bool
    compact_keys: bool
    compact_output: bool


def _rows(tensor: Tensor) -> Tensor:
    """(rows, heads, head_dim), a view where rows have one stride."""
    return tensor.flatten(0, 1) if tensor.dim() == 4 else tensor


def _head_stride(padded: bool, *tensors: Tensor) -> int | None:
    """The stride of heads that the tensors share, whose dims are adjacent; None if there is none."""
    heads, head_dim = tensors[0].shape[1:]
    strides = {tensor.stride(1) if padded or heads > 1 else head_dim for tensor in tensors}
    adjacent = head_dim == 1 or all(tensor.stride(2) == 1 for tensor in tensors)
    return strides.pop() if adjacent and len(strides) == 1 else None


def _with_padding(tensor: Tensor) -> Tensor:
    """The whole of which a tensor is [..., :head_dim]; an error if its memory ends before."""
    tensor = _rows(tensor)
    return tensor.as_strided((*tensor.shape[:2], tensor.stride(1)), tensor.stride())


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    masked: Tensor | None,
    offsets: Tensor | None,
    position: Tensor | None,
    regions: Tensor | None,
    window_mask: Tensor | None,
    scale: float,
    padded: bool = False,
) -> Attention:
    """What all kernels of a call share. Arguments are the operator's, and:

    regions: (windows of an image, tokens), or with the windows as a grid, (down, across, tokens), where they are those
        of a cyclic shift: only windows of the last row and column then differ from the others.
    padded: q, k, v are views [..., :head_dim] of tensors with `padded_head_dim(...)` elements a head, zeros behind the
        head_dim. So are then all outputs, which get zeros there, too.
    """
    heads, queries, keys = bias.shape
    compact_queries, compact_keys = q.dim() == 3, offsets is not None
    windows = q.shape[0] if offsets is None else offsets.shape[0] - 1
    rows = None
    if masked is not None:
        rows = torch.full((windows, keys), -1, dtype=torch.int32, device=q.device)
        arguments = (offsets, position, rows)
        launch.launch(compact_index_kernel, (windows,), *arguments, num_warps=1, PLACES=keys, BLOCK=tile_side(keys))
    q, k, v = _rows(q), _rows(k), _rows(v)
    head_dim = q.shape[2]
    head_stride = _head_stride(padded, q, k, v)
    if head_stride is None:
        if padded:
            raise ValueError(
                f"padded q, k, v must have equal strides of heads, and 1 of elements, got {q.stride()} of q"
            )
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        head_stride = head_dim
    elif padded:
        q, k, v = _with_padding(q), _with_padding(k), _with_padding(v)
    # Keys first: the visible keys of a window then pick rows of adjacent queries.
    bias = (bias.transpose(1, 2).float() * LOG2E).contiguous()
    if window_mask is not None:
        window_mask = (window_mask.transpose(1, 2).float() * LOG2E).contiguous()
    counts = (1 if regions is None else regions[..., 0].numel(), 1 if window_mask is None else len(window_mask))
    masked_bias = None
    halves = q.dtype != torch.float32 and not triton.knobs.runtime.interpret  # it multiplies bfloat16 wrongly
    if masked is not None:
        masked = F.pad(masked, (0, tile_side(head_dim) - head_dim)).contiguous()
        masked_bias = torch.empty(heads, windows, queries, dtype=torch.float32, device=q.device)
    call = Attention(
        (q, k, v, bias, masked, masked_bias, offsets, position, rows, regions, window_mask),
        (windows, *counts, scale * LOG2E),
        scale,
        {
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
        },
        windows,
        (bias, rows, regions, window_mask),
        {"HEADS": heads, "QUERIES": queries, "KEYS": keys, "HALVES": halves, "num_warps": 4},
        head_dim,
        padded,
        compact_keys,
        compact_output=compact_queries and masked is None,
    )
    if masked is not None:
        kinds = _window_groups(call)
        tile = min(64, tile_side(queries))
        launch.launch(
            masked_bias_kernel,
            (heads * kinds.units, -(-queries // tile)),
            *(*call.bias_pointers, masked_bias, *call.scalars[:3], *kinds.scalars),
            **call.bias_constants,
            BLOCK_W=kinds.block,
            BLOCK_N=min(64, tile_side(keys)),
            BLOCK_T=tile,
        )
    return call


class _WindowGroups(NamedTuple):
    """Windows with the same regions and window mask, in units of some windows."""

    scalars: tuple[int | None, ...]  # of `masked_key.windows_of_group`
    block: int  # windows of a unit
    units: int


def _window_groups(call: Attention) -> _WindowGroups:
    regions, window_mask = call.bias_pointers[2:]
    period = math.lcm(*call.scalars[1:3])
    images = call.windows // period
    if regions is None or window_mask is not None or regions.dim() == 2:
        block = min(64, tile_side(images))
        tiles = -(-images // block)
        return _WindowGroups((period, tiles, None, None, None, None), block, period * tiles)
    down, across = regions.shape[:2]
    block = min(64, tile_side(call.windows // 64))  # small batches: enough programs rather than large ones
    counts = [images * count for count in ((down - 1) * (across - 1), across - 1, down - 1, 1)]
    first = list(accumulate(-(-count // block) for count in counts))
    return _WindowGroups((period, None, across, *first[:3]), block, first[3])


def _strides(call: Attention, *tensors: Tensor) -> tuple[list[Tensor], list[int], int]:
    """Gradients or outputs as the kernels take them, the strides of their rows, and the one of heads."""
    rows = [_rows(tensor) for tensor in tensors]
    head_stride = _head_stride(call.padded, *rows)
    if head_stride is None or (call.padded and head_stride != call.constants["HEAD_STRIDE"]):
        strides = [tensor.stride() for tensor in tensors]
        raise ValueError(f"elements of a head must be adjacent, and heads equally far apart, got strides {strides}")
    if call.padded:
        rows = [_with_padding(tensor) for tensor in rows]
    return rows, [tensor.stride(0) for tensor in rows], head_stride


def run_forward(call: Attention, out: Tensor, stats: Tensor | None = None) -> None:
    """Attend, into `out`, of the shape that the operator returns; rows that no window owns are left as they are.

    stats: (heads, 3, rows of out) float32, for the backward pass.
    """
    heads = call.constants["HEADS"]
    elements = out.numel()
    (out,), (stride,), head_stride = _strides(call, out)
    programs = -(-call.windows // WINDOWS_EACH)
    launch.launch(
        forward_kernel,
        (heads, min(programs, MOST_PROGRAMS), -(-programs // MOST_PROGRAMS)),
        *(*call.pointers, *call.scalars, out, stats, elements // (heads * call.head_dim), WINDOWS_EACH),
        **call.constants,
        OUT_STRIDE=stride,
        OUT_HEAD_STRIDE=head_stride,
        maxnreg=max_registers(call, forward_kernel),
        **attention_tiles(call, forward_kernel),
    )


def run_backward(
    call: Attention, grad_out: Tensor, out: Tensor, stats: Tensor, dq: Tensor, dk: Tensor, dv: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Write the gradients of q, k, v; rows that no window owns are left as they are.

    Returns the gradients of the bias (heads, queries, keys) and of the masked q, k, v (3, heads, head_dim), in float32.
    """
    heads, queries, keys = (call.constants[name] for name in ("HEADS", "QUERIES", "KEYS"))
    masked, masked_bias = call.pointers[4:6]
    device = grad_out.device
    rows = out.numel() // (heads * call.head_dim)
    (grad_out, out), (grad_stride, out_stride), out_head_stride = _strides(call, grad_out, out)
    (dq, dk, dv), (dq_stride, dk_stride, dv_stride), d_head_stride = _strides(call, dq, dk, dv)
    if grad_stride != out_stride:
        raise ValueError(f"rows of grad_out and out must be equally far apart, not {grad_stride} and {out_stride}")
    tiles = attention_tiles(call, backward_kernel)
    parts = min(BIAS_PARTS, max(1, BIAS_PART_ELEMENTS // (heads * keys * queries)))
    windows_each = -(-call.windows // parts)
    parts = -(-call.windows // windows_each)
    query_tiles = -(-queries // tiles["BLOCK_T"])
    masked_parts = 0
    d_masked = masked_ds = None
    if masked is not None and masked_bias is not None:
        kinds = _window_groups(call)
        units_each = -(-kinds.units // MASKED_BIAS_PARTS)
        masked_parts = -(-kinds.units // units_each)
        masked_ds = torch.empty_like(masked_bias)
        d_masked = torch.zeros(parts * query_tiles, 3, heads, 16, masked.shape[2], dtype=torch.float32, device=device)
    d_bias = torch.zeros(parts + masked_parts, heads, keys, queries, dtype=torch.float32, device=device)
    launches, delta = [(True, True, 1)], None
    if query_tiles > 1:
        delta = torch.empty(heads, 2, rows, dtype=torch.float32, device=device)
        launches = [
            (True, call.compact_output, query_tiles),
            (False, True, 1 if call.compact_keys else -(-keys // tiles["BLOCK_S"])),
        ]
    # The second launch has more to keep. Not in float32: there both should round p alike, which tiles may decide.
    keys_tiles = tiles if grad_out.dtype == torch.float32 else tiles | {"BLOCK_T": 16}
    for for_queries, for_keys, programs in launches:
        launch.launch(
            backward_kernel,
            (heads, parts, programs),
            *(*call.pointers, *call.scalars),
            *(grad_out, out, stats, delta, dq, dk, dv, d_masked, masked_ds, d_bias, rows, windows_each, call.scale),
            **call.constants,
            OUT_STRIDE=out_stride,
            DQ_STRIDE=dq_stride,
            DK_STRIDE=dk_stride,
            DV_STRIDE=dv_stride,
            OUT_HEAD_STRIDE=out_head_stride,
            D_HEAD_STRIDE=d_head_stride,
            FOR_QUERIES=for_queries,
            FOR_KEYS=for_keys,
            QUERY_TILE=tiles["BLOCK_T"],
            maxnreg=max_registers(call, backward_kernel),
            **(tiles if for_queries else keys_tiles),
        )
    if masked is not None:
        side_n, side_t = min(64, tile_side(keys)), min(64, tile_side(queries))
        launch.launch(
            masked_bias_gradient_kernel,
            (heads, masked_parts, -(-keys // side_n) * -(-queries // side_t)),
            *(*call.bias_pointers, masked_bias, masked_ds, d_bias[parts:], *call.scalars[:3]),
            *(*kinds.scalars, kinds.units, units_each),
            **call.bias_constants,
            BLOCK_W=kinds.block,
            BLOCK_N=side_n,
            BLOCK_T=side_t,
        )
    if d_masked is not None:
        d_masked = d_masked.sum((0, 3))[..., : call.head_dim]
        d_masked[1] *= call.scale
    return d_bias.sum(0).transpose(1, 2), d_masked


def _new_output(call: Attention, q: Tensor) -> Tensor:
    if call.compact_output:
        return torch.zeros_like(q, memory_format=torch.contiguous_format)  # rows that no window owns stay 0
    return q.new_empty(call.windows, call.constants["QUERIES"], call.constants["HEADS"], call.head_dim)


def forward(*inputs: Any) -> Tensor:
    """The operator window_attention_triton."""
    call = prepare(*inputs)
    out = _new_output(call, inputs[0])
    run_forward(call, out)
    return out


def backward(grad_out: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator window_attention_triton_backward: gradients of q, k, v, bias and the masked q, k, v."""
    call = prepare(*inputs)
    q, k, v, bias = inputs[:4]
    out = _new_output(call, q)
    heads, rows = bias.shape[0], out.numel() // (bias.shape[0] * call.head_dim)
    stats = torch.empty(heads, 3, rows, dtype=torch.float32, device=q.device)
    run_forward(call, out, stats)
    # Rows that no window owns stay 0.
    new = torch.zeros_like if call.compact_keys else torch.empty_like
    dq, dk, dv = (new(tensor, memory_format=torch.contiguous_format) for tensor in (q, k, v))
    d_bias, d_masked = run_backward(call, grad_out.contiguous(), out, stats, dq, dk, dv)
    return dq, dk, dv, d_bias.contiguous().to(bias.dtype), q.new_empty(0) if d_masked is None else d_masked.to(q.dtype)


def padded_head_dim(head_dim: int, dtype: torch.dtype) -> int:
    """Elements that a head takes where it fills whole 32-byte sectors."""
    elements = 32 // dtype.itemsize
    return -(-head_dim // elements) * elements
