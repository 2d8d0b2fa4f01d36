"""The MLP half of a Swin block in Triton: y = x + s (gelu(LN(x) W1^T + b1) W2^T + b2).

R rows, C channels, M hidden units; rows are all tokens, or those of a plan (as many of index_ptr as offsets_ptr has at
`segments`). LayerNorm's affine part is folded into W1 and b1. Weights are (M, C) and padded, so that they are read in
whole vectors, and where products are exact float32, whose operands are read from shared memory by columns, also
*turned*, (C, M). A tile of hidden units never leaves its program.
"""

import triton
import triton.language as tl

from .norm import load_rows, normalise, normalise_backward, store_rows


@triton.jit
def fold_kernel(
    norm_weight_ptr, norm_bias_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, w1_ptr, b1_ptr, w2_ptr, turned_ptr,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, UNITS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """W1 and b1 with LayerNorm's weight and bias in them, and W2 transposed: (UNITS, BLOCK_C), 0 in the padding.

    `turned`, if wanted: both once more, as (2, BLOCK_C, UNITS).
    """
    unit = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.arange(0, BLOCK_C)
    in_row = channel < CHANNELS
    mask = (unit < HIDDEN)[:, None] & in_row[None, :]
    weight = tl.load(norm_weight_ptr + channel, mask=in_row, other=0.0).to(tl.float32)
    bias = tl.load(norm_bias_ptr + channel, mask=in_row, other=0.0).to(tl.float32)
    w1 = load_rows(fc1_weight_ptr, unit, unit < HIDDEN, CHANNELS, BLOCK_C)
    b1 = tl.load(fc1_bias_ptr + unit, mask=unit < HIDDEN, other=0.0).to(tl.float32)
    w2 = tl.load(fc2_weight_ptr + channel[None, :] * HIDDEN + unit[:, None], mask=mask, other=0.0)
    padded = unit[:, None] * BLOCK_C + channel[None, :]
    tl.store(w1_ptr + padded, (w1 * weight[None, :]).to(w1_ptr.dtype.element_ty))
    tl.store(b1_ptr + unit, b1 + tl.sum(w1 * bias[None, :], 1))
    tl.store(w2_ptr + padded, w2.to(w2_ptr.dtype.element_ty))
    if turned_ptr is not None:
        turned = turned_ptr + channel[None, :] * UNITS + unit[:, None]
        tl.store(turned, w1 * weight[None, :])
        tl.store(turned + BLOCK_C * UNITS, w2)


@triton.jit
def load_weight(w_ptr, unit, BLOCK_C: tl.constexpr):
    return tl.load(w_ptr + unit[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :])


@triton.jit
def turn(w, turned_ptr, WHICH: tl.constexpr, unit, HIDDEN: tl.constexpr):
    """(BLOCK_C, units) of W1 or W2 (WHICH = 0, 1), of which w are the (units, BLOCK_C)."""
    BLOCK_C: tl.constexpr = w.shape[1]
    if turned_ptr is not None:
        channel = WHICH * BLOCK_C + tl.arange(0, BLOCK_C)
        turned = tl.load(turned_ptr + channel[:, None] * HIDDEN + unit[None, :])
    else:
        turned = tl.trans(w)
    return turned


@triton.jit
def tile_rows(tile, scale_ptr, index_ptr, offsets_ptr, tokens, segments, BLOCK_R: tl.constexpr):
    """Of a tile: its places in a list of rows, the rows, which of them exist, and their drop-path factor.

    The factor is a scalar without a plan, for a tile then lies in one image, and (BLOCK_R, 1) with one.
    """
    scale = 1.0
    if index_ptr is not None:
        place = tile * BLOCK_R + tl.arange(0, BLOCK_R)
        valid = place < tl.load(offsets_ptr + segments)
        row = tl.load(index_ptr + place, mask=valid, other=0)
        if scale_ptr is not None:
            scale = tl.load(scale_ptr + row // tokens, mask=valid, other=0.0)[:, None]
    else:
        tiles = tl.cdiv(tokens, BLOCK_R)
        image = tile // tiles
        token = (tile % tiles) * BLOCK_R + tl.arange(0, BLOCK_R)
        valid = token < tokens
        row = image.to(tl.int64) * tokens + token
        place = row
        if scale_ptr is not None:
            scale = tl.load(scale_ptr + image)
    return place, row, valid, scale


@triton.jit
def upper_tail(x):
    """1 - Phi(|x|) of the normal distribution, as 2 to a polynomial; times |x| it is right to 2e-8.

    A minimax fit on [0, 6], whose rounding errors are those of PyTorch's float32 GELU or less; the compiler's erf takes
    twice the instructions, and they, not the matrix products, are what an MLP of 60 channels consists of.
    """
    u = tl.abs(x)
    power = -2.09644986e-06 * u + 3.06611182e-05
    power = power * u - 0.000145487007
    power = power * u - 0.000233148676
    power = power * u + 0.0071858447
    power = power * u - 0.0525782406
    power = power * u - 0.459182024
    power = power * u - 1.15110826
    power = power * u - 0.99999994
    return tl.exp2(power)


@triton.jit
def gelu(x, tail):
    """x Phi(x), given `upper_tail(x)`."""
    return tl.maximum(x, 0.0) - tl.abs(x) * tail


@triton.jit
def gelu_slope(x, tail):
    """The derivative, Phi(x) + x phi(x), given `upper_tail(x)`."""
    density = 0.3989422804 * tl.exp2(-0.7213475204 * x * x)
    return tl.where(x > 0.0, 1.0 - tail, tail) + x * density


@triton.jit
def mlp_kernel(
    x_ptr, w1_ptr, b1_ptr, w2_ptr, turned_ptr, b2_ptr, scale_ptr, y_ptr, index_ptr, offsets_ptr, tokens, segments,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    if index_ptr is not None and tl.program_id(0) * BLOCK_R >= tl.load(offsets_ptr + segments):
        return
    _, row, valid, scale = tile_rows(tl.program_id(0), scale_ptr, index_ptr, offsets_ptr, tokens, segments, BLOCK_R)
    channel = tl.arange(0, BLOCK_C)
    x = load_rows(x_ptr, row, valid, CHANNELS, BLOCK_C)
    normed, _ = normalise(x, CHANNELS)
    normed = normed.to(w1_ptr.dtype.element_ty)
    b2 = tl.load(b2_ptr + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)
    y = x + scale * b2[None, :]  # the sum starts here, so that x needs no registers of its own
    for start in tl.range(0, HIDDEN, BLOCK_M, num_stages=STAGES):
        unit = start + tl.arange(0, BLOCK_M)
        w1, w2 = load_weight(w1_ptr, unit, BLOCK_C), load_weight(w2_ptr, unit, BLOCK_C)
        hidden = tl.dot(normed, turn(w1, turned_ptr, 0, unit, HIDDEN), input_precision=PRECISION)
        hidden += tl.load(b1_ptr + unit)[None, :]
        activated = scale * gelu(hidden, upper_tail(hidden))
        y = tl.dot(activated.to(w2.dtype), w2, y, input_precision=PRECISION)
    store_rows(y_ptr, row, valid, y, CHANNELS, BLOCK_C)


@triton.jit
def load_rows_and_gradient(
    x_ptr, grad_ptr, scale_ptr, tile, index_ptr, offsets_ptr, tokens, segments,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """A tile's rows, normalised, and 1 / deviation; the gradients of y, and of its branch before the scale."""
    place, row, valid, scale = tile_rows(tile, scale_ptr, index_ptr, offsets_ptr, tokens, segments, BLOCK_R)
    normed, deviation = normalise(load_rows(x_ptr, row, valid, CHANNELS, BLOCK_C), CHANNELS)
    grad = load_rows(grad_ptr, row, valid, CHANNELS, BLOCK_C)
    # Always true. Without a condition Triton takes the loaded float32 through shared memory in place of the product's
    # 16-bit operand: registers spill, a fifth of the accesses conflict, and instructions grow by a third.
    d_branch = tl.where(deviation[:, None] > 0.0, scale * grad, 0.0)
    return place, row, valid, normed, deviation, grad, d_branch


@triton.jit
def store_operand(base_ptr, row, valid, tile, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """`store_rows` with a transposed tile: beside a 16-bit one of the shape of its own, x would be read in vectors as
    long, half of every sector at a time."""
    channel = tl.arange(0, BLOCK_C)[:, None]
    pointers = base_ptr + row[None, :] * CHANNELS + channel
    tl.store(pointers, tl.trans(tile), mask=(channel < CHANNELS) & valid[None, :])


@triton.jit
def inputs_kernel(
    grad_ptr, x_ptr, w1_ptr, b1_ptr, w2_ptr, turned_ptr, scale_ptr, dx_ptr,
    normed_ptr, d_branch_ptr, activated_ptr, d_hidden_ptr, index_ptr, offsets_ptr, tokens, segments,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx of some rows; and, where they are asked for, the operands of the products for the weights' gradients.

    All four, a row to a row, or with a plan two, one below the other.
    """
    if index_ptr is not None and tl.program_id(0) * BLOCK_R >= tl.load(offsets_ptr + segments):
        return
    place, row, valid, normed, deviation, grad, d_branch = load_rows_and_gradient(
        x_ptr, grad_ptr, scale_ptr, tl.program_id(0), index_ptr, offsets_ptr, tokens, segments,
        CHANNELS, BLOCK_C, BLOCK_R,
    )  # fmt: skip
    dtype = w1_ptr.dtype.element_ty
    multiplied, d_branch = normed.to(dtype), d_branch.to(dtype)
    if normed_ptr is not None:
        store_operand(normed_ptr, row, valid, multiplied, CHANNELS, BLOCK_C)
        store_operand(d_branch_ptr, row, valid, d_branch, CHANNELS, BLOCK_C)
    d_normed = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in tl.range(0, HIDDEN, BLOCK_M, num_stages=STAGES):
        unit = start + tl.arange(0, BLOCK_M)
        w1, w2 = load_weight(w1_ptr, unit, BLOCK_C), load_weight(w2_ptr, unit, BLOCK_C)
        hidden = tl.dot(multiplied, turn(w1, turned_ptr, 0, unit, HIDDEN), input_precision=PRECISION)
        hidden += tl.load(b1_ptr + unit)[None, :]
        tail = upper_tail(hidden)
        d_hidden = tl.dot(d_branch, turn(w2, turned_ptr, 1, unit, HIDDEN), input_precision=PRECISION)
        d_hidden *= gelu_slope(hidden, tail)
        d_hidden = d_hidden.to(dtype)
        if activated_ptr is not None:
            units = place.to(tl.int64)[:, None] * HIDDEN + unit[None, :]
            tl.store(activated_ptr + units, gelu(hidden, tail).to(dtype), mask=valid[:, None])
            tl.store(d_hidden_ptr + units, d_hidden, mask=valid[:, None])
        d_normed = tl.dot(d_hidden, w1, d_normed, input_precision=PRECISION)
    # Read again: kept through the loop, the rows of a plan would take the registers of its sums.
    _, row, valid, _ = tile_rows(tl.program_id(0), None, index_ptr, offsets_ptr, tokens, segments, BLOCK_R)
    dx = grad + normalise_backward(d_normed, normed, deviation, CHANNELS)
    store_rows(dx_ptr, row, valid, dx, CHANNELS, BLOCK_C)


@triton.jit
def weights_kernel(
    grad_ptr, x_ptr, w1_ptr, b1_ptr, w2_ptr, turned_ptr, scale_ptr, parts_ptr,
    index_ptr, offsets_ptr, tokens, segments, tiles,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """What a chunk of rows, some of the `tiles` of BLOCK_R, gives to the gradients of some hidden units.

    A row of `parts` holds those of the folded W1 and of W2 transposed, both (HIDDEN, BLOCK_C), of b1, (HIDDEN,), and of
    b2, (BLOCK_C,). Hidden units are (units, rows) here: so the results of the first two products are operands of the
    others without a way through shared memory.
    """
    chunk = tl.program_id(0)
    if index_ptr is not None:
        tiles = tl.cdiv(tl.load(offsets_ptr + segments), BLOCK_R)
    each = tl.cdiv(tiles, tl.num_programs(0))
    unit = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.arange(0, BLOCK_C)
    dtype = w1_ptr.dtype.element_ty
    w1, w2 = load_weight(w1_ptr, unit, BLOCK_C), load_weight(w2_ptr, unit, BLOCK_C)
    b1 = tl.load(b1_ptr + unit)
    dw1 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    dw2 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    db1 = tl.zeros((BLOCK_M,), tl.float32)
    db2 = tl.zeros((BLOCK_C,), tl.float32)
    for tile in tl.range(chunk * each, tl.minimum(chunk * each + each, tiles), num_stages=STAGES):
        _, _, _, normed, _, _, d_branch = load_rows_and_gradient(
            x_ptr, grad_ptr, scale_ptr, tile, index_ptr, offsets_ptr, tokens, segments, CHANNELS, BLOCK_C, BLOCK_R
        )
        db2 += tl.sum(d_branch, 0)
        normed, d_branch = normed.to(dtype), d_branch.to(dtype)
        if turned_ptr is not None:
            hidden = tl.trans(tl.dot(normed, turn(w1, turned_ptr, 0, unit, HIDDEN), input_precision=PRECISION))
            d_hidden = tl.trans(tl.dot(d_branch, turn(w2, turned_ptr, 1, unit, HIDDEN), input_precision=PRECISION))
        else:
            hidden = tl.dot(w1, tl.trans(normed), input_precision=PRECISION)
            d_hidden = tl.dot(w2, tl.trans(d_branch), input_precision=PRECISION)
        hidden += b1[:, None]
        tail = upper_tail(hidden)
        d_hidden *= gelu_slope(hidden, tail)
        db1 += tl.sum(d_hidden, 1)
        dw1 = tl.dot(d_hidden.to(dtype), normed, dw1, input_precision=PRECISION)
        dw2 = tl.dot(gelu(hidden, tail).to(dtype), d_branch, dw2, input_precision=PRECISION)
    WEIGHT: tl.constexpr = HIDDEN * BLOCK_C
    part_ptr = parts_ptr + chunk.to(tl.int64) * (2 * WEIGHT + HIDDEN + BLOCK_C)
    padded = unit[:, None] * BLOCK_C + channel[None, :]
    tl.store(part_ptr + padded, dw1)
    tl.store(part_ptr + WEIGHT + padded, dw2)
    tl.store(part_ptr + 2 * WEIGHT + unit, db1)
    if tl.program_id(1) == 0:
        tl.store(part_ptr + 2 * WEIGHT + HIDDEN + channel, db2)


@triton.jit
def unfold_kernel(
    norm_weight_ptr, norm_bias_ptr, fc1_weight_ptr, dw1_ptr, dw2_ptr, db1_ptr, db2_ptr,
    d_norm_weight_ptr, d_norm_bias_ptr, d_fc1_weight_ptr, d_fc1_bias_ptr, d_fc2_weight_ptr, d_fc2_bias_ptr,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, STRIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Gradients of the weights for some channels, from those of W1, W2 transposed, b1 and b2, folded.

    dw1 and dw2 are (HIDDEN or more, STRIDE). Every program writes the same d_fc1_bias.
    """
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_row = channel < CHANNELS
    norm_weight = tl.load(norm_weight_ptr + channel, mask=in_row, other=0.0).to(tl.float32)
    norm_bias = tl.load(norm_bias_ptr + channel, mask=in_row, other=0.0).to(tl.float32)
    d_norm_weight = tl.zeros((BLOCK_C,), tl.float32)
    d_norm_bias = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, HIDDEN, BLOCK_M):
        unit = start + tl.arange(0, BLOCK_M)
        valid = unit < HIDDEN
        mask = valid[:, None] & in_row[None, :]
        pair, folded = unit[:, None] * CHANNELS + channel[None, :], unit[:, None] * STRIDE + channel[None, :]
        fc1 = tl.load(fc1_weight_ptr + pair, mask=mask, other=0.0).to(tl.float32)
        dw1 = tl.load(dw1_ptr + folded, mask=mask, other=0.0).to(tl.float32)
        dw2 = tl.load(dw2_ptr + folded, mask=mask, other=0.0)
        db1 = tl.load(db1_ptr + unit, mask=valid, other=0.0)
        d_norm_weight += tl.sum(fc1 * dw1, 0)
        d_norm_bias += tl.sum(fc1 * db1[:, None], 0)
        d_fc1 = dw1 * norm_weight[None, :] + db1[:, None] * norm_bias[None, :]
        tl.store(d_fc1_weight_ptr + pair, d_fc1.to(d_fc1_weight_ptr.dtype.element_ty), mask=mask)
        tl.store(d_fc1_bias_ptr + unit, db1.to(d_fc1_bias_ptr.dtype.element_ty), mask=valid)
        d_fc2_ptr = d_fc2_weight_ptr + channel[None, :] * HIDDEN + unit[:, None]
        tl.store(d_fc2_ptr, dw2.to(d_fc2_weight_ptr.dtype.element_ty), mask=mask)
    db2 = tl.load(db2_ptr + channel, mask=in_row, other=0.0)
    tl.store(d_norm_weight_ptr + channel, d_norm_weight.to(d_norm_weight_ptr.dtype.element_ty), mask=in_row)
    tl.store(d_norm_bias_ptr + channel, d_norm_bias.to(d_norm_bias_ptr.dtype.element_ty), mask=in_row)
    tl.store(d_fc2_bias_ptr + channel, db2.to(d_fc2_bias_ptr.dtype.element_ty), mask=in_row)
