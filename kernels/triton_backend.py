"""The backend "triton" of window_attention: NVIDIA and AMD devices, compiled at first use.

The functions take the arguments of the operators (ops.py). Nothing here waits for the device: every shape follows from
shapes, and what a mask leaves visible only the kernels read.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import triton_launch
from .triton_backward import bias_kernel, inputs_kernel
from .triton_forward import forward_kernel
from .triton_pairs import rows_of_places_kernel

# Partial sums of the bias gradient: the same number on every device, so that results do not depend on it.
BIAS_CHUNKS = 64
# From so many windows on, a program computes all heads of one, whose rows then come from the first-level cache; fewer
# would leave multiprocessors idle (an A100 has 108, for two programs each).
ENOUGH_WINDOWS = 216


class _Call(NamedTuple):
    """What all kernels share, in the order of their parameters."""

    pointers: tuple[Tensor | None, ...]
    scalars: tuple[Any, ...]
    constants: dict[str, Any]
    windows: int
    compact_keys: bool
    compact_output: bool


def _rows(tensor: Tensor) -> Tensor:
    """The tensor as (rows, heads, head_dim) with adjacent heads and dims; copied if it has another layout."""
    if tensor.dim() == 4:
        tensor = tensor.flatten(0, 1)  # a view where rows have one stride
    heads, head_dim = tensor.shape[1:]
    dense = (head_dim == 1 or tensor.stride(2) == 1) and (heads == 1 or tensor.stride(1) == head_dim)
    return tensor if dense else tensor.contiguous()


def _prepare(
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
) -> _Call:
    heads, queries, keys = bias.shape
    compact_queries = q.dim() == 3
    windows = q.shape[0] if offsets is None else offsets.shape[0] - 1
    rows = None
    if offsets is not None:
        rows = torch.empty(windows, keys, dtype=torch.int32, device=q.device)
        arguments = (offsets, position, rows)
        triton_launch.launch(
            rows_of_places_kernel, (windows,), *arguments, num_warps=4, PLACES=keys, BLOCK=_block(keys)
        )
    q, k, v = _rows(q), _rows(k), _rows(v)
    # Keys first: the visible keys of a window then pick rows of adjacent queries.
    bias = bias.transpose(1, 2).contiguous()
    window_mask = None if window_mask is None else window_mask.transpose(1, 2).contiguous()
    masked = None if masked is None else masked.contiguous()
    exp_bias = top = None
    if masked is not None and window_mask is None:
        top = bias.float().amax(1).clamp(min=-1e29)  # a row of -inf holds no key
        exp_bias = (bias - top[:, None]).exp()
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return _Call(
        (q, k, v, bias, exp_bias, top, masked, offsets, position, rows, regions, window_mask),
        (1 if regions is None else len(regions), 1 if window_mask is None else len(window_mask), scale),
        {
            "HEADS": heads,
            "HEAD_DIM": q.shape[2],
            "QUERIES": queries,
            "KEYS": keys,
            "Q_STRIDE": q.stride(0),
            "K_STRIDE": k.stride(0),
            "V_STRIDE": v.stride(0),
            "COMPACT_Q": compact_queries,
            "PRECISION": "tf32" if tf32 else "ieee",
            "BLOCK_D": _block(q.shape[2]),
        },
        windows,
        compact_keys=offsets is not None,
        compact_output=compact_queries and masked is None,
    )


def _block(extent: int) -> int:
    """A tile side: a power of two, at least the 16 of a matrix instruction."""
    return max(16, triton.next_power_of_2(extent))


def _tiles(call: _Call, kernel: Any) -> dict[str, int]:
    """Tile sides and warps of a kernel: for windows up to 8x8 the largest that no target spills (TRITON.md)."""
    queries, keys = _block(call.constants["QUERIES"]), _block(call.constants["KEYS"])
    if kernel is forward_kernel:
        queries = 16 if call.compact_output else min(64, queries)
    large = queries > 64
    half = call.pointers[0].element_size() == 2  # type: ignore[union-attr]
    small = half and call.constants["HEAD_DIM"] <= 16
    keys_each, places_each, warps = (64 if half else 32), (64 if small else 32), 4
    if kernel is bias_kernel:
        places_each = (32 if half else 16) if large else 64
        keys_each = places_each  # these it adds up in registers
    if call.compact_keys or (large and kernel is inputs_kernel):
        keys_each = 16  # a window has few visible keys; many queries leave few registers
    if large:
        warps = 8
    heads = call.constants["HEADS"]
    heads_each = {} if kernel is bias_kernel else {"HEADS_EACH": heads if call.windows >= ENOUGH_WINDOWS else 1}
    return {
        **heads_each,
        "BLOCK_T": queries,
        "BLOCK_S": min(keys_each, keys),
        "BLOCK_N": min(places_each, keys),
        "num_warps": 1 if queries == 16 else warps,
    }


def forward(*inputs: Any) -> Tensor:
    """The operator window_attention_triton."""
    call = _prepare(*inputs)
    q, bias = inputs[0], inputs[3]
    heads, queries, _ = bias.shape
    if call.compact_output:
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)  # rows that no window owns stay 0
    else:
        out = q.new_empty(call.windows, queries, heads, q.shape[-1])
    tiles = _tiles(call, forward_kernel)
    triton_launch.launch(
        forward_kernel,
        (call.windows, heads // tiles["HEADS_EACH"]),
        *(*call.pointers, out, *call.scalars),
        **call.constants,
        **tiles,
    )
    return out


def backward(grad_out: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator window_attention_triton_backward: gradients of q, k, v, bias and the masked q, k, v."""
    call = _prepare(*inputs)
    q, k, v, bias, masked = inputs[:5]
    heads, queries, keys = bias.shape
    grad_out = grad_out.contiguous()
    rows = grad_out.numel() // (heads * q.shape[-1])
    stats = torch.empty(rows, heads, 3, dtype=torch.float32, device=q.device)
    new = torch.zeros_like if call.compact_keys else torch.empty_like  # rows that no window owns stay 0
    dk, dv = (new(tensor, memory_format=torch.contiguous_format) for tensor in (k, v))
    dq = torch.zeros_like(q, memory_format=torch.contiguous_format)
    d_masked = None
    if masked is not None:
        d_masked = torch.empty(call.windows, *masked.shape, dtype=torch.float32, device=q.device)
    tiles = _tiles(call, inputs_kernel)
    triton_launch.launch(
        inputs_kernel,
        (call.windows, heads // tiles["HEADS_EACH"]),
        *(grad_out, *call.pointers, dq, dk, dv, d_masked, stats, *call.scalars),
        **call.constants,
        **tiles,
    )
    chunk = -(-call.windows // BIAS_CHUNKS)
    chunks = -(-call.windows // chunk)
    d_bias = torch.empty(chunks, heads, keys, queries, dtype=torch.float32, device=q.device)
    tiles = _tiles(call, bias_kernel)
    triton_launch.launch(
        bias_kernel,
        (chunks, heads, -(-keys // tiles["BLOCK_N"])),
        *(grad_out, *call.pointers, stats, d_bias, call.windows, chunk, *call.scalars),
        **call.constants,
        **tiles,
    )
    return (
        dq,
        dk,
        dv,
        d_bias.sum(0).transpose(1, 2).contiguous().to(bias.dtype),
        q.new_empty(0) if d_masked is None else d_masked.sum(0).to(q.dtype),
    )
