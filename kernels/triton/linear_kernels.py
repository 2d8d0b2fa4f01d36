"""The linear layers around the attention: gather and LayerNorm before it, window reverse and residual after it.

Legend: a *token* is one of (images, height, width, CHANNELS). Kernels work on the tokens of a compact list or on all,
in window order; row i of a matrix belongs to token i of these. *Head columns* are (parts, heads, HEAD_STRIDE), the
layout of q, k, v and the attention's output between the kernels: a head's HEAD_DIM numbers, then zeros up to whole
sectors. All products use weights packed as (COLUMNS, CHANNELS), in the dtype of the products. Exact float32 products
read their operands from shared memory by columns, and use the *transposed* weights, (CHANNELS, columns).
"""

import triton
import triton.language as tl

from .norm import load_rows, normalise, normalise_backward, store_rows
from .position import image_tokens


@triton.jit
def pack_kernel(
    weight_ptr, bias_ptr, norm_weight_ptr, norm_bias_ptr, packed_ptr, transposed_ptr, packed_bias_ptr,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_STRIDE: tl.constexpr,
    COLUMN_STRIDE: tl.constexpr, CHANNEL_STRIDE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Weights of head columns as (COLUMNS, CHANNELS). With a bias, LayerNorm's weight and bias are folded into both."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_C)
    dim = column % HEAD_STRIDE
    source = column // HEAD_STRIDE * HEAD_DIM + dim
    in_source = (column < COLUMNS) & (dim < HEAD_DIM)
    in_row = channel < CHANNELS
    weight = tl.load(
        weight_ptr + source[:, None] * COLUMN_STRIDE + channel[None, :] * CHANNEL_STRIDE,
        mask=in_source[:, None] & in_row[None, :],
        other=0.0,
    ).to(tl.float32)
    if bias_ptr is not None:
        norm_weight = tl.load(norm_weight_ptr + channel, mask=in_row, other=0.0).to(tl.float32)
        norm_bias = tl.load(norm_bias_ptr + channel, mask=in_row, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + source, mask=in_source, other=0.0).to(tl.float32)
        tl.store(packed_bias_ptr + column, bias + tl.sum(weight * norm_bias[None, :], 1), mask=column < COLUMNS)
        weight = weight * norm_weight[None, :]
    store_rows(packed_ptr, column, column < COLUMNS, weight, CHANNELS, BLOCK_C)
    if transposed_ptr is not None:
        transposed = transposed_ptr + channel[None, :] * COLUMNS + column[:, None]
        tl.store(transposed, weight, mask=(column < COLUMNS)[:, None] & in_row[None, :])


@triton.jit
def count_rows(rows, segments, offsets_ptr):
    """The number of visible tokens with a list, else `rows`."""
    if offsets_ptr is not None:
        rows = tl.load(offsets_ptr + segments)
    return rows


@triton.jit
def tokens_of_rows(
    first, rows, token_index_ptr, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """BLOCK_R rows from `first` on, a mask of those that exist, and their tokens: of the list, or in window order."""
    row = first + tl.arange(0, BLOCK_R)
    valid = row < rows
    if token_index_ptr is not None:
        token = tl.load(token_index_ptr + row, mask=valid, other=0)
    else:
        window, position = row // (WINDOW_H * WINDOW_W), row % (WINDOW_H * WINDOW_W)
        windows = (height // WINDOW_H) * (width // WINDOW_W)
        token = window // windows * (height * width)
        token += image_tokens(window % windows, position, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W)
    return row, valid, token


@triton.jit
def load_operand(
    x_ptr, scale_ptr, token, valid, tokens_per_image, NORM: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr
):
    """The channels of tokens, normalised, or multiplied by the factor of their image."""
    operand = load_rows(x_ptr, token, valid, CHANNELS, BLOCK_C)
    if NORM:
        operand, _ = normalise(operand, CHANNELS)
    else:
        if scale_ptr is not None:
            operand *= tl.load(scale_ptr + token // tokens_per_image, mask=valid, other=0.0)[:, None]
        # They are 0 already. Without this, Triton moves the loaded float32 through shared memory instead of the
        # product's 16-bit operand: registers spill, and a fifth of the accesses conflict.
        operand = tl.where(valid[:, None], operand, 0.0)
    return operand


@triton.jit
def load_columns(heads_ptr, row, valid, column, COLUMNS: tl.constexpr):
    mask = valid[:, None] & (column < COLUMNS)[None, :]
    return tl.load(heads_ptr + row.to(tl.int64)[:, None] * COLUMNS + column[None, :], mask=mask, other=0.0)


@triton.jit
def tokens_to_heads_kernel(
    x_ptr, scale_ptr, packed_ptr, transposed_ptr, packed_bias_ptr, token_index_ptr, offsets_ptr, heads_ptr,
    rows, segments, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr, TRANSPOSED_STRIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Head columns of tokens of x, which are normalised with a bias (q, k, v), and scaled without one (dO)."""
    rows = count_rows(rows, segments, offsets_ptr)
    first = tl.program_id(0) * BLOCK_R
    if first >= rows:
        return
    row, valid, token = tokens_of_rows(
        first, rows, token_index_ptr, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W, BLOCK_R
    )
    operand = load_operand(
        x_ptr, scale_ptr, token, valid, height * width, packed_bias_ptr is not None, CHANNELS, BLOCK_C
    )
    operand = operand.to(packed_ptr.dtype.element_ty)
    for start in range(0, COLUMNS, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        in_head = column < COLUMNS
        if transposed_ptr is not None:
            channel = tl.arange(0, BLOCK_C)
            mask = (channel < CHANNELS)[:, None] & in_head[None, :]
            weight = tl.load(
                transposed_ptr + channel[:, None] * TRANSPOSED_STRIDE + column[None, :], mask=mask, other=0.0
            )
        else:
            weight = tl.trans(load_rows(packed_ptr, column, in_head, CHANNELS, BLOCK_C).to(operand.dtype))
        out = tl.dot(operand, weight, input_precision=PRECISION)
        if packed_bias_ptr is not None:
            out += tl.load(packed_bias_ptr + column, mask=in_head, other=0.0)[None, :]
        tl.store(
            heads_ptr + row.to(tl.int64)[:, None] * COLUMNS + column[None, :],
            out.to(heads_ptr.dtype.element_ty),
            mask=valid[:, None] & in_head[None, :],
        )


@triton.jit
def sum_over_columns(
    heads_ptr, packed_ptr, first, rows, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Head columns of BLOCK_R rows times packed weights, (BLOCK_R, BLOCK_C) in float32."""
    row = first + tl.arange(0, BLOCK_R)
    valid = row < rows
    out = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(0, COLUMNS, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        part = load_columns(heads_ptr, row, valid, column, COLUMNS)
        weight = load_rows(packed_ptr, column, column < COLUMNS, CHANNELS, BLOCK_C).to(part.dtype)
        out = tl.dot(part, weight, out, input_precision=PRECISION)
    return out


@triton.jit
def projection_kernel(
    heads_ptr, packed_ptr, bias_ptr, x_ptr, scale_ptr, token_index_ptr, offsets_ptr, out_ptr,
    rows, segments, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x + scale (heads W + bias), each row stored at its token."""
    rows = count_rows(rows, segments, offsets_ptr)
    first = tl.program_id(0) * BLOCK_R
    if first >= rows:
        return
    channel = tl.arange(0, BLOCK_C)
    branch = sum_over_columns(
        heads_ptr, packed_ptr, first, rows, COLUMNS, CHANNELS, PRECISION, BLOCK_R, BLOCK_N, BLOCK_C
    )
    # After the loop, whose sums need the registers.
    _, valid, token = tokens_of_rows(
        first, rows, token_index_ptr, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W, BLOCK_R
    )
    branch += tl.load(bias_ptr + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]
    if scale_ptr is not None:
        branch *= tl.load(scale_ptr + token // (height * width), mask=valid, other=0.0)[:, None]
    x = load_rows(x_ptr, token, valid, CHANNELS, BLOCK_C)
    store_rows(out_ptr, token, valid, x + branch, CHANNELS, BLOCK_C)


@triton.jit
def norm_backward_kernel(
    heads_ptr, packed_ptr, x_ptr, token_index_ptr, offsets_ptr, dx_ptr,
    rows, segments, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add the gradient through LayerNorm, from that of q, k, v, to dx, which holds the gradient of the residual."""
    rows = count_rows(rows, segments, offsets_ptr)
    first = tl.program_id(0) * BLOCK_R
    if first >= rows:
        return
    _, valid, token = tokens_of_rows(
        first, rows, token_index_ptr, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W, BLOCK_R
    )
    d_normed = sum_over_columns(
        heads_ptr, packed_ptr, first, rows, COLUMNS, CHANNELS, PRECISION, BLOCK_R, BLOCK_N, BLOCK_C
    )
    normed, deviation = normalise(load_rows(x_ptr, token, valid, CHANNELS, BLOCK_C), CHANNELS)
    dx = load_rows(dx_ptr, token, valid, CHANNELS, BLOCK_C)
    dx += normalise_backward(d_normed, normed, deviation, CHANNELS)
    store_rows(dx_ptr, token, valid, dx, CHANNELS, BLOCK_C)


@triton.jit
def weight_gradient_kernel(
    heads_ptr, x_ptr, scale_ptr, token_index_ptr, offsets_ptr, d_packed_ptr, d_bias_ptr,
    rows, segments, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr, NORM: tl.constexpr,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Sums over a chunk of rows: the gradient of packed weights, heads^T x, (chunks, COLUMNS, CHANNELS).

    And that of the bias: with NORM, where x is normalised, of the columns, (chunks, COLUMNS), else of the channels.
    """
    rows = count_rows(rows, segments, offsets_ptr)
    chunk = tl.cdiv(tl.cdiv(rows, BLOCK_R), tl.num_programs(0)) * BLOCK_R
    first = tl.program_id(0) * chunk
    first_column = tl.program_id(1) * (TILES * BLOCK_N)
    d_packed = (tl.zeros((BLOCK_N, BLOCK_C), tl.float32),) * TILES
    d_bias = (tl.zeros((BLOCK_N if NORM else BLOCK_C,), tl.float32),) * (TILES if NORM else 1)
    for start in range(first, tl.minimum(first + chunk, rows), BLOCK_R):
        row, valid, token = tokens_of_rows(
            start, rows, token_index_ptr, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W, BLOCK_R
        )
        operand = load_operand(x_ptr, scale_ptr, token, valid, height * width, NORM, CHANNELS, BLOCK_C)
        products, sums = (), ()
        if not NORM:
            sums = (d_bias[0] + tl.sum(operand, 0),)  # type: ignore[assignment]
        operand = operand.to(heads_ptr.dtype.element_ty)
        for tile in tl.static_range(TILES):
            column = first_column + tile * BLOCK_N + tl.arange(0, BLOCK_N)
            part = load_columns(heads_ptr, row, valid, column, COLUMNS)
            product = tl.dot(tl.trans(part), operand, d_packed[tile], input_precision=PRECISION)
            products = products + (product,)  # type: ignore[assignment]  # noqa: RUF005 (Triton unpacks no tuples)
            if NORM:
                sums = sums + (d_bias[tile] + tl.sum(part.to(tl.float32), 0),)  # type: ignore[assignment]  # noqa: RUF005
        d_packed, d_bias = products, sums
    program = tl.program_id(0).to(tl.int64)
    d_packed_ptr += program * (COLUMNS * CHANNELS)
    for tile in tl.static_range(TILES):
        column = first_column + tile * BLOCK_N + tl.arange(0, BLOCK_N)
        store_rows(d_packed_ptr, column, column < COLUMNS, d_packed[tile], CHANNELS, BLOCK_C)
        if NORM:
            tl.store(d_bias_ptr + program * COLUMNS + column, d_bias[tile], mask=column < COLUMNS)
    if not NORM and tl.program_id(1) == 0:
        channel = tl.arange(0, BLOCK_C)
        tl.store(d_bias_ptr + program * CHANNELS + channel, d_bias[0], mask=channel < CHANNELS)
