"""Tiles: where they lie, that they join to 1, and that they give what the whole image gives."""

import itertools

import pytest
import torch
from torch import Tensor

from masked_swin import PRESETS, MaskedSwinIR, MaskKey, ModelConfig, denoise
from masked_swin.inference import denoise_bands
from masked_swin.masking import AttentionMasks
from masked_swin.memory import available_memory
from masked_swin.tiling import (
    TILES,
    check_tiles,
    exact_overlap,
    receptive_radius,
    tile_for_memory,
    tile_spans,
    tile_weights,
)

SMALL = ModelConfig(embed_dim=12, depths=(2, 1), num_heads=(2, 3), window_size=4, attention_mask=(0.3, 0.6))
SWINIR = ModelConfig(embed_dim=12, depths=(1,), num_heads=(2,), window_size=6, conv_first_kernel=3, attention_mask=None)
PER_HEAD = ModelConfig(
    embed_dim=12, depths=(2,), num_heads=(2,), window_size=4, resi_connection="1conv", attention_mask_per_head=True
)


def network(config: ModelConfig) -> MaskedSwinIR:
    torch.manual_seed(0)
    model = MaskedSwinIR(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def image(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("config", [SMALL, SWINIR, PER_HEAD], ids=["small", "swinir", "per-head"])
def test_tiles_give_what_the_whole_image_gives(config: ModelConfig) -> None:
    """Exact, with masks and with whole windows anywhere, from `exact_overlap` on; nearly below it."""
    model, x = network(config), image(71, 95)
    whole = denoise(model, x, average=2, tile=96)
    overlap = exact_overlap(config)
    tiled = denoise(model, x, average=2, tile=overlap + 3 * config.window_size, overlap=overlap)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-12)
    coarse = denoise(model, x, average=2, tile=36, overlap=12)
    assert 1e-9 < (coarse - whole).abs().mean() < 0.02, "the truncated surroundings show, and not much"


@pytest.mark.parametrize("config", [SMALL, SWINIR, PRESETS["tiny"]], ids=["small", "swinir", "tiny"])
def test_receptive_radius_is_reached_and_not_passed(config: ModelConfig) -> None:
    model = network(config).train(False)
    radius = receptive_radius(config)
    side = 2 * (radius + config.window_size)
    side += -side % config.window_size
    x = image(side, side).requires_grad_()
    out, reached = model(x, attention_mask=False), 0
    for pixel in range(side // 2 - config.window_size, side // 2 + config.window_size):
        (gradient,) = torch.autograd.grad(out[0, :, pixel, pixel].sum(), x, retain_graph=True)
        lit = gradient[0].abs().sum(0).nonzero() - pixel
        reached = max(reached, int(lit.abs().max()))
    assert reached == radius


def test_spans_start_at_windows_and_cover() -> None:
    for extent in (5, 64, 65, 128, 129, 131, 1000):
        for tile, overlap in ((64, 0), (64, 16), (64, 56), (128, 64)):
            spans = tile_spans(extent, tile, overlap, 8)
            assert spans[0][0] == 0
            assert spans[-1][1] == extent
            assert all(start % 8 == 0 and end - start <= tile for start, end in spans)
            assert all(before[1] - after[0] >= overlap for before, after in itertools.pairwise(spans))
            assert all(end - start > tile - 8 for start, end in spans) or extent <= tile
            total = torch.zeros(extent, dtype=torch.float64)
            for (start, end), weight in zip(spans, tile_weights(spans, overlap), strict=True):
                total[start:end] += weight
            torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_the_outer_parts_of_an_overlap_are_thrown_away() -> None:
    first, second = tile_weights([(0, 128), (64, 192)], 64)
    assert first[:88].eq(1).all()
    assert first[104:].eq(0).all()
    assert second[:24].eq(0).all()
    assert (first[88:104].diff() < 0).all(), "feathered"


@pytest.mark.parametrize("per_head", [False, True])
def test_masks_of_parts_are_those_of_the_place(per_head: bool) -> None:
    config = PER_HEAD if per_head else SMALL
    key = MaskKey.make(5, 2, torch.tensor([3, 9]))

    def keep(origin: tuple[int, int], size: tuple[int, int]) -> Tensor:
        visible = AttentionMasks(config, key, size, origin).visible(1, 2, 0)
        assert visible is not None
        return visible.image_keep.unflatten(-1, size)

    whole = keep((0, 0), (160, 200))
    assert torch.equal(keep((60, 72), (68, 100)), whole[..., 60:128, 72:172])
    assert not torch.equal(whole[0], whole[1]), "images differ"
    cells = [whole[0, ..., y : y + 64, x : x + 64] for y, x in ((0, 0), (0, 64), (64, 0), (64, 64))]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(cells, 2))
    hidden = 1 - whole.double().mean().item()
    assert hidden == pytest.approx(0.75, abs=0.01) if per_head else 0.29 < hidden < 0.61


def test_exact_masks_of_parts_keep_their_number_in_a_window() -> None:
    config = ModelConfig(**{**SMALL.to_dict(), "attention_mask": 0.5, "attention_mask_exact": True})
    key = MaskKey.make(5, 2, 1)
    parts = [AttentionMasks(config, key, (8, 8), origin).visible(1, 2, 2) for origin in ((0, 0), (0, 64))]
    assert all(part is not None and part.image_keep.sum() == 32 for part in parts)
    assert not torch.equal(parts[0].image_keep, parts[1].image_keep)  # type: ignore[union-attr]


def test_bands_come_in_order_and_progress_is_told() -> None:
    model, x = network(SMALL), image(90, 50, batch=2)
    told: list[tuple[int, int]] = []
    bands = denoise_bands(
        *(model, lambda rows, columns: x[..., rows, columns], (90, 50)),
        **{"attention_mask": "average", "average": 3, "seed": 0, "sample": 2},
        **{"tile": 32, "overlap": 8, "progress": lambda done, of: told.append((done, of))},
    )
    joined = []
    for top, band in bands:
        assert top == sum(part.shape[-2] for part in joined)
        assert band.shape[-2] <= 32
        joined.append(band)
    assert torch.equal(torch.cat(joined, dim=-2), denoise(model, x, average=3, tile=32, overlap=8))
    assert told == [(i + 1, len(told)) for i in range(len(told))]
    assert len(told) == 4 * 2 * 3


def test_tile_follows_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config, device = PRESETS["published"], torch.device("cpu")
    chosen = []
    for free in (1, 10**8, 10**9, 10**10):
        monkeypatch.setattr("masked_swin.tiling.available_memory", lambda device, free=free: free)
        chosen.append(tile_for_memory(config, device))
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (TILES[-1], TILES[0])
    assert len(set(chosen)) > 2


def test_free_memory_is_that_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/meminfo": ["MemTotal: 9000 kB", "MemAvailable: 8000 kB"]}
    monkeypatch.setattr("masked_swin.memory._lines", lambda path: files.get(path, []))
    assert available_memory() == 8000 * 1024
    files |= {"/sys/fs/cgroup/memory.max": ["5000000"], "/sys/fs/cgroup/memory.current": ["2000000"]}
    assert available_memory() == 3000000
    files["/sys/fs/cgroup/memory.max"] = ["max"]
    assert available_memory() == 8000 * 1024


def test_bad_tiles() -> None:
    assert check_tiles(None, None, 7) == 70, "the default is whole windows, too"
    for tile, overlap, words in (
        (30, 8, "tile must be a multiple of the network's window, 8, got 30"),
        (64, 9, "overlap must be a multiple of the network's window, 8, got 9"),
        (64, 64, "tile must be larger than the overlap, 64 pixels, got 64"),
        (64.0, 8, "got 64.0"),
    ):
        with pytest.raises(ValueError, match=words):
            check_tiles(tile, overlap, 8)  # type: ignore[arg-type]
