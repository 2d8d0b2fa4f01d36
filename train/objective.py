"""Losses and optimisers of the trainer, by name."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Literal["l1", "l2", "charbonnier"]
OptimizerName = Literal["adam", "adamw"]

CHARBONNIER_EPSILON = 1e-3  # of values in [0, 1]; Lai et al., "Deep Laplacian Pyramid Networks", arXiv 1710.01992


def charbonnier(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean of sqrt(difference^2 + epsilon^2)."""
    return (output - target).square().add(CHARBONNIER_EPSILON**2).sqrt().mean()


LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "charbonnier": charbonnier,
}


def make_optimizer(
    name: OptimizerName, parameters: Iterable[Tensor], *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
    return torch.optim.Adam(parameters, lr=learning_rate, fused=True)
