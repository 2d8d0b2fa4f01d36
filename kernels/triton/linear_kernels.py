"""The linear layers around the attention: gather and LayerNorm in front, window reverse and residual behind.

Legend: a *row* is what a kernel works on, a *token* where it lies in (images, height, width, CHANNELS): rows are the
visible tokens of a plan, or all tokens in window order. *Head columns* are (parts, heads, HEAD_STRIDE), the layout of
q, k, v and the attention's output between the kernels: a head's HEAD_DIM numbers fill whole sectors, zeros behind them.
All products use weights packed as (COLUMNS, CHANNELS), in the dtype of the products; where that is exact float32, whose
operands are read from shared memory by columns, also *turned*, (CHANNELS, columns).
"""

import triton
import triton.language as tl

from .norm import load_rows, normalise, normalise_backward, store_rows
from .position import image_tokens


@triton.jit
def pack_kernel(
    weight_ptr, bias_ptr, norm_weight_ptr, norm_bias_ptr, packed_ptr, turned_ptr, packed_bias_ptr,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_STRIDE: tl.constexpr,
    COLUMN_STEP: tl.constexpr, CHANNEL_STEP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Weights of head columns as (COLUMNS, CHANNELS). With a bias: that of LayerNorm's affine part and the layer."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_C)
    dim = column % HEAD_STRIDE
    source = column // HEAD_STRIDE * HEAD_DIM + dim
    given = (column < COLUMNS) & (dim < HEAD_DIM)
    in_row = channel < CHANNELS
    weight = tl.load(
        weight_ptr + source[:, None] * COLUMN_STEP + channel[None, :] * CHANNEL_STEP,
        mask=given[:, None] & in_row[None, :],
        other=0.0,
    ).to(tl.float32)
    if bias_ptr is not None:
        norm_weight = tl.load(norm_weight_ptr + channel, mask=in_row, other=0.0).to(tl.float32)
        norm_bias = tl.load(norm_bias_ptr + channel, mask=in_row, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + source, mask=given, other=0.0).to(tl.float32)
        tl.store(packed_bias_ptr + column, bias + tl.sum(weight * norm_bias[None, :], 1), mask=column < COLUMNS)
        weight = weight * norm_weight[None, :]
    store_rows(packed_ptr, column, column < COLUMNS, weight, CHANNELS, BLOCK_C)
    if turned_ptr is not None:
        turned = turned_ptr + channel[None, :] * COLUMNS + column[:, None]
        tl.store(turned, weight, mask=(column < COLUMNS)[:, None] & in_row[None, :])


@triton.jit
def count_rows(rows, segments, offsets_ptr):
    """As many as the plan has visible tokens, or `rows` without a plan."""
    if offsets_ptr is not None:
        rows = tl.load(offsets_ptr + segments)
    return rows


@triton.jit
def tile_rows(
    first, rows, index_ptr, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """BLOCK_R rows, which of them exist, and their tokens: from the plan's list, or counted in window order."""
    row = first + tl.arange(0, BLOCK_R)
    valid = row < rows
    if index_ptr is not None:
        token = tl.load(index_ptr + row, mask=valid, other=0)
    else:
        window, place = row // (WINDOW_H * WINDOW_W), row % (WINDOW_H * WINDOW_W)
        windows = (height // WINDOW_H) * (width // WINDOW_W)
        token = window // windows * (height * width)
        token += image_tokens(window % windows, place, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W)
    return row, valid, token


@triton.jit
def load_operand(
    x_ptr, scale_ptr, token, valid, tokens_each, NORM: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Rows of an image tensor, normalised, or multiplied by the factor of their image."""
    operand = load_rows(x_ptr, token, valid, CHANNELS, BLOCK_C)
    if NORM:
        operand, _ = normalise(operand, CHANNELS)
    else:
        if scale_ptr is not None:
            operand *= tl.load(scale_ptr + token // tokens_each, mask=valid, other=0.0)[:, None]
        # Zero already. Without this Triton takes the loaded float32 through shared memory in place of the product's
        # 16-bit operand: registers spill, and a fifth of the accesses conflict.
        operand = tl.where(valid[:, None], operand, 0.0)
    return operand


@triton.jit
def load_columns(heads_ptr, row, valid, column, COLUMNS: tl.constexpr):
    mask = valid[:, None] & (column < COLUMNS)[None, :]
    return tl.load(heads_ptr + row.to(tl.int64)[:, None] * COLUMNS + column[None, :], mask=mask, other=0.0)


@triton.jit
def rows_to_heads_kernel(
    x_ptr, scale_ptr, packed_ptr, turned_ptr, packed_bias_ptr, index_ptr, offsets_ptr, heads_ptr,
    rows, segments, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr, TURNED_STEP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Head columns of the rows of x. With a bias (q, k, v) the rows are normalised, without (dO) scaled."""
    rows = count_rows(rows, segments, offsets_ptr)
    first = tl.program_id(0) * BLOCK_R
    if first >= rows:
        return
    row, valid, token = tile_rows(first, rows, index_ptr, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W, BLOCK_R)
    operand = load_operand(
        x_ptr, scale_ptr, token, valid, height * width, packed_bias_ptr is not None, CHANNELS, BLOCK_C
    )
    operand = operand.to(packed_ptr.dtype.element_ty)
    for start in range(0, COLUMNS, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        in_head = column < COLUMNS
        if turned_ptr is not None:
            channel = tl.arange(0, BLOCK_C)
            mask = (channel < CHANNELS)[:, None] & in_head[None, :]
            weight = tl.load(turned_ptr + channel[:, None] * TURNED_STEP + column[None, :], mask=mask, other=0.0)
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
    heads_ptr, packed_ptr, bias_ptr, x_ptr, scale_ptr, index_ptr, offsets_ptr, out_ptr,
    rows, segments, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x + scale (heads W + bias), each row at its token."""
    rows = count_rows(rows, segments, offsets_ptr)
    first = tl.program_id(0) * BLOCK_R
    if first >= rows:
        return
    channel = tl.arange(0, BLOCK_C)
    branch = sum_over_columns(
        heads_ptr, packed_ptr, first, rows, COLUMNS, CHANNELS, PRECISION, BLOCK_R, BLOCK_N, BLOCK_C
    )
    # Behind the loop, whose sums need the registers.
    _, valid, token = tile_rows(first, rows, index_ptr, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W, BLOCK_R)
    branch += tl.load(bias_ptr + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]
    if scale_ptr is not None:
        branch *= tl.load(scale_ptr + token // (height * width), mask=valid, other=0.0)[:, None]
    x = load_rows(x_ptr, token, valid, CHANNELS, BLOCK_C)
    store_rows(out_ptr, token, valid, x + branch, CHANNELS, BLOCK_C)


@triton.jit
def norm_backward_kernel(
    heads_ptr, packed_ptr, x_ptr, index_ptr, offsets_ptr, dx_ptr,
    rows, segments, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Adds to dx, which holds the gradient of the residual, what comes through LayerNorm from d(q, k, v)."""
    rows = count_rows(rows, segments, offsets_ptr)
    first = tl.program_id(0) * BLOCK_R
    if first >= rows:
        return
    _, valid, token = tile_rows(first, rows, index_ptr, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W, BLOCK_R)
    d_normed = sum_over_columns(
        heads_ptr, packed_ptr, first, rows, COLUMNS, CHANNELS, PRECISION, BLOCK_R, BLOCK_N, BLOCK_C
    )
    normed, deviation = normalise(load_rows(x_ptr, token, valid, CHANNELS, BLOCK_C), CHANNELS)
    dx = load_rows(dx_ptr, token, valid, CHANNELS, BLOCK_C)
    dx += normalise_backward(d_normed, normed, deviation, CHANNELS)
    store_rows(dx_ptr, token, valid, dx, CHANNELS, BLOCK_C)


@triton.jit
def weight_gradient_kernel(
    heads_ptr, x_ptr, scale_ptr, index_ptr, offsets_ptr, d_packed_ptr, d_bias_ptr,
    rows, segments, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr, NORM: tl.constexpr,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """What a chunk of rows gives to packed weights, (chunks, COLUMNS, CHANNELS): heads^T rows.

    And to the bias: of the columns, (chunks, COLUMNS), where rows are normalised, else of the channels.
    """
    rows = count_rows(rows, segments, offsets_ptr)
    chunk = tl.cdiv(tl.cdiv(rows, BLOCK_R), tl.num_programs(0)) * BLOCK_R
    first = tl.program_id(0) * chunk
    first_column = tl.program_id(1) * (TILES * BLOCK_N)
    d_packed = (tl.zeros((BLOCK_N, BLOCK_C), tl.float32),) * TILES
    d_bias = (tl.zeros((BLOCK_N if NORM else BLOCK_C,), tl.float32),) * (TILES if NORM else 1)
    for start in range(first, tl.minimum(first + chunk, rows), BLOCK_R):
        row, valid, token = tile_rows(
            start, rows, index_ptr, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W, BLOCK_R
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
