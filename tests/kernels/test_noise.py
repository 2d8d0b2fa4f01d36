"""Gaussian noise from counters: its distribution, what it depends on, and the same numbers in C++."""

import pytest
import torch

from masked_swin import MaskKey
from masked_swin.kernels.backends import choose
from masked_swin.kernels.noise import NormalInputs
from masked_swin.masking import gaussian_noise
from tests.support.examples import names_here


def normal(seed, draw, sample, channels, pixels, dtype, backend="reference"):
    inputs = NormalInputs(seed, draw, sample, channels, pixels, dtype)
    return choose("normal", inputs, backend).run(inputs)


def key(seed=1, draw=2, samples=(3, 4)):
    return MaskKey.make(seed, draw, torch.tensor(samples))


def noise(key, channels=3, height=8, width=9, dtype=torch.float32):
    """The numbers of a key, from an image in whose middle nothing is clipped."""
    image = torch.full((len(key.sample), channels, height, width), 0.5, dtype=dtype)
    return (gaussian_noise(image, 1e-3, key) - image) / 1e-3


def test_moments_and_independence():
    numbers = normal(*key(samples=range(100)), 8, 1024, torch.float64)  # 8 channels: all words of two counters
    count = numbers.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(numbers.pow(power).mean().item() - moment) < 5 * (variance / count) ** 0.5
    share = (numbers.abs() > 2).double().mean().item()
    assert abs(share - 0.0455) < 5 * (0.0455 / count) ** 0.5
    flat = numbers.transpose(0, 1).flatten(1)
    assert (flat @ flat.T / flat.shape[1] - torch.eye(8)).abs().max() < 5 * (2 / flat.shape[1]) ** 0.5
    assert abs((numbers[..., 1:] * numbers[..., :-1]).mean().item()) < 5 / count**0.5


def test_largest_and_smallest_words_give_numbers():
    assert torch.isfinite(normal(*key(), 4, 50_000, torch.float32)).all()
    image = torch.rand(2, 3, 8, 8)
    noisy = gaussian_noise(image, 0.5, key())
    assert noisy.min() == 0
    assert noisy.max() == 1
    assert torch.equal(gaussian_noise(image, 0.0, key()), image)


@pytest.mark.parametrize("backend", names_here("normal"))
@pytest.mark.parametrize("seed", [0, 2**62 + 12345])
@pytest.mark.parametrize(("channels", "pixels"), [(1, 1), (3, 1000), (4, 64), (6, 129)])
def test_every_backend_makes_the_same_numbers(seed, channels, pixels, backend):
    of = key(seed, 2**31 + 5, (0, 7, 2**32 + 7, 123456789))
    ours = normal(*of, channels, pixels, torch.float32, backend)
    torch.testing.assert_close(ours.double(), normal(*of, channels, pixels, torch.float64), rtol=3e-7, atol=1e-6)


def test_noise_depends_on_the_key_alone():
    together = noise(key())
    assert torch.equal(together[1:], noise(key(samples=(4,))))
    assert torch.equal(together[:, :2], noise(key(), channels=2))
    assert torch.equal(together[:, :, :4], noise(key(), height=4))
    for other in (key(seed=2), key(draw=3), key(samples=(5, 6))):
        assert (together - noise(other)).abs().mean() > 0.5
    assert (together[0] - together[1]).abs().mean() > 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    image = torch.rand(2, 3, 8, 8)
    noisy = gaussian_noise(image.to(dtype), 0.1, key())
    assert noisy.dtype == dtype
    torch.testing.assert_close(noisy.float(), gaussian_noise(image, 0.1, key()), rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(3, 8, 8), r"must be \(B, C, H, W\) and floating point, got torch.float32 \(3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "floating point, got torch.uint8"),
        (torch.rand(1, 3, 8, 8), r"sample must name 1 images, got \(2,\) ids"),
    ],
)
def test_images_that_do_not_fit_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        gaussian_noise(image, 0.1, key())


def test_gradient_stops_where_noise_is_clipped():
    image = torch.rand(2, 3, 8, 8, requires_grad=True)
    noisy = gaussian_noise(image, 0.5, key())
    (gradient,) = torch.autograd.grad(noisy.sum(), image)
    inside = (noisy > 0) & (noisy < 1)
    assert torch.equal(gradient != 0, inside)


@pytest.mark.parametrize("sigma", [15, -0.1, float("nan")])
def test_a_sigma_in_units_of_8_bits_is_refused(sigma):
    with pytest.raises(ValueError, match=r"sigma must lie in \[0, 1\].*/ 255"):
        gaussian_noise(torch.rand(2, 3, 8, 8), sigma, key())
