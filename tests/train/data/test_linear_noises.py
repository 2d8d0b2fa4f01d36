"""Rendering and camera noise: unbiased in linear light, of the stated variance, correlated as a demosaiced mosaic."""

import numpy as np
import pytest

from masked_swin.train.data.linear_noises import (
    RARE_LIGHT,
    RARE_PATHS,
    camera,
    demosaic,
    from_linear,
    monte_carlo,
    mosaic,
    to_linear,
)


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def grey(value: float, channels: int = 3) -> np.ndarray:
    return np.full((400, 400, channels), value, dtype=np.float32)


def test_the_srgb_curve() -> None:
    values = np.linspace(0, 1, 257)
    assert from_linear(to_linear(values)) == pytest.approx(values, abs=1e-12)
    assert float(to_linear(np.array(0.5))) == pytest.approx(0.21404, abs=1e-5)
    assert from_linear(np.array([-0.5, 2.0])).tolist() == [0, pytest.approx(1)]


def test_monte_carlo_is_unbiased_with_fireflies() -> None:
    dark = grey(0.02)  # so that fireflies are not clipped
    factor = to_linear(monte_carlo(dark, 4, draw())) / to_linear(dark)
    assert np.array_equal(factor[..., 0], factor[..., 2]), "a path carries all colours"
    values = factor[..., 0]
    fireflies = values > (1 - RARE_LIGHT) * 6
    assert fireflies.mean() == pytest.approx(4 * RARE_PATHS, rel=0.15)
    assert values.mean() == pytest.approx(1, abs=0.02)
    assert values[~fireflies].mean() == pytest.approx(1 - RARE_LIGHT, rel=0.01)
    assert values[~fireflies].var() == pytest.approx((1 - RARE_LIGHT) ** 2 / 4, rel=0.03)
    assert values.max() > 40


def test_camera_noise_of_a_grey_image_is_shot_and_read_noise() -> None:
    for shot, value in ((0.001, 0.3), (0.001, 0.6), (0.02, 0.735)):  # read noise is 6 % of the last variance
        light = to_linear(grey(value, 1))
        noise = to_linear(camera(grey(value, 1), shot, draw())) - light
        assert noise.var() == pytest.approx(shot * light[0, 0, 0] + shot**2.18 * np.exp(1.20), rel=0.02)
        assert abs(noise.mean()) < 2e-3


def test_camera_noise_of_a_colour_image_is_demosaiced() -> None:
    image = grey(0.5)
    noise = to_linear(camera(image, 0.001, draw())) - to_linear(image)
    read = 0.001**2.18 * np.exp(1.20)
    seen = noise[::2, ::2]  # where the mosaic has red
    light = to_linear(image)[0, 0, 0]
    assert seen[..., 0].var() == pytest.approx(2.15**2 * (0.001 * light / 2.15 + read), rel=0.03)
    assert seen[..., 1].var() == pytest.approx((0.001 * light + read) / 4, rel=0.03), "mean of four neighbours"
    neighbours = np.corrcoef(noise[:, :-1, 2].ravel(), noise[:, 1:, 2].ravel())[0, 1]
    assert neighbours > 0.4


def test_demosaicing_keeps_what_is_flat_or_linear() -> None:
    rows, columns = np.indices((7, 10))
    plane = (2.0 * rows + 3 * columns)[..., None] * np.array([1.0, 2.0, -1.0])
    assert demosaic(mosaic(plane))[1:-1, 1:-1] == pytest.approx(plane[1:-1, 1:-1])
    flat = np.broadcast_to(np.array([1.0, 2.0, 3.0]), (5, 8, 3))
    assert demosaic(mosaic(flat)) == pytest.approx(flat)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1), (2, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size(size: tuple[int, int], channels: int) -> None:
    image = np.full((*size, channels), 0.5, dtype=np.float32)
    for noisy in (camera(image, 0.01, draw()), monte_carlo(image, 4, draw())):
        assert noisy.shape == image.shape
        assert np.isfinite(noisy).all()
