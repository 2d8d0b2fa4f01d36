"""What lies in the folder of a run survives kills, full disks, damage and second runs."""

import dataclasses
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from masked_swin import ModelConfig, load_checkpoint
from masked_swin.train.config import TrainConfig
from masked_swin.train.loop import Trainer
from masked_swin.train.run_folder import PREVIOUS_FILE, STATE_FILE, RunFolder
from tests.support.faults import file_size_limit, start_command, start_training
from tests.support.image_files import write_pair

NETWORK = ModelConfig(embed_dim=12, depths=(1, 1), num_heads=(2, 2), window_size=4, drop_path_rate=0.3)
FILES = {"run.lock", "config.yaml", "log.jsonl", "latest.pt", "previous.pt", "weights.pth", "best.pth"}


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """A tiny run on two small images, every random choice of training switched on."""
    images = write_pair(tmp_path / "images")
    return TrainConfig(
        output=str(tmp_path / "run"),
        network=NETWORK,
        data=str(images),
        validation_data=str(images),
        validation_size=16,
        patch_size=16,
        batch_size=2,
        iterations=12,
        learning_rate=1e-3,
        milestones=(4, 8),
        checkpoint_interval=2,
        validation_interval=3,
        log_interval=1,
        device="cpu",
        threads=1,  # in processes of their own, too: bits are the same for the same number of threads
    )


@pytest.fixture
def finished(config: TrainConfig, tmp_path: Path) -> Path:
    """The folder of the same run, never interrupted."""
    folder = tmp_path / "uninterrupted"
    assert Trainer(dataclasses.replace(config, output=str(folder))).run() == "finished"
    return folder


def assert_same_run(folder: Path, expected: Path) -> None:
    """Bit for bit: weights, average, moments, best; the log has each step once."""
    states = [torch.load(path / STATE_FILE) for path in (folder, expected)]
    leaves = [flat(state) for state in states]
    assert leaves[0].keys() == leaves[1].keys()
    for name, value in leaves[0].items():
        if not name.startswith("config.output"):
            same = torch.equal(value, leaves[1][name]) if isinstance(value, Tensor) else value == leaves[1][name]
            assert same, name
    for name in ("weights.pth", "best.pth"):
        weights = [load_checkpoint(path / name).state_dict() for path in (folder, expected)]
        assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    lines = [
        [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()] for path in (folder, expected)
    ]
    timed = ("patches_per_second", "loading_share")
    untimed = [[{k: v for k, v in line.items() if k not in timed} for line in log] for log in lines]
    assert untimed[0] == untimed[1]
    assert {path.name for path in folder.iterdir()} == FILES


def logged(folder: Path) -> list[dict[str, float]]:
    """The lines of the log without what a clock says."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "second" not in key and "share" not in key} for line in lines]


def flat(value: object, name: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {name: value}
    return {path: leaf for key, item in value.items() for path, leaf in flat(item, f"{name}.{key}".strip(".")).items()}


# Kills


def test_kill_9_at_bad_moments_loses_nothing(config: TrainConfig, finished: Path) -> None:
    moments = [
        ("step", 5),
        ("fsync", 2),  # a file half done
        ("link", 1),  # the new state complete, under another name
        ("replace", 6),
    ]
    for moment in moments:
        process = start_training(config, kill_at=moment)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, moment
    assert Trainer(config).run() == "finished"
    assert_same_run(Path(config.output), finished)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kill_9_at_20_random_moments_loses_nothing(config: TrainConfig, tmp_path: Path) -> None:
    longer = dataclasses.replace(config, iterations=300, checkpoint_interval=1, validation_interval=7)
    expected = dataclasses.replace(longer, output=str(tmp_path / "uninterrupted"))
    assert Trainer(expected).run() == "finished"
    generator, state, reached = random.Random(0), Path(longer.output) / STATE_FILE, [0]
    for _ in range(20):
        before = state.stat().st_ino if state.exists() else 0
        process = start_training(longer)
        while process.is_alive() and (not state.exists() or state.stat().st_ino == before):
            time.sleep(0.001)
        process.join(generator.uniform(0, 0.2))
        process.kill()
        process.join()
        loaded = RunFolder(Path(longer.output)).load()
        assert loaded is not None
        reached.append(loaded[0]["step"])
    assert all(later > earlier for earlier, later in itertools.pairwise(reached)), "each attempt went on, none ended"
    assert reached[-1] < 300
    assert Trainer(longer).run() == "finished"
    assert_same_run(Path(longer.output), Path(expected.output))


def arguments(config: TrainConfig, **changes: object) -> list[str]:
    path = Path(config.output).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config.as_dict() | changes))
    return ["train", "--config", str(path)]


@pytest.mark.parametrize(("number", "code", "ending"), [(2, 130, "interrupted"), (15, 143, "terminated")])
def test_signals_save_before_leaving_and_the_folder_is_locked(
    number: int, code: int, ending: str, config: TrainConfig, tmp_path: Path
) -> None:
    folder = Path(config.output)
    long = dataclasses.replace(config, iterations=10**6, checkpoint_interval=10**6, milestones=())
    process = start_command(arguments(long), tmp_path / "printed")
    while not (folder / "log.jsonl").exists() and process.is_alive():
        time.sleep(0.02)
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(ValueError, match=rf"in use by process {process.pid} on .*; stop that run, or choose an"):
        Trainer(long)
    assert {path.name for path in folder.iterdir()} >= before
    os.kill(process.pid or 0, number)
    process.join(60)
    out, err = ((tmp_path / "printed" / name).read_text() for name in ("stdout", "stderr"))
    assert process.exitcode == code
    saved = re.search(rf"{ending} at step (\d+), saved; the same command goes on from there\n$", err)
    assert saved, err
    assert "Traceback" not in err
    assert out == f"{folder / 'weights.pth'}\n"

    step = int(saved[1])
    resumed = Trainer(dataclasses.replace(long, iterations=step + 1))
    assert resumed.step == step
    straight = Trainer(dataclasses.replace(long, iterations=step + 1, output=str(tmp_path / "straight")))
    assert resumed.run() == straight.run() == "finished"
    for a, b in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_ctrl_c_during_imports_leaves_quietly(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for arguments in (["train"], ["doctor"]):
        done = subprocess.run(
            [sys.executable, "-m", "masked_swin.train", *arguments], env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_the_lock_ends_with_the_process_that_holds_it(config: TrainConfig) -> None:
    process = start_training(dataclasses.replace(config, iterations=10**6))
    while not (Path(config.output) / "log.jsonl").exists() and process.exitcode is None:
        time.sleep(0.02)
    with pytest.raises(ValueError, match=f"in use by process {process.pid} on"):
        RunFolder(Path(config.output)).lock()
    process.kill()
    process.join()
    folder = RunFolder(Path(config.output))
    folder.lock()
    with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on"):
        RunFolder(Path(config.output)).lock()
    folder.release()
    RunFolder(Path(config.output)).lock()


# Damage


def test_the_folder_holds_the_latest_state_the_one_before_and_the_best(config: TrainConfig) -> None:
    trainer = Trainer(config)
    assert trainer.run() == "finished"
    folder = trainer.folder
    assert {path.name for path in folder.iterdir()} == FILES
    assert torch.load(folder / STATE_FILE)["step"] == 12
    assert torch.load(folder / PREVIOUS_FILE)["step"] == 10
    scores = [json.loads(line)["validation_psnr"] for line in (folder / "log.jsonl").read_text().splitlines()]
    validated = {step: score for step, score in enumerate(scores, start=1) if score is not None}
    assert list(validated) == [3, 6, 9, 12]
    best = max(validated, key=validated.__getitem__)
    assert trainer.best == {"step": best, "psnr": validated[best], "noise": "training"}
    again = Trainer(dataclasses.replace(config, iterations=best, output=config.output + "2"))
    again.run()
    at_best = load_checkpoint(folder / "best.pth").state_dict()
    assert all(torch.equal(value, at_best[name]) for name, value in again.average.state_dict().items())


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "torn":
        del content[len(content) // 3 :]
    elif kind == "empty":
        content.clear()
    else:
        content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["torn", "empty", "flipped"])
def test_a_damaged_state_makes_the_run_go_back_to_the_one_before(
    kind: str, config: TrainConfig, finished: Path
) -> None:
    Trainer(dataclasses.replace(config, iterations=8)).run()
    folder = Path(config.output)
    damage(folder / STATE_FILE, kind)
    resumed = Trainer(config)
    assert resumed.step == 6
    line = resumed.messages[-1]
    assert re.match(rf".*latest\.pt: truncated, corrupt, .*; resuming {folder / PREVIOUS_FILE} at step 6$", line)
    resumed.train_step()
    resumed.save()
    assert torch.load(folder / PREVIOUS_FILE)["step"] == 6, "the damaged state does not take the place of the good one"
    assert resumed.run() == "finished"
    assert_same_run(folder, finished)


def test_nothing_but_damage_is_an_error_that_names_both(config: TrainConfig) -> None:
    Trainer(dataclasses.replace(config, iterations=4)).run()
    for name in (STATE_FILE, PREVIOUS_FILE):
        damage(Path(config.output) / name, "flipped")
    with pytest.raises(ValueError, match=r"latest\.pt: truncated.*previous\.pt: truncated.*move these files away"):
        Trainer(config)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"format": 99}, r"latest\.pt: written by a newer masked_swin \(format 99.*upgrade"),
        ({"format": 1}, r"latest\.pt: written by an older masked_swin .*--initial_weights .*weights\.pth"),
        ({"params": {}}, r"latest\.pt: not a training state of masked_swin"),
        ([1], r"latest\.pt: not a training state of masked_swin"),
    ],
)
def test_other_versions_and_foreign_files_are_told_apart(state: object, message: str, config: TrainConfig) -> None:
    folder = Path(config.output)
    folder.mkdir()
    torch.save(state, folder / STATE_FILE)
    before = (folder / STATE_FILE).read_bytes()
    with pytest.raises(ValueError, match=message):
        Trainer(config)
    assert (folder / STATE_FILE).read_bytes() == before


# Disks


def test_a_full_disk_leaves_the_earlier_checkpoint_and_says_so(config: TrainConfig, finished: Path) -> None:
    trainer = Trainer(dataclasses.replace(config, iterations=6))
    trainer.run()
    folder = trainer.folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    size = len(before[STATE_FILE])
    resumed = Trainer(config)
    # The weights still fit, the state does not.
    assert size > len(before["weights.pth"])
    with file_size_limit(size - 1000), pytest.raises(OSError, match="too large") as raised:
        resumed.run()
    assert re.search(rf"step 8 is not saved, step 6 is kept in {folder / STATE_FILE}.*latest\.pt", str(raised.value))
    assert {path.name for path in folder.iterdir()} == set(before), "no temporary files"
    for name in (STATE_FILE, PREVIOUS_FILE):
        assert (folder / name).read_bytes() == before[name]
    assert Trainer(config).run() == "finished"
    assert_same_run(folder, finished)


def test_a_folder_that_cannot_be_written_any_more_is_named(config: TrainConfig) -> None:
    trainer = Trainer(dataclasses.replace(config, validation_interval=10**6, log_interval=10**6))
    trainer.train_step()
    trainer.save()
    trainer.train_step()
    kept = trainer.folder.rename(trainer.folder.with_name("moved"))
    trainer.folder.symlink_to("/proc/self")  # where not even root creates files
    with pytest.raises(OSError, match=r"step 2 is not saved, step 1 is kept in .*config\.yaml"):
        trainer.save()
    trainer.folder.unlink()
    kept.rename(trainer.folder)
    assert not list(trainer.folder.glob(".*"))
    trainer.files.release()
    assert Trainer(config).step == 1


def test_what_killed_writers_left_is_removed(config: TrainConfig) -> None:
    folder = Path(config.output)
    folder.mkdir()
    (folder / ".latest.pt.0123abcd.tmp").write_bytes(b"half")
    Trainer(config)
    assert {path.name for path in folder.iterdir()} == {"run.lock"}
