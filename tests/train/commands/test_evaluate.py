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
from tests.support.image_files import picture

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
