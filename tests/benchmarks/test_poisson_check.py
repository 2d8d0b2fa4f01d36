"""The check of published Poisson noise accepts the formula, and refuses another strength, rounding or correlation."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from benchmarks.tools.poisson_check import Check, check, main
from masked_swin.train.data import to_uint8
from masked_swin.train.data.degradations import poisson
from tests.support.image_files import picture

CLEAN = picture(120, 140)


def noisy(alpha: float = 2.0) -> np.ndarray:
    return to_uint8(poisson(CLEAN.astype(np.float32) / 255, alpha, np.random.default_rng(1)))


def fits(one: Check) -> bool:
    return one.lattice == 1 and abs(one.z) < 3 and abs(one.neighbours) < 0.02 and abs(one.channels) < 0.02


def test_the_formula_fits() -> None:
    one = check(CLEAN, noisy(), 2.0)
    assert fits(one)
    assert one.chance < 0.55
    assert one.psnr == pytest.approx(one.expected_psnr, abs=0.1)
    measured, expected, count = one.squares
    assert count.sum() == CLEAN.size
    assert measured / expected == pytest.approx(np.ones(8), abs=0.1)


def test_other_noise_does_not() -> None:
    assert check(CLEAN, noisy(2.1), 2.0).z > 3
    assert check(CLEAN, noisy() ^ 1, 2.0).lattice < 0.6
    rows = CLEAN.copy()
    rows[:, 1::2] = rows[:, ::2]
    doubled = to_uint8(poisson(rows.astype(np.float32) / 255, 2.0, np.random.default_rng(1)))
    doubled[:, 1::2] = doubled[:, ::2]
    assert check(rows, doubled, 2.0).neighbours > 0.2
    flat = np.repeat(CLEAN[..., :1], 3, axis=2)
    common = np.repeat(noisy()[..., :1], 3, axis=2)
    assert check(flat, common, 2.0).channels > 0.9


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, pixels in (("clean", CLEAN), ("noisy", noisy())):
        (tmp_path / name).mkdir()
        PIL.Image.fromarray(pixels).save(tmp_path / name / "a.png")
    monkeypatch.setattr("sys.argv", ["poisson_check", str(tmp_path / "clean"), str(tmp_path / "noisy")])
    main()
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[:3] == ["a", "256", "1.00000"]
    assert "z over 1 images" in out
    (tmp_path / "noisy" / "a.png").rename(tmp_path / "noisy" / "b.png")
    with pytest.raises(SystemExit):
        main()
    assert "images without a partner: a, b" in capsys.readouterr().err
