"""Batches as a pure function of (seed, step), however they are split and whenever they are made."""

import threading

import numpy as np
import pytest
import torch

from masked_swin.train.data import to_array
from masked_swin.train.sampler import Loader, PatchSampler
from tests.support.image_files import picture


def sampler(seed: int = 0) -> PatchSampler:
    return PatchSampler([picture(seed=index) for index in range(3)], patch_size=16, seed=seed)


def test_a_batch_is_a_function_of_seed_and_samples() -> None:
    samples = range(20, 24)
    first, again = sampler().batch(samples), sampler().batch(samples)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.clean, sampler().batch(range(24, 28)).clean)
    assert not torch.equal(first.clean, sampler(seed=1).batch(samples).clean)
    assert first.clean.shape == (4, 3, 16, 16)
    assert first.clean.dtype == torch.float32
    assert first.sample.tolist() == [20, 21, 22, 23]
    assert first.sample.dtype == torch.int64


def test_patches_are_flipped_crops() -> None:
    square = picture(16, 16)
    drawn = PatchSampler([square], patch_size=16, seed=3).batch(range(64))
    seen = {to_array(patch).tobytes() for patch in drawn.clean}
    image = square.astype(np.float32) / np.float32(255)
    modes = {np.rot90(view, turns).tobytes() for view in (image, image[:, ::-1]) for turns in range(4)}
    assert seen == modes
    assert len(modes) == 8


def test_sixteen_bits_are_kept() -> None:
    image = np.random.default_rng(0).integers(0, 65536, (16, 16, 3), dtype=np.uint16)
    clean = PatchSampler([image], patch_size=16, seed=0).batch(range(1)).clean
    assert sorted((clean.double() * 65535).round().int().flatten().tolist()) == sorted(image.flatten().tolist())


def test_images_smaller_than_the_patch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"patch size 30: .* images \[0\] are smaller"):
        PatchSampler([picture()], patch_size=30, seed=0)


@pytest.mark.parametrize(("parts", "shares"), [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_shares_and_parts_make_up_the_batch_of_a_step(parts: int, shares: int) -> None:
    loaders = [Loader(sampler(), 12, parts=parts, share=share, shares=shares) for share in range(shares)]
    for step in (0, 1, 2, 7):  # a jump: what was made ahead is dropped
        batches = [batch for loader in loaders for batch in loader.batches(step)]
        assert len(batches) == parts * shares
        assert {len(batch.sample) for batch in batches} == {12 // (parts * shares)}
        order = torch.cat([batch.sample for batch in batches]).argsort()
        whole = sampler().batch(range(12 * step, 12 * step + 12))
        for index, expected in enumerate(whole):
            assert torch.equal(torch.cat([batch[index] for batch in batches])[order], expected)


def test_the_next_batches_are_made_while_a_step_computes() -> None:
    made = {number: threading.Event() for number in range(6)}

    class Watched(PatchSampler):
        def batch(self, samples):
            drawn = super().batch(samples)
            made[samples[0] // 2].set()
            return drawn

    loader = Loader(Watched([picture()], patch_size=16, seed=0), 2)
    loader.batches(0)
    assert made[1].wait(10)
    assert made[2].wait(10)
    assert not made[3].is_set()


def test_the_images_of_a_step_are_named() -> None:
    loader = Loader(sampler(), 4)
    expected = {loader.sampler.image_of(sample) for sample in range(8, 12)}
    assert loader.images_of(2) == sorted(expected)
    batch = loader.batches(2)[0]
    for sample, patch in zip(batch.sample.tolist(), batch.clean, strict=True):
        pixels = set(to_array(patch).reshape(-1, 3).view("f4,f4,f4").flatten().tolist())
        image = (picture(seed=loader.sampler.image_of(sample)).reshape(-1, 3) / np.float32(255)).astype(np.float32)
        assert pixels <= set(image.view("f4,f4,f4").flatten().tolist())


def test_a_batch_that_cannot_be_split_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size 10: expected a multiple of 6, which is accumulation 3 x 2 proc"):
        Loader(sampler(), 10, parts=3, shares=2)
