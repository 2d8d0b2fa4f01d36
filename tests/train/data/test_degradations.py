"""Noises: seeded, in range, of the stated strength."""

import numpy as np
import pytest

from masked_swin.train.data.degradations import (
    LEVELS,
    NOISES,
    add_noise,
    correlated,
    gaussian,
    poisson,
    salt_pepper,
    speckle,
)
from masked_swin.train.sampler import generator

GREY = np.full((400, 400, 3), 0.5, dtype=np.float32)


def draw(seed: int = 0) -> np.random.Generator:
    return generator(seed, 0, 0)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("level", [1, 4])
def test_same_seed_same_bytes_and_in_range(noise: str, level: int) -> None:
    image = draw(7).random((33, 47, 3), dtype=np.float32)
    before = image.copy()
    noisy = add_noise(image, noise, level, draw(1))
    assert noisy.shape == image.shape
    assert noisy.dtype == np.float32
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    assert np.array_equal(noisy, add_noise(image, noise, level, draw(1)))
    assert not np.array_equal(noisy, add_noise(image, noise, level, draw(2)))
    assert np.array_equal(image, before)


@pytest.mark.parametrize("noise", NOISES)
def test_levels_rise(noise: str) -> None:
    image = draw(7).random((200, 200, 3), dtype=np.float32)
    errors = [np.mean((add_noise(image, noise, level, draw(1)) - image) ** 2) for level in (1, 2, 3, 4)]
    assert errors == sorted(errors)
    assert errors[0] < errors[3]


def test_gaussian_strength() -> None:
    assert np.std(gaussian(GREY, 15, draw()) - GREY) == pytest.approx(15 / 255, rel=0.01)


def test_speckle_has_the_stated_variance_and_spares_black() -> None:
    noise = speckle(GREY, 0.02, draw()) - GREY
    assert np.var(noise / GREY) == pytest.approx(0.02, rel=0.02)
    assert np.abs(noise / GREY).max() <= np.sqrt(12 * 0.02) / 2 + 1e-6  # uniform, not Gaussian
    assert not speckle(np.zeros_like(GREY), 0.02, draw()).any()


def test_salt_pepper_shares_are_per_channel() -> None:
    noisy = salt_pepper(GREY, 0.012, draw())
    assert np.mean(noisy == 0) == pytest.approx(0.006, rel=0.1)
    assert np.mean(noisy == 1) == pytest.approx(0.006, rel=0.1)
    assert np.mean((noisy == 0).all(axis=2)) < 1e-4


def test_poisson_scale_follows_the_distinct_levels() -> None:
    # 100 distinct 8-bit values: v = 128, so the variance at x is alpha^2 x / 128.
    image = np.repeat(np.linspace(60, 159, 100, dtype=np.float32)[:, None, None] / 255, 4000, axis=1)
    noise = poisson(image, 2.0, draw()) - image
    expected = 4 * image[50, 0, 0] / 128
    assert np.var(noise[50]) == pytest.approx(expected, rel=0.1)


def test_correlated_field_is_a_mean_of_nine() -> None:
    noise = (correlated(GREY, 40, draw()) - GREY)[:, :, 0]
    assert np.std(noise) == pytest.approx(40 / 255 / 3, rel=0.03)
    neighbours = np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]
    far = np.corrcoef(noise[:, :-3].ravel(), noise[:, 3:].ravel())[0, 1]
    assert neighbours == pytest.approx(2 / 3, abs=0.02)
    assert abs(far) < 0.02


def test_one_table_of_four_levels() -> None:
    assert set(LEVELS) | {"mixture"} == set(NOISES)
    assert all(len(strengths) == 4 for strengths in LEVELS.values())


@pytest.mark.parametrize(
    ("image", "noise", "level", "message"),
    [
        (GREY, "gausian", 1, "unknown noise 'gausian': expected one of gaussian"),
        (GREY, "gaussian", 5, "noise level 5: expected 1, 2, 3 or 4"),
        (GREY, "mixture", 0, "noise level 0"),
        ((GREY * 255).astype(np.uint8), "gaussian", 1, "divide 8-bit images by 255"),
        (GREY[:, :, 0], "gaussian", 1, "add a channel axis"),
        (GREY * 255, "gaussian", 1, "all in"),
        (GREY * np.nan, "poisson", 1, "all in"),
        (GREY[:0], "poisson", 1, "at least one value"),
    ],
)
def test_bad_input_is_named(image: np.ndarray, noise: str, level: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_noise(image, noise, level, draw())
