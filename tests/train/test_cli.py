"""The command line: exit codes, messages, and files that keep their names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from masked_swin import PRESETS, MaskedSwinIR, ModelConfig, __version__, kernels, load_checkpoint, save_checkpoint
from masked_swin.train.arguments import parse_config
from masked_swin.train.cli import main

NETWORK = ModelConfig(embed_dim=12, depths=(1,), num_heads=(2,), window_size=4, attention_mask=0.5)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    save_checkpoint(MaskedSwinIR(NETWORK), path)
    return path


def usage_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a run that leaves with exit code 2."""
    try:
        code = main(arguments)
    except SystemExit as leaving:
        code = leaving.code
    assert code == 2
    return capsys.readouterr().err


# train


def train_arguments(tmp_path: Path, photos: Path) -> list[str]:
    config = {
        "preset": "tiny",
        "network": {"embed_dim": 12, "depths": [1], "num_heads": [2], "window_size": 4},
        "data": str(photos),
        "patch_size": 16,
        "batch_size": 2,
        "iterations": 3,
        "device": "cpu",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return ["train", "--config", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "run")]


def test_train_resumes_and_says_where_the_weights_are(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = train_arguments(tmp_path, photos)
    # Flags win over the file, dashes stand for underscores, and the preset is only where the network starts from.
    assert main([*arguments, "--network.attention-mask", "0.25", "--batch-size=3"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "run" / "weights.pth")
    assert "finished at step 3" in err
    network = load_checkpoint(tmp_path / "run" / "weights.pth").config
    assert network.attention_mask == 0.25
    assert network.embed_dim == 12
    assert network.window_size == 4
    assert network.mlp_ratio == PRESETS["tiny"].mlp_ratio

    saved = tmp_path / "run" / "config.yaml"
    assert yaml.safe_load(saved.read_text())["batch_size"] == 3
    assert main(["train", "--config", str(saved), "--iterations", "5"]) == 0
    assert "resuming" in (err := capsys.readouterr().err)
    assert "finished at step 5" in err


def test_preset_gives_the_network(tmp_path: Path, photos: Path) -> None:
    arguments = train_arguments(tmp_path, photos)
    config = yaml.safe_load((tmp_path / "run.yaml").read_text()) | {"network": {}, "iterations": 1, "preset": "small"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert main([*arguments, "--preset=tiny"]) == 0
    assert load_checkpoint(tmp_path / "run" / "weights.pth").config == PRESETS["tiny"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lerning-rate", "1"], "--lerning_rate 1; did you mean learning_rate?"),
        (["--network.embed_dims", "3"], "did you mean network.embed_dim?"),
        (["--xyz", "3"], "unrecognized arguments: --xyz 3\n"),
        (["--batch_size", "many"], "batch_size"),
        (["--batch_size", "0"], "batch_size: expected at least 1, got 0"),
        (["--preset", "huge"], "unknown preset 'huge': expected one of published"),
        (["--network.embed_dim", "31", "--network.num_heads", "[2,2,2,2]"], "num_heads must divide embed_dim 31"),
        (["--schedule", "linear"], "schedule"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_training_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in usage_error(capsys, "train", *arguments)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("learning_rat: 1", "'learning_rat'; did you mean learning_rate?"),
        ("network:\n  depth: [3]", "'network.depth'; did you mean network.depths?"),
        ("[1, 2]", "[1, 2]"),
        ("", "the configuration file holds nothing; expected fields, such as `preset: tiny`"),
        ("network: 5", "network: expected fields, such as `embed_dim: 60`, got 5"),
    ],
)
def test_unknown_configuration_keys_are_named(
    text: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    for more in ([], ["--print_config"]):
        assert key in usage_error(capsys, "train", "--config", str(tmp_path / "bad.yaml"), *more)


def test_failing_training_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", f"{tmp_path}/nowhere", "--output", str(tmp_path / "run")]) == 1
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["published", "baseline", "tiny"])
def test_committed_configurations_are_valid(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "configs" / f"{name}.yaml"
    with pytest.raises(SystemExit) as leaving:
        main(["train", "--config", str(path), "--print_config"])
    assert leaving.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["preset"] == {"published": "published", "baseline": "swinir", "tiny": "tiny"}[name]
    assert printed["network"]["embed_dim"] == PRESETS[printed["preset"]].embed_dim


def test_what_print_config_writes_is_what_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--preset", "tiny", "--print_config"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert parse_config(["--config", str(tmp_path / "printed.yaml")]).network == PRESETS["tiny"]


def test_leaves_quietly_when_the_reader_of_a_pipe_left() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "masked_swin", "doctor"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=240)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


# denoise: the files are in test_denoising.py


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tiny", "'tiny' is a preset, an architecture without weights"),
        ("nowhere.pth", "nowhere.pth': no such checkpoint file"),
        ("{photos}/colour.png", "colour.png"),
    ],
)
def test_denoise_needs_a_checkpoint(
    model: str, message: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = model.format(photos=photos)
    assert main(["denoise", str(photos), "--output", str(tmp_path / "results"), "--model", name]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--average", "0"], ["--attention-mask", "most"], ["--seed", "-1"], ["--unknown", "1"]],
    ids=lambda arguments: arguments[0],
)
def test_bad_denoise_arguments_are_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = usage_error(capsys, "denoise", "photos", "--output", "results", "--model", "weights.pth", *arguments)
    assert arguments[0].strip("-").replace("-", "_") in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --batch-size many", "batch_size: expected a whole number, got many"),
        ("train --threads x", "threads: expected a whole number or null, got x"),
        ("train --schedule linear", "schedule: expected one of milestones, cosine, got linear"),
        ("train --network.num_heads x", "network.num_heads: expected a list, got x"),
        ("denoise a --output b --model c --average 0", "average: expected a whole number above 0, got 0"),
        ("denoise a --output b --model c --seed -1", "seed: expected a whole number, at least 0, got -1"),
        ("denoise a --output b", "missing: model"),
        ("denoise a --output b --model c --tiel 64", "unrecognized arguments: --tiel 64; did you mean tile?\n"),
        ("denois", "unknown command 'denois'; expected one of 'train', "),
        ("", "no command given; expected one of train, "),
    ],
)
def test_messages_are_plain(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = usage_error(capsys, *arguments.split()).splitlines(keepends=True)
    assert lines[0].startswith(f"error: {message}")
    assert lines[1].startswith("try: masked-swin")
    assert len(lines) == 2


def test_operands_keep_their_dashes(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--output", str(tmp_path / "results"), "--model", str(weights)]
    assert main(["denoise", *flags, "--", "--my-photo.png", "-q"]) == 1
    assert "--my-photo.png: no such file" in capsys.readouterr().err


def test_missing_kernels_are_said(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = kernels.CPU_LIBRARY._replace(why_not="built without them")
    monkeypatch.setattr(kernels, "CPU_LIBRARY", missing)
    assert main(["denoise", str(photos), "--output", str(tmp_path / "results"), "--model", str(weights)]) == 0
    assert capsys.readouterr().err.count("without the C++ kernels: built without them\n") == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["--version"])
    assert leaving.value.code == 0
    assert capsys.readouterr().out.strip() == f"masked-swin {__version__}"


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "denoise" in usage_error(capsys)


def test_help_names_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"start from: {', '.join(list(PRESETS)[:-1])} or {list(PRESETS)[-1]}" in text
