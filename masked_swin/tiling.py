"""Tiles of large images: their coordinates, their weights where they overlap, and their size for the free memory.

Tiles start at multiples of the window, so that every window, shifted or not, is the same in the tile and in the whole
image. Pixels within `receptive_radius` of a tile's inner edge may differ from the whole image. So the outer parts of
each overlap are discarded, and one tile fades into the next in the middle.
"""

import torch
from torch import Tensor

from masked_swin.config import ModelConfig
from masked_swin.denoiser import DenoiserConfig
from masked_swin.kernels import CPU_LIBRARY
from masked_swin.memory import available_memory

# With 64, results differ from the image in one piece by less than 1e-4 of an 8-bit level: on a photograph, with trained
# networks of 4 layers and a random one of 24. With 32 the difference is 0.01 levels, with 16 it is 1.4 levels.
OVERLAP = 64
FEATHER = 16  # pixels over which one tile fades into the next
TILES = (1024, 768, 512, 384, 256, 192, 128)  # candidates of tile_for_memory


def receptive_radius(config: ModelConfig) -> int:
    """Return the largest distance, in pixels along an axis, over which an input pixel can change an output pixel."""
    window = config.window_size
    conv = 2 if config.resi_connection == "3conv" else 1  # 3x3 convolutions in a row
    farthest = 0
    for pixel in range(window):
        low = high = pixel
        for depth in (0, *reversed(config.depths)):  # 0: the convolutions after the last group
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
    """Return the smallest overlap with which tiles and the whole image give the same result, except for rounding."""
    needed = 2 * receptive_radius(config) + FEATHER
    return needed + -needed % config.window_size


def check_tiles(tile: int | None, overlap: int | None, window: int) -> int:
    """Check the sizes of tiles; return the overlap: OVERLAP, rounded up to whole windows, if it is None.

    Raises:
        ValueError: a size is not whole windows, or the overlap is as large as the tile. `tile` None is one piece.
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
    """Return (start, end) of the tiles along an axis; `tile` > `overlap`, both multiples of the window."""
    if extent <= tile:
        return [(0, extent)]
    spans = [(start, start + tile) for start in range(0, extent - tile, tile - overlap)]
    last = extent - tile
    return [*spans, (last + -last % window, extent)]  # smaller than the others by less than a window


def tile_weights(spans: list[tuple[int, int]], overlap: int) -> list[Tensor]:
    """Return the weights of each tile's pixels along an axis, float64. At each pixel of the axis they sum to 1."""
    feather = min(overlap, FEATHER)
    discarded = (overlap - feather) // 2
    total = torch.zeros(spans[-1][1], dtype=torch.float64)
    weights = []
    for start, end in spans:
        from_start = torch.arange(end - start, dtype=torch.float64)
        weight = torch.ones_like(from_start)
        for distance, inner in ((from_start, start > 0), (from_start.flip(0), end < len(total))):
            if inner and feather:
                weight *= ((distance - discarded + 0.5) / feather).clamp(0, 1)
        weights.append(weight)
        total[start:end] += weight
    return [weight / total[start:end] for weight, (start, end) in zip(weights, spans, strict=True)]


def tile_for_memory(config: ModelConfig | DenoiserConfig, device: torch.device) -> int:
    """Return the largest of TILES whose pass fits into half of the memory that is free on `device` now."""
    free = available_memory(device)
    largest = config.largest_tile if isinstance(config, DenoiserConfig) else TILES[0]
    sizes = [min(tile, largest) // config.window_size * config.window_size for tile in TILES]
    fitting = (tile for tile in sizes if tile * tile * bytes_per_pixel(config, device) <= free / 2)
    return next(fitting, sizes[-1])


def bytes_per_pixel(config: ModelConfig | DenoiserConfig, device: torch.device) -> int:
    """Return the bytes per pixel of a pass without gradients: measured, rounded up.

    The C++ block holds 4.4 to 6.4 feature maps at once (tiles of 768 to 256 pixels). Other backends also hold the
    hidden units, q, k, v and attention weights of a whole layer.
    """
    if isinstance(config, DenoiserConfig):
        return config.bytes_per_pixel
    maps = 7.0
    if device.type != "cpu" or not CPU_LIBRARY.loaded or config.attention_mask_per_head:
        maps += 8 + 3 * max(config.num_heads) * config.window_size**2 / config.embed_dim
    return int(4 * config.embed_dim * maps)
