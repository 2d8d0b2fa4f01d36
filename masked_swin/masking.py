"""The two random masks of the method: over the pixels of the input (training) and over the tokens of every attention.

A mask, like the branches that stochastic depth leaves out, is a pure function of its key, so nothing is stored: the
same (seed, draw, sample) gives the same masks on every device, whatever the batching. Tokens are counted in the image
padded to whole windows.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from masked_swin.config import ModelConfig
from masked_swin.kernels import VisibleTokens, Windows, sample_uniform, token_mask


class MaskKey(NamedTuple):
    """Names the masks of one forward pass.

    Attributes:
        seed: int64, no dimension.
        draw: int64, no dimension: which pass; each number gives independent masks.
        sample: (B,) int64, the global id of each image.
    """

    seed: Tensor
    draw: Tensor
    sample: Tensor

    @classmethod
    def make(
        cls, seed: int, draw: int = 0, samples: int | Tensor = 1, device: torch.device | str | None = None
    ) -> "MaskKey":
        """A key from numbers; `samples` is the batch size (ids 0, 1, ...) or the ids as (B,) int64.

        Raises ValueError for a seed or draw outside [0, 2^63), or ids of another dtype or shape.
        """
        check_seed("seed", seed)
        check_seed("draw", draw)
        if isinstance(samples, int):
            samples = torch.arange(samples)
        if samples.dtype != torch.int64 or samples.dim() != 1:
            raise ValueError(f"sample ids must be (B,) int64, got {samples.dtype} {tuple(samples.shape)}")
        return cls(torch.tensor(seed, device=device), torch.tensor(draw, device=device), samples.to(device))

    def at(self, layer: int, layers: int) -> "MaskKey":
        """The key of one of the `layers` masks of a pass: 0 is the input mask, 1, 2, ... the Swin layers."""
        return self._replace(draw=self.draw * layers + layer)


def check_seed(name: str, value: int) -> None:
    """Raise ValueError unless `value` is a whole number in [0, 2^63)."""
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{name} must be a whole number in [0, 2^63), got {value!r}")


def padded_size(height: int, width: int, window: int) -> tuple[int, int]:
    """The image size rounded up to whole windows."""
    return height + -height % window, width + -width % window


def mask_input(image: Tensor, config: ModelConfig, key: MaskKey) -> Tensor:
    """Set random pixels of images (B, C, H, W) to `config.input_mask_value`, all channels together.

    The share of masked pixels is drawn per image from `config.input_mask`; None returns the image itself.
    """
    if config.input_mask is None:
        return image
    height, width = image.shape[-2:]
    padded_height, padded_width = padded_size(height, width, config.window_size)
    key = key.at(0, sum(config.depths) + 1)
    masked = token_mask(*key, padded_height * padded_width, config.input_mask, ratio_per_sample=True)
    # Cropped before the padding: a reflected copy of a masked pixel must not give it away.
    masked = masked.view(-1, 1, padded_height, padded_width)[..., :height, :width]
    return image.masked_fill(masked, config.input_mask_value)


def drop_path_scales(config: ModelConfig, key: MaskKey, dtype: torch.dtype) -> Tensor:
    """Stochastic depth, (layers, 2 branches, B): 0 or 1 / keep; keep falls linearly to 1 - `config.drop_path_rate`."""
    layers = sum(config.depths)
    uniform_L2B = sample_uniform(*key, 2 * layers).T.unflatten(0, (layers, 2))
    keep_L11 = (
        1 - torch.linspace(0, config.drop_path_rate, layers, dtype=dtype, device=key.sample.device)[:, None, None]
    )
    return (uniform_L2B < keep_L11) / keep_L11


@dataclass(frozen=True)
class AttentionMasks:
    """The attention masks of one forward pass, drawn layer by layer: a mask lives as long as its layer needs it.

    Attributes:
        config: the network's.
        key: of the pass.
        size: (height, width) of the padded image.
    """

    config: ModelConfig
    key: MaskKey
    size: tuple[int, int]

    def visible(self, layer: int, heads: int, shift: int) -> VisibleTokens | None:
        """The tokens that layer number `layer` (1, 2, ...) sees; None if the network masks nothing."""
        config = self.config
        if config.attention_mask is None:
            return None
        windows = Windows(*self.size, (config.window_size, config.window_size), (shift, shift))
        masked = token_mask(
            *self.key.at(layer, sum(config.depths) + 1),
            windows.tokens,
            config.attention_mask,
            heads=heads if config.attention_mask_per_head else None,
            windows=windows,
            exact=config.attention_mask_exact,
        )
        return VisibleTokens.from_keep(~masked, windows)
