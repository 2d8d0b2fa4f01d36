"""docs/training.md: every command and every example runs, on small images and for few steps."""

import re
import shlex
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from masked_swin import PRESETS
from masked_swin.train.cli import main
from masked_swin.train.config import TrainConfig
from masked_swin.train.systems import SWIN_SYSTEMS, SYSTEMS, network_of_run
from tests.support.image_files import picture

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
# Appended to each `train`; later flags win.
FEW = [
    *("--iterations", "2", "--validation-interval", "1", "--milestones", "[]", "--device", "cpu", "--threads", "1"),
    *("--patch-size", "16", "--batch-size", "2", "--validation-size", "16"),
]

SMALLER = {
    "ridnet": ["--options", "{features: 8, modules: 1}"],
    "restormer": ["--options", "{features: 8, heads: [1, 1, 2, 4]}"],
    "small": ["--network.embed_dim", "12", "--network.depths", "[1]", "--network.num_heads", "[2]"],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line.removeprefix("PYTHONPATH=. ").removeprefix("masked-swin ")) for line in lines]


def test_every_command_and_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    folders = "photographs held_out tests noisy camera/clean camera/noisy camera_held_out/clean camera_held_out/noisy"
    for folder in folders.split():
        (tmp_path / folder).mkdir(parents=True)
        for seed, name in enumerate(("a.png", "b.png")):
            noise = 3 if "noisy" in folder else 0
            pixels = np.clip(picture(20, 24, seed=seed).astype(int) + noise, 0, 255).astype(np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / folder / name)
    own_class, example = blocks("python")
    (tmp_path / "my_networks.py").write_text(own_class)
    assert len(commands()) >= 7
    for command in commands():
        if command[0] == "train":
            for word, more in SMALLER.items():
                command += more if word in command else []
            command += FEW
        assert main(command) == 0, command
    exec(example, {})
    for name in ("gaussian", "swinir"):
        assert (tmp_path / "runs" / name / "curves.svg").exists()
    assert len(list((tmp_path / "clean_plain").glob("*.png"))) == 2


def count_parameters(system: str, size: str) -> int:
    fields = {"network": PRESETS[size]} if system in SWIN_SYSTEMS else {}
    with torch.device("meta"):
        model = network_of_run(TrainConfig(system=system, preset=size, **fields))
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_table_has_every_system_with_its_parameters() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (published|tiny) \| ([\d,]+) \|", PAGE, re.MULTILINE)
    found = {(system, size): int(count.replace(",", "")) for system, size, count in rows}
    assert found == {
        (system, size): count_parameters(system, size)
        for system in (*SWIN_SYSTEMS, *SYSTEMS)
        for size in ("published", "tiny")
    }
