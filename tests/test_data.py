"""Images from disk, and batches as a pure function of (seed, step)."""

import socket
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from masked_swin.train.data import (
    BUILTIN_HELD_OUT,
    BUILTIN_TRAIN,
    PatchSampler,
    builtin_images,
    centre_crop,
    load_images,
    read_image,
    to_array,
    to_tensor,
)


def picture(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every kind of file that a folder of images may hold."""
    rgb = PIL.Image.fromarray(picture())
    rgb.save(tmp_path / "a_rgb.png")
    rgb.convert("L").save(tmp_path / "b_grey.png")
    rgb.convert("RGBA").save(tmp_path / "c_alpha.png")
    rgb.convert("P").save(tmp_path / "d_palette.png")
    rgb.convert("CMYK").save(tmp_path / "e_cmyk.jpg")
    PIL.Image.fromarray(picture()[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "f_16bit.png")
    rgb.convert("1").save(tmp_path / "g_bilevel.png")
    (tmp_path / "below").mkdir()
    rgb.save(tmp_path / "below" / "h_nested.tif")
    PIL.Image.fromarray(picture(5, 40)).save(tmp_path / "small.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "truncated.png").write_bytes((tmp_path / "a_rgb.png").read_bytes()[:300])
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "e_cmyk.jpg").read_bytes()[:700])
    corrupt = bytearray((tmp_path / "a_rgb.png").read_bytes())
    corrupt[len(corrupt) // 2] ^= 0xFF
    (tmp_path / "corrupt.png").write_bytes(corrupt)
    PIL.Image.fromarray(np.zeros((24, 32), dtype=np.float32)).save(tmp_path / "float.tif")
    (tmp_path / ".hidden").write_text("left out silently")
    return tmp_path


def test_folder_names_what_it_skips_and_changes(folder: Path) -> None:
    found = load_images([folder], min_size=16)
    names = [Path(name).name for name in found.names]
    assert names == [
        "a_rgb.png",
        "b_grey.png",
        "h_nested.tif",
        "c_alpha.png",
        "d_palette.png",
        "e_cmyk.jpg",
        "f_16bit.png",
        "g_bilevel.png",
    ]
    assert all(image.shape == (24, 32, 3) and image.dtype == np.uint8 for image in found.images)
    skipped = "\n".join(found.skipped)
    for name in ("small.png", "notes.txt", "empty.png", "truncated.png", "torn.jpg", "corrupt.png", "float.tif"):
        assert name in skipped
    assert len(found.skipped) == 7
    assert "40 x 5 pixels, smaller than 16 x 16" in skipped
    assert "empty file" in skipped
    notes = "\n".join(found.notes)
    assert "c_alpha.png: transparency dropped" in notes
    assert "f_16bit.png: 16 bits" in notes
    assert len(found.notes) == 2


def test_pixels_survive(folder: Path) -> None:
    assert np.array_equal(read_image(folder / "a_rgb.png").pixels, picture())
    assert np.array_equal(read_image(folder / "c_alpha.png").pixels, picture())
    sixteen = read_image(folder / "f_16bit.png")
    assert sixteen.grey
    assert np.array_equal(sixteen.pixels, np.repeat(picture()[:, :, :1], 3, axis=2))
    assert read_image(folder / "b_grey.png").grey
    assert not read_image(folder / "a_rgb.png").grey


def test_nothing_usable_is_an_error_that_lists_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the folder holds no file"):
        load_images([tmp_path])
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(ValueError, match=r"no usable image in .*\n.*notes.txt: not an image"):
        load_images([tmp_path])
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        load_images([tmp_path / "nowhere"])


def test_builtin_images_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a built-in image was looked for on the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert not set(BUILTIN_TRAIN) & set(BUILTIN_HELD_OUT)
    found = builtin_images(BUILTIN_TRAIN + BUILTIN_HELD_OUT)
    assert len(found.images) == len(found.names) == 9
    for image in found.images:
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        assert min(image.shape[:2]) >= 256
        assert (image[..., 0] != image[..., 1]).any()  # colour


def sampler(seed: int = 0, batch_size: int = 4, sigma: float = 15.0) -> PatchSampler:
    images = [picture(seed=index) for index in range(3)]
    return PatchSampler(images, patch_size=16, batch_size=batch_size, sigma=sigma, seed=seed)


def test_batch_is_a_function_of_seed_and_step() -> None:
    first, again, later, other = (sampler().batch(5), sampler().batch(5), sampler().batch(6), sampler(seed=1).batch(5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.noisy, later.noisy)
    assert not torch.equal(first.noisy, other.noisy)
    assert first.clean.shape == (4, 3, 16, 16)
    assert first.clean.dtype == torch.float32
    assert first.sample.tolist() == [20, 21, 22, 23]
    assert first.sample.dtype == torch.int64


def test_samples_do_not_depend_on_the_batch_size() -> None:
    large, small = sampler(batch_size=8).batch(1), sampler(batch_size=4)
    assert torch.equal(large.noisy, torch.cat([small.batch(2).noisy, small.batch(3).noisy]))


def test_patches_are_flipped_crops_with_clipped_noise() -> None:
    square = picture(16, 16)
    drawn = PatchSampler([square], patch_size=16, batch_size=64, sigma=15, seed=3).batch(0)
    seen = {to_array(patch).tobytes() for patch in drawn.clean}
    image = square.astype(np.float32) / np.float32(255)
    modes = {np.rot90(view, turns).tobytes() for view in (image, image[:, ::-1]) for turns in range(4)}
    assert seen == modes
    assert len(modes) == 8
    assert drawn.noisy.min() == 0
    assert drawn.noisy.max() == 1
    inner = (drawn.clean > 0.3) & (drawn.clean < 0.7)
    assert (drawn.noisy - drawn.clean)[inner].std().item() == pytest.approx(15 / 255, rel=0.03)
    assert torch.equal(sampler(sigma=0).batch(0).noisy, sampler(sigma=0).batch(0).clean)


def test_images_smaller_than_the_patch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"patch size 30: .* images \[0\] are smaller"):
        PatchSampler([picture()], patch_size=30, batch_size=1, sigma=15, seed=0)


def test_crops_and_conversions() -> None:
    assert centre_crop(picture(), 10).shape == (10, 10, 3)
    assert np.array_equal(centre_crop(picture(), 100), picture())
    assert np.array_equal(to_array(to_tensor(picture())), picture().astype(np.float32) / 255)
