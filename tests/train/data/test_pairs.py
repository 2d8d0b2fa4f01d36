"""Pairs of noisy and clean images: matched by name, and refused with the reason."""

import dataclasses
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from masked_swin.train.config import TrainConfig
from masked_swin.train.data import load_pairs, to_array
from masked_swin.train.loop import Trainer
from masked_swin.train.sampler import PatchSampler
from tests.support.image_files import picture


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three pairs, one below a folder and with other endings; the noisy image is 10 levels brighter."""
    clean, noisy = tmp_path / "clean", tmp_path / "noisy"
    for index, name in enumerate(("a", "b", "trip/c")):
        pixels = picture(20, 24, seed=index) // 2
        write(clean / f"{name}.png", pixels)
        write(noisy / f"{name}.{'bmp' if index else 'png'}", pixels + 10)
    (clean / "notes.txt").write_text("no image")
    return clean, noisy


def test_pairs_are_matched_by_name(folders: tuple[Path, Path]) -> None:
    clean, noisy = load_pairs([folders[0]], [folders[1]])
    assert [Path(name).stem for name in clean.names] == [Path(name).stem for name in noisy.names] == ["a", "b", "c"]
    assert all((b == a + 10).all() for a, b in zip(clean.images, noisy.images, strict=True))


def test_patches_of_a_pair_lie_in_the_same_place(folders: tuple[Path, Path]) -> None:
    clean, noisy = load_pairs([folders[0]], [folders[1]])
    sampler = PatchSampler(clean.images, patch_size=16, seed=0, noisy=noisy.images)
    batch = sampler.batch(range(20))
    torch.testing.assert_close(batch.noisy - batch.clean, torch.full_like(batch.clean, 10 / 255))
    alone = PatchSampler(clean.images, patch_size=16, seed=0).batch(range(20))
    assert torch.equal(alone.clean, batch.clean)  # the noisy ones change no draw
    assert alone.noisy is alone.clean
    assert to_array(batch.noisy[0]).flags.c_contiguous


def test_pairs_that_do_not_fit_are_named(folders: tuple[Path, Path]) -> None:
    clean, noisy = folders
    with pytest.raises(ValueError, match="expected one folder of noisy images for each of clean ones, got 2 and 1"):
        load_pairs([clean], [noisy, noisy])
    (clean / "extra.png").write_bytes((clean / "a.png").read_bytes())
    with pytest.raises(ValueError, match=r"no image of the same name in .*noisy for .*extra\.png"):
        load_pairs([clean], [noisy])
    (clean / "extra.png").unlink()
    write(noisy / "extra.png", picture())
    with pytest.raises(ValueError, match=r"no image of the same name in .*clean for .*extra\.png"):
        load_pairs([clean], [noisy])
    (noisy / "extra.png").unlink()
    write(noisy / "a.bmp", picture())
    with pytest.raises(ValueError, match="several images named a; a pair needs one name"):
        load_pairs([clean], [noisy])
    (noisy / "a.bmp").unlink()
    write(noisy / "a.png", picture(20, 25))
    with pytest.raises(ValueError, match=r"a\.png and .*a\.png: 24 x 20 and 25 x 20 pixels; expected the same size"):
        load_pairs([clean], [noisy])
    (noisy / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"images of pairs that cannot be used: .*a\.png"):
        load_pairs([clean], [noisy])


def test_small_pairs_are_left_out(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        write(folder / "small.png", picture(8, 30))
    clean, noisy = load_pairs([folders[0]], [folders[1]], min_size=16)
    assert len(clean.images) == len(noisy.images) == 3
    assert "small.png and its pair: 30 x 8 pixels, smaller than 16 x 16" in clean.skipped[0]
    with pytest.raises(ValueError, match="no usable pair"):
        load_pairs([folders[0]], [folders[1]], min_size=64)


@pytest.fixture
def config(folders: tuple[Path, Path], tmp_path: Path) -> TrainConfig:
    clean, noisy = map(str, folders)
    return TrainConfig(
        output=str(tmp_path / "run"),
        system="dncnn",
        options={"features": 4, "depth": 3},
        data=clean,
        noisy=noisy,
        validation_data=clean,
        validation_noisy=noisy,
        validation_size=16,
        patch_size=16,
        batch_size=2,
        iterations=4,
        device="cpu",
    )


@pytest.mark.parametrize("memory", [None, 0.0])
def test_a_run_on_pairs_goes_on_exactly(config: TrainConfig, tmp_path: Path, memory: float | None) -> None:
    config = dataclasses.replace(config, memory=memory)
    straight = Trainer(config)
    assert straight.run() == "finished"
    assert any("3 training pairs" in message for message in straight.messages)
    assert (straight.folder / "noisy-pairs").exists() == (memory == 0)
    halves = dataclasses.replace(config, output=str(tmp_path / "halves"))
    Trainer(dataclasses.replace(halves, iterations=2)).run()
    resumed = Trainer(halves)
    resumed.run()
    for name, value in straight.average.state_dict().items():
        assert torch.equal(resumed.average.state_dict()[name], value)
    assert straight.best is not None
    assert straight.best["noise"] == "pairs"


def test_other_noisy_images_are_another_run(config: TrainConfig, folders: tuple[Path, Path]) -> None:
    Trainer(dataclasses.replace(config, iterations=1)).run()
    write(folders[1] / "a.png", picture(20, 24, seed=9))
    with pytest.raises(ValueError, match="other values of: training images"):
        Trainer(config)


def test_noise_and_pairs_exclude_each_other(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match="noise: pairs have their own noise; give `noise` or `noisy`, not both"):
        dataclasses.replace(config, noise="speckle:2")
    with pytest.raises(ValueError, match="sigma: the noise without `noise`; write noise gaussian:sigma=25"):
        TrainConfig(noise="speckle:2", sigma=25.0)
    with pytest.raises(ValueError, match="noisy: expected a folder for each of `data`, 2, got 1"):
        dataclasses.replace(config, data=["a", "b"])
