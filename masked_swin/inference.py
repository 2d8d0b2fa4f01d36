"""Denoise images of any size with a trained network, in one piece or in tiles."""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from masked_swin.denoiser import Denoiser, DenoiserConfig
from masked_swin.masking import MaskKey
from masked_swin.tiling import check_tiles, tile_spans, tile_weights

AttentionMask = Literal["average", "random", "off"]
Part = Callable[[slice, slice], Tensor]
Progress = Callable[[int, int], object]


@torch.no_grad()
def denoise(
    model: Denoiser,
    image: Tensor,
    *,
    attention_mask: AttentionMask = "average",
    average: int = 4,
    seed: int = 0,
    sample: Tensor | None = None,
    tile: int | None = None,
    overlap: int | None = None,
) -> Tensor:
    """Denoise one image (C, H, W) or several (B, C, H, W), floating point in [0, 1].

    Args:
        model: the network; its training or evaluation mode is restored.
        image: the noisy image or images. They are never masked.
        attention_mask: "average" is the mean over `average` draws of the attention mask, about 0.3 dB better than one
            draw according to the method's author. "random" is one draw, as published. "off" is no mask. A network
            without an attention mask gives the same for all three.
        average: number of draws.
        seed: of the masks, in [0, 2^63). The same seed gives the same result.
        sample: (B,) int64 ids; by default 0, 1, ... An image with the same id gets the same masks in any batch.
        tile: side of the tiles, a multiple of the window, or None for the image in one piece. Tiles bound the memory.
            Their masks belong to image coordinates, so that all tile sizes have the same masks; the image in one piece
            has others. An overlap less than `tiling.exact_overlap` changes results slightly.
        overlap: pixels that two tiles share, a multiple of the window. None is 64, rounded up to such a multiple.

    Returns:
        The shape of `image`, clipped to [0, 1].

    Raises:
        ValueError: for another shape, dtype or device than the model takes, an unknown option, or values outside
            [-1, 2] (noise need not be clipped).
    """
    if not isinstance(model, Denoiser):
        raise ValueError(f"model must be a MaskedSwinIR, got {type(model).__name__}; load_checkpoint(path) makes one")
    if not isinstance(image, Tensor):
        raise ValueError(f"image must be a torch tensor, got {type(image).__name__}; use torch.from_numpy")
    if image.dim() not in (3, 4):
        raise ValueError(f"image must be (C, H, W) or (B, C, H, W), got {tuple(image.shape)}")
    if sample is not None and not isinstance(sample, Tensor):
        raise ValueError(f"sample must be an int64 tensor of ids, got {type(sample).__name__}; use torch.tensor")
    batch = image if image.dim() == 4 else image[None]
    if batch.numel():
        low, high = (bound.item() for bound in batch.aminmax())
        if not (low >= -1 and high <= 2):  # noise that was not clipped is fine; NaN fails the comparison
            raise ValueError(f"image values must be in [0, 1], got {low:g} to {high:g}; divide 8-bit values by 255")
    bands = denoise_bands(
        model,
        lambda rows, columns: batch[..., rows, columns],
        (batch.shape[-2], batch.shape[-1]),
        attention_mask=attention_mask,
        average=average,
        seed=seed,
        sample=len(batch) if sample is None else sample,
        tile=tile,
        overlap=overlap,
    )
    return torch.cat([band for _, band in bands], dim=-2).view_as(image)


def denoise_bands(
    model: Denoiser,
    part: Part,
    size: tuple[int, int],
    *,
    attention_mask: AttentionMask,
    average: int,
    seed: int,
    sample: int | Tensor = 1,
    tile: int | None,
    overlap: int | None = None,
    progress: Progress = lambda done, of: None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield the result of `denoise` in bands from top to bottom: (first row, (B, C, rows, W)).

    Only one row of tiles is in memory. Arguments that are not listed are those of `denoise`.

    Args:
        part: `part(rows, columns)` returns that part of the image, (B, C, rows, columns), as the model takes it.
        size: (H, W) of the image.
        tile: with a side, masks belong to image coordinates, even if one tile covers the image.
        progress: called with (passes done, all passes) after each pass of the network.
    """
    if attention_mask not in ("average", "random", "off"):
        raise ValueError(f"attention_mask must be 'average', 'random' or 'off', got {attention_mask!r}")
    if not isinstance(average, int) or average < 1:
        raise ValueError(f"average must be a number of draws, at least 1, got {average!r}")
    window = model.config.window_size
    if overlap is None and isinstance(model.config, DenoiserConfig):
        overlap = model.config.overlap
    overlap = check_tiles(tile, overlap, window)
    height, width = size
    side = max(height, width) if tile is None else tile
    rows, columns = (tile_spans(extent, side, overlap, window) for extent in size)
    row_weights, column_weights = (tile_weights(spans, overlap) for spans in (rows, columns))
    masked = attention_mask != "off" and model.config.attention_mask is not None
    draws = average if masked and attention_mask == "average" else 1
    passes, of = 0, len(rows) * len(columns) * draws

    carried: Tensor | None = None  # the weighted sum so far of the rows that the next tiles overlap
    for i, (top, bottom) in enumerate(rows):
        band: Tensor | None = None
        for (left, right), column_weight in zip(columns, column_weights, strict=True):
            seen = part(slice(top, bottom), slice(left, right))
            mean = torch.zeros_like(seen)
            for draw in range(draws):
                key = MaskKey.make(seed, draw, sample, seen.device)
                origin = None if tile is None else (top, left)
                mean += _evaluated(model, seen, key, masked, origin)
                passes += 1
                progress(passes, of)
            if band is None:
                band = mean.new_zeros(*mean.shape[:2], bottom - top, width)
            mean.div_(draws).mul_(row_weights[i].to(mean)[:, None]).mul_(column_weight.to(mean))
            band[..., left:right] += mean
        assert band is not None
        if carried is not None:
            band[..., : carried.shape[-2], :] += carried
        end = rows[i + 1][0] if i + 1 < len(rows) else height
        carried = band[..., end - top :, :].clone()
        yield top, band[..., : end - top, :].clamp_(0, 1)


@torch.no_grad()
def _evaluated(
    model: Denoiser, x: Tensor, key: MaskKey, attention_mask: bool, origin: tuple[int, int] | None
) -> Tensor:
    """Run the network in evaluation mode, and restore its mode."""
    was_training = model.training
    model.eval()
    try:
        out: Tensor = model(x, key=key, attention_mask=attention_mask, origin=origin)
    finally:
        model.train(was_training)
    return out
