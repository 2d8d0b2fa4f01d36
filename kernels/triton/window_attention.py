"""The operators of `window_attention` for NVIDIA and AMD devices, compiled at the first call.

`forward` and `backward` take the arguments of the operators (ops.py). `prepare`, `run_forward` and `run_backward` are
their parts, for the block, which brings its own buffers. Nothing here waits for the device: every shape follows from
shapes, and only the kernels read which tokens a mask leaves visible.
"""

from typing import Any

import torch
from torch import Tensor

from . import launch
from .attention_backward import backward_kernel, backward_keys_kernel, backward_queries_kernel
from .attention_call import Attention, HeadRows, head_rows, padded_head_dim, prepare
from .attention_forward import forward_kernel
from .attention_tiles import attention_tiles, max_registers
from .launch import arguments_of, tile_side
from .masked_key import shared_bias_gradient_kernel

__all__ = ["Attention", "backward", "forward", "padded_head_dim", "prepare", "run_backward", "run_forward"]

# The gradient of the bias is summed in so many parts, of so many elements at most: the same on every device, so that
# results do not depend on it.
BIAS_PARTS, BIAS_PART_ELEMENTS = 256, 2**23
SHARED_BIAS_PARTS = 32
WINDOWS_EACH = 4  # windows of a program of the forward kernel
MAX_PROGRAMS = 65535  # along the second axis of a grid


def run_forward(call: Attention, out: Tensor, stats: Tensor | None = None) -> None:
    """Attend, into `out`, of the shape that the operator returns; rows that no window owns are left as they are.

    stats: (heads, 3, rows of out) float32, for the backward pass. Of each query the highest score, 1 / softmax
        denominator, and the share of the masked key before that division.
    """
    rows = head_rows(call, out)
    programs = -(-call.windows // WINDOWS_EACH)
    launch.launch(
        forward_kernel,
        (call.heads, min(programs, MAX_PROGRAMS), -(-programs // MAX_PROGRAMS)),
        *arguments_of(
            forward_kernel,
            **call.arguments(),
            out_ptr=rows.tensors[0],
            stats_ptr=stats,
            out_rows=out.numel() // (call.heads * call.head_dim),
            windows_each=WINDOWS_EACH,
        ),
        **call.constants,
        OUT_STRIDE=rows.strides[0],
        OUT_HEAD_STRIDE=rows.head_stride,
        maxnreg=max_registers(call, forward_kernel),
        **attention_tiles(call, forward_kernel),
    )


def run_backward(
    call: Attention, grad_out: Tensor, out: Tensor, stats: Tensor, dq: Tensor, dk: Tensor, dv: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Write the gradients of q, k, v; rows that no window owns are left as they are.

    Returns the gradients of the bias (heads, queries, keys) and of the shared q, k, v (3, heads, head_dim), in float32.
    """
    outputs, gradients = head_rows(call, grad_out, out), head_rows(call, dq, dk, dv)
    if len(set(outputs.strides)) > 1:
        raise ValueError("rows of grad_out and out must be equally far apart, not {} and {}".format(*outputs.strides))
    tiles = attention_tiles(call, backward_kernel, backward_queries_kernel, backward_keys_kernel)
    query_tiles = -(-call.queries // tiles["BLOCK_T"])
    parts = min(BIAS_PARTS, max(1, BIAS_PART_ELEMENTS // (call.heads * call.keys * call.queries)))
    windows_each = -(-call.windows // parts)
    parts = -(-call.windows // windows_each)
    groups_each = -(-call.groups.total // SHARED_BIAS_PARTS)
    shared_parts = -(-call.groups.total // groups_each) if call.shared_bias is not None else 0

    def new(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=out.device)

    d_shared = shared_ds = None
    if call.shared_qkv is not None and call.shared_bias is not None:
        shared_ds = torch.empty_like(call.shared_bias)
        d_shared = new(parts * query_tiles, 3, call.heads, 16, call.shared_qkv.shape[2])
    d_bias = new(parts + shared_parts, call.heads, call.keys, call.queries)
    named = {
        **call.arguments(),
        "stats_ptr": stats,
        "d_shared_ptr": d_shared,
        "shared_ds_ptr": shared_ds,
        "d_bias_ptr": d_bias,
        "out_rows": out.numel() // (call.heads * call.head_dim),
        "windows_each": windows_each,
        "dot_scale": call.scale,
    }
    _run_kernels(call, named, outputs, gradients, parts, query_tiles, tiles)
    if shared_ds is not None:
        _add_shared_bias_gradient(call, shared_ds, d_bias[parts:], groups_each, shared_parts)
    if d_shared is not None:
        d_shared = d_shared.sum((0, 3))[..., : call.head_dim]
        d_shared[1] *= call.scale
    return d_bias.sum(0).transpose(1, 2), d_shared


def _run_kernels(
    call: Attention,
    named: dict[str, Any],
    outputs: HeadRows,
    gradients: HeadRows,
    parts: int,
    query_tiles: int,
    tiles: dict[str, int],
) -> None:
    """One kernel for windows whose queries are one tile; two for the others, if there can be any."""
    grad, out = outputs.tensors
    dq, dk, dv = gradients.tensors
    dq_stride, dk_stride, dv_stride = gradients.strides
    named |= {"grad_ptr": grad, "out_ptr": out, "dq_ptr": dq, "dk_ptr": dk, "dv_ptr": dv}
    constants = call.constants | {
        "OUT_STRIDE": outputs.strides[0],
        "OUT_HEAD_STRIDE": outputs.head_stride,
        "D_HEAD_STRIDE": gradients.head_stride,
        "maxnreg": max_registers(call, backward_kernel),
    }

    def run(kernel: Any, programs: int, tiles: dict[str, int], **more: int) -> None:
        grid = (call.heads, parts, programs)
        launch.launch(kernel, grid, *arguments_of(kernel, **named), **constants, **more, **tiles)

    if query_tiles == 1 or call.compact_output:
        run(backward_kernel, 1, tiles, DQ_STRIDE=dq_stride, DK_STRIDE=dk_stride, DV_STRIDE=dv_stride)
    if query_tiles == 1:
        return
    named["delta_ptr"] = torch.empty(call.heads, 2, named["out_rows"], dtype=torch.float32, device=out.device)
    run(backward_queries_kernel, query_tiles, tiles, DQ_STRIDE=dq_stride)
    # The keys kernel has more to keep. Not in float32: there both should round p alike, which tiles may decide.
    key_tiles = tiles if grad.dtype == torch.float32 else tiles | {"BLOCK_T": 16}
    programs = 1 if call.compact_keys else -(-call.keys // tiles["BLOCK_S"])
    strides = {"DK_STRIDE": dk_stride, "DV_STRIDE": dv_stride}
    run(backward_keys_kernel, programs, key_tiles, **strides, QUERY_TILE=tiles["BLOCK_T"])


def _add_shared_bias_gradient(call: Attention, ds: Tensor, d_bias: Tensor, groups_each: int, parts: int) -> None:
    """What the masked key's scores give to the position bias, into `parts` of it."""
    side_n, side_t = min(64, tile_side(call.keys)), min(64, tile_side(call.queries))
    launch.launch(
        shared_bias_gradient_kernel,
        (call.heads, parts, -(-call.keys // side_n) * -(-call.queries // side_t)),
        *arguments_of(
            shared_bias_gradient_kernel,
            **call.arguments(),
            **call.groups.arguments(),
            ds_ptr=ds,
            d_bias_ptr=d_bias,
            groups_each=groups_each,
        ),
        **call.bias_constants,
        BLOCK_W=call.groups.windows_each,
        BLOCK_N=side_n,
        BLOCK_T=side_t,
    )


def _new_output(call: Attention, q: Tensor) -> Tensor:
    if call.compact_output:
        return torch.zeros_like(q, memory_format=torch.contiguous_format)  # rows that no window owns stay 0
    return q.new_empty(call.windows, call.queries, call.heads, call.head_dim)


def forward(*arguments: Any) -> Tensor:
    """The operator window_attention_triton."""
    q, *_ = arguments
    call = prepare(*arguments)
    out = _new_output(call, q)
    run_forward(call, out)
    return out


def backward(grad_out: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator window_attention_triton_backward: gradients of q, k, v, bias and the shared q, k, v."""
    q, k, v, bias, *_ = arguments
    call = prepare(*arguments)
    out = _new_output(call, q)
    rows = out.numel() // (call.heads * call.head_dim)
    stats = torch.empty(call.heads, 3, rows, dtype=torch.float32, device=q.device)
    run_forward(call, out, stats)
    # Rows that no window owns stay 0.
    new = torch.zeros_like if call.compact_keys else torch.empty_like
    dq, dk, dv = (new(tensor, memory_format=torch.contiguous_format) for tensor in (q, k, v))
    d_bias, d_shared = run_backward(call, grad_out.contiguous(), out, stats, dq, dk, dv)
    return dq, dk, dv, d_bias.contiguous().to(bias.dtype), q.new_empty(0) if d_shared is None else d_shared.to(q.dtype)
