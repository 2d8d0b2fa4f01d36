"""Images from disk, in memory or mapped from a file."""

import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from masked_swin.train.data import (
    BUILTIN_HELD_OUT,
    BUILTIN_TRAIN,
    builtin_images,
    centre_crop,
    image_set,
    load_images,
    read_image,
    to_array,
    to_tensor,
)
from tests.support.faults import file_size_limit
from tests.support.image_files import picture


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
    PIL.Image.fromarray(np.full((24, 32), np.nan, dtype=np.float32)).save(tmp_path / "float.tif")
    header = b"IHDR" + struct.pack(">2I5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum)
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
    assert all(image.shape == (24, 32, 3) for image in found.images)
    kinds = {name: image.dtype for name, image in zip(names, found.images, strict=True)}
    assert {name for name, dtype in kinds.items() if dtype == np.uint16} == {"f_16bit.png"}
    skipped = "\n".join(found.skipped)
    refused = ["small.png", "notes.txt", "empty.png", "truncated.png"]
    refused += ["torn.jpg", "corrupt.png", "float.tif", "huge.png"]
    assert all(name in skipped for name in refused)
    assert len(found.skipped) == len(refused)
    assert "40 x 5 pixels, smaller than 16 x 16" in skipped
    assert "empty file" in skipped
    notes = "\n".join(found.notes)
    assert "c_alpha.png: transparency dropped" in notes
    assert "d_palette.png: colours of a palette" in notes
    assert "e_cmyk.jpg: CMYK converted" in notes
    assert len(found.notes) == 3


def test_pixels_survive(folder: Path) -> None:
    assert np.array_equal(read_image(folder / "a_rgb.png").pixels, picture())
    assert np.array_equal(read_image(folder / "c_alpha.png").pixels, picture())
    sixteen = read_image(folder / "f_16bit.png")
    assert sixteen.grey
    assert np.array_equal(sixteen.pixels, np.repeat(picture()[:, :, :1], 3, axis=2).astype(np.uint16) * 257)
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


def test_crops_and_conversions() -> None:
    assert centre_crop(picture(), 10).shape == (10, 10, 3)
    assert np.array_equal(centre_crop(picture(), 100), picture())
    assert np.array_equal(to_array(to_tensor(picture())), picture().astype(np.float32) / 255)
    assert np.array_equal(to_tensor(picture().astype(np.uint16) * 257), to_tensor(picture()))


def test_a_folder_larger_than_the_memory_is_mapped_and_found_again(folder: Path, tmp_path_factory, monkeypatch) -> None:
    run = tmp_path_factory.mktemp("run")
    held = load_images([folder], min_size=16)
    assert "in memory" in held.storage
    assert load_images([folder], min_size=16, map_folder=run).storage == held.storage
    assert not list(run.iterdir())
    one_and_a_half = 1.5 * held.images[0].nbytes / 2**30
    mapped = load_images([folder], min_size=16, map_folder=run, memory=one_and_a_half)
    assert f"mapped from {run / 'images.map'}" in mapped.storage
    decoded = []
    monkeypatch.setattr(image_set, "read_image", lambda path: decoded.append(path) or read_image(path))
    again = load_images([folder], min_size=16, map_folder=run)
    assert not decoded
    for found in (mapped, again):
        assert (found.names, found.skipped, found.notes) == (held.names, held.skipped, held.notes)
        assert found.checksum == held.checksum
        assert all(np.array_equal(a, b) for a, b in zip(found.images, held.images, strict=True))
        assert not any(image.flags.writeable for image in found.images)

    PIL.Image.fromarray(picture(seed=9)).save(folder / "a_rgb.png")  # a changed file is seen
    changed = load_images([folder], min_size=16, map_folder=run, memory=0)
    assert np.array_equal(changed.images[0], picture(seed=9))
    assert changed.checksum != held.checksum
    (run / "images.map").write_bytes(b"torn")
    assert load_images([folder], min_size=16, map_folder=run, memory=0).checksum == changed.checksum


def test_a_map_that_does_not_fit_the_disk_is_an_error_that_names_it_and_leaves_nothing(folder: Path, tmp_path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with file_size_limit(3000), pytest.raises(OSError, match=r"too large.* pixels written; memory .*images\.map"):
        load_images([folder], map_folder=run, memory=0)
    assert not list(run.iterdir())
