"""Files through `denoise` with a network that returns its input: what is kept exactly, and what is refused."""

import contextlib
import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import pyvips
import tifffile
import torch

from masked_swin import MaskedSwinIR, ModelConfig, save_checkpoint
from masked_swin.train.cli import main
from tests.support.image_files import picture, write_deep

GREY, GREY_16, COLOUR, COLOUR_16 = (
    picture()[..., 0],
    picture(dtype=np.uint16)[..., 0],
    picture(),
    picture(dtype=np.uint16),
)
STACK = np.stack([picture(seed=seed) for seed in range(3)])
STACK_16 = np.stack([picture(seed=seed, dtype=np.uint16)[..., 0] for seed in range(3)])
FLOAT = COLOUR_16.astype(np.float32) / 65535
# Chunks of a PNG that tell of colours and time.
CHUNKS = {
    b"gAMA": struct.pack(">L", 45455),
    b"cHRM": struct.pack(">8L", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
    b"sRGB": b"\1",
    b"cICP": bytes((1, 13, 0, 1)),
    b"tIME": struct.pack(">HBBBBB", 2020, 2, 3, 4, 5, 6),
}
REFUSED = {
    "twelve.tif": "grey of 12 unsigned bits; expected grey or RGB of 8 or 16",
    "signed.tif": "grey of 16 signed bits",
    "negative.tif": "float values from -1 to 0.5; expected 0 to 1, or 0 to 65535",
    "digital.tif": "raw file of a camera; develop it first",
    "preview.tif": "raw file of a camera; develop it first",
    "named.dng": "raw file of a camera; develop it first",
    "camera.CR3": "raw file of a camera; develop it first",
    "phone.heic": "HEIF image; convert it to PNG first, as with pillow-heif",
    "channels.tif": "grey and a channel of unknown meaning; expected transparency",
    "multiplied.tif": "RGB and transparency that its colours are multiplied by; expected transparency",
    "five.tif": "5 channels of RGB; expected 3, or one more for transparency",
    "lab.tif": "CIELAB of 8 unsigned bits",
    "icon.ico": "icon with a picture in several sizes",
    "ten.avif": "10 bits of AVIF, of which Pillow reads 8",
    "sizes.tif": "page 2 of 2 is of another size or type; split it into single files",
    "levels.ppm": "values up to 1023; expected 255 or 65535",
    "nowhere.png": "link to no file",
}


def chunks(path: Path) -> dict[bytes, bytes]:
    data, place, found = path.read_bytes(), 8, {}
    while place < len(data):
        (size,) = struct.unpack_from(">L", data, place)
        found[data[place + 4 : place + 8]] = data[place + 8 : place + 8 + size]
        place += size + 12
    return found


def add_chunks(path: Path) -> None:
    data = path.read_bytes()
    added = (
        struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))
        for kind, content in CHUNKS.items()
    )
    path.write_bytes(data[:33] + b"".join(added) + data[33:])


def write_good(folder: Path) -> None:
    for orientation in range(1, 9):
        for name, pixels in ((f"grey{orientation}.tif", GREY), (f"deep{orientation}.tif", COLOUR_16)):
            tifffile.imwrite(folder / name, pixels, extratags=[(274, "H", 1, orientation, True)], metadata=None)
    tifffile.imwrite(folder / "white_is_zero.tif", GREY_16, photometric="miniswhite")
    tifffile.imwrite(folder / "white_is_zero_8.tif", GREY, photometric="miniswhite")
    tifffile.imwrite(folder / "float.tif", FLOAT, photometric="rgb")
    tifffile.imwrite(folder / "float_grey.tif", FLOAT[..., 0] * np.float32(65535))
    tifffile.imwrite(folder / "pages.tif", STACK, photometric="rgb")
    tifffile.imwrite(folder / "imagej.tif", STACK_16, imagej=True)
    half = np.full_like(GREY, 128)
    multiplied = np.dstack([(COLOUR * (128 / 255)).round().astype(np.uint8), half])
    tifffile.imwrite(folder / "premultiplied.tif", multiplied, photometric="rgb", extrasamples=["assocalpha"])
    (folder / "colour.ppm").write_bytes(b"P6\n# a comment\n32 24\n65535\n" + COLOUR_16.astype(">u2").tobytes())
    (folder / "grey.pgm").write_bytes(b"P5 32 24 65535\n" + GREY_16.astype(">u2").tobytes())
    PIL.Image.fromarray(COLOUR).save(folder / "chunks.png")
    write_deep(folder / "chunks_16.png", COLOUR_16)
    for name in ("chunks.png", "chunks_16.png"):
        add_chunks(folder / name)
    write_deep(folder / "plain_16.png", COLOUR_16)
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    PIL.Image.fromarray(COLOUR).save(elsewhere / "linked.png")
    (folder / "link").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(folder)


def write_refused(folder: Path) -> None:
    def tiff(name: str, pixels: np.ndarray, **options: object) -> None:
        tifffile.imwrite(folder / name, pixels, **options)  # type: ignore[arg-type]

    tiff("twelve.tif", GREY_16)
    with tifffile.TiffFile(folder / "twelve.tif", mode="r+") as file:
        file.pages[0].tags["BitsPerSample"].overwrite(12)
    tiff("signed.tif", GREY_16.astype(np.int16))
    tiff("negative.tif", np.linspace(-1, 0.5, 24 * 32, dtype=np.float32).reshape(24, 32))
    tiff("digital.tif", COLOUR, extratags=[(50706, "B", 4, (1, 4, 0, 0), True)])
    tiff("preview.tif", COLOUR, subfiletype=1)
    tiff("named.dng", COLOUR)
    contiguous = {"planarconfig": "contig"}
    tiff("channels.tif", COLOUR[..., :2], photometric="minisblack", extrasamples=["unspecified"], **contiguous)
    four, five = (np.concatenate([COLOUR_16, COLOUR_16[..., :extra]], axis=2) for extra in (1, 2))
    tiff("multiplied.tif", four, photometric="rgb", extrasamples=["assocalpha"], **contiguous)
    tiff("five.tif", five, photometric="rgb", extrasamples=["unassalpha", "unspecified"], **contiguous)
    for name in ("camera.CR3", "phone.heic"):
        (folder / name).write_bytes(b"\0\0\0\x18ftypcrx ")
    PIL.Image.fromarray(COLOUR).convert("RGB").save(folder / "icon.ico")
    PIL.Image.frombytes("LAB", (32, 24), COLOUR.tobytes()).save(folder / "lab.tif")
    deep = pyvips.Image.new_from_array(COLOUR_16).copy(interpretation="rgb16")
    deep.heifsave(str(folder / "ten.avif"), bitdepth=10, compression="av1")
    with tifffile.TiffWriter(folder / "sizes.tif") as file:
        file.write(GREY)
        file.write(GREY[:20])
    (folder / "levels.ppm").write_bytes(b"P6 32 24 1023\n" + (COLOUR_16 >> 6).astype(">u2").tobytes())
    (folder / "nowhere.png").symlink_to(folder / "missing.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """All files through one run: the results, and what it prints to stderr."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("identity")
    (folder / "images").mkdir()
    write_good(folder / "images")
    write_refused(folder / "images")
    network = ModelConfig(embed_dim=12, depths=(1,), num_heads=(2,), window_size=4, conv_first_kernel=3)
    model = MaskedSwinIR(network)
    torch.nn.init.zeros_(model.conv_last.weight)
    torch.nn.init.zeros_(model.conv_last.bias)
    save_checkpoint(model, folder / "identity.pth")
    printed, limit = io.StringIO(), PIL.Image.MAX_IMAGE_PIXELS
    with contextlib.redirect_stderr(printed):
        arguments = ["--output", str(folder / "results"), "--model", str(folder / "identity.pth"), "--average", "1"]
        assert main(["denoise", str(folder / "images"), *arguments]) == 1
    PIL.Image.MAX_IMAGE_PIXELS = limit
    return folder / "results", printed.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_tiff(orientation: int, run: tuple[Path, str]) -> None:
    for name, stored in ((f"grey{orientation}.tif", GREY), (f"deep{orientation}.tif", COLOUR_16)):
        upright = stored
        if orientation in (5, 6, 7, 8):
            upright = np.swapaxes(upright, 0, 1)
        if orientation in (3, 4, 7, 8):
            upright = upright[::-1]
        if orientation in (2, 3, 6, 7):
            upright = upright[:, ::-1]
        with tifffile.TiffFile(run[0] / name) as file:
            assert np.array_equal(file.asarray(), upright), name
            assert 274 not in file.pages[0].tags or file.pages[0].tags[274].value == 1


def test_white_is_zero(run: tuple[Path, str]) -> None:
    for name, pixels in (("white_is_zero.tif", 65535 - GREY_16), ("white_is_zero_8.tif", 255 - GREY)):
        with tifffile.TiffFile(run[0] / name) as file:
            assert file.pages[0].photometric == tifffile.PHOTOMETRIC.MINISBLACK
            assert np.array_equal(file.asarray(), pixels)


def test_premultiplied_colours(run: tuple[Path, str]) -> None:
    result = tifffile.imread(run[0] / "premultiplied.tif")
    assert np.abs(result[..., :3] - COLOUR[..., :3].astype(int)).max() <= 2
    assert re.search(r"^note: .*/premultiplied.tif: colours divided by the transparency", run[1], re.MULTILINE)


def test_floats(run: tuple[Path, str]) -> None:
    for name, pixels, white in (("float.tif", FLOAT, 1), ("float_grey.tif", FLOAT[..., 0] * np.float32(65535), 65535)):
        result = tifffile.imread(run[0] / name)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, pixels, rtol=3e-7, atol=white * 2**-25)  # the network subtracts a mean
        assert re.search(rf"^note: .*/{name}: float values read as 0 to {white}$", run[1], re.MULTILINE)


def test_pages(run: tuple[Path, str]) -> None:
    for name, pixels in (("pages.tif", STACK), ("imagej.tif", STACK_16)):
        with tifffile.TiffFile(run[0] / name) as file:
            assert len(file.pages) == 3
            assert np.array_equal(file.asarray(), pixels)
            assert "ImageDescription" not in file.pages[0].tags, "it tells the pages of another file"
        assert re.search(rf"^note: .*/{name}: description dropped that tells pages and shape", run[1], re.MULTILINE)


def test_ppm_of_16_bits(run: tuple[Path, str]) -> None:
    for name, pixels in (("colour.ppm", COLOUR_16), ("grey.pgm", GREY_16)):
        data = (run[0] / name).read_bytes()
        assert data[:3] == (b"P6\n" if pixels.ndim == 3 else b"P5\n")
        assert np.array_equal(np.frombuffer(data, ">u2", pixels.size, len(data) - 2 * pixels.size), pixels.ravel())


def test_png_chunks(run: tuple[Path, str]) -> None:
    for name in ("chunks.png", "chunks_16.png"):
        found = chunks(run[0] / name)
        assert {kind: found[kind] for kind in CHUNKS} == CHUNKS
    assert np.array_equal(np.asarray(PIL.Image.open(run[0] / "chunks.png")), COLOUR)
    assert set(chunks(run[0] / "plain_16.png")) == {b"IHDR", b"IDAT", b"IEND"}, "no EXIF that was not there"


def test_linked_folders(run: tuple[Path, str]) -> None:
    assert np.array_equal(np.asarray(PIL.Image.open(run[0] / "link" / "linked.png")), COLOUR)
    assert not (run[0] / "link" / "loop").exists()


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, run: tuple[Path, str]) -> None:
    assert re.search(rf"^failed: .*/{re.escape(name)}: {re.escape(REFUSED[name])}", run[1], re.MULTILINE)
    assert not os.path.lexists(run[0] / name)
