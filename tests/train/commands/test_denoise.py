"""denoise on files: what is kept, what is named, what goes on where it stopped; faults that leave nothing half done."""

import errno
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from masked_swin import MaskedSwinIR, ModelConfig, denoise, save_checkpoint
from masked_swin.train import image_pipeline
from masked_swin.train.cli import main
from masked_swin.train.commands import denoise as denoising
from masked_swin.train.commands.denoise import denoise_files
from masked_swin.train.commands.denoise_options import DenoiseOptions
from masked_swin.train.data import DecodedImage, read_image, to_array, to_tensor, to_uint8
from masked_swin.train.weights import load_weights, weights_path
from tests.support.faults import (
    die_after_a_file_gets_its_name,
    die_before_a_file_gets_its_name,
    limit_file_size,
    start_command,
)
from tests.support.image_files import BAD, NO_IMAGES, picture, write_bad_files, write_bomb, write_deep

NETWORK = ModelConfig(embed_dim=12, depths=(1,), num_heads=(2,), window_size=4, attention_mask=0.5)


@pytest.fixture(autouse=True)
def limit_of_pixels_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", PIL.Image.MAX_IMAGE_PIXELS)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    save_checkpoint(MaskedSwinIR(NETWORK), path)
    return path


def run(source: Path, output: Path, weights: Path, *options: str) -> int:
    return main(["denoise", str(source), "--output", str(output), "--model", str(weights), *options])


def results(folder: Path) -> list[str]:
    """The files of a folder, hidden ones included, but for the journal."""
    paths = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in paths if path != ".masked-swin.jsonl"]


def test_names_formats_and_greys_are_kept(photos: Path, weights: Path, tmp_path: Path) -> None:
    output = tmp_path / "results"
    assert run(photos, output, weights) == 0
    assert results(output) == ["colour.png", "grey.tif", "trip/photo.JPG"]
    for name, mode, file_format in zip(results(output), ("RGB", "L", "RGB"), ("PNG", "TIFF", "JPEG"), strict=True):
        with PIL.Image.open(output / name) as image:
            assert (image.size, image.mode, image.format) == ((30, 21), mode, file_format)


def test_files_are_what_the_function_gives(photos: Path, weights: Path, tmp_path: Path) -> None:
    model, image = load_weights(str(weights)), to_tensor(picture(21, 30))
    cases = (
        ({"seed": 1, "tile": 128}, "--seed 1"),
        ({"attention_mask": "off", "tile": 128}, "--attention-mask off --average 2"),
        ({"attention_mask": "random", "tile": 16, "overlap": 8}, "--attention-mask random --tile 16 --overlap 8"),
    )
    for number, (options, arguments) in enumerate(cases):
        output = tmp_path / f"results{number}"
        assert run(photos / "colour.png", output, weights, *arguments.split()) == 0
        expected = to_uint8(to_array(denoise(model, image, **options)))  # type: ignore[arg-type]
        assert np.array_equal(np.asarray(PIL.Image.open(output / "colour.png")), expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_denoised_as_16_bits(suffix: str, weights: Path, tmp_path: Path) -> None:
    source = tmp_path / f"deep.{suffix}"
    pixels = picture(21, 30, dtype=np.uint16)
    write_deep(source, pixels)
    assert run(source, tmp_path / "results", weights) == 0
    result = read_image(tmp_path / "results" / source.name).pixels
    x = torch.from_numpy(pixels.astype(np.float32) / 65535).permute(2, 0, 1).contiguous()
    expected = to_array(denoise(load_weights(str(weights)), x, tile=128)) * 65535
    assert result.dtype == np.uint16
    assert np.abs(result - expected).max() <= 1
    assert len(np.unique(result)) > 256


def test_device_and_precision(photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, names = photos / "colour.png", ("float32", "bfloat16")
    for name in names:
        assert run(source, tmp_path / name, weights, "--device", "cpu", "--precision", name) == 0
        assert f"on cpu in {name}" in capsys.readouterr().err
    pixels = [read_image(tmp_path / name / "colour.png").pixels.astype(int) for name in names]
    assert 0 < np.abs(pixels[0] - pixels[1]).max() <= 4
    assert run(source, tmp_path / "bfloat16", weights, "--precision", "float32") == 1, "another result is there"
    assert run(source, tmp_path / "auto", weights, "--device", "tpu") == 1
    assert "device 'tpu': not available here" in capsys.readouterr().err


def test_one_image_into_a_file_and_several_into_a_folder(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = tmp_path / "one" / "result.png"
    assert run(photos / "colour.png", single, weights) == 0
    assert [path.name for path in single.parent.iterdir()] == ["result.png"]
    assert run(photos / "colour.png", single, weights) == 1
    assert "is there and not a result of this model" in capsys.readouterr().err
    assert run(photos / "colour.png", single, weights, "--overwrite") == 0
    assert run(photos / "colour.png", photos / "colour.png", weights, "--overwrite") == 1
    inputs = [str(photos / "colour.png"), str(photos / "trip"), str(photos / "grey.tif")]
    output = tmp_path / "several"
    assert main(["denoise", *inputs, "--output", str(output), "--model", str(weights)]) == 0
    assert results(output) == ["colour.png", "grey.tif", "photo.JPG"]
    assert (output / "colour.png").read_bytes() == single.read_bytes()
    (photos / "trip" / "colour.png").write_bytes((photos / "colour.png").read_bytes())
    assert main(["denoise", *inputs, "--output", str(tmp_path / "x"), "--model", str(weights)]) == 1
    assert "both would become" in capsys.readouterr().err


def test_quiet(photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PIL.Image.fromarray(picture(21, 30)).convert("P").save(photos / "palette.png")
    (photos / "torn.png").write_bytes((photos / "colour.png").read_bytes()[:300])
    assert run(photos, tmp_path / "results", weights, "-q") == 1
    assert re.fullmatch(r"failed: .*torn\.png: .*\n", capsys.readouterr().err)
    assert run(photos, tmp_path / "more", weights) == 1
    assert "note: " in capsys.readouterr().err


def test_results_do_not_feed_the_next_run(photos: Path, weights: Path) -> None:
    output = photos / "results"
    for _ in range(2):
        assert run(photos, output, weights) == 0
    assert len(results(output)) == 3


def test_every_bad_file_is_named_and_the_rest_done(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bad_files(photos)
    colour = PIL.Image.fromarray(picture(21, 30))
    colour.convert("RGBA").save(photos / "alpha.png")
    colour.convert("CMYK").save(photos / "ink.jpg")
    colour.convert("P").save(photos / "palette.png")
    write_deep(photos / "deep.png", picture(21, 30, dtype=np.uint16))
    PIL.Image.new("RGB", (1, 1)).save(photos / "pixel.png")
    output = tmp_path / "results"
    assert run(photos, output, weights) == 1
    out, err = capsys.readouterr()
    for name in BAD:
        assert len(re.findall(rf"^failed: .*{name}", err, re.MULTILINE)) == 1, name
    for name in NO_IMAGES:
        assert re.search(rf"^skipped: .*{name}", err, re.MULTILINE), name
    for name in ("ink.jpg", "palette.png"):
        assert re.search(rf"^note: .*{name}", err, re.MULTILINE), name
    good = ["alpha.png", "colour.png", "deep.png", "grey.tif", "ink.jpg", "palette.png", "pixel.png"]
    assert results(output) == [*good, "trip/photo.JPG"]
    assert f"8 images written to {output}, 2 skipped, 7 failed" in out


def test_a_folder_with_other_files_is_no_failure(photos: Path, weights: Path, tmp_path: Path) -> None:
    (photos / "notes.txt").write_text("not an image")
    assert run(photos, tmp_path / "results", weights) == 0
    assert run(photos / "notes.txt", tmp_path / "others", weights) == 1, "but alone it is one"


def test_huge_images_on_request(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PIL.Image.fromarray(picture(1100, 1000)).resize((1000, 1100)).save(tmp_path / "large.png")
    write_bomb(tmp_path / "bomb.png", 30_000, 30_000)
    for source in ("large.png", "bomb.png"):
        assert run(tmp_path / source, tmp_path / "results", weights, "--max-megapixels", "1") == 1
        assert f"{source}: Image size" in (err := capsys.readouterr().err)
        assert "`denoise --max-megapixels` raises it" in err


def test_a_finished_run_is_not_repeated(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results"
    assert run(photos, output, weights) == 0
    before = {name: (output / name).stat().st_mtime_ns for name in results(output)}
    (output / "grey.tif").unlink()
    with open(output / ".masked-swin.jsonl", "a") as file:
        file.write('{"file": "torn')  # as a crash may leave it
    capsys.readouterr()
    assert run(photos, output, weights) == 0
    assert "1 images written" in (out := capsys.readouterr().out)
    assert "2 were there" in out
    assert (output / "grey.tif").is_file()
    del before["grey.tif"]
    assert all((output / name).stat().st_mtime_ns == time for name, time in before.items())


def test_other_settings_or_strangers_are_not_overwritten_unasked(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results"
    assert run(photos, output, weights) == 0
    first = (output / "colour.png").read_bytes()
    other = tmp_path / "other.pth"
    torch.manual_seed(1)
    save_checkpoint(MaskedSwinIR(NETWORK), other)
    for model, options in ((weights, ["--seed", "1"]), (weights, ["--average", "2"]), (other, [])):
        assert run(photos, output, model, *options) == 1
        assert "choose another output folder, or give --overwrite" in capsys.readouterr().err
        assert (output / "colour.png").read_bytes() == first
    assert run(photos, output, weights, "--seed", "1", "--overwrite") == 0
    assert (output / "colour.png").read_bytes() != first
    assert run(photos, output, weights, "--seed", "1") == 0, "and that run is the one that is finished now"
    (output / "colour.png").write_text("edited by hand")
    assert run(photos, output, weights, "--seed", "1") == 1
    PIL.Image.fromarray(picture(21, 30, seed=5)).save(photos / "grey.tif")
    assert run(photos, output, weights, "--seed", "1") == 1, "nor is a result of an image that has changed since"


def test_an_interrupted_run_goes_on(photos: Path, weights: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    expected, output = tmp_path / "expected", tmp_path / "results"
    assert run(photos, expected, weights) == 0
    passes = []

    def interrupt_at_the_second(*arguments: object, **options: object) -> object:
        passes.append(1)
        if len(passes) == 2:
            raise KeyboardInterrupt
        return restored(*arguments, **options)

    restored = denoising.denoise_pixels
    monkeypatch.setattr(denoising, "denoise_pixels", interrupt_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(photos, output, weights)
    assert "finished results are kept; the same command goes on" in capsys.readouterr().err
    assert results(output) == ["colour.png"], "what was finished is written"
    assert run(photos, output, weights) == 0
    assert len(passes) == 4, "only the other two are made"
    for name in results(expected):
        assert (output / name).read_bytes() == (expected / name).read_bytes()


@pytest.mark.parametrize("fault", [die_before_a_file_gets_its_name, die_after_a_file_gets_its_name])
def test_killed_while_writing(fault: Callable[[], None], photos: Path, weights: Path, tmp_path: Path) -> None:
    """A process that dies when a file gets its name leaves it whole or not there, and the next run goes on."""
    output = tmp_path / "results"
    arguments = ["denoise", str(photos), "--output", str(output), "--model", str(weights)]
    process = start_command(arguments, tmp_path / "printed", fault=fault)
    process.join(120)
    assert process.exitcode == -9
    visible = [name for name in results(output) if name[0] != "."]
    assert visible == ["colour.png"] * (fault is die_after_a_file_gets_its_name)
    assert run(photos, output, weights) == 0
    assert results(output) == ["colour.png", "grey.tif", "trip/photo.JPG"], "what the killed one left is cleared away"


def test_a_limit_on_file_sizes_fails_the_large_file_only(photos: Path, weights: Path, tmp_path: Path) -> None:
    """The system cuts a file short: it is named, nothing of it stays, the small ones are done."""
    PIL.Image.fromarray(picture(200, 200)).save(photos / "large.png")
    output = tmp_path / "results"
    arguments = ["denoise", str(photos), "--output", str(output), "--model", str(weights)]
    process = start_command(arguments, tmp_path / "printed", fault=limit_file_size)
    process.join(120)
    printed = (tmp_path / "printed" / "stderr").read_text()
    assert process.exitcode == 1, printed
    assert re.search(r"^failed: .*large.png", printed, re.MULTILINE)
    assert "Traceback" not in printed
    assert results(output) == ["colour.png", "grey.tif", "trip/photo.JPG"]


def test_a_full_disk_ends_the_run_and_the_next_goes_on(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(6):
        PIL.Image.fromarray(picture(21, 30, seed=number)).save(photos / f"more{number}.png")
    output, write, writes = tmp_path / "results", image_pipeline.write_image, []

    def full_from_the_second(path: Path, *arguments: object) -> None:
        writes.append(path)
        if len(writes) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as full:
        full.setattr(image_pipeline, "write_image", full_from_the_second)
        assert run(photos, output, weights) == 1
    err = capsys.readouterr().err
    assert "No space left on device" in err
    assert re.search(r"the disk is full: \d not tried; make room, the same command goes on", err)
    assert len(writes) < 9
    assert results(output) == ["colour.png"]
    assert run(photos, output, weights) == 0
    assert len(results(output)) == 9


def test_an_output_folder_that_cannot_be_written_is_named_before_the_work(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(denoising, "denoise_pixels", None)
    (tmp_path / "file").write_text("here")
    for output in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/results")):
        assert run(photos, output, weights) == 1
        assert re.search(rf"error: output {output}: cannot be written \(.+\); choose another", capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == "here"
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert run(photos, tmp_path / "locked", weights) == 1
        assert "cannot be written" in capsys.readouterr().err


def test_inputs_are_never_overwritten(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    for source, output in ((photos, photos), (photos / "colour.png", photos), (photos, photos / "trip" / "..")):
        assert run(source, output, weights, "--overwrite") == 1
        assert "overwrite the inputs" in capsys.readouterr().err
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "colour.png").symlink_to(photos / "colour.png")
    assert run(photos, linked, weights, "--overwrite") == 1
    assert "through a link" in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_output_file_and_a_damaged_network_are_refused(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photos, tmp_path / "result.png", weights) == 1
    assert "give the folder of the results" in capsys.readouterr().err
    assert run(photos / "colour.png", tmp_path / "result.jpg", weights) == 1
    assert "the format is kept; give a name that ends in .png" in capsys.readouterr().err
    assert not (tmp_path / "result.png").exists()
    model = MaskedSwinIR(NETWORK)
    torch.nn.init.constant_(model.conv_last.weight, float("nan"))
    save_checkpoint(model, tmp_path / "bad.pth")
    assert run(photos / "colour.png", tmp_path / "results", tmp_path / "bad.pth") == 1
    assert "output is not finite" in capsys.readouterr().err
    assert results(tmp_path / "results") == []


def test_bad_tiles_are_named_before_the_work(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photos, tmp_path / "results", weights, "--tile", "30") == 1
    assert "tile must be a multiple of the network's window, 4, got 30" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_the_folder_of_a_run_is_a_model(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"the folder holds no .*; give a .pth or .safetensors file"):
        load_weights(str(folder))
    (folder / "other.pth").write_bytes(weights.read_bytes())
    with pytest.raises(ValueError, match=r"it holds other.pth: give one of them"):
        load_weights(str(folder))
    (folder / "weights.pth").write_bytes(weights.read_bytes())
    assert load_weights(str(folder)).config == NETWORK
    (folder / "best.pth").write_bytes(b"")
    assert weights_path(str(folder)) == folder / "best.pth"


def test_decoding_and_writing_overlap_the_network(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the network works on a file, the next one is decoded already."""
    for number in range(4):
        PIL.Image.fromarray(picture(21, 30, seed=number)).save(photos / f"more{number}.png")
    decoded, changed = [0], threading.Condition()
    ahead: list[int] = []

    def watched_read(path: Path, **options: bool) -> DecodedImage:
        image = read_image(path, **options)
        with changed:
            decoded[0] += 1
            changed.notify()
        return image

    def watched_denoise(*arguments: object, **options: object) -> object:
        wanted = min(len(ahead) + 3, 7)  # this one and two more
        with changed:
            assert changed.wait_for(lambda: decoded[0] >= wanted, timeout=60), "nothing is decoded ahead"
            ahead.append(decoded[0] - len(ahead))
        return restored(*arguments, **options)

    restored = denoising.denoise_pixels
    monkeypatch.setattr(image_pipeline, "read_image", watched_read)
    monkeypatch.setattr(denoising, "denoise_pixels", watched_denoise)
    torch.manual_seed(0)
    outcome = denoise_files(MaskedSwinIR(NETWORK), [photos], tmp_path / "results", DenoiseOptions(average=1))
    assert len(outcome.written) == 7
    assert max(ahead) == 3, "and not the whole folder"
    entries = [json.loads(line) for line in (tmp_path / "results/.masked-swin.jsonl").read_text().split("\n") if line]
    assert sorted(entry["file"] for entry in entries if entry["bytes"]) == results(tmp_path / "results")
