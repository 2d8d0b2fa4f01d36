"""Averaged weights: the exponential moving average of a network's weights and buffers."""

import torch
from torch import Tensor, nn


def saved_buffers(model: nn.Module) -> list[Tensor]:
    """Return the buffers that are part of the state dict, such as the statistics of batch norm."""
    parameters = {name for name, _ in model.named_parameters()}
    return [model.get_buffer(name) for name in model.state_dict() if name not in parameters]


class Averages:
    """Moves `average` towards `model`, of the same architecture.

    Buffers of floats are averaged as the weights are: the mean and variance of a batch norm then belong to the averaged
    weights, rather than to those of the last steps. Other buffers, such as counters, are copied.
    """

    def __init__(self, model: nn.Module, average: nn.Module) -> None:
        self._new: list[Tensor] = list(model.parameters())
        self._old: list[Tensor] = list(average.parameters())
        self._copied: list[tuple[Tensor, Tensor]] = []
        for old, new in zip(saved_buffers(average), saved_buffers(model), strict=True):
            if new.is_floating_point():
                self._old.append(old)
                self._new.append(new)
            else:
                self._copied.append((old, new))

    @torch.no_grad()
    def update(self, share: float) -> None:
        """Set the average to (1 - share) * average + share * model."""
        torch._foreach_lerp_(self._old, self._new, share)
        for old, new in self._copied:
            old.copy_(new)
