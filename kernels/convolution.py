"""The operation `convolution`: those between the blocks, on (B, H, W, C)."""

from typing import NamedTuple

from torch import Tensor

from .backends import choose


class ConvolutionInputs(NamedTuple):
    """The inputs of the operation."""

    x: Tensor
    weight: Tensor
    bias: Tensor

    def arguments(self) -> tuple[Tensor, ...]:
        return tuple(self)


def convolution(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str | None = None) -> Tensor:
    """Convolve with stride 1, and zero padding that keeps the size.

    Args:
        x: (B, H, W, I).
        weight: (O, I, k, k), k odd.
        bias: (O,).
        backend: a name, or None for the first that can run.

    Returns:
        (B, H, W, O).

    Raises:
        ValueError: if the backend cannot run.
    """
    inputs = ConvolutionInputs(x, weight, bias)
    out: Tensor = choose("convolution", inputs, backend).run(inputs)
    return out
