"""The random masks of the method: over the pixels of the input (in training), and over the tokens of every attention.

A mask is a pure function of its key (seed, draw, sample ids), and nothing is stored. The same key gives the same masks
on every device and in every batch. Noise and stochastic depth are functions of the key too. Tokens are counted in the
image padded to whole windows.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from masked_swin.config import ModelConfig
from masked_swin.kernels import Ratio, VisibleTokens, Windows, sample_uniform, token_mask
from masked_swin.kernels import gaussian_noise as add_noise

CELL = 64  # side, in tokens, of the squares that `placed_mask` joins


class MaskKey(NamedTuple):
    """The key of everything random in one forward pass.

    Attributes:
        seed: int64, no dimension.
        draw: int64, no dimension: the number of the pass. Each draw has independent masks.
        sample: (B,) int64, the global id of each image.
    """

    seed: Tensor
    draw: Tensor
    sample: Tensor

    @classmethod
    def make(
        cls, seed: int, draw: int = 0, samples: int | Tensor = 1, device: torch.device | str | None = None
    ) -> "MaskKey":
        """Make a key from numbers; `samples` is the batch size (ids 0, 1, ...) or the ids, (B,) int64.

        Raises:
            ValueError: a seed or draw outside [0, 2^63), or ids of another dtype or shape.
        """
        check_seed("seed", seed)
        check_seed("draw", draw)
        if isinstance(samples, int):
            samples = torch.arange(samples)
        if not isinstance(samples, Tensor):
            raise ValueError(
                f"samples must be a batch size or (B,) int64 ids, got {type(samples).__name__}; use torch.tensor(ids)"
            )
        if samples.dtype != torch.int64 or samples.dim() != 1:
            raise ValueError(f"sample ids must be (B,) int64, got {samples.dtype} {tuple(samples.shape)}")
        return cls(torch.tensor(seed, device=device), torch.tensor(draw, device=device), samples.to(device))

    def at(self, layer: int, layers: int) -> "MaskKey":
        """Return the key of one of the `layers` masks of a pass: 0 is the input mask, 1, 2, ... are Swin layers."""
        return self._replace(draw=self.draw * layers + layer)


def check_seed(name: str, value: int) -> None:
    """Raise ValueError unless `value` is a whole number in [0, 2^63)."""
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{name} must be a whole number in [0, 2^63), got {value!r}")


def padded_size(height: int, width: int, window: int) -> tuple[int, int]:
    """Return the image size rounded up to whole windows."""
    return height + -height % window, width + -width % window


def extend_by_edge(image: Tensor, mask: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Repeat the last row and column of images (B, C, h, w) where the sides of `size` are at least twice theirs.

    Reflection cannot fill such sides. The mask, bool (B, *size), is repeated too: no copy may show a masked pixel.
    """
    height, width = image.shape[-2:]
    rows, columns = (full - side if full >= 2 * side else 0 for full, side in ((size[0], height), (size[1], width)))
    extended = functional.pad(image, (0, columns, 0, rows), mode="replicate")
    if mask is not None:
        inside = mask[:, None, :height, :width].to(image.dtype)
        repeated = functional.pad(inside, (0, columns, 0, rows), mode="replicate")[:, 0] > 0.5
        mask = mask.clone()
        mask[:, : height + rows, : width + columns] = repeated
    return extended, mask


def gaussian_noise(image: Tensor, sigma: float, key: MaskKey) -> Tensor:
    """Return the images (B, C, H, W) plus white Gaussian noise of standard deviation `sigma`, clipped to [0, 1].

    `MaskedSwinIR` adds the same noise as `noise_sigma` with the same key. It is independent of the masks.
    """
    return add_noise(image, sigma, *key)


def mask_input(image: Tensor, config: ModelConfig, key: MaskKey, ratio: Ratio | None = None) -> Tensor:
    """Set random pixels of images (B, C, H, W) to `config.input_mask_value`, all channels together.

    The ratio of masked pixels is drawn per image from `ratio`, or from `config.input_mask` if that is None. If the
    configuration has no input mask, the image is returned unchanged.
    """
    height, width = image.shape[-2:]
    masked = input_mask(padded_size(height, width, config.window_size), config, key, ratio)
    if masked is None:
        return image
    # Cropped before the padding: a reflected copy of a masked pixel must not give it away.
    return image.masked_fill(masked[:, None, :height, :width], config.input_mask_value)


def input_mask(size: tuple[int, int], config: ModelConfig, key: MaskKey, ratio: Ratio | None = None) -> Tensor | None:
    """Draw the input mask of padded images, bool (B, *size), True = masked; None if the network has none.

    `ratio` replaces that of the configuration.
    """
    if config.input_mask is None:
        return None
    key = key.at(0, sum(config.depths) + 1)
    ratio = config.input_mask if ratio is None else ratio
    return token_mask(*key, size[0] * size[1], ratio, ratio_per_sample=True).view(-1, *size)


def drop_path_scales(config: ModelConfig, key: MaskKey, dtype: torch.dtype) -> Tensor:
    """Draw stochastic depth, (layers, 2 branches, B): 0, or 1 / keep with probability keep.

    keep falls linearly from 1 at the first layer to 1 - `config.drop_path_rate` at the last.
    """
    layers = sum(config.depths)
    uniform_L2B = sample_uniform(*key, 2 * layers).T.unflatten(0, (layers, 2))
    keep_L11 = (
        1 - torch.linspace(0, config.drop_path_rate, layers, dtype=dtype, device=key.sample.device)[:, None, None]
    )
    return (uniform_L2B < keep_L11) / keep_L11


@dataclass(frozen=True)
class AttentionMasks:
    """The attention masks of one forward pass. Each is drawn when its layer needs it, and not kept.

    Attributes:
        config: that of the network.
        key: that of the pass.
        size: (height, width) of the padded image.
        origin: (top, left) of the image in a larger one; masks then belong to image coordinates, see `placed_mask`.
        ratio: replaces that of the configuration.
    """

    config: ModelConfig
    key: MaskKey
    size: tuple[int, int]
    origin: tuple[int, int] | None = None
    ratio: Ratio | None = None

    def visible(self, layer: int, heads: int, shift: int) -> VisibleTokens | None:
        """Draw the visible tokens of layer number `layer` (1, 2, ...); None if the network masks nothing."""
        config = self.config
        if config.attention_mask is None:
            return None
        ratio = config.attention_mask if self.ratio is None else self.ratio
        windows = Windows(*self.size, (config.window_size, config.window_size), (shift, shift))
        key = self.key.at(layer, sum(config.depths) + 1)
        mask_heads = heads if config.attention_mask_per_head else None
        if self.origin is not None and not config.attention_mask_exact:
            masked = placed_mask(key, ratio, self.size, self.origin, mask_heads)
        else:
            if self.origin is not None:
                top, left = self.origin
                key = key._replace(sample=_samples_at(key.sample, torch.tensor(top), torch.tensor(left)))
            masked = token_mask(
                *key,
                windows.tokens,
                ratio,
                heads=mask_heads,
                windows=windows,
                exact=config.attention_mask_exact,
            )
        return VisibleTokens.from_keep(~masked, windows)


def placed_mask(
    key: MaskKey, ratio: Ratio, size: tuple[int, int], origin: tuple[int, int], heads: int | None
) -> Tensor:
    """Draw the mask of a part of a larger image: `size` tokens from `origin` (top, left); results as of `token_mask`.

    Cells of 64 x 64 tokens cover the image, and each has its own masks. So whether a token is masked depends on its
    image coordinates, and not on the parts into which the image is cut.
    """
    (height, width), (top, left) = size, origin
    device = key.sample.device
    rows = torch.arange(top // CELL, (top + height - 1) // CELL + 1, device=device)
    columns = torch.arange(left // CELL, (left + width - 1) // CELL + 1, device=device)
    samples = _samples_at(key.sample[:, None, None], rows[:, None], columns)
    masked = token_mask(*key._replace(sample=samples.flatten()), CELL * CELL, ratio, heads=heads or 1)
    cells_BRKHYX = masked.view(*samples.shape, heads or 1, CELL, CELL)
    image_BHYX = cells_BRKHYX.permute(0, 3, 1, 4, 2, 5).reshape(
        len(key.sample), heads or 1, len(rows) * CELL, len(columns) * CELL
    )
    y, x = top - top // CELL * CELL, left - left // CELL * CELL
    flat = image_BHYX[..., y : y + height, x : x + width].flatten(2)
    return flat if heads is not None else flat.squeeze(1)


def _samples_at(sample: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return sample ids that differ between the coordinates of an image. Row and column are below 2^16."""
    return (sample * 0x9E3779B1 + (row << 16) + column) & 0xFFFFFFFF
