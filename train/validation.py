"""Validation: the PSNR of a network on held-out images under several noises."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from masked_swin import denoise
from masked_swin.denoiser import Denoiser, DenoiserConfig
from masked_swin.train import data
from masked_swin.train.config import TrainConfig
from masked_swin.train.metrics import psnr
from masked_swin.train.noise_mix import NoiseMix, parse_noises
from masked_swin.train.sampler import VALIDATION_STREAM, generator

TRAINING, PAIRS = "training", "pairs"  # names of the noise of training, and of that in pairs


class Validation:
    """The validation images of a run, cropped, under each of its noises.

    `noises` names them, the one that chooses the best weights first: "pairs", the `validation_noise` as written, or
    else "training" for the noise of training.

    Raises:
        ValueError: `best_noise` is not one of them.
    """

    def __init__(
        self, config: TrainConfig, images: Sequence[np.ndarray], noisy: Sequence[np.ndarray] | None = None
    ) -> None:
        self.seed, self.sigma, self.samples = config.seed, config.sigma, config.samples
        self.clean = [data.centre_crop(image, config.validation_size) for image in images]
        self.noisy = None if noisy is None else [data.centre_crop(image, config.validation_size) for image in noisy]
        self._mixes: dict[str, NoiseMix | None] = {}
        if noisy is not None:
            self._mixes[PAIRS] = None
        if config.validation_noise is not None:
            mix = parse_noises(config.validation_noise)
            self._mixes |= {noise.text: NoiseMix((noise,)) for noise in mix.noises}
        elif noisy is None and not config.noisy:
            self._mixes[TRAINING] = config.training_noise()
        if config.best_noise is not None:
            name = config.best_noise.replace(" ", "")
            if name not in self._mixes:
                known = ", ".join(self._mixes) or "none: give validation_noisy or validation_noise"
                raise ValueError(f"best_noise {config.best_noise!r}: expected a validation noise of this run, {known}")
            self._mixes = {name: self._mixes[name]} | self._mixes
        self.noises = list(self._mixes) if self.clean else []

    def scores(self, model: Denoiser, samples: Path | None = None, step: int = 0) -> dict[str, float]:
        """Return the mean PSNR in dB over the images for each noise; no images, no scores.

        The first `samples` images of the configuration are written to the folder `samples`: noisy, denoised, clean.
        """
        found = {}
        for name in self.noises:
            values = []
            for index, clean in enumerate(self.clean):
                noisy, clean = self._noisy(name, index), data.to_float(clean)
                result = data.to_array(_denoised(model, noisy, self.seed))
                values.append(psnr(result, clean))
                if samples is not None and index < self.samples:
                    more = "" if name == self.noises[0] else "_" + re.sub(r"\W+", "_", name)
                    data.write_side_by_side(samples / f"{step:07}_{index}{more}.png", (noisy, result, clean))
            found[name] = sum(values) / len(values)
        return found

    def _noisy(self, name: str, index: int) -> np.ndarray:
        if name == PAIRS:
            assert self.noisy is not None
            return data.to_float(self.noisy[index])
        clean, random = data.to_float(self.clean[index]), generator(self.seed, index, VALIDATION_STREAM)
        mix = self._mixes[name]
        return data.gaussian(clean, self.sigma, random) if mix is None else mix.add(clean, random)


def _denoised(model: Denoiser, noisy: np.ndarray, seed: int) -> Tensor:
    tile = None
    if isinstance(model.config, DenoiserConfig) and max(noisy.shape[:2]) > model.config.largest_tile:
        tile = model.config.largest_tile
    image = data.to_tensor(noisy).to(next(model.parameters()).device)
    return denoise(model, image, average=1, seed=seed, tile=tile)
