"""DnCNN: Zhang et al., "Beyond a Gaussian Denoiser", IEEE Transactions on Image Processing 2017 (arXiv 1608.03981).

A chain of 3x3 convolutions predicts the noise, which is subtracted from the image. Batch norm follows every convolution
but the first and the last. For one known sigma the paper has 17 layers (DnCNN-S), and 20 for unknown ones.
"""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class DnCNNOptions:
    """`depth` convolutions of `features` channels, `channels` of the image."""

    channels: int = 3
    features: int = 64
    depth: int = 17

    def __post_init__(self) -> None:
        if self.depth < 2:
            raise ValueError(f"depth: expected at least 2 convolutions, got {self.depth}")


class DnCNN(nn.Module):
    """(B, C, H, W) of any size."""

    def __init__(self, options: DnCNNOptions) -> None:
        super().__init__()
        features = options.features
        layers: list[nn.Module] = [nn.Conv2d(options.channels, features, 3, padding=1), nn.ReLU()]
        for _ in range(options.depth - 2):
            # The batch norm has the bias.
            layers += [nn.Conv2d(features, features, 3, padding=1, bias=False), nn.BatchNorm2d(features), nn.ReLU()]
        self.noise = nn.Sequential(*layers, nn.Conv2d(features, options.channels, 3, padding=1))
        for module in self.noise:
            if isinstance(module, nn.Conv2d):  # the paper's, "Delving Deep into Rectifiers"
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        noise: Tensor = self.noise(x)
        return x - noise
