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

TRAINING_STREAM, VALIDATION_STREAM = 0, 1


def generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """Return the Philox generator of sample `index` (0 .. 2**64 - 1); streams never overlap."""
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, stream]))


class Batch(NamedTuple):
    clean: Tensor  # (B, C, P, P) float32 in [0, 1]
    sample: Tensor  # (B,) int64 global sample ids


class PatchSampler:
    """Draws random crops of uint8 or uint16 images (H, W, C), each flipped and rotated in one of 8 ways."""

    def __init__(self, images: Sequence[np.ndarray], *, patch_size: int, seed: int) -> None:
        small = [index for index, image in enumerate(images) if min(image.shape[:2]) < patch_size]
        if small or not images:
            raise ValueError(
                f"patch size {patch_size}: expected at least one image and none smaller, images {small} are smaller; "
                "leave them out or choose a smaller patch"
            )
        self.images = images
        self.patch_size = patch_size
        self.seed = seed

    def batch(self, samples: Sequence[int]) -> Batch:
        """Return the samples of these ids; seed, images and patch size determine them."""
        patches = torch.from_numpy(np.stack([self._patch(index) for index in samples]))
        return Batch(patches, torch.tensor(samples, dtype=torch.int64))

    def image_of(self, index: int) -> int:
        """Return the index in `images` of the image that sample `index` is cropped from."""
        return int(generator(self.seed, index, TRAINING_STREAM).integers(len(self.images)))

    def _patch(self, index: int) -> np.ndarray:
        random = generator(self.seed, index, TRAINING_STREAM)
        image = self.images[int(random.integers(len(self.images)))]
        size = self.patch_size
        top = random.integers(image.shape[0] - size + 1)
        left = random.integers(image.shape[1] - size + 1)
        patch = image[top : top + size, left : left + size]
        quarter_turns, mirrored = divmod(int(random.integers(8)), 2)
        patch = np.rot90(patch[:, ::-1] if mirrored else patch, quarter_turns)
        return np.ascontiguousarray(to_float(patch).transpose(2, 0, 1))


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
