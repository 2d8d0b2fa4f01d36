"""Training batches as a pure function of (seed, step), drawn ahead of the step that needs them.

Every training sample has a global id, step * batch_size + its index in the batch. A counter-based generator keyed
(seed, id) draws it: resuming needs the step alone, and a sample stays the same however many processes share a batch.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from masked_swin.train.data import to_float
from masked_swin.train.noise_mix import NoiseMix

TRAINING_STREAM, VALIDATION_STREAM, NOISE_STREAM = 0, 1, 2


def generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """Return the Philox generator of sample `index` (0 .. 2**64 - 1); streams never overlap."""
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, stream]))


class Batch(NamedTuple):
    clean: Tensor  # (B, C, P, P) float32 in [0, 1]
    sample: Tensor  # (B,) int64 global sample ids
    noisy: Tensor  # as `clean`, which it is where the network adds the noise


class PatchSampler:
    """Draws random crops of uint8 or uint16 images (H, W, C), each flipped and rotated in one of 8 ways.

    Args:
        images: the clean images.
        patch_size: side of a patch.
        seed: of the patches and their noise.
        noise: what is added to each patch; None adds nothing.
        noisy: the noisy image of each clean one, of the same shape, to crop in the same place.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        *,
        patch_size: int,
        seed: int,
        noise: NoiseMix | None = None,
        noisy: Sequence[np.ndarray] | None = None,
    ) -> None:
        small = [index for index, image in enumerate(images) if min(image.shape[:2]) < patch_size]
        if small or not images:
            raise ValueError(
                f"patch size {patch_size}: expected at least one image and none smaller, images {small} are smaller; "
                "leave them out or choose a smaller patch"
            )
        self.images = images
        self.patch_size = patch_size
        self.seed = seed
        self.noise, self.noisy = noise, noisy

    def batch(self, samples: Sequence[int]) -> Batch:
        """Return the samples of these ids; seed, images, noise and patch size determine them."""
        pairs = [self._patch(index) for index in samples]
        clean = _stacked([pair[0] for pair in pairs])
        with_noise = self.noise is not None or self.noisy is not None
        noisy = _stacked([pair[1] for pair in pairs]) if with_noise else clean
        return Batch(clean, torch.tensor(samples, dtype=torch.int64), noisy)

    def image_of(self, index: int) -> int:
        """Return the index in `images` of the image that sample `index` is cropped from."""
        return int(generator(self.seed, index, TRAINING_STREAM).integers(len(self.images)))

    def _patch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the clean and the noisy patch, (P, P, C)."""
        random = generator(self.seed, index, TRAINING_STREAM)
        chosen = int(random.integers(len(self.images)))
        image, size = self.images[chosen], self.patch_size
        top = random.integers(image.shape[0] - size + 1)
        left = random.integers(image.shape[1] - size + 1)
        quarter_turns, mirrored = divmod(int(random.integers(8)), 2)

        def cropped(whole: np.ndarray) -> np.ndarray:
            patch = whole[top : top + size, left : left + size]
            return to_float(np.rot90(patch[:, ::-1] if mirrored else patch, quarter_turns))

        clean = noisy = cropped(image)
        if self.noisy is not None:
            noisy = cropped(self.noisy[chosen])
        if self.noise is not None:
            noisy = self.noise.add(noisy, generator(self.seed, index, NOISE_STREAM))
        return clean, noisy


def _stacked(patches: Sequence[np.ndarray]) -> Tensor:
    """(P, P, C) each to (B, C, P, P)."""
    return torch.from_numpy(np.stack([np.ascontiguousarray(patch.transpose(2, 0, 1)) for patch in patches]))


class Loader:
    """Makes the batches of consecutive steps; a thread makes the next ones while a step computes.

    Args:
        sampler: draws the samples.
        batch_size: samples of a whole step, in all processes.
        parts: batches that a step is split into (gradient accumulation).
        share: index of this process; it gets share number `share` of every part.
        shares: number of processes.
    """

    ahead = 2

    def __init__(
        self, sampler: PatchSampler, batch_size: int, *, parts: int = 1, share: int = 0, shares: int = 1
    ) -> None:
        if batch_size % (parts * shares):
            raise ValueError(
                f"batch_size {batch_size}: expected a multiple of {parts * shares}, "
                f"which is accumulation {parts} x {shares} processes"
            )
        self.sampler, self.batch_size = sampler, batch_size
        self.parts, self.share, self.shares = parts, share, shares
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._coming: dict[int, Future[list[Batch]]] = {}

    def batches(self, step: int) -> list[Batch]:
        """Return the batches of this process in `step`, one for each part."""
        self._coming = {
            number: self._coming.get(number) or self._thread.submit(self._make, number)
            for number in range(step, step + self.ahead + 1)
        }
        return self._coming.pop(step).result()

    def images_of(self, step: int) -> list[int]:
        """Return the indices of the images that the batch of `step` is cropped from, in all processes."""
        first = step * self.batch_size
        return sorted({self.sampler.image_of(index) for index in range(first, first + self.batch_size)})

    def _make(self, step: int) -> list[Batch]:
        size = self.batch_size // (self.parts * self.shares)
        first = step * self.batch_size
        starts = [first + (part * self.shares + self.share) * size for part in range(self.parts)]
        return [self.sampler.batch(range(start, start + size)) for start in starts]
