"""Several processes train as one does."""

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from masked_swin import ModelConfig
from masked_swin.train.config import TrainConfig
from masked_swin.train.distributed import OVERLAP_PARAMETERS
from masked_swin.train.loop import Trainer
from tests.support.faults import start_command
from tests.support.image_files import write_pair


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Every random choice of training switched on, the images mapped from a file."""
    images = write_pair(tmp_path / "images")
    return TrainConfig(
        output=str(tmp_path / "one"),
        network=ModelConfig(embed_dim=12, depths=(1, 2), num_heads=(2, 2), window_size=4, drop_path_rate=0.3),
        data=str(images),
        validation_data=str(images),
        validation_size=16,
        patch_size=16,
        batch_size=8,
        iterations=6,
        checkpoint_interval=3,
        validation_interval=3,
        device="cpu",
    )


def torchrun_arguments(config: TrainConfig) -> list[str]:
    path = Path(config.output).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config.as_dict()))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launcher, "-m", "masked_swin.train", "train", "--config", str(path)]


def two_processes(config: TrainConfig, folder: Path, code: int = 0) -> tuple[str, str]:
    """What two processes print that are started as torchrun starts them; the slow tests start torchrun itself."""
    path = Path(config.output).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config.as_dict()))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        start_command(
            ["train", "--config", str(path)],
            folder / f"printed{rank}",
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    for process in processes:
        process.join(120)
    out, err = (
        "".join((folder / f"printed{rank}" / name).read_text() for rank in range(2)) for name in ("stdout", "stderr")
    )
    assert {process.exitcode for process in processes} == {code}, err
    return out, err


def torchrun(config: TrainConfig) -> subprocess.CompletedProcess[str]:
    return subprocess.run(torchrun_arguments(config), capture_output=True, text=True, timeout=200)


def test_two_processes_give_the_weights_of_one_with_the_whole_batch(config: TrainConfig, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    two = dataclasses.replace(config, output=str(tmp_path / "two"), accumulation=2, memory=0)
    out, err = two_processes(two, tmp_path)
    assert out == f"{tmp_path / 'two' / 'weights.pth'}\n"
    assert err.count("finished at step 6, saved") == 1
    assert err.count("mapped from") == 1
    assert not list((tmp_path / "two").glob(".*"))

    assert Trainer(config).run() == "finished"
    states = [torch.load(tmp_path / name / "latest.pt") for name in ("one", "two")]
    for part in ("model", "average"):
        moved = 0.0
        for name, value in states[0][part].items():
            torch.testing.assert_close(states[1][part][name], value, rtol=1e-4, atol=2e-6)
            moved = max(moved, value.abs().max().item())
        assert moved > 1e-2
    assert states[1]["best"]["psnr"] == pytest.approx(states[0]["best"]["psnr"], abs=1e-3)

    # A run of two processes goes on in one, as if it had been one.
    longer = dataclasses.replace(two, iterations=7)
    assert Trainer(longer).run() == "finished"


def test_what_fails_in_the_first_process_is_said_once_without_tracebacks(config: TrainConfig, tmp_path: Path) -> None:
    _, err = two_processes(dataclasses.replace(config, patch_size=400), tmp_path, code=1)
    assert err.count("smaller than 400 x 400") == 2  # both images, in one message
    assert "error: process 1: another process has ended, whose message says why" in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_torchrun_save(config: TrainConfig, number: signal.Signals) -> None:
    long = dataclasses.replace(config, iterations=10**6, checkpoint_interval=10**6)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        torchrun_arguments(long), stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        while not (Path(config.output) / "log.jsonl").exists() and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, number)  # as a terminal does
        _, err = process.communicate(timeout=120)
    saved = re.search(r"(interrupted|terminated) at step (\d+), saved", err)
    assert saved, err
    assert Trainer(long).step == int(saved[2])


@pytest.mark.slow
def test_what_fails_in_one_process_ends_all(config: TrainConfig) -> None:
    done = torchrun(dataclasses.replace(config, batch_size=7))
    assert done.returncode != 0
    assert "batch_size 7: expected a multiple of 2, which is accumulation 1 x 2 processes" in done.stderr


@pytest.mark.parametrize(
    ("system", "options"),
    [
        # More than `distributed.OVERLAP_PARAMETERS`: its gradients are averaged during the backward pass.
        ("ridnet", {"features": 240, "modules": 1}),
        ("restormer", {"features": 8, "blocks": [1, 1, 1, 1], "heads": [1, 1, 2, 4], "refinement": 1}),
    ],
)
def test_two_processes_train_other_systems_as_one_does(
    config: TrainConfig, tmp_path: Path, system: str, options: dict[str, object]
) -> None:
    torch.set_num_threads(1)
    plain = {"network": ModelConfig(), "system": system, "options": options, "iterations": 2, "batch_size": 4}
    one = dataclasses.replace(config, **plain, patch_size=8, noise="gaussian:sigma=5-50", threads=1)
    two = dataclasses.replace(one, output=str(tmp_path / "two"), accumulation=2)
    two_processes(two, tmp_path)
    trainer = Trainer(one)
    assert (sum(value.numel() for value in trainer.model.parameters()) >= OVERLAP_PARAMETERS) == (system == "ridnet")
    trainer.run()
    # Moments are means of the gradients. Adam's steps are not compared: they magnify the rounding of small gradients.
    expected, found = trainer.optimizer.state_dict()["state"], torch.load(tmp_path / "two" / "latest.pt")["optimizer"]
    moved = sum(moments["exp_avg"].square().sum() for moments in expected.values())
    differs = sum(
        (moments["exp_avg"] - found["state"][index]["exp_avg"]).square().sum() for index, moments in expected.items()
    )
    assert moved > 0
    assert differs < 1e-4 * moved


@pytest.mark.slow
def test_processes_agree_on_what_batch_norms_measured(config: TrainConfig, tmp_path: Path) -> None:
    """Each normalises its own share; the statistics that are kept are the mean, and a run goes on exactly."""
    plain = {"network": ModelConfig(), "system": "dncnn", "options": {"features": 4, "depth": 3}, "threads": 1}
    straight = dataclasses.replace(config, **plain, iterations=4, checkpoint_interval=2)
    two_processes(straight, tmp_path)
    halves = dataclasses.replace(straight, output=str(tmp_path / "halves"))
    two_processes(dataclasses.replace(halves, iterations=2), tmp_path)
    two_processes(halves, tmp_path)
    states = [torch.load(Path(run.output) / "latest.pt") for run in (straight, halves)]
    for part in ("model", "average"):
        for name, value in states[0][part].items():
            assert torch.equal(states[1][part][name], value), name
    means = states[0]["model"]["network.noise.3.running_mean"]
    assert means.abs().max() > 0
