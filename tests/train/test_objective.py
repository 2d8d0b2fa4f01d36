"""Losses and optimisers by name."""

import pytest
import torch

from masked_swin.train.config import TrainConfig
from masked_swin.train.objective import LOSSES, make_optimizer


def test_losses_are_their_formulas() -> None:
    output, target = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.1, 0.4, 0.5])
    differences = output - target
    assert LOSSES["l1"](output, target).item() == pytest.approx(differences.abs().mean().item())
    assert LOSSES["l2"](output, target).item() == pytest.approx(differences.square().mean().item())
    expected = (differences.double() ** 2 + 1e-6).sqrt().mean().item()
    assert LOSSES["charbonnier"](output, target).item() == pytest.approx(expected, rel=1e-6)


def test_adamw_lets_weights_decay_and_adam_does_not() -> None:
    for name, decayed in (("adam", 0.0), ("adamw", 0.1)):
        weight = torch.nn.Parameter(torch.ones(3))
        weight.grad = torch.zeros(3)
        make_optimizer(name, [weight], learning_rate=0.5, weight_decay=decayed).step()  # type: ignore[arg-type]
        assert weight.detach() == pytest.approx(torch.full((3,), 1 - 0.5 * decayed))
    with pytest.raises(ValueError, match=r"weight_decay: that of adamw; expected 0 with adam, got 0\.1"):
        TrainConfig(weight_decay=0.1)
