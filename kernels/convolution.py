"""The operation `convolution`: those between the blocks, on (B, H, W, C)."""

from typing import NamedTuple

from torch import Tensor

from .backends import choose, run_empty
from .checks import require_tensor


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
    for name, tensor, shape in (("x", x, "(B, H, W, I)"), ("weight", weight, "(O, I, k, k)"), ("bias", bias, "(O,)")):
        require_tensor(name, tensor, shape)
    inputs = ConvolutionInputs(x, weight, bias)
    run = choose("convolution", inputs, backend).run
    out: Tensor = run(inputs) if len(x) else run_empty("convolution", inputs)
    return out
