"""demo: a complete report, and an error where training did not help."""

import re
from pathlib import Path

import pytest

from masked_swin.train.cli import main
from masked_swin.train.commands import demo
from masked_swin.train.commands.report import NOISE_TITLES
from masked_swin.train.data import NOISES


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"embed_dim": 12, "depths": (1,), "num_heads": (2,)}
    for name in ("UNMASKED", "MASKED"):
        monkeypatch.setattr(demo, name, demo.dataclasses.replace(getattr(demo, name), **small))
    monkeypatch.setattr(demo, "CROP_SIZE", 32)
    monkeypatch.setattr(demo, "UNSEEN", (("mixture", 2), ("mixture", 4)))


@pytest.mark.usefixtures("small_demo")
def test_demo_writes_a_complete_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "REQUIRED_GAIN", -100.0)
    output = tmp_path / "demo"
    for _ in range(2):  # a second run starts anew in the same folder
        assert main(["demo", "--output", str(output), "--steps", "3", "--threads", "1"]) == 0
        out, err = capsys.readouterr()
        assert out.splitlines()[-1] == str(output / "report.html")
        assert "\r" not in err, "lines, where stderr is no terminal"
    page = (output / "report.html").read_text()
    shown = set(re.findall(r'src="([^"]+)"', page))
    assert len(shown) == 2 + 2 * 2 * 3 + 2 * 2  # clean; noisy and two results for each noise; mask-and-complete
    assert all((output / path).is_file() for path in shown)
    assert page.count("in domain</span>") == 3
    assert "the unmasked twin" in page
    assert "--steps 3" in page
    assert (output / "masked" / "weights.pth").is_file()


@pytest.mark.usefixtures("small_demo")
def test_demo_fails_where_training_did_not_help(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "demo"
    assert main(["demo", "--output", str(output), "--seconds", "0.1"]) == 1
    assert re.search(r"error: the unmasked network gains -\d+\.\d\d dB .* at least 2\.0 dB", capsys.readouterr().err)
    assert (output / "report.html").is_file()


def test_every_noise_has_a_title_in_the_report():
    assert set(NOISE_TITLES) == set(NOISES)
