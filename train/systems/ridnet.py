"""RIDNet: Anwar and Barnes, "Real Image Denoising with Feature Attention", ICCV 2019 (arXiv 1904.07396).

Four modules between two convolutions; the network predicts the difference from the image. A module looks through
dilated convolutions, refines its features with two residual blocks, and weights their channels (feature attention).
The public code also shifts the colours by a constant, which the last bias can learn; here they stay as they are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RIDNetOptions:
    """`modules` of `features` channels, `channels` of the image; the attention squeezes features by `reduction`."""

    channels: int = 3
    features: int = 64
    modules: int = 4
    reduction: int = 16


class RIDNet(nn.Module):
    """(B, C, H, W) of any size."""

    def __init__(self, options: RIDNetOptions) -> None:
        super().__init__()
        features = options.features
        self.first = _conv(options.channels, features)
        self.modules_in_chain = nn.Sequential(
            *(_AttentionModule(features, options.reduction) for _ in range(options.modules))
        )
        self.last = _conv(features, options.channels)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.first(x))
        difference: Tensor = self.last(self.modules_in_chain(features))
        return x + difference


class _AttentionModule(nn.Sequential):
    """The paper's enhancement attention module."""

    def __init__(self, features: int, reduction: int) -> None:
        super().__init__(
            _DilatedBranches(features),
            _Residual(_conv(features, features), nn.ReLU(), _conv(features, features)),
            _Residual(
                *(_conv(features, features), nn.ReLU(), _conv(features, features), nn.ReLU()),
                nn.Conv2d(features, features, 1),
            ),
            _FeatureAttention(features, reduction),
        )


class _DilatedBranches(nn.Module):
    """Two branches of two convolutions with dilations 1, 2 and 3, 4, joined by a third one; a skip connection."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.near, self.far = (
            nn.Sequential(*(layer for dilation in pair for layer in (_conv(features, features, dilation), nn.ReLU())))
            for pair in ((1, 2), (3, 4))
        )
        self.join = _conv(2 * features, features)

    def forward(self, x: Tensor) -> Tensor:
        joined: Tensor = self.join(torch.cat([self.near(x), self.far(x)], dim=1))
        return x + joined.relu()


class _Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class _FeatureAttention(nn.Module):
    """Multiply each channel by a weight in (0, 1) that depends on the means of all channels."""

    def __init__(self, features: int, reduction: int) -> None:
        super().__init__()
        squeezed = max(1, features // reduction)
        self.squeeze, self.excite = nn.Conv2d(features, squeezed, 1), nn.Conv2d(squeezed, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)
        weights: Tensor = self.excite(torch.relu(self.squeeze(means)))
        return x * weights.sigmoid()


def _conv(inputs: int, outputs: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
