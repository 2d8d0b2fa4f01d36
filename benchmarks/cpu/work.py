"""The least work that an operation is: multiply-adds and bytes, and from them the least time, its floor.

Padding and what masked tokens do not need are not counted. A backward counts the forward's products that it computes
again from the block's input: all but fc2's, whose result it does not need.
"""

from dataclasses import dataclass

import torch

from benchmarks.cpu import peak
from masked_swin import ModelConfig

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Work:
    macs: float
    bytes: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.macs + other.macs, self.bytes + other.bytes)

    def __mul__(self, factor: float) -> "Work":
        return Work(self.macs * factor, self.bytes * factor)

    def floor(self, dtype: torch.dtype) -> float | None:
        """Seconds, by the peaks of this machine now; None where it has no products of this dtype."""
        rate = peak.macs_per_second(dtype)
        return max(self.macs / rate, self.bytes / peak.bytes_per_second()) if rate else None


# Each returns the work of forward and backward, for `tokens` tokens of which a share of `visible` is not masked.


def attention(tokens: int, channels: int, visible: float, window_tokens: int) -> tuple[Work, Work]:
    product = visible * window_tokens * channels  # queries with visible keys
    row = FLOAT * channels
    forward = Work(2 * product, (3 * visible + 1) * row)
    backward = Work(5 * product, (6 * visible + 1) * row)
    return forward * tokens, backward * tokens


def block(
    tokens: int, channels: int, visible: float, window_tokens: int, mlp_ratio: float, mode: str = "zero"
) -> tuple[Work, Work]:
    square, row = channels**2, FLOAT * channels
    computed = visible if mode == "visible" else 1.0  # the others are copied
    fc2 = computed * mlp_ratio * square
    macs = visible * (3 * square + computed * 2 * window_tokens * channels) + computed * square + 2 * fc2
    return Work(macs, 2 * row) * tokens, Work(2 * macs + macs - fc2, (2 + computed) * row) * tokens


def network(config: ModelConfig, pixels: int) -> tuple[Work, Work]:
    """A training step less optimiser and average, or the forward alone."""
    dim, image = config.embed_dim, config.in_channels
    masked = config.attention_mask or 0.0
    visible = 1 - (masked if isinstance(masked, float) else sum(masked) / 2)
    forward, backward = block(pixels, dim, visible, config.window_size**2, config.mlp_ratio)
    narrow = dim // 4
    residual = 9 * dim**2 if config.resi_connection == "1conv" else 18 * dim * narrow + narrow**2
    convolutions = (len(config.depths) + 1) * residual + image * dim * (config.conv_first_kernel**2 + 9)
    convolution = Work(convolutions, 0) * pixels
    layers = sum(config.depths)
    return forward * layers + convolution, backward * layers + convolution * 2
