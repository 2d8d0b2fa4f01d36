"""The images of a run: those of training and of validation, alone or in pairs."""

import math
from dataclasses import dataclass
from pathlib import Path

from masked_swin.train import data, distributed
from masked_swin.train.config import TrainConfig


@dataclass
class RunData:
    """Training and validation images; `noisy` ones are given where there are pairs. `messages` are for the user."""

    training: "data.ImageSet"
    validation: "data.ImageSet"
    messages: list[str]
    noisy: "data.ImageSet | None" = None
    validation_noisy: "data.ImageSet | None" = None

    @property
    def checksum(self) -> str:
        """Depends on the pixels that are trained on."""
        noisy = "" if self.noisy is None else f"; noisy: {self.noisy.checksum}"
        return self.training.checksum + noisy


def load_data(config: TrainConfig, folder: Path) -> RunData:
    """Load the images that the configuration names; large sets go to files in `folder`.

    Raises:
        ValueError: unusable images, or pairs that do not fit.
        OSError: the decoded images do not fit on the disk.
    """
    channels = config.channels
    found = RunData(data.ImageSet(), data.ImageSet(), [])
    if config.data:
        with distributed.first_process_first():
            # The other processes map what the first one wrote.
            memory = config.memory if distributed.rank() == 0 else math.inf
            if config.noisy:
                found.training, found.noisy = data.load_pairs(
                    *(config.data, config.noisy),
                    min_size=config.patch_size,
                    channels=channels,
                    map_folder=folder,
                    memory=memory,
                )
            else:
                found.training = data.load_images(
                    config.data, min_size=config.patch_size, channels=channels, map_folder=folder, memory=memory
                )
    else:
        found.training = data.builtin_images(data.BUILTIN_TRAIN, channels=channels)
    if config.validation_noisy:
        found.validation, found.validation_noisy = data.load_pairs(
            config.validation_data, config.validation_noisy, min_size=16, channels=channels
        )
    elif config.validation_data:
        found.validation = data.load_images(config.validation_data, min_size=16, channels=channels)
    else:
        names = () if config.data else data.BUILTIN_HELD_OUT
        found.validation = data.builtin_images(names, channels=channels)
    for images in (found.training, found.noisy, found.validation, found.validation_noisy):
        if images is not None:
            found.messages += images.notes + [f"skipped {reason}" for reason in images.skipped]
    what = "training images" if found.noisy is None else "training pairs"
    found.messages.append(f"{len(found.training.images)} {what}, {found.training.storage}")
    return found
