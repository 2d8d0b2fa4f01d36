"""Option files of the public code as configurations of ours."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from masked_swin import PRESETS
from masked_swin.train.cli import main
from masked_swin.train.config import TrainConfig


def public_options() -> dict[str, Any]:
    """The values of the released masked network, spelled as in its option file."""
    return {
        "task": "input_80_90",
        "model": "plain",
        "gpu_ids": [0, 1],
        "dist": False,
        "scale": 1,
        "n_channels": 3,
        "path": {"root": "masked_denoising", "pretrained_netG": None, "pretrained_netE": None},
        "datasets": {
            "train": {
                "name": "train_dataset",
                "dataset_type": "masked_denoising",
                "dataroot_H": "http://photos/train",
                "dataroot_L": None,
                "H_size": 48,
                "lq_patchsize": 48,
                "dataloader_shuffle": True,
                "dataloader_num_workers": 16,
                "dataloader_batch_size": 32,
                "noise_level": 25,
                "if_mask": True,
                "mask1": 80,
                "mask2": 90,
            },
            "test": {"name": "t", "dataset_type": "plain", "dataroot_H": "testset/HR", "dataroot_L": "testset/noisy"},
        },
        "netG": {
            "net_type": "swinir",
            "upscale": 1,
            "in_chans": 3,
            "img_size": 64,
            "window_size": 8,
            "img_range": 1.0,
            "depths": [6, 6, 6, 6],
            "embed_dim": 60,
            "num_heads": [6, 6, 6, 6],
            "mlp_ratio": 2,
            "upsampler": None,
            "resi_connection": "3conv",
            "init_type": "default",
            "talking_heads": False,
            "attn_fn": "softmax",
            "head_scale": False,
            "on_attn": False,
            "use_mask": True,
            "mask_ratio1": 75,
            "mask_ratio2": 75,
            "mask_is_diff": False,
            "type": "stand",
        },
        "train": {
            "manual_seed": 1,
            "G_lossfn_type": "l1",
            "G_lossfn_weight": 1.0,
            "E_decay": 0.99,
            "G_optimizer_type": "adam",
            "G_optimizer_lr": 2e-4,
            "G_optimizer_wd": 0,
            "G_optimizer_clipgrad": None,
            "G_optimizer_reuse": True,
            "G_scheduler_type": "MultiStepLR",
            "G_scheduler_milestones": [1000, 2000],
            "G_scheduler_gamma": 0.5,
            "G_regularizer_orthstep": None,
            "G_regularizer_clipstep": None,
            "G_param_strict": True,
            "E_param_strict": True,
            "checkpoint_test": 5000,
            "checkpoint_save": 4000,
            "checkpoint_print": 200,
            "save_image": ["img_043_x1"],
        },
    }


def written(tmp_path: Path, options: dict[str, Any]) -> str:
    lines = json.dumps(options, indent=1).splitlines()
    path = tmp_path / "options.json"
    path.write_text("\n".join(f'{line}  // "remark" {number}' for number, line in enumerate(lines)))
    return str(path)


def test_options_become_a_configuration_that_train_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run.yaml"
    assert main(["import-options", written(tmp_path, public_options()), "--output", str(output)]) == 0
    out, err = capsys.readouterr()
    assert out == f"masked-swin train --config {output}\n"
    assert "unknown" not in err
    with pytest.raises(SystemExit) as leaving:
        main(["train", "--config", str(output), "--print_config"])
    assert leaving.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    expected = TrainConfig(
        output="runs/input_80_90",
        network=dataclasses.replace(PRESETS["published"], attention_mask=(0.75, 0.75)),
        data="http://photos/train",  # "//" in a string is no comment
        validation_data="testset/HR",
        patch_size=48,
        batch_size=32,
        sigma=25,
        seed=1,
        learning_rate=2e-4,
        ema_decay=0.99,
        milestones=(1000, 2000),
        validation_interval=5000,
        checkpoint_interval=4000,
        log_interval=200,
    )
    assert config == expected.as_dict() | {"data": "http://photos/train", "validation_data": "testset/HR"}
    assert main(["import-options", written(tmp_path, public_options()), "--output", str(output)]) == 1
    assert "exists" in capsys.readouterr().err  # nothing is overwritten


def test_the_baseline_has_no_masks_and_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = public_options()
    options["datasets"]["train"]["if_mask"] = options["netG"]["use_mask"] = False
    options["netG"]["depths"] = options["netG"]["num_heads"] = [6, 6]
    options["train"]["G_optimizer_clipgrad"] = 0.5
    assert main(["import-options", written(tmp_path, options)]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["network"] == {"depths": [6, 6], "num_heads": [6, 6], "input_mask": None, "attention_mask": None}
    assert config["gradient_clip"] == 0.5


def test_unknown_keys_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = public_options()
    options["netG"]["entmax"] = True
    options["train"]["G_warmup"] = 5
    assert main(["import-options", written(tmp_path, options)]) == 0
    err = capsys.readouterr().err
    assert "unknown option netG.entmax" in err
    assert "unknown option train.G_warmup" in err
    assert err.count("unknown option") == 2


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("train", "G_lossfn_type", "ssim", "option train.G_lossfn_type is 'ssim', only 'l1' is supported"),
        ("train", "G_scheduler_gamma", 0.1, "option train.G_scheduler_gamma is 0.1, only 0.5"),
        ("train", "G_scheduler_milestones", [5, 3], "milestones: expected increasing"),
        ("netG", "upscale", 2, "upscale=2 is not supported"),
        ("netG", "window_size", "8", "window_size must be a whole number"),
    ],
)
def test_another_training_is_refused(part, key, value, message, tmp_path, capsys) -> None:
    options = public_options()
    options[part][key] = value
    assert main(["import-options", written(tmp_path, options)]) == 1
    assert f"options.json: {message}" in capsys.readouterr().err.replace("public option ", "")


@pytest.mark.parametrize(("text", "message"), [("{", "not a JSON option file"), ("[]", "expected an option file")])
def test_other_files_are_refused(text: str, message: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "odd.json").write_text(text)
    assert main(["import-options", str(tmp_path / "odd.json")]) == 1
    assert f"odd.json: {message}" in capsys.readouterr().err
    assert main(["import-options", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err
