"""The MLP half of a Swin block in Triton: y = x + s (gelu(LN(x) W1^T + b1) W2^T + b2).

C channels, M hidden units. The tokens are all, or those of a compact list, whose number is at `segments` of
offsets_ptr. LayerNorm's weight and bias are folded into W1 and b1. Weights are (M, C) and padded, so that they are read
in whole vectors. Exact float32 products read their operands from shared memory by columns, and use the *transposed*
weights, (C, M). A tile of hidden units never leaves its program.
"""

import triton
import triton.language as tl

from .norm import load_rows, normalise, normalise_backward, store_rows


@triton.jit
def fold_kernel(
    norm_weight_ptr, norm_bias_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr,
    w1_ptr, b1_ptr, w2_ptr, transposed_ptr,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, UNITS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Fold LayerNorm's weight and bias into W1 and b1, and store W1 and W2 as (UNITS, BLOCK_C), 0 in the padding.

    With transposed_ptr, store both once more, as (2, BLOCK_C, UNITS).
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
    if transposed_ptr is not None:
        transposed = transposed_ptr + channel[None, :] * UNITS + unit[:, None]
        tl.store(transposed, w1 * weight[None, :])
        tl.store(transposed + BLOCK_C * UNITS, w2)


@triton.jit
def load_weight(w_ptr, unit, BLOCK_C: tl.constexpr):
    return tl.load(w_ptr + unit[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :])


@triton.jit
def transposed_weight(w, transposed_ptr, WHICH: tl.constexpr, unit, HIDDEN: tl.constexpr):
    """(BLOCK_C, units) of W1 or W2 (WHICH = 0, 1), given w, (units, BLOCK_C)."""
    BLOCK_C: tl.constexpr = w.shape[1]
    if transposed_ptr is not None:
        channel = WHICH * BLOCK_C + tl.arange(0, BLOCK_C)
        transposed = tl.load(transposed_ptr + channel[:, None] * HIDDEN + unit[None, :])
    else:
        transposed = tl.trans(w)
    return transposed


@triton.jit
def tokens_of_tile(tile, scale_ptr, token_index_ptr, offsets_ptr, tokens_per_image, segments, BLOCK_R: tl.constexpr):
    """The list entries of a tile, their tokens, a mask of those that exist, and their drop-path factor.

    Without a list, entries are tokens, and a tile lies in one image: the factor is a scalar. Else it is (BLOCK_R, 1).
    """
    scale = 1.0
    if token_index_ptr is not None:
        entry = tile * BLOCK_R + tl.arange(0, BLOCK_R)
        valid = entry < tl.load(offsets_ptr + segments)
        token = tl.load(token_index_ptr + entry, mask=valid, other=0)
        if scale_ptr is not None:
            scale = tl.load(scale_ptr + token // tokens_per_image, mask=valid, other=0.0)[:, None]
    else:
        tiles = tl.cdiv(tokens_per_image, BLOCK_R)
        image = tile // tiles
        in_image = (tile % tiles) * BLOCK_R + tl.arange(0, BLOCK_R)
        valid = in_image < tokens_per_image
        token = image.to(tl.int64) * tokens_per_image + in_image
        entry = token
        if scale_ptr is not None:
            scale = tl.load(scale_ptr + image)
    return entry, token, valid, scale


@triton.jit
def upper_tail(x):
    """1 - Phi(|x|) of the normal distribution, as 2 to the power of a polynomial. Times |x| its error is below 2e-8.

    The fit is minimax on [0, 6]. Its rounding errors are at most those of PyTorch's float32 GELU. The compiler's erf
    takes twice the instructions, and GELU, not the products, has most of them at 60 channels.
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
    x_ptr, w1_ptr, b1_ptr, w2_ptr, transposed_ptr, b2_ptr, scale_ptr, y_ptr,
    token_index_ptr, offsets_ptr, tokens_per_image, segments,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    if token_index_ptr is not None and tl.program_id(0) * BLOCK_R >= tl.load(offsets_ptr + segments):
        return
    _, token, valid, scale = tokens_of_tile(
        tl.program_id(0), scale_ptr, token_index_ptr, offsets_ptr, tokens_per_image, segments, BLOCK_R
    )
    channel = tl.arange(0, BLOCK_C)
    x = load_rows(x_ptr, token, valid, CHANNELS, BLOCK_C)
    normed, _ = normalise(x, CHANNELS)
    normed = normed.to(w1_ptr.dtype.element_ty)
    b2 = tl.load(b2_ptr + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)
    y = x + scale * b2[None, :]  # the sum starts here, so that x needs no registers of its own
    for start in tl.range(0, HIDDEN, BLOCK_M, num_stages=STAGES):
        unit = start + tl.arange(0, BLOCK_M)
        w1, w2 = load_weight(w1_ptr, unit, BLOCK_C), load_weight(w2_ptr, unit, BLOCK_C)
        hidden = tl.dot(normed, transposed_weight(w1, transposed_ptr, 0, unit, HIDDEN), input_precision=PRECISION)
        hidden += tl.load(b1_ptr + unit)[None, :]
        activated = scale * gelu(hidden, upper_tail(hidden))
        y = tl.dot(activated.to(w2.dtype), w2, y, input_precision=PRECISION)
    store_rows(y_ptr, token, valid, y, CHANNELS, BLOCK_C)


@triton.jit
def load_tokens_and_gradient(
    x_ptr, grad_ptr, scale_ptr, tile, token_index_ptr, offsets_ptr, tokens_per_image, segments,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """A tile's tokens, normalised, and 1 / deviation; the gradients of y, and of its branch before the scale."""
    entry, token, valid, scale = tokens_of_tile(
        tile, scale_ptr, token_index_ptr, offsets_ptr, tokens_per_image, segments, BLOCK_R
    )
    normed, deviation = normalise(load_rows(x_ptr, token, valid, CHANNELS, BLOCK_C), CHANNELS)
    grad = load_rows(grad_ptr, token, valid, CHANNELS, BLOCK_C)
    # The condition is always true. Without it, Triton moves the loaded float32 through shared memory instead of the
    # product's 16-bit operand: registers spill, a fifth of the accesses conflict, and instructions grow by a third.
    d_branch = tl.where(deviation[:, None] > 0.0, scale * grad, 0.0)
    return entry, token, valid, normed, deviation, grad, d_branch


@triton.jit
def store_operand(base_ptr, row, valid, tile, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """`store_rows` of a transposed tile. Beside a 16-bit tile of the shape of x, Triton would read as many numbers of x
    at a time, in two halves of every sector."""
    channel = tl.arange(0, BLOCK_C)[:, None]
    pointers = base_ptr + row[None, :] * CHANNELS + channel
    tl.store(pointers, tl.trans(tile), mask=(channel < CHANNELS) & valid[None, :])


@triton.jit
def inputs_kernel(
    grad_ptr, x_ptr, w1_ptr, b1_ptr, w2_ptr, transposed_ptr, scale_ptr, dx_ptr,
    normed_ptr, d_branch_ptr, activated_ptr, d_hidden_ptr, token_index_ptr, offsets_ptr, tokens_per_image, segments,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx of some tokens, and the operands of the products for the weights' gradients, if they have pointers.

    Row i of an operand belongs to entry i of the list or, without a list, to token i. With a list, the kernel stores
    activated and d_hidden only.
    """
    if token_index_ptr is not None and tl.program_id(0) * BLOCK_R >= tl.load(offsets_ptr + segments):
        return
    entry, token, valid, normed, deviation, grad, d_branch = load_tokens_and_gradient(
        x_ptr, grad_ptr, scale_ptr, tl.program_id(0), token_index_ptr, offsets_ptr, tokens_per_image, segments,
        CHANNELS, BLOCK_C, BLOCK_R,
    )  # fmt: skip
    dtype = w1_ptr.dtype.element_ty
    multiplied, d_branch = normed.to(dtype), d_branch.to(dtype)
    if normed_ptr is not None:
        store_operand(normed_ptr, token, valid, multiplied, CHANNELS, BLOCK_C)
        store_operand(d_branch_ptr, token, valid, d_branch, CHANNELS, BLOCK_C)
    d_normed = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in tl.range(0, HIDDEN, BLOCK_M, num_stages=STAGES):
        unit = start + tl.arange(0, BLOCK_M)
        w1, w2 = load_weight(w1_ptr, unit, BLOCK_C), load_weight(w2_ptr, unit, BLOCK_C)
        hidden = tl.dot(multiplied, transposed_weight(w1, transposed_ptr, 0, unit, HIDDEN), input_precision=PRECISION)
        hidden += tl.load(b1_ptr + unit)[None, :]
        tail = upper_tail(hidden)
        d_hidden = tl.dot(d_branch, transposed_weight(w2, transposed_ptr, 1, unit, HIDDEN), input_precision=PRECISION)
        d_hidden *= gelu_slope(hidden, tail)
        d_hidden = d_hidden.to(dtype)
        if activated_ptr is not None:
            units = entry.to(tl.int64)[:, None] * HIDDEN + unit[None, :]
            tl.store(activated_ptr + units, gelu(hidden, tail).to(dtype), mask=valid[:, None])
            tl.store(d_hidden_ptr + units, d_hidden, mask=valid[:, None])
        d_normed = tl.dot(d_hidden, w1, d_normed, input_precision=PRECISION)
    # Read again: kept through the loop, the tokens of a list would take the registers of its sums.
    _, token, valid, _ = tokens_of_tile(
        tl.program_id(0), None, token_index_ptr, offsets_ptr, tokens_per_image, segments, BLOCK_R
    )
    dx = grad + normalise_backward(d_normed, normed, deviation, CHANNELS)
    store_rows(dx_ptr, token, valid, dx, CHANNELS, BLOCK_C)


@triton.jit
def weights_kernel(
    grad_ptr, x_ptr, w1_ptr, b1_ptr, w2_ptr, transposed_ptr, scale_ptr, parts_ptr,
    token_index_ptr, offsets_ptr, tokens_per_image, segments, tile_count,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sums over a chunk, some of `tile_count` tiles of BLOCK_R tokens: the gradients of some hidden units.

    A row of `parts` holds those of the folded W1 and of W2 transposed, both (HIDDEN, BLOCK_C), of b1, (HIDDEN,), and of
    b2, (BLOCK_C,). Hidden units are (units, tokens) here: the results of the first two products are then operands of
    the others where they are, in registers.
    """
    chunk = tl.program_id(0)
    if token_index_ptr is not None:
        tile_count = tl.cdiv(tl.load(offsets_ptr + segments), BLOCK_R)
    each = tl.cdiv(tile_count, tl.num_programs(0))
    unit = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.arange(0, BLOCK_C)
    dtype = w1_ptr.dtype.element_ty
    w1, w2 = load_weight(w1_ptr, unit, BLOCK_C), load_weight(w2_ptr, unit, BLOCK_C)
    b1 = tl.load(b1_ptr + unit)
    dw1 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    dw2 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    db1 = tl.zeros((BLOCK_M,), tl.float32)
    db2 = tl.zeros((BLOCK_C,), tl.float32)
    for tile in tl.range(chunk * each, tl.minimum(chunk * each + each, tile_count), num_stages=STAGES):
        _, _, _, normed, _, _, d_branch = load_tokens_and_gradient(
            x_ptr,
            grad_ptr,
            scale_ptr,
            tile,
            token_index_ptr,
            offsets_ptr,
            tokens_per_image,
            segments,
            CHANNELS,
            BLOCK_C,
            BLOCK_R,
        )
        db2 += tl.sum(d_branch, 0)
        normed, d_branch = normed.to(dtype), d_branch.to(dtype)
        if transposed_ptr is not None:
            hidden = tl.trans(
                tl.dot(normed, transposed_weight(w1, transposed_ptr, 0, unit, HIDDEN), input_precision=PRECISION)
            )
            d_hidden = tl.trans(
                tl.dot(d_branch, transposed_weight(w2, transposed_ptr, 1, unit, HIDDEN), input_precision=PRECISION)
            )
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
    """Gradients of the weights for some channels, from those of the folded W1, W2 transposed, b1 and b2.

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
