"""Image files in and out: bit depth, alpha and metadata survive; bad files are named."""

import sys
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.PngImagePlugin
import pytest

from masked_swin.train.data.images import NotAnImageError, image_paths, read_image, write_image
from tests.support.image_files import BAD, NO_IMAGES, picture, write_bad_files, write_bomb, write_deep

PROFILE = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()


def exif() -> PIL.Image.Exif:
    data = PIL.Image.Exif()
    data[270], data[271], data[274] = "a description", "a make", 6
    data.get_ifd(34665)[37386] = 35.0  # EXIF: focal length
    data[34665] = data.get_ifd(34665)
    return data


def copy_of(path: Path) -> tuple[Path, object]:
    """The file read and written again, with the decoded image."""
    image = read_image(path, as_stored=True)
    target = path.with_name("copy" + path.suffix)
    write_image(target, image.pixels[..., :1] if image.grey else image.pixels, image)
    return target, image


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_metadata_survives(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"photo.{suffix}"
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("Title", "a title")
    text.add_itxt("Comment", "schön", "de", "Kommentar")
    options = {"pnginfo": text} if suffix == "png" else {}
    if suffix == "jpg":
        options = {"comment": b"a comment", "xmp": b"<x:xmpmeta/>"}
    PIL.Image.fromarray(picture()).save(path, exif=exif(), icc_profile=PROFILE, dpi=(300, 300), **options)
    copy, decoded = copy_of(path)
    turned = suffix == "tif"  # Pillow turns TIFF upright itself, and drops the tag
    assert decoded.pixels.shape == ((32, 24, 3) if turned else (24, 32, 3)), "as stored"
    assert read_image(path).pixels.shape == (32, 24, 3), "upright"
    with PIL.Image.open(path) as before, PIL.Image.open(copy) as after:
        before.load(), after.load()
        assert after.mode == before.mode == "RGB"
        assert after.info["icc_profile"] == PROFILE
        tags = after.getexif()
        assert (tags[270], tags[271], tags.get(274, 1)) == ("a description", "a make", 1 if turned else 6)
        assert tags.get_ifd(34665)[37386] == 35.0
        kept = {"png": ("dpi", "Title", "Comment"), "jpg": ("dpi", "comment", "xmp"), "tif": ("dpi",)}
        for name in kept.get(suffix, ()):
            assert after.info[name] == before.info[name], name
        if suffix == "png":
            assert (after.text["Comment"].lang, after.text["Comment"].tkey) == ("de", "Kommentar")
    if suffix != "jpg":
        assert np.array_equal(read_image(copy, as_stored=True).pixels, decoded.pixels)


def test_compression_of_tiff_stays_unless_it_loses(tmp_path: Path) -> None:
    for before, after in (("tiff_lzw", "tiff_lzw"), ("raw", "raw"), ("jpeg", "tiff_adobe_deflate")):
        PIL.Image.fromarray(picture()).save(tmp_path / "photo.tif", compression=before)
        copy, decoded = copy_of(tmp_path / "photo.tif")
        with PIL.Image.open(copy) as image:
            assert image.info["compression"] == after
        assert np.array_equal(read_image(copy).pixels, decoded.pixels)


@pytest.mark.parametrize(
    ("suffix", "channels"), [("png", 1), ("png", 2), ("png", 3), ("png", 4), ("tif", 1), ("tif", 3), ("tif", 4)]
)
def test_16_bits_survive(suffix: str, channels: int, tmp_path: Path) -> None:
    path = tmp_path / f"deep.{suffix}"
    pixels = np.concatenate([picture(dtype=np.uint16), picture(seed=1, dtype=np.uint16)], axis=2)[..., :channels]
    write_deep(path, pixels)
    copy, decoded = copy_of(path)
    assert decoded.grey == (channels < 3)
    assert (decoded.alpha is not None) == (channels in (2, 4))
    assert np.array_equal(decoded.pixels[..., : 1 if decoded.grey else 3], pixels[..., : 1 if decoded.grey else 3])
    again = read_image(copy)
    assert again.pixels.dtype == np.uint16
    assert np.array_equal(again.pixels, decoded.pixels)
    assert (again.alpha is None) if decoded.alpha is None else np.array_equal(again.alpha, decoded.alpha)


def test_metadata_of_16_bit_colour_survives(tmp_path: Path) -> None:
    import pyvips

    image = pyvips.Image.new_from_array(picture(dtype=np.uint16)).copy(interpretation="rgb16", xres=10, yres=10)
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", PROFILE)
    image.set_type(pyvips.GValue.blob_type, "exif-data", exif().tobytes())
    image.set_type(pyvips.GValue.gstr_type, "png-comment-0-Title", "a title")
    image.write_to_file(str(tmp_path / "deep.png"))
    copy, decoded = copy_of(tmp_path / "deep.png")
    assert not decoded.notes
    with PIL.Image.open(copy) as after:
        after.load()
        assert after.info["icc_profile"] == PROFILE
        assert after.info["Title"] == "a title"
        assert after.info["dpi"] == pytest.approx((254, 254), abs=0.1)
        assert after.getexif()[270] == "a description"
        assert after.getexif()[274] == 6
    assert read_image(tmp_path / "deep.png").pixels.shape == (32, 24, 3), "upright"


def test_alpha_palette_cmyk_and_bilevel(tmp_path: Path) -> None:
    colour = PIL.Image.fromarray(picture())
    transparent = colour.convert("RGBA")
    transparent.putalpha(PIL.Image.fromarray(picture(seed=1)[..., 0]))
    transparent.save(tmp_path / "alpha.png")
    copy, decoded = copy_of(tmp_path / "alpha.png")
    assert np.array_equal(np.asarray(PIL.Image.open(copy)), np.asarray(transparent))
    assert not decoded.notes
    for mode, name, words in (("P", "palette.png", "palette"), ("CMYK", "ink.jpg", "CMYK"), ("1", "fax.png", "1 bit")):
        colour.convert(mode).save(tmp_path / name, icc_profile=PROFILE)
        copy, decoded = copy_of(tmp_path / name)
        assert words in decoded.notes[0]
        with PIL.Image.open(copy) as after:
            assert after.mode == ("L" if mode == "1" else "RGB")
            assert ("icc_profile" in after.info) == (mode != "CMYK"), "a profile for inks does not fit RGB"


def test_bad_files_are_named(tmp_path: Path) -> None:
    write_bad_files(tmp_path)
    assert [path.name for path in image_paths(tmp_path)] == sorted((*BAD, *NO_IMAGES))
    for name in BAD:
        with pytest.raises(ValueError, match=name) as caught:
            read_image(tmp_path / name)
        assert not isinstance(caught.value, NotAnImageError), name
    for name in NO_IMAGES:
        with pytest.raises(NotAnImageError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(ValueError, match="`denoise --max-megapixels` raises it"):
        read_image(tmp_path / "huge.png")
    deep = tmp_path / "deep.png"
    write_deep(deep, picture(200, 100, dtype=np.uint16))
    deep.write_bytes(deep.read_bytes()[:20000])
    with pytest.raises(ValueError, match=r"deep.png: cannot be decoded"):
        read_image(deep)


def test_further_pictures_in_a_file_are_said(tmp_path: Path) -> None:
    images = [PIL.Image.fromarray(picture(seed=seed)) for seed in range(3)]
    images[0].save(tmp_path / "pages.tif", save_all=True, append_images=images[1:])
    decoded = read_image(tmp_path / "pages.tif")
    assert "only the first of 3 pictures" in decoded.notes[0]
    assert np.array_equal(decoded.pixels, picture())


def test_without_libvips_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_deep(tmp_path / "deep.tif", picture(dtype=np.uint16))
    monkeypatch.setitem(sys.modules, "pyvips", None)
    with pytest.raises(ValueError, match=r"deep\.tif: needs libvips .*; install 'masked-swin\[train\]'"):
        read_image(tmp_path / "deep.tif")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    PIL.Image.fromarray(picture()).save(tmp_path / "photo.png")
    decoded = read_image(tmp_path / "photo.png")
    (tmp_path / "results").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="results"):
        write_image(tmp_path / "results" / "photo.png", decoded.pixels, decoded)
    with pytest.raises(ValueError, match="does not write it"):
        write_image(tmp_path / "x.nothing", decoded.pixels, decoded._replace(format="NOTHING"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png", "results"]


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    write_bomb(tmp_path / "bomb.png", 20_000, 20_000)
    with pytest.raises(ValueError, match="exceeds limit"):
        read_image(tmp_path / "bomb.png")
