"""Progress on a terminal, in a file or a pipe, and switched off."""

import io
from pathlib import Path

import pytest
import torch

from masked_swin import MaskedSwinIR, ModelConfig, save_checkpoint
from masked_swin.train import progress
from masked_swin.train.cli import main
from tests.support.image_files import write_pair

NETWORK = ModelConfig(embed_dim=12, depths=(1,), num_heads=(2,), window_size=4)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, str]:
    """A command line for each command that shows progress, but `demo`, whose progress is that of `train`."""
    images = write_pair(tmp_path / "images")
    torch.manual_seed(0)
    save_checkpoint(MaskedSwinIR(NETWORK), tmp_path / "weights.pth")
    network = "--network.embed_dim 12 --network.depths [1] --network.num_heads [2] --network.window_size 4"
    return {
        "train": f"train --data {images} --patch_size 16 --batch_size 2 --iterations 4 --device cpu "
        f"--output {tmp_path / 'run'} {network}",
        "denoise": f"denoise {images} --output {tmp_path / 'clean'} --model {tmp_path / 'weights.pth'}",
        "noise": f"noise {images} --output {tmp_path / 'noisy'} --noise gaussian:1",
        "evaluate": f"evaluate {images} --noise gaussian:1",
    }


@pytest.mark.parametrize("make_stream", [io.StringIO, Terminal], ids=["pipe", "terminal"])
@pytest.mark.parametrize("name", ["train", "denoise", "noise", "evaluate"])
def test_lines_in_a_pipe_and_a_bar_on_a_terminal(
    name: str, make_stream: type[io.StringIO], commands: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    stream = make_stream()
    monkeypatch.setattr("sys.stderr", stream)
    assert main(commands[name].split()) == 0
    text = stream.getvalue()
    done = "4/4" if name == "train" else "2/2"
    assert done in text
    assert ("\r" in text) == ("|" in text) == stream.isatty()
    if not stream.isatty():
        assert len([line for line in text.splitlines() if done in line]) == 1


def test_a_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress_bar(total=40, description="work", unit="image") as bar:
        for _ in range(40):
            now[0] += 0.5
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "work: 10/40 image [00:05<00:15,  2.00image/s]"
    assert [line.split()[1] for line in lines] == ["10/40", "20/40", "30/40", "40/40", "40/40"][: len(lines)]
    assert len(lines) <= 5


def test_a_bar_that_does_not_stay_leaves_no_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar(total=2, description="work", unit="pass", leave=False) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("make_stream", [io.StringIO, Terminal], ids=["pipe", "terminal"])
def test_tqdm_disable(make_stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make_stream()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with progress.progress_bar(total=2, description="work", unit="image") as bar:
        bar.update(2)
    assert stream.getvalue() == ""
