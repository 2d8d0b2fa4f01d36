"""Averaged weights: buffers of batch norms belong to them."""

import torch
from torch import nn

from masked_swin import MaskedSwinIR, ModelConfig
from masked_swin.train.averaging import Averages, saved_buffers


def test_floats_are_averaged_and_counters_copied() -> None:
    torch.manual_seed(0)
    model, average = (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)) for _ in range(2))
    expected = {name: value.clone() for name, value in average.state_dict().items()}
    averages = Averages(model, average)
    for _ in range(3):
        model(torch.rand(2, 3, 5, 5) + 3)
        averages.update(0.25)
        for name, value in model.state_dict().items():
            mixed = value if not value.is_floating_point() else torch.lerp(expected[name], value, 0.25)
            expected[name] = mixed.clone()
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert average[1].num_batches_tracked == 3
    assert average[1].running_mean.abs().min() > 0


def test_buffers_that_no_checkpoint_holds_are_left_alone() -> None:
    network = MaskedSwinIR(ModelConfig(embed_dim=12, depths=(1,), num_heads=(2,), window_size=4))
    assert list(network.buffers())
    assert saved_buffers(network) == []
