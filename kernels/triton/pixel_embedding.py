"""The embedding of pixels in Triton, image to features: noise, input mask, reflection, 1x1 convolution and LayerNorm.

Legend: a *pixel* is one of a padded image; its *source* is itself or, in the padding, the pixel that it reflects.
Pixels with a masked source are not read: all their channels have one value. A *run* is adjacent pixels, at least one
for each thread, which are read and given their noise at once. A *tile* is some pixels of a run, (pixels, BLOCK_C) in
float32, gathered from the threads that read them: in a tile, many threads would read the same pixel.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .launch import arguments_of
from .noise import normal_numbers
from .norm import load_rows, normalise, normalise_backward, store_rows
from .tuning import tuned

# About so many partial sums make the gradients of weights: set by the batch, not by the device.
PARTS = 512
# The largest tiles, in numbers, that no target spills.
TILE_SIZE = 4096
BACKWARD_TILE_SIZE = 1024


@triton.jit
def source_of(pixel, valid, image, input_mask_ptr, image_height, image_width, height, width):
    """The source of each pixel of an image, and whether it is read."""
    y, x = pixel // width, pixel % width
    y = tl.where(y < image_height, y, 2 * image_height - 2 - y)
    x = tl.where(x < image_width, x, 2 * image_width - 2 - x)
    is_read = valid
    if input_mask_ptr is not None:
        in_mask = image.to(tl.int64) * (height * width) + y * width + x
        is_read = valid & (tl.load(input_mask_ptr + in_mask, mask=valid, other=1) == 0)
    return y * image_width + x, is_read


@triton.jit
def load_row(row_ptr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, STRIDE: tl.constexpr = 1):
    """CHANNELS numbers, (1, BLOCK_C) in float32, 0 in the padding."""
    channel = tl.arange(0, BLOCK_C)
    return tl.load(row_ptr + channel * STRIDE, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]


@triton.jit
def load_weights(weight_ptr, IMAGE_CHANNELS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """The convolution's weights of each image channel, a tuple of (1, BLOCK_C)."""
    weights = ()
    for channel in tl.static_range(IMAGE_CHANNELS):
        row = load_row(weight_ptr + channel, CHANNELS, BLOCK_C, IMAGE_CHANNELS)
        weights = weights + (row,)  # type: ignore[assignment]  # noqa: RUF005 (Triton unpacks no tuples)
    return weights


@triton.jit
def load_values(
    image_ptr, seed_ptr, draw_ptr, sample_ptr, input_mask_ptr, mean_ptr, image, pixel, last,
    image_height, image_width, height, width, sigma, image_range, mask_value, IMAGE_CHANNELS: tl.constexpr,
):  # fmt: skip
    """By channel, as tuples: a run's values before `last` as the convolution gets them; if they have a gradient."""
    image_pixels = image_height * image_width
    source, is_read = source_of(pixel, pixel < last, image, input_mask_ptr, image_height, image_width, height, width)
    if seed_ptr is not None:
        sample, draw = tl.load(sample_ptr + image), tl.load(draw_ptr)
        noise = normal_numbers(source, sample, draw, 0, tl.load(seed_ptr))
    values, passes = (), ()
    for channel in tl.static_range(IMAGE_CHANNELS):
        plane = (image.to(tl.int64) * IMAGE_CHANNELS + channel) * image_pixels
        value = tl.load(image_ptr + plane + source, mask=is_read, other=mask_value).to(tl.float32)
        inside = is_read
        if seed_ptr is not None:
            noisy = value + sigma * noise[channel]
            inside = is_read & (noisy >= 0) & (noisy <= 1)
            value = tl.where(is_read, tl.minimum(tl.maximum(noisy, 0.0), 1.0), value)
        value = (value - tl.load(mean_ptr + channel).to(tl.float32)) * image_range
        values = values + (value,)  # type: ignore[assignment]  # noqa: RUF005
        passes = passes + (inside.to(tl.int32),)  # type: ignore[assignment]  # noqa: RUF005
    return values, passes


@triton.jit
def gather_tile(run, pick):
    """Some pixels of each channel of a run, a tuple of (pixels, 1)."""
    tiles = ()
    for channel in tl.static_range(len(run)):
        tiles = tiles + (tl.gather(run[channel], pick, 0)[:, None],)  # type: ignore[assignment]  # noqa: RUF005
    return tiles


@triton.jit
def convolve(values, weights, bias, IMAGE_CHANNELS: tl.constexpr):
    for channel in tl.static_range(IMAGE_CHANNELS):
        bias = bias + values[channel] * weights[channel]
    return bias


@triton.jit
def embedding_kernel(
    image_ptr, seed_ptr, draw_ptr, sample_ptr, input_mask_ptr, mean_ptr,
    weight_ptr, bias_ptr, norm_weight_ptr, norm_bias_ptr, out_ptr,
    image_height, image_width, height, width, sigma, image_range, mask_value,
    IMAGE_CHANNELS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
    RUN: tl.constexpr,
):  # fmt: skip
    """The features of a run of one image."""
    pixels = height * width
    runs = tl.cdiv(pixels, RUN)
    image, first = tl.program_id(0) // runs, tl.program_id(0) % runs * RUN
    run = load_values(
        image_ptr, seed_ptr, draw_ptr, sample_ptr, input_mask_ptr, mean_ptr, image, first + tl.arange(0, RUN), pixels,
        image_height, image_width, height, width, sigma, image_range, mask_value, IMAGE_CHANNELS,
    )[0]  # fmt: skip
    weights = load_weights(weight_ptr, IMAGE_CHANNELS, CHANNELS, BLOCK_C)
    bias = load_row(bias_ptr, CHANNELS, BLOCK_C)
    norm_weight, norm_bias = load_row(norm_weight_ptr, CHANNELS, BLOCK_C), load_row(norm_bias_ptr, CHANNELS, BLOCK_C)
    for start in range(0, RUN, BLOCK_R):
        pick = start + tl.arange(0, BLOCK_R)
        pixel = first + pick
        normed, _ = normalise(convolve(gather_tile(run, pick), weights, bias, IMAGE_CHANNELS), CHANNELS)
        out = normed * norm_weight + norm_bias
        store_rows(out_ptr, image.to(tl.int64) * pixels + pixel, pixel < pixels, out, CHANNELS, BLOCK_C)


@triton.jit
def embedding_backward_kernel(
    grad_ptr, image_ptr, seed_ptr, draw_ptr, sample_ptr, input_mask_ptr, mean_ptr,
    weight_ptr, bias_ptr, norm_weight_ptr, d_padded_ptr, sums_ptr,
    image_height, image_width, height, width, part, sigma, image_range, mask_value,
    IMAGE_CHANNELS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
    RUN: tl.constexpr,
):  # fmt: skip
    """Sums over a part of one image: the gradients of LayerNorm's weight and bias, the convolution's bias and weight.

    The gradient of the padded image is stored if it has a pointer. It is 0 where a pixel is masked, or was clipped.
    """
    image = tl.program_id(0)
    weights = load_weights(weight_ptr, IMAGE_CHANNELS, CHANNELS, BLOCK_C)
    bias = load_row(bias_ptr, CHANNELS, BLOCK_C)
    norm_weight = load_row(norm_weight_ptr, CHANNELS, BLOCK_C)
    d_norm_weight = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    d_norm_bias = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    d_bias = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    d_weights = (tl.zeros((BLOCK_R, BLOCK_C), tl.float32),) * IMAGE_CHANNELS
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, height * width)
    for run_start in range(first, last, RUN):
        run, passes = load_values(
            image_ptr, seed_ptr, draw_ptr, sample_ptr, input_mask_ptr, mean_ptr, image,
            run_start + tl.arange(0, RUN), last,
            image_height, image_width, height, width, sigma, image_range, mask_value, IMAGE_CHANNELS,
        )  # fmt: skip
        for start in range(0, RUN, BLOCK_R):
            pick = start + tl.arange(0, BLOCK_R)
            pixel = run_start + pick
            valid = pixel < last
            values = gather_tile(run, pick)
            normed, scale = normalise(convolve(values, weights, bias, IMAGE_CHANNELS), CHANNELS)
            grad = load_rows(grad_ptr, image.to(tl.int64) * (height * width) + pixel, valid, CHANNELS, BLOCK_C)
            d_norm_weight += grad * normed
            d_norm_bias += grad
            d_convolved = normalise_backward(grad * norm_weight, normed, scale, CHANNELS)
            d_bias += d_convolved
            sums = ()
            for channel in tl.static_range(IMAGE_CHANNELS):
                d_weight = d_weights[channel] + values[channel] * d_convolved
                sums = sums + (d_weight,)  # type: ignore[assignment]  # noqa: RUF005
                if d_padded_ptr is not None:
                    d_value = tl.sum(d_convolved * weights[channel], 1) * image_range
                    plane = (image.to(tl.int64) * IMAGE_CHANNELS + channel) * (height * width)
                    d_pixel = tl.where(tl.gather(passes[channel], pick, 0) != 0, d_value, 0.0)
                    tl.store(d_padded_ptr + plane + pixel, d_pixel.to(d_padded_ptr.dtype.element_ty), mask=valid)
            d_weights = sums

    row = (image * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * (3 + IMAGE_CHANNELS)
    store_sum(sums_ptr, row, d_norm_weight, CHANNELS)
    store_sum(sums_ptr, row + 1, d_norm_bias, CHANNELS)
    store_sum(sums_ptr, row + 2, d_bias, CHANNELS)
    for channel in tl.static_range(IMAGE_CHANNELS):
        store_sum(sums_ptr, row + 3 + channel, d_weights[channel], CHANNELS)


@triton.jit
def store_sum(sums_ptr, row, tile, CHANNELS: tl.constexpr):
    channel = tl.arange(0, tile.shape[1])
    tl.store(sums_ptr + row * CHANNELS + channel, tl.sum(tile, 0), mask=channel < CHANNELS)


def _tiles(kernel: Any, channels: int, tile_size: int) -> dict[str, int]:
    block = triton.next_power_of_2(channels)
    tiles = tuned(kernel, {"BLOCK_R": tile_size // block, "num_warps": 4}, channels=channels)
    run = max(tiles["BLOCK_R"], 32 * tiles["num_warps"])
    return {"CHANNELS": channels, "BLOCK_C": block, "RUN": run, **tiles}


class _Inputs(NamedTuple):
    """The arguments of the operators."""

    image: Tensor
    seed: Tensor | None
    draw: Tensor | None
    sample: Tensor | None
    input_mask: Tensor | None
    mean: Tensor
    weight: Tensor
    bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    height: int
    width: int
    sigma: float
    image_range: float
    mask_value: float
    image_gradient: bool

    def arguments(self) -> dict[str, Any]:
        """The arguments of kernels, by name."""
        image_height, image_width = self.image.shape[2:]
        named: dict[str, Any] = {"image_height": image_height, "image_width": image_width}
        for name, value in self._asdict().items():
            if value is None or isinstance(value, Tensor):
                named[f"{name}_ptr"] = None if value is None else value.contiguous()
            else:
                named[name] = value
        return named


def forward(*arguments: Any) -> Tensor:
    """The operator pixel_embedding_triton."""
    inputs = _Inputs(*arguments)
    image, pixels, channels = inputs.image, inputs.height * inputs.width, len(inputs.bias)
    out = inputs.norm_weight.new_empty(len(image), inputs.height, inputs.width, channels)
    tiles = _tiles(embedding_kernel, channels, TILE_SIZE)
    launch.launch(
        embedding_kernel,
        (len(image) * triton.cdiv(pixels, tiles["RUN"]),),
        *arguments_of(embedding_kernel, **inputs.arguments(), out_ptr=out),
        IMAGE_CHANNELS=image.shape[1],
        **tiles,
    )
    return out


def backward(grad_out: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator pixel_embedding_triton_backward: gradients of image (or empty), weight, bias and LayerNorm's."""
    inputs = _Inputs(*arguments)
    image, height, width, weight, channels = inputs.image, inputs.height, inputs.width, inputs.weight, len(inputs.bias)
    batch, image_channels, image_height, image_width = image.shape
    d_padded = image.new_empty(batch, image_channels, height, width) if inputs.image_gradient else None
    tiles = _tiles(embedding_backward_kernel, channels, BACKWARD_TILE_SIZE)
    part = triton.cdiv(height * width, max(1, PARTS // batch))
    part = triton.cdiv(part, tiles["RUN"]) * tiles["RUN"]
    parts = triton.cdiv(height * width, part)
    sums = image.new_empty(batch * parts, 3 + image_channels, channels, dtype=torch.float32)
    own = {"grad_ptr": grad_out.contiguous(), "d_padded_ptr": d_padded, "sums_ptr": sums, "part": part}
    launch.launch(
        embedding_backward_kernel,
        (batch, parts),
        *arguments_of(embedding_backward_kernel, **inputs.arguments(), **own),
        IMAGE_CHANNELS=image_channels,
        **tiles,
    )
    d_norm_weight, d_norm_bias, d_bias, *d_weight = sums.sum(0).to(weight.dtype).unbind()
    d_image = image.new_empty(0) if d_padded is None else _folded(d_padded, image_height, image_width)
    return d_image, torch.stack(d_weight, 1).view_as(weight), d_bias, d_norm_weight, d_norm_bias


def _folded(d_padded: Tensor, height: int, width: int) -> Tensor:
    """Add the gradients of reflected pixels to those of their sources."""
    for dim, extent in ((-2, height), (-1, width)):
        extra = d_padded.shape[dim] - extent
        own, reflected = d_padded.split((extent, extra), dim)
        own.narrow(dim, extent - 1 - extra, extra).add_(reflected.flip(dim))
        d_padded = own
    return d_padded.contiguous()
