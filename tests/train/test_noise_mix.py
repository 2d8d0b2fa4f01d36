"""Noises of training and validation: what is written, what is drawn."""

import numpy as np
import pytest

from masked_swin.train.data import add_noise
from masked_swin.train.noise_mix import NoiseMix, NoiseRange, parse_noises
from masked_swin.train.sampler import generator

IMAGE = np.full((24, 24, 3), 0.5, dtype=np.float32)


@pytest.mark.parametrize("text", ["speckle:2", "gaussian:sigma=25", "mixture:4"])
def test_one_noise_is_that_of_add_noise(text: str) -> None:
    noise, _, level = text.partition(":")
    expected = add_noise(IMAGE, noise, int(level) if level.isdigit() else level, generator(3, 5, 2))
    assert np.array_equal(parse_noises(text).add(IMAGE, generator(3, 5, 2)), expected)


def test_a_range_is_drawn_evenly() -> None:
    mix = parse_noises("gaussian:sigma=5-50")
    sigmas = [255 * float(np.std(mix.add(IMAGE, generator(0, index, 2)) - IMAGE)) for index in range(300)]
    assert 4 < min(sigmas) < 8
    assert 47 < max(sigmas) < 53
    assert np.mean(sigmas) == pytest.approx(27.5, abs=2.5)


def test_each_image_gets_one_of_several() -> None:
    mix = parse_noises("gaussian:1, salt_pepper:density=0.5")
    kinds = [bool((mix.add(IMAGE, generator(0, index, 2)) == 1).mean() > 0.1) for index in range(400)]
    assert sum(kinds) == pytest.approx(200, abs=50)


def test_names_alone_are_all_levels() -> None:
    assert [noise.text for noise in parse_noises("speckle").noises] == [f"speckle:{level}" for level in (1, 2, 3, 4)]
    assert len(parse_noises("all,speckle:1").noises) == 4 * len({noise.noise for noise in parse_noises("all").noises})
    assert parse_noises("gaussian:1") == NoiseMix((NoiseRange("gaussian:1", "gaussian", 1),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "noise '': expected all, or any of gaussian"),
        ("gaus", "noise 'gaus': expected all, or any of gaussian"),
        (
            "gaussian:5",
            "a level from 1 to 4 after the colon, or a strength, gaussian:sigma=",
        ),
        ("mixture:5", "noise 'mixture:5': expected a level from 1 to 4 after the colon$"),
        ("gaussian:alpha=2", "gaussian:sigma="),
        ("gaussian:alpha=2-3", "two rising numbers above 0"),
        ("gaussian:sigma=9-2", "two rising numbers above 0"),
        ("gaussian:sigma=0", "a number above 0"),
    ],
)
def test_what_is_no_noise_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_noises(text)
