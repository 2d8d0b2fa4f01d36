"""Large images in tiles: where they lie, how they are joined, and how large they may be for the memory at hand.

Tiles start at multiples of the window, so that every window, shifted or not, is the same in the tile and in the whole
image. What lies within `receptive_radius` of a tile's inner edge may differ from the whole image; of each overlap the
outer parts are therefore thrown away, and the rest is feathered.
"""

import torch
from torch import Tensor

from masked_swin.config import ModelConfig
from masked_swin.kernels import CPU_LIBRARY
from masked_swin.memory import available_memory

# Leaves less than 1e-4 of an 8-bit level of difference to the image in one piece, on a photograph with trained networks
# of 4 layers and with a random one of 24; an overlap of 32 leaves 0.01, of 16 1.4 levels.
OVERLAP = 64
FEATHER = 16  # pixels over which one tile fades into the next
TILES = (1024, 768, 512, 384, 256, 192, 128)  # what tile_for_memory chooses from


def receptive_radius(config: ModelConfig) -> int:
    """The largest distance, in pixels along an axis, over which an input pixel can reach an output pixel."""
    window = config.window_size
    conv = 2 if config.resi_connection == "3conv" else 1  # 3x3 convolutions in a row
    farthest = 0
    for pixel in range(window):
        low = high = pixel
        for depth in (0, *reversed(config.depths)):  # 0: what follows the last group
            reach = 1 + conv if depth == 0 else conv
            low, high = low - reach, high + reach
            for layer in reversed(range(depth)):
                shift = layer % 2 * (window // 2)
                low = (low - shift) // window * window + shift
                high = (high - shift) // window * window + window - 1 + shift
        reach = config.conv_first_kernel // 2
        farthest = max(farthest, pixel - low + reach, high - pixel + reach)
    return farthest


def exact_overlap(config: ModelConfig) -> int:
    """The least overlap with which tiles give what the whole image gives, up to rounding."""
    needed = 2 * receptive_radius(config) + FEATHER
    return needed + -needed % config.window_size


def check_tiles(tile: int | None, overlap: int | None, window: int) -> int:
    """The overlap, OVERLAP rounded up to whole windows if None; `tile` None is an image in one piece.

    Raises:
        ValueError: not whole windows, or an overlap as large as the tile.
    """
    if overlap is None:
        overlap = OVERLAP + -OVERLAP % window
    for name, value in (("tile", tile), ("overlap", overlap)):
        if value is not None and (not isinstance(value, int) or value < 0 or value % window):
            raise ValueError(f"{name} must be a multiple of the network's window, {window}, got {value!r}")
    if tile is not None and tile <= overlap:
        raise ValueError(f"tile must be larger than the overlap, {overlap} pixels, got {tile}")
    return overlap


def tile_spans(extent: int, tile: int, overlap: int, window: int) -> list[tuple[int, int]]:
    """(start, end) of the tiles along an axis; `tile` and `overlap` are multiples of the window, tile > overlap."""
    if extent <= tile:
        return [(0, extent)]
    spans = [(start, start + tile) for start in range(0, extent - tile, tile - overlap)]
    last = extent - tile
    return [*spans, (last + -last % window, extent)]  # nearly as large as the others


def tile_weights(spans: list[tuple[int, int]], overlap: int) -> list[Tensor]:
    """The weight of each tile's pixels along an axis, float64; they sum to 1 at every pixel of the axis."""
    feather = min(overlap, FEATHER)
    thrown_away = (overlap - feather) // 2
    total = torch.zeros(spans[-1][1], dtype=torch.float64)
    weights = []
    for start, end in spans:
        place = torch.arange(end - start, dtype=torch.float64)
        weight = torch.ones_like(place)
        for distance, inner in ((place, start > 0), (place.flip(0), end < len(total))):
            if inner and feather:
                weight *= ((distance - thrown_away + 0.5) / feather).clamp(0, 1)
        weights.append(weight)
        total[start:end] += weight
    return [weight / total[start:end] for weight, (start, end) in zip(weights, spans, strict=True)]


def tile_for_memory(config: ModelConfig, device: torch.device) -> int:
    """The largest tile of TILES whose pass fits into half of the memory that is free on `device` now."""
    free = available_memory(device)
    sizes = [tile - tile % config.window_size for tile in TILES]
    fitting = (tile for tile in sizes if tile * tile * bytes_per_pixel(config, device) <= free / 2)
    return next(fitting, sizes[-1])


def bytes_per_pixel(config: ModelConfig, device: torch.device) -> int:
    """Memory of a pass without gradients, per pixel: measured, rounded up.

    The fused kernel holds 4.4 to 6.4 feature maps at once (tiles of 768 to 256 pixels); other backends hold a whole
    layer's hidden units, q, k, v and attention weights as well.
    """
    maps = 7.0
    if device.type != "cpu" or not CPU_LIBRARY.loaded or config.attention_mask_per_head:
        maps += 8 + 3 * max(config.num_heads) * config.window_size**2 / config.embed_dim
    return int(4 * config.embed_dim * maps)
