"""The fused MLP of the Triton backend: tensors, tile sides, launches. The kernels are in triton_mlp_kernels.py."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..geometry import Windows
from . import launch
from .launch import exact_products, product_precision, tile_side
from .linear import Layout, Rows, weight_gradient
from .mlp_kernels import fold_kernel, inputs_kernel, mlp_kernel, unfold_kernel, weights_kernel
from .tuning import tuned


class MlpWeights(NamedTuple):
    """Parameters in torch.nn's layouts, of any floating dtype."""

    norm_weight: Tensor  # (C,)
    norm_bias: Tensor
    fc1_weight: Tensor  # (M, C)
    fc1_bias: Tensor
    fc2_weight: Tensor  # (C, M)
    fc2_bias: Tensor


# Rows, hidden units and warps of a program, and stages of loads in flight: by element size and, rising, width of a row.
# float32 is tf32, and up to 64 channels exact, too. The figures are in TRITON.md. Where x is float32 and weights are
# not, rows and units differ in number: with equal tiles Triton reads x in vectors as long as those of the weights, half
# of every sector at a time.
TILES = {
    2: {
        64: {mlp_kernel: (128, 32, 4, 2), inputs_kernel: (64, 32, 4, 2), weights_kernel: (32, 128, 8, 2)},
        128: {mlp_kernel: (64, 32, 4, 2), inputs_kernel: (32, 64, 4, 2)},
        256: {mlp_kernel: (32, 64, 4, 2), inputs_kernel: (16, 32, 4, 2)},
    },
    4: {
        32: {mlp_kernel: (16, 64, 4, 1), inputs_kernel: (32, 16, 4, 1), weights_kernel: (32, 16, 4, 1)},
        64: {mlp_kernel: (16, 64, 4, 1), inputs_kernel: (32, 16, 4, 1), weights_kernel: (32, 32, 4, 1)},
        128: {mlp_kernel: (64, 32, 4, 1), inputs_kernel: (16, 32, 4, 1)},
        256: {mlp_kernel: (16, 32, 4, 1), inputs_kernel: (16, 16, 4, 1)},
    },
}
# Partial sums of the weights' gradients: the same number on every device, so that results do not depend on it.
CHUNKS = 216


class _Call(NamedTuple):
    folded: tuple[Tensor, Tensor, Tensor, Tensor | None]  # w1, b1, w2, turned
    images: int
    tokens: int  # of an image
    rows: Rows | None
    constants: dict[str, Any]

    @property
    def wide(self) -> bool:
        return bool(self.constants["BLOCK_C"] > 64)

    def tiles(self, rows: int) -> int:
        if self.rows is not None:
            return max(1, triton.cdiv(self.rows.capacity, rows))
        return self.images * triton.cdiv(self.tokens, rows)

    @property
    def which_rows(self) -> tuple[Tensor | int | None, ...]:
        """Arguments of the kernels: list of rows, offsets, tokens of an image, place of the number of rows."""
        if self.rows is None or self.rows.offsets is None:
            return None, None, self.tokens, 0
        return self.rows.tokens, self.rows.offsets, self.tokens, len(self.rows.offsets) - 1


def _prepare(x: Tensor, weights: MlpWeights, dtype: torch.dtype, rows: Rows | None) -> _Call:
    hidden, channels = weights.fc1_weight.shape
    block_c = tile_side(channels)
    most = 128 if block_c <= 64 else 64  # a multiple of every tile of hidden units
    units = triton.cdiv(hidden, most) * most
    w1, w2 = (torch.empty(units, block_c, dtype=dtype, device=x.device) for _ in range(2))
    b1 = torch.empty(units, dtype=torch.float32, device=x.device)
    turned = torch.empty(2, block_c, units, dtype=dtype, device=x.device) if exact_products(dtype) else None
    arguments = (*(weight.contiguous() for weight in weights[:5]), w1, b1, w2, turned)
    constants: dict[str, Any] = {"CHANNELS": channels, "HIDDEN": hidden, "UNITS": units, "BLOCK_C": block_c}
    launch.launch(fold_kernel, (units // 32,), *arguments, num_warps=4, BLOCK_M=32, **constants)
    constants = {"CHANNELS": channels, "HIDDEN": units, "BLOCK_C": block_c, "PRECISION": product_precision()}
    return _Call((w1, b1, w2, turned), x.shape[0], x[0].numel() // channels, rows, constants)


def _tiles(kernel: Any, call: _Call) -> dict[str, int]:
    by_width = TILES[call.folded[0].element_size()]
    width = next(width for width in by_width if call.constants["BLOCK_C"] <= width)
    rows, units, warps, stages = by_width[width][kernel]
    if call.rows is not None and kernel is mlp_kernel and width == 256:
        units = min(units, 32)  # beside a factor for each row, more would spill
    sizes = {"channels": call.constants["CHANNELS"], "hidden": call.constants["HIDDEN"]}
    tiles = {"BLOCK_R": rows, "BLOCK_M": units, "STAGES": stages, "num_warps": warps}
    return tuned(kernel, tiles, most={"BLOCK_M": max(64, units)}, dtype=call.folded[0].dtype, **sizes)


def mlp(x: Tensor, weights: MlpWeights, scale: Tensor | None, dtype: torch.dtype, rows: Rows | None = None) -> Tensor:
    """x + scale * MLP(LayerNorm(x)).

    Args:
        x: (B, ..., C), contiguous.
        weights: of any floating dtype.
        scale: (B,) float32, the drop-path factor of each image; None = 1.
        dtype: what is multiplied: bfloat16, float16 or float32; sums, LayerNorm and GELU are float32.
        rows: of a plan: only these are computed, in place.

    Returns:
        Like x; x itself with `rows`.
    """
    call = _prepare(x, weights, dtype, rows)
    y = torch.empty_like(x) if rows is None else x
    tiles = _tiles(mlp_kernel, call)
    launch.launch(
        mlp_kernel,
        (call.tiles(tiles["BLOCK_R"]),),
        *(x, *call.folded, weights.fc2_bias, scale, y, *call.which_rows),
        **call.constants,
        **tiles,
    )
    return y


def mlp_backward(
    grad: Tensor, x: Tensor, weights: MlpWeights, scale: Tensor | None, dtype: torch.dtype, rows: Rows | None = None
) -> tuple[Tensor, MlpWeights]:
    """The gradients of x and of each weight, in their dtypes, given that of y (contiguous) and the inputs of `mlp`.

    With `rows`, x is what it was before `mlp`; the gradient of all other rows is that of y. The same bits every time.
    """
    call = _prepare(x, weights, dtype, rows)
    shared = (grad, x, *call.folded, scale)
    dx = torch.empty_like(x) if rows is None else grad.clone()
    channels, units = x.shape[-1], call.constants["HIDDEN"]

    def operand(width: int) -> Tensor:
        count = x.numel() // channels if rows is None else rows.capacity
        return torch.empty(count, width, dtype=dtype, device=x.device)

    normed = d_branch = activated = d_hidden = None
    if call.wide:
        activated, d_hidden = operand(units), operand(units)
        if rows is None:
            normed, d_branch = operand(channels), operand(channels)
    tiles = _tiles(inputs_kernel, call)
    launch.launch(
        inputs_kernel,
        (call.tiles(tiles["BLOCK_R"]),),
        *(*shared, dx, normed, d_branch, activated, d_hidden, *call.which_rows),
        **call.constants,
        **tiles,
    )
    if activated is None or d_hidden is None:
        sums = _chunks(call, shared)
    elif rows is not None:
        sums = _products_of_rows(call, rows, x, grad, scale, activated, d_hidden)
    else:
        sums = _products(normed, d_branch, activated, d_hidden)  # type: ignore[arg-type]
    return dx, _unfold(weights, *sums)


def _chunks(call: _Call, shared: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Gradients of W1, W2 transposed, b1 and b2, over chunks of rows: nothing of a hidden unit is stored."""
    tiles = _tiles(weights_kernel, call)
    count = call.tiles(tiles["BLOCK_R"])
    chunks = triton.cdiv(count, triton.cdiv(count, CHUNKS))
    units, channels = call.constants["HIDDEN"], call.constants["BLOCK_C"]
    sizes = (units * channels, units * channels, units, channels)
    parts = torch.empty(chunks, sum(sizes), dtype=torch.float32, device=call.folded[0].device)
    launch.launch(
        weights_kernel,
        (chunks, units // tiles["BLOCK_M"]),
        *(*shared, parts, *call.which_rows, count),
        **call.constants,
        **tiles,
    )
    dw1, dw2, db1, db2 = parts.sum(0).split(sizes)
    return dw1.view(units, channels), dw2.view(units, channels), db1, db2


def _products(normed: Tensor, d_branch: Tensor, activated: Tensor, d_hidden: Tensor) -> tuple[Tensor, ...]:
    """The same from stored rows. Only up to 64 channels has a program the registers for the sums of all units; else it
    would read and normalise its rows again for every few of them, 6 times at 96 channels, 24 at 180."""
    return (
        torch.mm(d_hidden.t(), normed),
        torch.mm(activated.t(), d_branch),
        d_hidden.sum(0, dtype=torch.float32),
        d_branch.sum(0, dtype=torch.float32),
    )


def _products_of_rows(
    call: _Call, rows: Rows, x: Tensor, grad: Tensor, scale: Tensor | None, activated: Tensor, d_hidden: Tensor
) -> tuple[Tensor, ...]:
    """The same where the number of rows is known on the device only: PyTorch's products would be of every token."""
    units = d_hidden.shape[1]
    layout = Layout(Windows(1, call.tokens, (1, 1)), 1, units, units, d_hidden.dtype)
    d_hidden, activated = (tensor.view(-1, 1, 1, units) for tensor in (d_hidden, activated))
    x, grad = (tensor.view(call.images, 1, call.tokens, -1) for tensor in (x, grad))
    dw1, db1 = weight_gradient(layout, d_hidden, rows, x, norm=True)
    dw2, db2 = weight_gradient(layout, activated, rows, grad, scale, norm=False)
    return dw1, dw2, db1, db2


def _unfold(weights: MlpWeights, dw1: Tensor, dw2: Tensor, db1: Tensor, db2: Tensor) -> MlpWeights:
    hidden, channels = weights.fc1_weight.shape
    grads = MlpWeights(*(torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in weights))
    launch.launch(
        unfold_kernel,
        (triton.cdiv(channels, 16),),
        *(*(weight.contiguous() for weight in weights[:3]), dw1, dw2, db1, db2, *grads),
        num_warps=4,
        CHANNELS=channels,
        HIDDEN=hidden,
        STRIDE=dw1.shape[1],
        BLOCK_C=16,
        BLOCK_M=64,
    )
    return grads
