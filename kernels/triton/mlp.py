"""The fused MLP of the Triton backend: tensors, tile sides and launches of mlp_kernels.py."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..geometry import Windows
from . import launch
from .launch import arguments_of, exact_products, product_precision, tile_side
from .linear import Layout, Tokens, weight_gradient
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


class Tile(NamedTuple):
    """What a program computes at a time, and stages of loads in flight."""

    rows: int
    hidden_units: int
    num_warps: int
    stages: int


# By the element size of products, then by channels. float32 is tf32 and, up to 64 channels, exact. The measurements are
# in docs/triton-design.md. With float32 x and 16-bit weights, rows and hidden units differ in number: with equal tiles
# Triton reads as many numbers of x at a time as of the weights, in two halves of every sector.
TILES = {
    2: {
        64: {mlp_kernel: Tile(128, 32, 4, 2), inputs_kernel: Tile(64, 32, 4, 2), weights_kernel: Tile(32, 128, 8, 2)},
        128: {mlp_kernel: Tile(64, 32, 4, 2), inputs_kernel: Tile(32, 64, 4, 2)},
        256: {mlp_kernel: Tile(32, 64, 4, 2), inputs_kernel: Tile(16, 32, 4, 2)},
    },
    4: {
        32: {mlp_kernel: Tile(16, 64, 4, 1), inputs_kernel: Tile(32, 16, 4, 1), weights_kernel: Tile(32, 16, 4, 1)},
        64: {mlp_kernel: Tile(16, 64, 4, 1), inputs_kernel: Tile(32, 16, 4, 1), weights_kernel: Tile(32, 32, 4, 1)},
        128: {mlp_kernel: Tile(64, 32, 4, 1), inputs_kernel: Tile(16, 32, 4, 1)},
        256: {mlp_kernel: Tile(16, 32, 4, 1), inputs_kernel: Tile(16, 16, 4, 1)},
    },
}
# Partial sums of the weights' gradients: the same number on every device, so that results do not depend on it.
CHUNKS = 216


class _Folded(NamedTuple):
    """Weights as fold_kernel makes them; C and M padded."""

    w1: Tensor  # (M, C)
    b1: Tensor  # (M,) float32
    w2: Tensor  # (M, C)
    transposed: Tensor | None  # (2, C, M): w1 and w2, for exact float32 products


class _FoldedGradients(NamedTuple):
    w1: Tensor
    w2: Tensor
    b1: Tensor
    b2: Tensor


class _Call(NamedTuple):
    x: Tensor
    scale: Tensor | None
    folded: _Folded
    tokens: Tokens | None  # of a list
    constants: dict[str, Any]

    @property
    def wide(self) -> bool:
        return bool(self.constants["BLOCK_C"] > 64)

    @property
    def tokens_per_image(self) -> int:
        return self.x[0].numel() // self.x.shape[-1]

    def tile_count(self, rows: int) -> int:
        if self.tokens is not None:
            return max(1, triton.cdiv(self.tokens.capacity, rows))
        return len(self.x) * triton.cdiv(self.tokens_per_image, rows)


def _prepare(x: Tensor, weights: MlpWeights, scale: Tensor | None, dtype: torch.dtype, tokens: Tokens | None) -> _Call:
    hidden, channels = weights.fc1_weight.shape
    block_c = tile_side(channels)
    multiple = 128 if block_c <= 64 else 64  # of every tile of hidden units
    units = triton.cdiv(hidden, multiple) * multiple
    w1, w2 = (torch.empty(units, block_c, dtype=dtype, device=x.device) for _ in range(2))
    b1 = torch.empty(units, dtype=torch.float32, device=x.device)
    transposed = torch.empty(2, block_c, units, dtype=dtype, device=x.device) if exact_products(dtype) else None
    folded = _Folded(w1, b1, w2, transposed)
    launch.launch(
        fold_kernel,
        (units // 32,),
        *arguments_of(fold_kernel, **_pointers(weights), **_pointers(folded)),
        CHANNELS=channels,
        HIDDEN=hidden,
        UNITS=units,
        BLOCK_C=block_c,
        BLOCK_M=32,
        num_warps=4,
    )
    constants = {"CHANNELS": channels, "HIDDEN": units, "BLOCK_C": block_c, "PRECISION": product_precision()}
    return _Call(x, scale, folded, tokens, constants)


def _pointers(tensors: MlpWeights | _Folded) -> dict[str, Tensor | None]:
    """Contiguous tensors by the names of kernels' parameters."""
    return {f"{name}_ptr": None if t is None else t.contiguous() for name, t in tensors._asdict().items()}


def _tiles(kernel: Any, call: _Call) -> dict[str, int]:
    by_channels = TILES[call.folded.w1.element_size()]
    width = next(width for width in by_channels if call.constants["BLOCK_C"] <= width)
    tile = by_channels[width][kernel]
    if call.tokens is not None and kernel is mlp_kernel and width == 256:
        tile = tile._replace(hidden_units=min(tile.hidden_units, 32))  # a factor for each row leaves fewer registers
    rule = {
        "BLOCK_R": tile.rows,
        "BLOCK_M": tile.hidden_units,
        "STAGES": tile.stages,
        "num_warps": tile.num_warps,
    }
    sizes = {"channels": call.constants["CHANNELS"], "hidden": call.constants["HIDDEN"]}
    max_tiles = {"BLOCK_M": max(64, tile.hidden_units)}
    return tuned(kernel, rule, max_tiles=max_tiles, dtype=call.folded.w1.dtype, **sizes)


def _run(kernel: Any, call: _Call, grid: tuple[int, ...], tiles: dict[str, int], **named: Any) -> None:
    """Launch a kernel; `named` are the arguments that others do not have."""
    tokens = call.tokens or Tokens(0)
    arguments = arguments_of(
        kernel,
        x_ptr=call.x,
        scale_ptr=call.scale,
        tokens_per_image=call.tokens_per_image,
        **_pointers(call.folded),
        **tokens.arguments(),
        **named,
    )
    launch.launch(kernel, grid, *arguments, **call.constants, **tiles)


def mlp(
    x: Tensor, weights: MlpWeights, scale: Tensor | None, dtype: torch.dtype, tokens: Tokens | None = None
) -> Tensor:
    """x + scale * MLP(LayerNorm(x)).

    Args:
        x: (B, ..., C), contiguous.
        weights: of any floating dtype.
        scale: (B,) float32, the drop-path factor of each image; None = 1.
        dtype: of the operands of products: bfloat16, float16 or float32. Sums, LayerNorm and GELU are float32.
        tokens: those of a list: only these are computed, in place.

    Returns:
        Like x; x itself with `tokens`.
    """
    call = _prepare(x, weights, scale, dtype, tokens)
    y = torch.empty_like(x) if tokens is None else x
    tiles = _tiles(mlp_kernel, call)
    _run(mlp_kernel, call, (call.tile_count(tiles["BLOCK_R"]),), tiles, b2_ptr=weights.fc2_bias, y_ptr=y)
    return y


def mlp_backward(
    grad: Tensor, x: Tensor, weights: MlpWeights, scale: Tensor | None, dtype: torch.dtype, tokens: Tokens | None = None
) -> tuple[Tensor, MlpWeights]:
    """The gradients of x and of each weight, in their dtypes, given that of y (contiguous) and the inputs of `mlp`.

    With `tokens`, x is what it was before `mlp`, and the gradient of all other tokens is that of y. The results are the
    same bits every time.
    """
    call = _prepare(x, weights, scale, dtype, tokens)
    dx = torch.empty_like(x) if tokens is None else grad.clone()
    channels, units = x.shape[-1], call.constants["HIDDEN"]

    def operand(width: int) -> Tensor:
        count = x.numel() // channels if tokens is None else tokens.capacity
        return torch.empty(count, width, dtype=dtype, device=x.device)

    normed = d_branch = activated = d_hidden = None
    if call.wide:
        activated, d_hidden = operand(units), operand(units)
        if tokens is None:
            normed, d_branch = operand(channels), operand(channels)
    tiles = _tiles(inputs_kernel, call)
    _run(
        inputs_kernel,
        call,
        (call.tile_count(tiles["BLOCK_R"]),),
        tiles,
        grad_ptr=grad,
        dx_ptr=dx,
        normed_ptr=normed,
        d_branch_ptr=d_branch,
        activated_ptr=activated,
        d_hidden_ptr=d_hidden,
    )
    if activated is None or d_hidden is None:
        folded = _gradients_in_chunks(call, grad)
    elif normed is None or d_branch is None:
        folded = _gradients_of_listed(call, grad, activated, d_hidden)
    else:
        folded = _gradients_by_pytorch(normed, d_branch, activated, d_hidden)
    return dx, _unfold(weights, folded)


def _gradients_in_chunks(call: _Call, grad: Tensor) -> _FoldedGradients:
    """Sums over chunks of tokens: no hidden unit is stored. For up to 64 channels.

    A wider program has too few registers for the sums of all units. It would read and normalise its tokens again for
    every few of them, 6 times at 96 channels, 24 at 180.
    """
    tiles = _tiles(weights_kernel, call)
    count = call.tile_count(tiles["BLOCK_R"])
    chunks = triton.cdiv(count, triton.cdiv(count, CHUNKS))
    units, channels = call.constants["HIDDEN"], call.constants["BLOCK_C"]
    sizes = (units * channels, units * channels, units, channels)
    parts = torch.empty(chunks, sum(sizes), dtype=torch.float32, device=grad.device)
    grid = chunks, units // tiles["BLOCK_M"]
    _run(weights_kernel, call, grid, tiles, grad_ptr=grad, parts_ptr=parts, tile_count=count)
    w1, w2, b1, b2 = parts.sum(0).split(sizes)
    return _FoldedGradients(w1.view(units, channels), w2.view(units, channels), b1, b2)


def _gradients_by_pytorch(normed: Tensor, d_branch: Tensor, activated: Tensor, d_hidden: Tensor) -> _FoldedGradients:
    """Products of stored operands. `weight_gradient`, padded, would take 1.5 times the matrix FLOPs at 180 channels."""
    return _FoldedGradients(
        torch.mm(d_hidden.t(), normed),
        torch.mm(activated.t(), d_branch),
        d_hidden.sum(0, dtype=torch.float32),
        d_branch.sum(0, dtype=torch.float32),
    )


def _gradients_of_listed(call: _Call, grad: Tensor, activated: Tensor, d_hidden: Tensor) -> _FoldedGradients:
    """The same for a list, whose length only the device knows: PyTorch would multiply its whole capacity."""
    assert call.tokens is not None
    units = d_hidden.shape[1]
    layout = Layout(Windows(1, call.tokens_per_image, (1, 1)), 1, units, units, d_hidden.dtype)
    d_hidden, activated = (tensor.view(-1, 1, 1, units) for tensor in (d_hidden, activated))
    x, grad = (tensor.view(len(call.x), 1, call.tokens_per_image, -1) for tensor in (call.x, grad))
    w1, b1 = weight_gradient(layout, d_hidden, call.tokens, x, norm=True)
    w2, b2 = weight_gradient(layout, activated, call.tokens, grad, call.scale, norm=False)
    return _FoldedGradients(w1, w2, b1, b2)


def _unfold(weights: MlpWeights, folded: _FoldedGradients) -> MlpWeights:
    hidden, channels = weights.fc1_weight.shape
    grads = MlpWeights(*(torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in weights))
    gradients = {f"d{name}_ptr": grad for name, grad in folded._asdict().items()}
    gradients |= {f"d_{name}_ptr": grad for name, grad in grads._asdict().items()}
    launch.launch(
        unfold_kernel,
        (triton.cdiv(channels, 16),),
        *arguments_of(unfold_kernel, **_pointers(weights), **gradients),
        CHANNELS=channels,
        HIDDEN=hidden,
        STRIDE=folded.w1.shape[1],
        BLOCK_C=16,
        BLOCK_M=64,
        num_warps=4,
    )
    return grads
