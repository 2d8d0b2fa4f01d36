"""evaluate: the numbers of the public test code, for results, noisy folders and added noise."""

import csv
import json
import sys
import types
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from masked_swin import MaskedSwinIR, MaskKey, ModelConfig, save_checkpoint
from masked_swin.train.cli import main
from masked_swin.train.perceptual import WEIGHTS, load_lpips
from masked_swin.train.weights import load_weights
from tests.support.image_files import picture, write_deep

NETWORK = ModelConfig(embed_dim=12, depths=(2,), num_heads=(2,), window_size=4, attention_mask=0.5)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_checkpoint(MaskedSwinIR(NETWORK), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    folder = tmp_path / "clean"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.png")):
        # Smooth, so that structure is left under the noise; one side is a multiple of the window.
        image = PIL.Image.fromarray(picture(6, 8, seed)).resize((37, 32), PIL.Image.Resampling.BICUBIC)
        image.save(folder / name)
    return folder


def scores(folder: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    with open(folder / "images.csv", newline="") as file:
        return {(row["noise"], row["image"], row["kind"]): row for row in csv.DictReader(file)}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(PIL.Image.open(path))


def check(row: dict[str, str], image: np.ndarray, target: np.ndarray) -> None:
    """A row against scikit-image: on the 8-bit images less one pixel, and on their unrounded Y."""
    inner = [array[1:-1, 1:-1] for array in (image, target)]
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    luma = [rgb2ycbcr(array)[..., 0] for array in inner]
    expected = {
        "psnr": peak_signal_noise_ratio(inner[1], inner[0], data_range=255),
        "ssim": structural_similarity(*(array.astype(float) for array in inner), channel_axis=2, **gaussian),
        "psnr_y": peak_signal_noise_ratio(luma[1], luma[0], data_range=255),
        "ssim_y": structural_similarity(*luma, **gaussian),
    }
    for name, value in expected.items():
        assert float(row[name]) == pytest.approx(value, abs=1e-6), name


def test_results_are_scored_as_scikit_image_does(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    for seed, name in enumerate(("a", "b")):
        noise = np.random.default_rng(seed).normal(0, 20, (32, 37, 3))
        noisy = np.clip(pixels(clean / f"{name}.png") + noise, 0, 255).astype(np.uint8)
        PIL.Image.fromarray(noisy).save(results / f"{name}.tif")
    output = tmp_path / "scores"
    assert main(["evaluate", str(clean), "--results", str(results), "--output", str(output)]) == 0
    rows = scores(output)
    assert len(rows) == 2
    for name in ("a", "b"):
        check(rows[str(results), name, "result"], pixels(results / f"{name}.tif"), pixels(clean / f"{name}.png"))
    (summary,) = json.loads((output / "summary.json").read_text())["means"]
    assert summary["images"] == 2
    for name in ("psnr", "ssim_y"):
        assert summary[name] == pytest.approx(np.mean([float(row[name]) for row in rows.values()]))
    assert main(["evaluate", str(clean), "--results", str(results), "--json"]) == 0
    out = capsys.readouterr().out
    printed = json.loads(out[out.index("{") :])
    assert printed["means"][0]["psnr"] == summary["psnr"]
    assert printed["failures"] == []
    line = out[: out.index("{")].splitlines()[-1]
    assert f"{summary['psnr']:.2f}" in line

    assert main(["evaluate", str(clean), "--results", str(clean), "--output", str(tmp_path / "same")]) == 0
    assert scores(tmp_path / "same")[str(clean), "a", "result"]["psnr"] == "inf"
    assert json.loads((tmp_path / "same" / "summary.json").read_text())["means"][0]["psnr"] == "inf"


def test_added_noise_is_that_of_the_noise_command_and_results_those_of_denoise(
    clean: Path, weights: Path, tmp_path: Path
) -> None:
    noisy, denoised = tmp_path / "noisy", tmp_path / "denoised"
    assert main(["noise", str(clean), "--output", str(noisy), "--noise", "speckle:2,mixture:1", "--seed", "5"]) == 0
    network = ["--model", str(weights), "--average", "2", "--seed", "3"]
    added = ["evaluate", str(clean), "--noise", "speckle:2,mixture:1", "--noise-seed", "5", *network]
    assert main([*added, "--output", str(tmp_path / "added")]) == 0
    rows = scores(tmp_path / "added")
    assert len(rows) == 2 * 2 * 2
    for noise, folder in (("speckle:2", noisy / "speckle_2"), ("mixture:1", noisy / "mixture_1")):
        assert main(["denoise", str(folder), "--output", str(denoised / folder.name), *network]) == 0
        for name in ("a", "b"):
            target = pixels(clean / f"{name}.png")
            check(rows[noise, name, "noisy"], pixels(folder / f"{name}.png"), target)
            check(rows[noise, name, "denoised"], pixels(denoised / folder.name / f"{name}.png"), target)
    # The same from the folders.
    folders = [f"{noisy}/speckle_2", f"{noisy}/mixture_1"]
    arguments = ["evaluate", str(clean), "--noisy", *folders, *network, "--output", str(tmp_path / "folders")]
    assert main(arguments) == 0
    again = {row["psnr"] for row in scores(tmp_path / "folders").values()}
    assert again == {row["psnr"] for row in rows.values()}
    settings = json.loads((tmp_path / "folders" / "summary.json").read_text())["settings"]
    assert settings["network"]["seed"] == 3
    assert len(settings["network"]["sha256"]) == 64


def test_the_public_protocol_denoises_as_the_public_code(clean: Path, weights: Path, tmp_path: Path) -> None:
    """One random mask over the image with its padding, rounded to 8 bits."""
    output = tmp_path / "scores"
    arguments = ["evaluate", str(clean), "--noisy", str(clean), "--model", str(weights), "--protocol", "public"]
    assert main([*arguments, "--seed", "4", "--output", str(output)]) == 0
    target = pixels(clean / "a.png")
    padded = np.pad(target, ((0, 36 - 32), (0, 40 - 37), (0, 0)), mode="symmetric")
    x = torch.from_numpy(padded.astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        y = load_weights(str(weights))(x, key=MaskKey.make(4, 0, 1))[0, :, :32, :37]
    restored = (y.permute(1, 2, 0).numpy().clip(0, 1) * 255).round().astype(np.uint8)
    check(scores(output)[str(clean), "a", "denoised"], restored, target)
    assert json.loads((output / "summary.json").read_text())["settings"]["network"]["attention_mask"] == "random"


# Protocols with noises of their own


@pytest.fixture
def image_sets(clean: Path, tmp_path: Path) -> Path:
    """The folder of CBSD68 (two images) and McMaster (one)."""
    (tmp_path / "sets" / "McM").mkdir(parents=True)
    clean.rename(tmp_path / "sets" / "CBSD68")
    image = PIL.Image.fromarray(picture(5, 9, 7)).resize((41, 35), PIL.Image.Resampling.BICUBIC)
    image.save(tmp_path / "sets" / "McM" / "c.tif")
    return tmp_path / "sets"


def set_scores(folder: Path) -> dict[tuple[str, str, str, str], dict[str, str]]:
    with open(folder / "images.csv", newline="") as file:
        return {(row["image_set"], row["noise"], row["image"], row["kind"]): row for row in csv.DictReader(file)}


def test_the_protocol_clip_measures_what_its_script_does(
    image_sets: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mirrored to 32 and one random mask; the clipped, unrounded output on the whole image."""
    output = tmp_path / "scores"
    arguments = ["evaluate", str(image_sets), "--protocol", "clip", "--model", str(weights), "--seed", "4", "--json"]
    assert main([*arguments, "--noise", "gaussian:sigma=50,poisson", "--output", str(output)]) == 0
    rows = set_scores(output)
    assert len(rows) == 3 * 5 * 2
    target = pixels(image_sets / "CBSD68" / "a.png")
    random = np.random.RandomState(0)
    noisy = (target / np.float32(255) + random.normal(0, 50 / 255, target.shape)).astype(np.float32)
    assert noisy.min() < 0, "not clipped"
    assert target.shape == (32, 37, 3)
    x = np.pad(noisy, ((0, 0), (0, 64 - 37), (0, 0)), mode="reflect")
    with torch.no_grad():
        y = load_weights(str(weights))(torch.from_numpy(x).permute(2, 0, 1)[None], key=MaskKey.make(4, 0, 1))
    restored = y[0, :, :32, :37].permute(1, 2, 0).numpy()
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    for kind, image in (("noisy", noisy), ("denoised", restored)):
        row = rows["CBSD68", "gaussian:sigma=50", "a", kind]
        pair = (target.astype(np.float64), image.clip(0, 1).astype(np.float64) * 255)
        assert float(row["psnr"]) == pytest.approx(peak_signal_noise_ratio(*pair, data_range=255), abs=1e-6)
        assert float(row["ssim"]) == pytest.approx(structural_similarity(*pair, channel_axis=2, **gaussian), abs=1e-6)
        assert row["psnr_y"] == row["lpips"] == ""

    out, err = capsys.readouterr()
    assert "note: protocol clip skips Kodak24, Urban100: no such folder was given" in err
    assert "LPIPS" not in err
    printed = json.loads(out)
    assert (printed["image_sets"], printed["skipped_sets"]) == (["CBSD68", "McMaster"], ["Kodak24", "Urban100"])
    first, single = (
        next(row for row in printed["means"] if row["image_set"] == name) for name in ("CBSD68", "McMaster")
    )
    values = [float(rows["CBSD68", "gaussian:sigma=50", name, "noisy"]["psnr"]) for name in ("a", "b")]
    assert first["psnr"] == pytest.approx(np.mean(values))
    assert first["psnr_std"] == pytest.approx(abs(values[0] - values[1]) / np.sqrt(2))
    assert single["images"] == 1
    assert single["psnr_std"] is None
    settings = json.loads((output / "summary.json").read_text())["settings"]
    assert (settings["protocol"], settings["noise_seed"]) == ("clip", 0)
    assert settings["network"]["attention_mask"] == "random"
    assert settings["skipped_sets"] == ["Kodak24", "Urban100"]


def test_the_protocol_paper_is_public_with_its_own_noises(image_sets: Path, weights: Path, tmp_path: Path) -> None:
    network = ["--model", str(weights), "--seed", "4", "--output"]
    chosen = ["--noise", "gaussian:1,monte_carlo:4,camera"]
    folder = image_sets / "CBSD68"
    assert main(["evaluate", str(folder), "--protocol", "paper", *chosen, *network, str(tmp_path / "paper")]) == 0
    assert main(["evaluate", str(folder), "--protocol", "public", *chosen, *network, str(tmp_path / "public")]) == 0
    paper, public = set_scores(tmp_path / "paper"), scores(tmp_path / "public")
    assert len(paper) == 2 * 6 * 2
    for (name, *key), row in paper.items():
        assert name == "CBSD68"
        assert {**row, "image_set": ""} == public[tuple(key)]


def test_the_table_of_a_protocol(image_sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(image_sets), "--protocol", "clip"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["set", "noise", "images", "psnr", "ssim"]
    assert len(lines) == 1 + 2 * 11
    assert [line.split()[:4] for line in (lines[1], lines[12])] == [
        ["CBSD68", "gaussian:sigma=15", "noisy", "2"],
        ["McMaster", "gaussian:sigma=15", "noisy", "1"],
    ]
    assert lines[1].count(" ± ") == 2
    assert " ± " not in lines[12]


def test_a_folder_of_ones_own_is_a_set_that_is_no_published_one(
    clean: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(clean), "--protocol", "paper", "--noise", "speckle:1"]) == 0
    out, err = capsys.readouterr()
    assert f"note: {clean}: no image set of protocol paper" in err
    assert out.splitlines()[1].split()[:4] == [str(clean), "speckle:1", "noisy", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--results", "{clean}"], "protocol clip makes its own noisy images: leave out --results and --noisy"),
        (["--noise-seed", "1"], "protocol clip has noise of seed 0: leave out --noise-seed"),
        (["--tile", "64"], "protocol clip gives whole images to the network: leave out --tile and --overlap"),
        (["--noise", "gausian"], "noise 'gausian': protocol clip has gaussian:sigma=15|"),
        (["--protocol", "clipp"], "protocol: expected one of default, public, paper, clip, got clipp"),
        (["--protocol", "public"], "nothing to score"),
        (["{clean}", "--protocol", "public", "--noise", "speckle"], "expected one folder of clean images, got 2; "),
    ],
)
def test_what_does_not_go_with_a_protocol(
    arguments: list[str], message: str, clean: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.format(clean=clean) for argument in arguments]
    protocol = [] if "--protocol" in arguments else ["--protocol", "clip"]
    assert main(["evaluate", str(clean), *filled, *protocol]) != 0
    assert message in capsys.readouterr().err


def test_clip_names_what_the_8_bit_colour_images_of_its_script_are_not(
    clean: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PIL.Image.open(clean / "a.png").convert("L").save(clean / "a.png")
    write_deep(clean / "b.png", picture(20, 20, dtype=np.uint16))
    PIL.Image.fromarray(picture(8, 9)).save(clean / "c.png")
    assert main(["evaluate", str(clean), "--protocol", "clip", "--noise", "gaussian"]) == 1
    out, err = capsys.readouterr()
    assert "a.png: grey, read as three equal channels" in err
    assert "b.png: 16 bits rounded to 8" in err
    assert err.count("c.png: 9 x 8 pixels; SSIM needs 11 x 11") == 1
    assert "noisy       2" in out


def test_a_damaged_network_has_no_score(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = MaskedSwinIR(NETWORK)
    torch.nn.init.constant_(network.conv_last.bias, float("nan"))
    save_checkpoint(network, tmp_path / "damaged.pth")
    arguments = ["evaluate", str(clean), "--protocol", "clip", "--noise", "poisson:alpha=2", "--model"]
    assert main([*arguments, str(tmp_path / "damaged.pth")]) == 1
    out, err = capsys.readouterr()
    assert "a, poisson:alpha=2, denoised: the network's output is not finite; the checkpoint is damaged" in err
    assert "denoised" not in out


def test_grey_images_are_scored(clean: Path, weights: Path, tmp_path: Path) -> None:
    for path in clean.iterdir():
        PIL.Image.open(path).convert("L").save(path)
    arguments = ["evaluate", str(clean), "--noise", "gaussian:1", "--output", str(tmp_path / "scores")]
    assert main([*arguments, "--model", str(weights)]) == 0
    assert len(scores(tmp_path / "scores")) == 4


def test_what_has_no_score_is_named(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    results.mkdir()
    PIL.Image.fromarray(picture(20, 20)).save(results / "a.png")
    PIL.Image.fromarray(picture(20, 20)).save(results / "stranger.png")
    assert main(["evaluate", str(clean), "--results", str(results)]) == 1
    err = capsys.readouterr().err
    assert "a.png: of another size than" in err
    assert "(20 x 20 and 37 x 32)" in err
    assert f"b.png: no image b in {results}" in err
    assert "note: no clean image for" in err
    PIL.Image.open(clean / "b.png").convert("L").save(results / "b.tif")
    main(["evaluate", str(clean), "--results", str(results)])
    assert f"note: {results / 'b.tif'}: grey, compared with {clean / 'b.png'} in colour" in capsys.readouterr().err
    PIL.Image.fromarray(picture(8, 9)).save(results / "a.png")
    PIL.Image.fromarray(picture(8, 9)).save(clean / "a.png")
    assert main(["evaluate", str(clean), "--results", str(results)]) == 1
    assert "SSIM needs at least 11 x 11 pixels" in capsys.readouterr().err


def test_wrong_combinations_and_existing_outputs(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(clean)]) == 2
    assert "give --results, --noisy or --noise" in capsys.readouterr().err
    assert main(["evaluate", str(clean), "--results", str(clean), "--noise", "gaussian"]) == 2
    assert "leave out --noisy, --noise and --model" in capsys.readouterr().err
    arguments = ["evaluate", str(clean), "--results", str(clean), "--output", str(tmp_path / "scores")]
    assert main(arguments) == 0
    assert main(arguments) == 1
    assert "images.csv is there; choose another output folder, or give --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert main(["evaluate", str(tmp_path / "nowhere"), "--results", str(clean)]) == 1
    assert "nowhere: no such file or folder" in capsys.readouterr().err


# LPIPS


@pytest.fixture
def stub_lpips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package `lpips` whose distance is the weighted difference of the channels; returns where weights belong."""

    class Stub(torch.nn.Module):
        def __init__(self, *, net: str, verbose: bool) -> None:
            super().__init__()
            assert net == "alex"

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            assert a.shape == b.shape == (1, 3, 32, 37)
            assert -1 <= a.min() < 0 < a.max() <= 1
            return ((a - b).abs().mean((0, 2, 3)) * torch.tensor([1.0, 10.0, 100.0])).sum()

    package = types.ModuleType("lpips")
    package.LPIPS = Stub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / WEIGHTS


def test_lpips_says_what_is_missing(stub_lpips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_lpips().distance is None
    assert WEIGHTS in str(load_lpips().why_not)
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert "the package lpips is missing" in str(load_lpips().why_not)


def test_lpips_where_it_is_there(
    stub_lpips: Path, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_lpips.touch()
    results = tmp_path / "results"
    results.mkdir()
    for name in ("a", "b"):
        image = pixels(clean / f"{name}.png").copy()
        image[..., 0] ^= 16  # red only
        PIL.Image.fromarray(image).save(results / f"{name}.png")
    arguments = ["evaluate", str(clean), "--results", str(results), "--output"]
    assert main([*arguments, str(tmp_path / "default")]) == 0
    assert "lpips" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "public"), "--protocol", "public"]) == 0
    distances = [float(scores(tmp_path / name)[str(results), "a", "result"]["lpips"]) for name in ("default", "public")]
    assert distances[0] == pytest.approx(16 / 127.5, rel=1e-4)
    assert distances[1] == pytest.approx(100 * 16 / 127.5, rel=1e-4), "the public code's order is BGR"
