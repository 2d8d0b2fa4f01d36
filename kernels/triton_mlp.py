"""The MLP half of a Swin block in Triton: y = x + s (gelu(LN(x) W1^T + b1) W2^T + b2), in one kernel each way.

R rows, C channels, M hidden units. LayerNorm's affine part is folded into W1 and b1; weights are (M, C) and padded, so
that they are read in whole vectors; the hidden tile never leaves the program.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import triton_launch
from .triton_norm import load_rows, normalise, normalise_backward, store_rows


@triton.jit
def fold_kernel(
    norm_weight_ptr, norm_bias_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, w1_ptr, b1_ptr, w2_ptr,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """W1 and b1 with LayerNorm's weight and bias in them, and W2 transposed: (hidden, BLOCK_C), 0 in the padding."""
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


@triton.jit
def load_weight(w_ptr, unit, BLOCK_C: tl.constexpr):
    return tl.load(w_ptr + unit[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :])


@triton.jit
def load_scale(scale_ptr, row, valid, tokens):
    """The drop-path factor of each row's image, (rows,)."""
    if scale_ptr is None:
        return tl.full(row.shape, 1.0, tl.float32)
    else:
        return tl.load(scale_ptr + row // tokens, mask=valid, other=0.0)


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
def mlp_kernel(
    x_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, scale_ptr, y_ptr, rows, tokens,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = row < rows
    channel = tl.arange(0, BLOCK_C)
    x = load_rows(x_ptr, row, valid, CHANNELS, BLOCK_C)
    normed, _ = normalise(x, CHANNELS)
    normed = normed.to(w1_ptr.dtype.element_ty)
    # The sum starts from x: then x takes no registers of its own.
    b2 = tl.load(b2_ptr + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)
    scale = load_scale(scale_ptr, row, valid, tokens)
    y = x + scale[:, None] * b2[None, :]
    for start in range(0, HIDDEN, BLOCK_M):
        unit = start + tl.arange(0, BLOCK_M)
        w1, w2 = load_weight(w1_ptr, unit, BLOCK_C), load_weight(w2_ptr, unit, BLOCK_C)
        hidden = tl.dot(normed, tl.trans(w1), input_precision=PRECISION) + tl.load(b1_ptr + unit)[None, :]
        activated = scale[:, None] * gelu(hidden, upper_tail(hidden))
        y = tl.dot(activated.to(w2.dtype), w2, y, input_precision=PRECISION)
    store_rows(y_ptr, row, valid, y, CHANNELS, BLOCK_C)


@triton.jit
def hidden_gradient(
    normed, grad, w1_ptr, b1_ptr, w2_ptr, unit, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Some hidden units of some rows again, (rows, units): gelu(h) and the gradient of h, given that of the branch."""
    w1, w2 = load_weight(w1_ptr, unit, BLOCK_C), load_weight(w2_ptr, unit, BLOCK_C)
    hidden = tl.dot(normed, tl.trans(w1), input_precision=PRECISION) + tl.load(b1_ptr + unit)[None, :]
    tail = upper_tail(hidden)
    slope = tl.where(hidden > 0.0, 1.0 - tail, tail) + hidden * (
        0.3989422804 * tl.exp2(-0.7213475204 * hidden * hidden)
    )
    d_hidden = tl.dot(grad, tl.trans(w2), input_precision=PRECISION) * slope
    return gelu(hidden, tail).to(w1.dtype), d_hidden, w1


@triton.jit
def inputs_kernel(
    grad_ptr, x_ptr, w1_ptr, b1_ptr, w2_ptr, scale_ptr, dx_ptr, rows, tokens,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """dx of some rows."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = row < rows
    dtype = w1_ptr.dtype.element_ty
    normed, deviation = normalise(load_rows(x_ptr, row, valid, CHANNELS, BLOCK_C), CHANNELS)
    grad = load_rows(grad_ptr, row, valid, CHANNELS, BLOCK_C)
    d_branch = grad * load_scale(scale_ptr, row, valid, tokens)[:, None]
    d_normed = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(0, HIDDEN, BLOCK_M):
        _, d_hidden, w1 = hidden_gradient(
            normed.to(dtype), d_branch.to(dtype), w1_ptr, b1_ptr, w2_ptr, start + tl.arange(0, BLOCK_M),
            PRECISION, BLOCK_C,
        )  # fmt: skip
        d_normed += tl.dot(d_hidden.to(dtype), w1, input_precision=PRECISION)
    dx = grad + normalise_backward(d_normed, normed, deviation, CHANNELS)
    store_rows(dx_ptr, row, valid, dx, CHANNELS, BLOCK_C)


@triton.jit
def weights_kernel(
    grad_ptr, x_ptr, w1_ptr, b1_ptr, w2_ptr, scale_ptr, dw1_ptr, dw2_ptr, db1_ptr, db2_ptr, rows, tokens, tiles,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """What a chunk of rows, `tiles` times BLOCK_R, gives to the gradients of some hidden units: (chunks, HIDDEN, BLOCK_C).

    Of the folded W1 and b1, of W2 transposed, and (by the programs of the first units) of b2.
    """
    chunk = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.arange(0, BLOCK_C)
    dtype = w1_ptr.dtype.element_ty
    dw1 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    dw2 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    db1 = tl.zeros((BLOCK_M,), tl.float32)
    db2 = tl.zeros((BLOCK_C,), tl.float32)
    for tile in range(0, tiles):
        row = (chunk * tiles + tile) * BLOCK_R + tl.arange(0, BLOCK_R)
        valid = row < rows
        normed, _ = normalise(load_rows(x_ptr, row, valid, CHANNELS, BLOCK_C), CHANNELS)
        d_branch = load_rows(grad_ptr, row, valid, CHANNELS, BLOCK_C)
        d_branch *= load_scale(scale_ptr, row, valid, tokens)[:, None]
        db2 += tl.sum(d_branch, 0)
        normed, d_branch = normed.to(dtype), d_branch.to(dtype)
        activated, d_hidden, _ = hidden_gradient(normed, d_branch, w1_ptr, b1_ptr, w2_ptr, unit, PRECISION, BLOCK_C)
        db1 += tl.sum(d_hidden, 0)
        dw1 += tl.dot(tl.trans(d_hidden.to(dtype)), normed, input_precision=PRECISION)
        dw2 += tl.dot(tl.trans(activated), d_branch, input_precision=PRECISION)
    part = chunk * HIDDEN + unit
    padded = part[:, None] * BLOCK_C + channel[None, :]
    tl.store(dw1_ptr + padded, dw1)
    tl.store(dw2_ptr + padded, dw2)
    tl.store(db1_ptr + part, db1)
    if tl.program_id(1) == 0:
        tl.store(db2_ptr + chunk * BLOCK_C + channel, db2)


class MlpWeights(NamedTuple):
    """Parameters in torch.nn's layouts, of any floating dtype."""

    norm_weight: Tensor  # (C,)
    norm_bias: Tensor
    fc1_weight: Tensor  # (M, C)
    fc1_bias: Tensor
    fc2_weight: Tensor  # (C, M)
    fc2_bias: Tensor


# Partial sums of the weights' gradients: the same number on every device, so that results do not depend on it.
CHUNKS = 216


class _Call(NamedTuple):
    folded: tuple[Tensor, Tensor, Tensor]  # w1, b1, w2
    rows: int
    constants: dict[str, Any]


def _prepare(x: Tensor, weights: MlpWeights, dtype: torch.dtype) -> _Call:
    hidden, channels = weights.fc1_weight.shape
    block_c = max(16, triton.next_power_of_2(channels))
    units = -(-hidden // 64) * 64  # a multiple of every tile of hidden units
    w1, w2 = (torch.empty(units, block_c, dtype=dtype, device=x.device) for _ in range(2))
    b1 = torch.empty(units, dtype=torch.float32, device=x.device)
    arguments = (*(weight.contiguous() for weight in weights[:5]), w1, b1, w2)
    constants = {"CHANNELS": channels, "HIDDEN": hidden, "BLOCK_C": block_c, "BLOCK_M": 32}
    triton_launch.launch(fold_kernel, (units // 32,), *arguments, num_warps=4, **constants)
    tf32 = torch.get_float32_matmul_precision() != "highest"
    constants = {"CHANNELS": channels, "HIDDEN": units, "BLOCK_C": block_c, "PRECISION": "tf32" if tf32 else "ieee"}
    return _Call((w1, b1, w2), x.numel() // channels, constants)


def _tiles(kernel: Any, call: _Call) -> dict[str, int]:
    return {"BLOCK_R": 64, "BLOCK_M": 32, "num_warps": 4}


def mlp(x: Tensor, weights: MlpWeights, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x + scale * MLP(LayerNorm(x)).

    Args:
        x: (B, ..., C), contiguous.
        weights: of any floating dtype.
        scale: (B,) float32, the drop-path factor of each image; None = 1.
        dtype: what is multiplied: bfloat16, float16 or float32; sums, LayerNorm and GELU are float32.

    Returns:
        Like x.
    """
    call = _prepare(x, weights, dtype)
    y = torch.empty_like(x)
    tiles = _tiles(mlp_kernel, call)
    triton_launch.launch(
        mlp_kernel,
        (triton.cdiv(call.rows, tiles["BLOCK_R"]),),
        *(x, *call.folded, weights.fc2_bias, scale, y, call.rows, call.rows // x.shape[0]),
        **call.constants,
        **tiles,
    )
    return y


def mlp_backward(
    grad: Tensor, x: Tensor, weights: MlpWeights, scale: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, MlpWeights]:
    """The gradients of x and of each weight, in their dtypes, given that of y (contiguous) and the inputs of `mlp`.

    The same bits every time, on every device of a kind.
    """
    call = _prepare(x, weights, dtype)
    tokens = call.rows // x.shape[0]
    dx = torch.empty_like(x)
    tiles = _tiles(inputs_kernel, call)
    triton_launch.launch(
        inputs_kernel,
        (triton.cdiv(call.rows, tiles["BLOCK_R"]),),
        *(grad, x, *call.folded, scale, dx, call.rows, tokens),
        **call.constants,
        **tiles,
    )
    tiles = _tiles(weights_kernel, call)
    each = triton.cdiv(triton.cdiv(call.rows, tiles["BLOCK_R"]), CHUNKS)
    chunks = triton.cdiv(call.rows, each * tiles["BLOCK_R"])
    units, channels = call.constants["HIDDEN"], call.constants["BLOCK_C"]
    shapes = (chunks, units, channels), (chunks, units, channels), (chunks, units), (chunks, channels)
    parts = [torch.empty(shape, dtype=torch.float32, device=x.device) for shape in shapes]
    triton_launch.launch(
        weights_kernel,
        (chunks, units // tiles["BLOCK_M"]),
        *(grad, x, *call.folded, scale, *parts, call.rows, tokens, each),
        **call.constants,
        **tiles,
    )
    return dx, _unfold(weights, *(part.sum(0) for part in parts))


def _unfold(weights: MlpWeights, dw1: Tensor, dw2: Tensor, db1: Tensor, db2: Tensor) -> MlpWeights:
    """Gradients of the weights, given those of the folded ones: W1 = fc1 * norm_weight, b1 = fc1_bias + fc1 norm_bias."""
    hidden, channels = weights.fc1_weight.shape
    dw1, dw2, db1, db2 = dw1[:hidden, :channels], dw2[:hidden, :channels], db1[:hidden, None], db2[:channels]
    norm_weight, norm_bias, fc1 = weights.norm_weight.float(), weights.norm_bias.float(), weights.fc1_weight.float()
    grads = MlpWeights(
        norm_weight=(fc1 * dw1).sum(0),
        norm_bias=(fc1 * db1).sum(0),
        fc1_weight=dw1 * norm_weight + db1 * norm_bias,
        fc1_bias=db1[:, 0],
        fc2_weight=dw2.t(),
        fc2_bias=db2,
    )
    return MlpWeights(*(g.to(w.dtype).contiguous() for g, w in zip(grads, weights, strict=True)))
