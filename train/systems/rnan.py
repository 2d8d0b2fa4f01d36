"""RNAN: Zhang et al., "Residual Non-local Attention Networks for Image Restoration", ICLR 2019 (arXiv 1903.10082).

Attention blocks between two convolutions; the network predicts the difference from the image. A block multiplies its
trunk with a mask from a branch that sees half the resolution. In the first and the last block that branch begins with a
non-local layer, in which every pixel attends to all others: its work grows with the square of the number of pixels.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

# B images, C features, N pixels


@dataclass(frozen=True)
class RNANOptions:
    """`blocks` of `features` channels, the first and the last non-local; `channels` of the image."""

    channels: int = 3
    features: int = 64
    blocks: int = 10

    def __post_init__(self) -> None:
        if self.blocks < 2:
            raise ValueError(f"blocks: expected at least 2, the non-local ones, got {self.blocks}")


class RNAN(nn.Module):
    """(B, C, H, W) of even sides."""

    def __init__(self, options: RNANOptions) -> None:
        super().__init__()
        features = options.features
        self.first = _conv(options.channels, features)
        self.blocks = nn.Sequential(
            _AttentionBlock(features, non_local=True),
            *(_AttentionBlock(features, non_local=False) for _ in range(options.blocks - 2)),
            *(_conv(features, features), _AttentionBlock(features, non_local=True)),
        )
        self.last = _conv(features, options.channels)

    def forward(self, x: Tensor) -> Tensor:
        difference: Tensor = self.last(self.blocks(self.first(x)))
        return x + difference


class _AttentionBlock(nn.Module):
    """The paper's residual attention block, with q = 1, t = 2, m = 1 as in the public code, and a convolution."""

    def __init__(self, features: int, *, non_local: bool) -> None:
        super().__init__()
        self.before = _Residual(features)
        self.trunk = nn.Sequential(_Residual(features), _Residual(features))
        self.mask = _MaskBranch(features, non_local=non_local)
        self.after = nn.Sequential(_Residual(features), _Residual(features), _conv(features, features))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        out: Tensor = self.after(self.trunk(x) * self.mask(x) + x)
        return out


class _MaskBranch(nn.Module):
    """A mask in (0, 1) for each feature of each pixel; a large receptive field by half the resolution."""

    def __init__(self, features: int, *, non_local: bool) -> None:
        super().__init__()
        self.start = nn.Sequential(*([_NonLocal(features)] if non_local else []), _Residual(features))
        self.below = nn.Sequential(
            nn.Conv2d(features, features, 3, stride=2, padding=1),
            *(_Residual(features), _Residual(features)),
            nn.ConvTranspose2d(features, features, 6, stride=2, padding=2),
        )
        self.end = nn.Sequential(_Residual(features), nn.Conv2d(features, features, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        mask: Tensor = self.end(x + self.below(x))
        return mask.sigmoid()


class _NonLocal(nn.Module):
    """Every pixel adds a mean over all pixels, weighted by softmax(theta * phi): the paper's embedded Gaussian.

    PyTorch's fused attention holds no matrix of all pairs.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        inner = max(1, features // 2)
        self.theta, self.phi, self.g = (nn.Conv2d(features, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, features, 1)
        for parameter in self.out.parameters():  # at first the layer returns its input
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (  # (B, 1, N, C); contiguous ones take a quarter of the time
            layer(x).flatten(2).transpose(1, 2).unsqueeze(1).contiguous() for layer in (self.theta, self.phi, self.g)
        )
        mean = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        out: Tensor = self.out(mean.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))
        return x + out


class _Residual(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(features, features), nn.ReLU(), _conv(features, features))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
