"""PSNR and SSIM against scikit-image and hand-computed numbers."""

import numpy as np
import pytest
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from masked_swin.train.data import to_uint8
from masked_swin.train.metrics import psnr, ssim


@pytest.fixture(params=[(40, 57, 3), (31, 64)])
def pair(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    target = random.integers(0, 256, request.param, dtype=np.uint8)
    noisy = np.clip(target + random.normal(0, 20, request.param), 0, 255).round().astype(np.uint8)
    return noisy, target


@pytest.mark.parametrize("border", [0, 1, 4])
def test_psnr_equals_scikit_image(pair: tuple[np.ndarray, np.ndarray], border: int) -> None:
    inner = [image[border : image.shape[0] - border, border : image.shape[1] - border] for image in pair]
    assert psnr(*pair, border=border) == pytest.approx(peak_signal_noise_ratio(inner[1], inner[0]), abs=1e-9)


@pytest.mark.parametrize("border", [0, 1, 4])
def test_ssim_equals_scikit_image(pair: tuple[np.ndarray, np.ndarray], border: int) -> None:
    inner = [
        image[border : image.shape[0] - border, border : image.shape[1] - border].astype(np.float64) for image in pair
    ]
    expected = structural_similarity(
        *inner,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=2 if pair[0].ndim == 3 else None,
    )
    assert ssim(*pair, border=border) == pytest.approx(expected, abs=1e-9)


def test_luma_is_the_unrounded_matlab_y() -> None:
    random = np.random.default_rng(1)
    a, b = random.integers(0, 256, (2, 30, 30, 3), dtype=np.uint8)
    luma = [rgb2ycbcr(image)[1:-1, 1:-1, 0] for image in (a, b)]
    assert psnr(a, b, luma=True) == pytest.approx(peak_signal_noise_ratio(*luma, data_range=255), abs=1e-6)
    expected = structural_similarity(
        *luma, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim(a, b, luma=True) == pytest.approx(expected, abs=1e-6)


def test_floats_are_rounded_to_8_bits_first() -> None:
    image = np.array([[-0.1, 0.0], [0.4999 / 255, 1.2]])
    assert to_uint8(image).tolist() == [[0, 0], [0, 255]]
    a, b = np.zeros((20, 20, 3)), np.full((20, 20, 3), 0.4 / 255)
    assert psnr(a, b) == float("inf")
    assert psnr(a, b + 1 / 255) == pytest.approx(20 * np.log10(255))
    assert ssim(a, a) == pytest.approx(1)


def test_unrounded_floats_are_only_clipped(pair: tuple[np.ndarray, np.ndarray]) -> None:
    noisy, target = pair
    floats = noisy.astype(np.float32) / 255 + np.float32(0.3 / 255)
    clipped = np.clip(floats, 0, 1).astype(np.float64) * 255
    assert clipped.max() < floats.max() * 255
    expected = peak_signal_noise_ratio(target.astype(np.float64), clipped, data_range=255)
    assert psnr(floats, target, border=0, rounded=False) == pytest.approx(expected, abs=1e-9)
    assert psnr(floats, target, border=0) != pytest.approx(expected, abs=1e-4)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = structural_similarity(
        *(target.astype(np.float64), clipped), channel_axis=2 if target.ndim == 3 else None, **options
    )
    assert ssim(floats, target, border=0, rounded=False) == pytest.approx(expected, abs=1e-9)


def test_bad_input_is_named() -> None:
    image = np.zeros((20, 20, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="one shape"):
        psnr(image, image[:10])
    with pytest.raises(ValueError, match="border 10 leaves nothing"):
        psnr(image, image, border=10)
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(image, image, border=5)
    with pytest.raises(ValueError, match="int64"):
        psnr(image.astype(np.int64), image.astype(np.int64))
