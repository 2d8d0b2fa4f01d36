"""Restormer: Zamir et al., "Restormer: Efficient Transformer for High-Resolution Image Restoration", CVPR 2022
(arXiv 2111.09881).

A U of four resolutions made of transformer blocks whose attention is over channels, not pixels: its cost grows with the
number of pixels. The network predicts the difference from the image. As for the paper's Gaussian denoising there is no
bias, neither in convolutions nor in the norms.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# B images, H heads, D channels of a head, N pixels


@dataclass(frozen=True)
class RestormerOptions:
    """`features` at full resolution; `blocks` and `heads` of the four resolutions, `refinement` blocks at the end.

    `expansion` is that of the gated feed-forward part; `channels` those of the image.
    """

    channels: int = 3
    features: int = 48
    blocks: tuple[int, ...] = (4, 6, 6, 8)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    refinement: int = 4
    expansion: float = 2.66

    def __post_init__(self) -> None:
        for name in ("blocks", "heads"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) != 4:
                raise ValueError(f"{name}: expected four numbers, one a resolution, got {getattr(self, name)}")
        for level, heads in enumerate(self.heads):
            if heads < 1 or (self.features << level) % heads:
                raise ValueError(f"heads: {heads} do not divide the {self.features << level} channels of level {level}")


class Restormer(nn.Module):
    """(B, C, H, W) with sides that are multiples of 8."""

    def __init__(self, options: RestormerOptions) -> None:
        super().__init__()
        dim = options.features

        def blocks(level: int, count: int, channels: int) -> nn.Sequential:
            return nn.Sequential(*(_Block(channels, options.heads[level], options.expansion) for _ in range(count)))

        self.first = _conv3(options.channels, dim)
        self.encoders = nn.ModuleList(blocks(level, options.blocks[level], dim << level) for level in range(4))
        self.downs = nn.ModuleList(
            nn.Sequential(_conv3(dim << level, dim << level >> 1), nn.PixelUnshuffle(2)) for level in range(3)
        )
        # Decoders run from low to high resolution. At the highest the joined features are not reduced.
        self.ups = nn.ModuleList(
            nn.Sequential(_conv3(dim << level, dim << level + 1), nn.PixelShuffle(2)) for level in (3, 2, 1)
        )
        self.reductions = nn.ModuleList([_conv1(dim << 3, dim << 2), _conv1(dim << 2, dim << 1), nn.Identity()])
        self.decoders = nn.ModuleList(blocks(level, options.blocks[level], dim << max(level, 1)) for level in (2, 1, 0))
        self.refinement = blocks(0, options.refinement, dim << 1)
        self.last = _conv3(dim << 1, options.channels)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.first(x)
        skipped = []
        for encoder, down in zip(self.encoders, self.downs, strict=False):
            features = encoder(features)
            skipped.append(features)
            features = down(features)
        features = self.encoders[-1](features)
        for up, reduction, decoder in zip(self.ups, self.reductions, self.decoders, strict=True):
            features = decoder(reduction(torch.cat([up(features), skipped.pop()], dim=1)))
        difference: Tensor = self.last(self.refinement(features))
        return x + difference


class _Block(nn.Module):
    def __init__(self, channels: int, heads: int, expansion: float) -> None:
        super().__init__()
        self.norm1, self.attention = _Norm(channels), _ChannelAttention(channels, heads)
        self.norm2, self.feed_forward = _Norm(channels), _GatedFeedForward(channels, expansion)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.feed_forward(self.norm2(x))
        return out


class _Norm(nn.Module):
    """Divide by the standard deviation over the channels; nothing is subtracted or added ("BiasFree")."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        variance = x.var(dim=1, keepdim=True, unbiased=False)
        return x * torch.rsqrt(variance + 1e-5) * self.weight[:, None, None]


class _ChannelAttention(nn.Module):
    """The paper's MDTA: channels attend to channels, by the cosine over all pixels times a learned temperature."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Sequential(_conv1(channels, 3 * channels), _conv3(3 * channels, 3 * channels, each=True))
        self.out = _conv1(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        heads = len(self.temperature)
        q_BHDN, k_BHDN, v_BHDN = (part.unflatten(1, (heads, -1)).flatten(3) for part in self.qkv(x).chunk(3, dim=1))
        cosine_BHDD = F.normalize(q_BHDN, dim=-1) @ F.normalize(k_BHDN, dim=-1).transpose(-2, -1)
        mixed_BHDN = (cosine_BHDD * self.temperature).softmax(dim=-1) @ v_BHDN
        out: Tensor = self.out(mixed_BHDN.flatten(1, 2).unflatten(2, x.shape[2:]))
        return out


class _GatedFeedForward(nn.Module):
    """The paper's GDFN: one half of the hidden channels gates the other."""

    def __init__(self, channels: int, expansion: float) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.expand = nn.Sequential(_conv1(channels, 2 * hidden), _conv3(2 * hidden, 2 * hidden, each=True))
        self.out = _conv1(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.expand(x).chunk(2, dim=1)
        out: Tensor = self.out(F.gelu(gate) * value)
        return out


def _conv1(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, bias=False)


def _conv3(inputs: int, outputs: int, *, each: bool = False) -> nn.Conv2d:
    """`each`: every channel on its own."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, groups=inputs if each else 1, bias=False)
