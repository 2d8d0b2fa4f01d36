"""noise: the same bytes on every run, whatever the order and the workers; a manifest that finds every change."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from masked_swin.train.cli import main
from masked_swin.train.commands.noise import MANIFEST, check_noisy, noisy_copy, parse_specs, write_noisy
from masked_swin.train.data.degradations import NOISES
from tests.support.image_files import BAD, NO_IMAGES, picture, write_bad_files, write_deep


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    folder = tmp_path / "clean"
    (folder / "below").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.jpg", "below/a.png")):
        PIL.Image.fromarray(picture(seed=seed)).save(folder / name)
    PIL.Image.fromarray(picture(seed=9)[..., 0]).save(folder / "grey.png")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_bytes_on_every_run(clean: Path, tmp_path: Path) -> None:
    specs = parse_specs("all")
    assert len(specs) == 4 * len(NOISES)
    first = tmp_path / "first"
    assert not write_noisy(clean, first, specs, seed=3, workers=1).failures
    assert len(contents(first)) == 4 * len(specs) + 1
    write_noisy(clean, tmp_path / "second", specs[::-1], seed=3, workers=4)
    assert contents(tmp_path / "second") == contents(first)
    # One image alone, from a folder with another name, in another format.
    alone = tmp_path / "alone"
    (alone / "below").mkdir(parents=True)
    PIL.Image.open(clean / "below" / "a.png").save(alone / "below" / "a.tif")
    write_noisy(alone, tmp_path / "third", parse_specs("mixture:3"), seed=3)
    assert contents(tmp_path / "third")["mixture_3/below/a.png"] == contents(first)["mixture_3/below/a.png"]
    write_noisy(clean, tmp_path / "fourth", specs, seed=4)
    same = [name for name, data in contents(tmp_path / "fourth").items() if contents(first)[name] == data]
    assert not same


def test_images_noises_and_levels_have_noise_of_their_own() -> None:
    grey = np.full((16, 16, 3), 128, dtype=np.uint8)
    drawn = [noisy_copy(grey, name, "gaussian", level, 0) for name in ("a", "b") for level in (1, 2)]
    signs = [np.sign(copy.astype(int) - 128).ravel() for copy in drawn]
    for i, a in enumerate(signs):
        for b in signs[:i]:
            assert abs(np.mean(a * b)) < 0.15


def test_the_manifest_names_and_proves_every_copy(clean: Path, tmp_path: Path) -> None:
    output = tmp_path / "noisy"
    write_noisy(clean, output, parse_specs("poisson:2,mixture:1"), seed=3)
    manifest = json.loads((output / MANIFEST).read_text())
    assert manifest["seed"] == 3
    assert manifest["noises"] == ["mixture:1", "poisson:2"]
    entries = {entry["file"]: entry for entry in manifest["images"]}
    assert len(entries) == 8
    entry = entries["poisson_2/b.png"]
    assert (entry["source"], entry["noise"], entry["level"], entry["strength"]) == ("b.jpg", "poisson", 2, 2.5)
    assert entry["source_sha256"] == hashlib.sha256((clean / "b.jpg").read_bytes()).hexdigest()
    assert entry["sha256"] == hashlib.sha256((output / entry["file"]).read_bytes()).hexdigest()
    with PIL.Image.open(output / "poisson_2" / "grey.png") as image:
        assert image.mode == "L"
        noisy = noisy_copy(picture(seed=9)[..., :1], "grey", "poisson", 2, 3)
        assert np.array_equal(np.asarray(image), noisy[..., 0])
    assert check_noisy(output) == (8, [])


def test_a_strength_of_ones_own(clean: Path, tmp_path: Path) -> None:
    flat = np.full((64, 64, 3), 128, dtype=np.uint8)
    own = noisy_copy(flat, "a", "gaussian", "sigma=25", 0).astype(float)
    assert own.std() == pytest.approx(25, rel=0.03)
    write_noisy(clean, tmp_path / "noisy", parse_specs("gaussian:sigma=25,gaussian:2"))
    entries = json.loads((tmp_path / "noisy" / MANIFEST).read_text())["images"]
    assert {(entry["level"], entry["strength"]) for entry in entries} == {(2, 25.0), ("sigma=25", 25.0)}
    assert (tmp_path / "noisy" / "gaussian_sigma=25" / "a.png").is_file()


def test_check_finds_every_change(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "noisy"
    assert main(["noise", str(clean), "--output", str(output), "--noise", "speckle:1"]) == 0
    assert main(["noise", str(output), "--check"]) == 0
    assert "4 copies as the manifest says, 0 wrong" in capsys.readouterr().out
    folder = output / "speckle_1"
    data = bytearray((folder / "a.png").read_bytes())
    data[-20] ^= 1
    (folder / "a.png").write_bytes(data)
    (folder / "b.png").unlink()
    shutil.copy(folder / "grey.png", folder / "stranger.png")
    assert main(["noise", str(output), "--check"]) == 1
    out, err = capsys.readouterr()
    assert "2 copies as the manifest says, 3 wrong" in out
    for name, words in (("a", "not the bytes"), ("b", "missing"), ("stranger", "not in the manifest")):
        assert re.search(rf"^wrong: .*{name}.png: {words}", err, re.MULTILINE)
    assert main(["noise", str(clean), "--check"]) == 1
    assert "give a folder that `masked-swin noise` has written" in capsys.readouterr().err


def test_nothing_is_overwritten(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "noisy"
    arguments = ["noise", str(clean), "--output", str(output), "--noise", "gaussian:1"]
    assert main(arguments) == 0
    before = contents(output)
    for other in (["--seed", "1"], ["--noise", "gaussian:2"]):
        assert main([*arguments, *other]) == 1
        assert "holds noises gaussian:1 of seed 0; choose another" in capsys.readouterr().err
        assert contents(output) == before
    (output / MANIFEST).unlink()  # as an interrupted run leaves it
    (output / "gaussian_1" / "b.png").unlink()
    assert main(arguments) == 0
    assert contents(output) == before
    (output / "gaussian_1" / "b.png").write_text("something else")
    assert main(arguments) == 1
    assert "b.png: a file of other content is there" in capsys.readouterr().err
    assert (output / "gaussian_1" / "b.png").read_text() == "something else"
    assert main(["noise", str(clean), "--output", str(clean)]) == 1


def test_every_bad_file_is_named_and_the_rest_done(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bad_files(clean)
    write_deep(clean / "deep.png", picture(dtype=np.uint16))
    assert main(["noise", str(clean), "--output", str(tmp_path / "noisy"), "--noise", "gaussian:1"]) == 1
    out, err = capsys.readouterr()
    assert f"5 copies in {tmp_path / 'noisy'}, {len(BAD)} failed" in out
    for name in BAD:
        assert re.search(rf"^failed: .*{name}", err, re.MULTILINE), name
    assert re.search(rf"^skipped: .*{NO_IMAGES[1]}", err, re.MULTILINE)
    assert re.search(r"^note: .*deep.png: 16 bits rounded to 8", err, re.MULTILINE)


def test_files_that_differ_in_their_ending_only_are_refused(clean: Path, tmp_path: Path) -> None:
    (clean / "a.txt").write_text("not an image")
    assert len(write_noisy(clean, tmp_path / "first", parse_specs("gaussian:1")).entries) == 4
    PIL.Image.fromarray(picture()).save(clean / "a.tif")
    with pytest.raises(ValueError, match=r"a\.png and .*a\.tif: files that differ only in their ending"):
        write_noisy(clean, tmp_path / "noisy", parse_specs("gaussian:1"))


@pytest.mark.parametrize("text", ["gausian", "gaussian:5", "gaussian:", "", "all:0", "all:sigma=2", "mixture:sigma=2"])
def test_bad_noises_are_named(text: str, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["noise", str(clean), "--output", str(tmp_path / "noisy"), "--noise", text]) == 1
    assert f"noise {text!r}: expected" in capsys.readouterr().err


def test_specs() -> None:
    assert parse_specs("gaussian:2, mixture") == [("gaussian", 2), *(("mixture", level) for level in (1, 2, 3, 4))]
    assert parse_specs("all:1") == [(noise, 1) for noise in NOISES]
    assert parse_specs("gaussian:sigma=25,speckle:variance=0.1") == [
        ("gaussian", "sigma=25"),
        ("speckle", "variance=0.1"),
    ]
    for wrong in ("gaussian:sigma=", "gaussian:sigma=0", "gaussian:sigma=-1", "gaussian:alpha=2", "poisson:alpha=x"):
        with pytest.raises(ValueError, match=f"noise {wrong}: expected {wrong.partition('=')[0].split(':')[0]}:"):
            parse_specs(wrong)
    assert parse_specs("gaussian:1,gaussian") == [("gaussian", level) for level in (1, 2, 3, 4)]
