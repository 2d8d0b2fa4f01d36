"""Validation on several noises, the one that chooses the best weights first."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from masked_swin.train.config import TrainConfig
from masked_swin.train.data import add_noise, gaussian
from masked_swin.train.loop import Trainer
from masked_swin.train.metrics import psnr
from masked_swin.train.sampler import VALIDATION_STREAM, generator
from masked_swin.train.systems import Shape, SystemNetwork
from masked_swin.train.validation import Validation
from tests.support.image_files import picture, write_pair


class Same(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(tuple(x.shape[2:]))
        return x + self.weight


def same(shape: Shape) -> SystemNetwork:
    return SystemNetwork(Same(), "same", {}, 3, shape)


def test_each_noise_has_its_figure() -> None:
    config = TrainConfig(validation_noise="gaussian:2,speckle:4", best_noise="speckle:4", seed=3)
    images = [picture(seed=index) for index in range(2)]
    validation = Validation(config, images)
    assert validation.noises == ["speckle:4", "gaussian:2"]
    scores = validation.scores(same(Shape()))
    for name, (noise, level) in {"speckle:4": ("speckle", 4), "gaussian:2": ("gaussian", 2)}.items():
        clean = [image.astype(np.float32) / np.float32(255) for image in images]
        expected = [
            psnr(add_noise(image, noise, level, generator(3, index, VALIDATION_STREAM)), image)
            for index, image in enumerate(clean)
        ]
        assert scores[name] == pytest.approx(sum(expected) / 2)


def test_without_a_choice_it_is_the_noise_of_training() -> None:
    images = [picture()]
    clean = images[0].astype(np.float32) / np.float32(255)
    validation = Validation(TrainConfig(sigma=30.0), images)
    assert validation.noises == ["training"]
    noisy = gaussian(clean, 30.0, generator(0, 0, VALIDATION_STREAM))
    assert validation.scores(same(Shape())) == {"training": pytest.approx(psnr(noisy, clean))}
    mixed = Validation(TrainConfig(noise="speckle:2"), images).scores(same(Shape()))
    assert mixed["training"] == pytest.approx(psnr(add_noise(clean, "speckle", 2, generator(0, 0, 1)), clean))


def test_pairs_come_first_and_other_noises_after_them() -> None:
    images = [picture(seed=1)]
    config = TrainConfig(data=["a"], noisy=["b"], validation_noise="gaussian:1")
    validation = Validation(config, images, noisy=[picture(seed=2)])
    assert validation.noises == ["pairs", "gaussian:1"]
    assert validation.scores(same(Shape()))["pairs"] == pytest.approx(psnr(picture(seed=2), picture(seed=1)))
    assert Validation(TrainConfig(data=["a"], noisy=["b"]), images).noises == []
    assert Validation(config, []).scores(same(Shape())) == {}


def test_a_best_noise_that_is_not_validated_is_refused() -> None:
    with pytest.raises(ValueError, match="best_noise 'speckle:1': expected a validation noise of this run, gaussian:1"):
        Validation(TrainConfig(validation_noise="gaussian:1", best_noise="speckle:1"), [picture()])
    with pytest.raises(ValueError, match="none: give validation_noisy or validation_noise"):
        Validation(TrainConfig(data=["a"], noisy=["b"], best_noise="pairs"), [picture()])


def test_networks_with_small_tiles_get_tiles() -> None:
    model = same(Shape(largest_tile=32, overlap=16))
    Validation(TrainConfig(), [picture(40, 80)]).scores(model)
    assert isinstance(model.network, Same)
    assert max(model.network.sizes) == (32, 32)


def test_another_best_noise_starts_a_new_best(tmp_path: Path) -> None:
    images = str(write_pair(tmp_path / "images"))
    fields = {"system": "dncnn", "options": {"features": 4, "depth": 2}, "data": images, "validation_data": images}
    sizes = {"patch_size": 16, "batch_size": 2, "validation_size": 16, "device": "cpu", "samples": 1}
    fields |= {**sizes, "output": str(tmp_path / "run"), "validation_noise": "gaussian:1,speckle:1"}
    Trainer(TrainConfig(**fields, iterations=2)).run()  # type: ignore[arg-type]
    trainer = Trainer(TrainConfig(**fields, iterations=3, best_noise="speckle:1"))  # type: ignore[arg-type]
    assert trainer.best is None
    assert "best.pth was chosen by noise gaussian:1, from now on by speckle:1" in trainer.messages
    trainer.run()
    assert trainer.best["noise"] == "speckle:1"
    names = sorted(path.name for path in (trainer.folder / "samples").iterdir())
    assert names == ["0000002_0.png", "0000002_0_speckle_1.png", "0000003_0.png", "0000003_0_gaussian_1.png"]
    steps = [json.loads(line)["step"] for line in (trainer.folder / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 3]


def test_tensorboard_has_a_curve_for_each_noise(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    images = str(write_pair(tmp_path / "images"))
    fields = {"system": "dncnn", "options": {"features": 4, "depth": 2}, "data": images, "validation_data": images}
    sizes = {"patch_size": 16, "batch_size": 2, "validation_size": 16, "device": "cpu", "tensorboard": True}
    fields |= {**sizes, "output": str(tmp_path / "run"), "validation_noise": "gaussian:1,speckle:1", "iterations": 2}
    Trainer(TrainConfig(**fields)).run()  # type: ignore[arg-type]
    found = events.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    (line,) = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    for name in ("gaussian:1", "speckle:1"):
        (event,) = found.Scalars(f"validation_psnr/{name}")
        assert event.value == pytest.approx(line[f"validation_psnr/{name}"])


def test_pairs_without_a_noise_to_validate_are_said(tmp_path: Path) -> None:
    images = str(write_pair(tmp_path / "images"))
    fields = {"system": "dncnn", "options": {"features": 4, "depth": 2}, "data": images, "noisy": images}
    fields |= {"validation_data": images, "patch_size": 16, "device": "cpu", "output": str(tmp_path / "run")}
    messages = Trainer(TrainConfig(**fields)).messages  # type: ignore[arg-type]
    assert "no validation: with pairs it needs validation_noisy, validation_noise, or both" in messages
