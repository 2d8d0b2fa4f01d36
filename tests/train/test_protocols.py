"""Protocols: the inputs of `clip` against NumPy and SciPy alone, bit by bit; paddings; sets and noises by name."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from scipy import ndimage

from masked_swin.train.data import Spec, noisy_copy, strength
from masked_swin.train.protocols import (
    IMAGE_SETS,
    PROTOCOLS,
    ProtocolName,
    clip_noise,
    find_image_sets,
    padding_to_32,
    public_padding,
    select_noises,
)
from tests.support.image_files import picture

# Both black and white, so that noise leaves [0, 1], and too few levels for v = 256.
DARK, BRIGHT = picture(21, 30, 1) // 2, 255 - picture(30, 21, 2) // 4


def legacy_input(pixels: np.ndarray, spec: Spec) -> np.ndarray:
    """The input of CLIPDenoising's test script, with NumPy's global generator."""
    kind, text = spec
    value = float(str(text).split("=")[1])
    clean = np.float32(pixels) / 255.0
    np.random.seed(seed=0)  # noqa: NPY002
    if kind == "poisson":
        values = 2 ** np.ceil(np.log2(len(np.unique(clean))))
        drawn = np.float32(np.random.poisson(clean * values) / float(values))  # noqa: NPY002
        noisy = np.clip(clean + (drawn - clean) * value, 0, 1)
    else:
        noise = np.random.normal(0, value / 255.0, clean.shape)  # noqa: NPY002
        if kind == "correlated":
            for channel in range(3):
                noise[..., channel] = ndimage.convolve(noise[..., channel], np.ones((3, 3)) / 9.0)
        noisy = clean + noise
    return np.asarray(noisy, dtype=np.float32)


@pytest.mark.parametrize("spec", PROTOCOLS["clip"].noises, ids=lambda spec: f"{spec[0]}_{spec[1]}")
def test_clip_inputs_are_those_of_numpy_and_scipy_bit_by_bit(spec: Spec) -> None:
    state = np.random.get_state()  # noqa: NPY002
    for pixels in (DARK, BRIGHT):
        made = clip_noise(pixels, "any name", *spec, seed=0)
        assert made.dtype == np.float32
        assert made.tobytes() == legacy_input(pixels, spec).tobytes()
    np.random.set_state(state)  # noqa: NPY002


def test_clip_makes_these_inputs_and_leaves_the_global_generator_alone() -> None:
    assert PROTOCOLS["clip"].noisy is clip_noise
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr] # noqa: NPY002
    clip_noise(DARK, "a", "gaussian", "sigma=50", 0)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index] # noqa: NPY002


def test_clip_border_repeats_the_edge_pixel() -> None:
    clean = np.full((5, 6, 3), 128, dtype=np.uint8)
    noise = clip_noise(clean, "a", "correlated", "sigma=40", 0).astype(np.float64) - 128 / 255
    field = np.random.RandomState(0).normal(0, 40 / 255, clean.shape)
    rows, columns = [0, 0, 1], [0, 0, 1]
    assert noise[0, 0] == pytest.approx(field[rows][:, columns].mean((0, 1)), abs=1e-6)


def test_clip_clips_poisson_only_and_rounds_nothing() -> None:
    pixels = np.concatenate([DARK // 8, 255 - DARK // 8])
    for noise, level in PROTOCOLS["clip"].noises:
        made = clip_noise(pixels, "a", noise, level, 0)
        assert (made.min() >= 0 and made.max() <= 1) == (noise == "poisson")
        inside = made[(made > 0) & (made < 1)] * 255
        assert np.mean(np.abs(inside - np.round(inside)) > 0.01) > 0.9


def test_the_tables() -> None:
    assert get_args(ProtocolName) == tuple(PROTOCOLS)
    clip = [(noise, strength(noise, level)) for noise, level in PROTOCOLS["clip"].noises]
    assert clip == [
        *(("gaussian", sigma) for sigma in (15, 25, 50)),
        *(("correlated", sigma) for sigma in (40, 45, 50, 55)),
        *(("poisson", alpha) for alpha in (2, 2.5, 3, 3.5)),
    ]
    paper = PROTOCOLS["paper"]
    assert paper.noisy is noisy_copy
    assert paper.noises[0] == ("gaussian", 1), "the training noise alone of the Gaussian ones"
    assert len(paper.noises) == 1 + 7 * 4
    assert paper.image_sets == PROTOCOLS["clip"].image_sets == IMAGE_SETS
    assert not PROTOCOLS["public"].noises


def test_public_padding_mirrors_the_edge_too_and_adds_a_window_where_none_is_needed() -> None:
    image = np.arange(8.0 * 5).reshape(8, 5, 1)
    padded = public_padding(image, 4)
    assert padded.shape == (12, 8, 1)
    assert padded[7:10, 0, 0].tolist() == [35.0, 35.0, 30.0]
    assert padded[0, 4:7, 0].tolist() == [4.0, 4.0, 3.0]


def test_padding_to_32_mirrors_without_the_edge_and_only_where_needed() -> None:
    image = np.arange(64.0 * 30).reshape(64, 30, 1)
    padded = padding_to_32(image, 8)
    assert padded.shape == (64, 32, 1)
    assert padded[0, 28:, 0].tolist() == [28.0, 29.0, 28.0, 27.0]
    assert padding_to_32(image[:12, :12], 8).shape == (32, 32, 1), "mirrored more than once"


def test_image_sets_are_found_by_name_or_path(tmp_path: Path) -> None:
    for name in ("data/CBSD68", "data/mcm", "data/McMaster_poisson20", "elsewhere/Kodak-24", "own"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data" / "urban100").touch()  # a file is no set
    sets, missing = find_image_sets("clip", [tmp_path / "data", tmp_path / "elsewhere" / "Kodak-24", tmp_path / "own"])
    assert sets == {
        "CBSD68": tmp_path / "data" / "CBSD68",
        "McMaster": tmp_path / "data" / "mcm",
        "Kodak24": tmp_path / "elsewhere" / "Kodak-24",
        str(tmp_path / "own"): tmp_path / "own",
    }
    assert missing == ["Urban100"]
    with pytest.raises(ValueError, match=r"image set CBSD68: given twice, as .*data.CBSD68 and .*; give one"):
        find_image_sets("clip", [tmp_path / "data", tmp_path / "data" / "CBSD68"])
    with pytest.raises(ValueError, match="nowhere: no such file or folder; give folders of clean images"):
        find_image_sets("paper", [tmp_path / "nowhere"])


def test_noises_are_selected_by_name() -> None:
    assert select_noises("clip", None) == list(PROTOCOLS["clip"].noises)
    assert select_noises("clip", "poisson:alpha=2, gaussian, gaussian:sigma=15") == [
        ("poisson", "alpha=2"),
        *(("gaussian", f"sigma={sigma}") for sigma in (15, 25, 50)),
    ]
    with pytest.raises(
        ValueError, match=r"'speckle': protocol clip has gaussian:sigma=15\|sigma=25\|sigma=50, .*; name"
    ):
        select_noises("clip", "gaussian,speckle")


def test_clip_poisson_is_the_formula_of_degradations() -> None:
    """Up to float32: mean and variance of alpha * (poisson(v x) / v - x), v of the distinct levels."""
    pixels = np.repeat(np.arange(60, 160, dtype=np.uint8)[:, None, None], 1000, axis=1).repeat(3, axis=2)
    made = clip_noise(pixels, "a", "poisson", "alpha=2", 0)[50].astype(np.float64)
    clean = 110 / 255
    assert np.var(made) == pytest.approx(4 * clean / 128, rel=0.1)
    counts = ((made[(made > 0) & (made < 1)] - clean) / 2 + clean) * 128
    assert np.abs(counts - counts.round()).max() < 1e-4
