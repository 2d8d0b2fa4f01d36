"""The trainer: exact resume, schedules, refusals, and leaving without losing anything."""

import dataclasses
import json
import math
import re
import signal
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from masked_swin import MaskedSwinIR, MaskKey, ModelConfig, load_checkpoint
from masked_swin.checkpoint import public_state
from masked_swin.train import run_folder
from masked_swin.train.cli import main
from masked_swin.train.config import TrainConfig, changed_fields
from masked_swin.train.loop import Trainer, learning_rate
from masked_swin.train.progress import StepResult

NETWORK = ModelConfig(embed_dim=12, depths=(1, 2), num_heads=(2, 2), window_size=4, drop_path_rate=0.3)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """A tiny run on two small images, every random choice of training switched on."""
    folder = tmp_path / "images"
    folder.mkdir()
    smooth = np.linspace(0, 255, 40 * 3).reshape(1, 40, 3).repeat(32, axis=0).astype(np.uint8)
    for name, image in (("a", smooth), ("b", smooth[::-1, ::-1])):
        PIL.Image.fromarray(image).save(folder / f"{name}.png")
    return TrainConfig(
        output=str(tmp_path / "run"),
        network=NETWORK,
        data=[str(folder)],
        validation_data=[str(folder)],
        validation_size=16,
        patch_size=16,
        batch_size=2,
        iterations=20,
        learning_rate=1e-3,
        milestones=(8, 15),
        checkpoint_interval=5,
        validation_interval=10,
        device="cpu",
    )


def trained_state(trainer: Trainer) -> dict[str, Tensor]:
    state = {f"model.{name}": value for name, value in trainer.model.state_dict().items()}
    state |= {f"average.{name}": value for name, value in trainer.average.state_dict().items()}
    for index, moments in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    return state


def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(config: TrainConfig, tmp_path: Path) -> None:
    straight = Trainer(config)
    assert straight.run() == "finished"

    halves = dataclasses.replace(config, output=str(tmp_path / "halves"))
    assert Trainer(dataclasses.replace(halves, iterations=10)).run() == "finished"
    torch.manual_seed(12345)  # the global random state must not matter
    resumed = Trainer(halves)
    assert resumed.step == 10
    assert "resuming" in resumed.messages[-1]
    assert resumed.run() == "finished"

    expected, found = trained_state(straight), trained_state(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    weights = [load_checkpoint(tmp_path / name / "weights.pth").state_dict() for name in ("run", "halves")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert all(torch.equal(value, weights[0][name]) for name, value in straight.average.state_dict().items())


def test_average_follows_its_formula(config: TrainConfig) -> None:
    trainer = Trainer(dataclasses.replace(config, ema_decay=0.75))
    expected = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    for _ in range(3):
        trainer.train_step()
        expected = [
            0.75 * old + 0.25 * new.detach() for old, new in zip(expected, trainer.model.parameters(), strict=True)
        ]
    for value, average in zip(expected, trainer.average.parameters(), strict=True):
        torch.testing.assert_close(average, value, rtol=1e-5, atol=1e-6)


def test_training_lowers_the_loss_and_logs_it(config: TrainConfig) -> None:
    network = dataclasses.replace(NETWORK, input_mask=None, attention_mask=None, drop_path_rate=0.0)
    trainer = Trainer(dataclasses.replace(config, network=network, iterations=40, learning_rate=1e-2, milestones=()))
    first = trainer.train_step()
    assert trainer.run() == "finished"
    lines = [json.loads(line) for line in (trainer.folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert lines[-1]["loss"] < first.loss / 2
    assert lines[-1]["validation_psnr"] > lines[0]["validation_psnr"]


def test_masks_come_from_seed_step_and_global_sample(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, sigmas = [], []
    forward = MaskedSwinIR.forward

    def recorded(
        self: MaskedSwinIR, x: Tensor, *, key: MaskKey, noise_sigma: float = 0.0, attention_mask: bool = True
    ) -> Tensor:
        keys.append([part.tolist() for part in key])
        sigmas.append(noise_sigma)
        assert self.training
        return forward(self, x, key=key, noise_sigma=noise_sigma, attention_mask=attention_mask)

    monkeypatch.setattr(MaskedSwinIR, "forward", recorded)
    trainer = Trainer(dataclasses.replace(config, seed=7))
    trainer.train_step()
    trainer.train_step()
    assert keys == [[7, 0, [0, 1]], [7, 1, [2, 3]]]
    assert sigmas == [config.sigma / 255] * 2


def test_learning_rates(config: TrainConfig) -> None:
    halved = [learning_rate(config, step) / config.learning_rate for step in (0, 7, 8, 14, 15)]
    assert halved == [1, 1, 0.5, 0.5, 0.25]
    cosine = dataclasses.replace(config, schedule="cosine", warmup=3)
    assert learning_rate(cosine, 0) == pytest.approx(config.learning_rate / 4)
    assert learning_rate(cosine, 10) == pytest.approx(config.learning_rate / 2)
    assert 0 < learning_rate(cosine, 19) < config.learning_rate / 50


def test_a_loss_that_is_not_finite_names_step_images_and_checkpoint(config: TrainConfig) -> None:
    trainer = Trainer(config)
    for _ in range(3):
        trainer.train_step()
    trainer.save()
    before = (trainer.folder / run_folder.STATE_FILE).read_bytes()
    with torch.no_grad():
        trainer.model.conv_last.bias.fill_(math.nan)
    kept = [value.clone() for value in trained_state(trainer).values()]
    with pytest.raises(FloatingPointError) as raised:
        trainer.run()
    message = str(raised.value)
    assert re.match(r"the loss is nan at step 3; step 3 is kept in .*latest\.pt; its patches are of ", message)
    used = {trainer.training_images.names[index] for index in trainer.loader.images_of(3)}
    assert all((name in message) == (name in used) for name in trainer.training_images.names)
    assert (trainer.folder / run_folder.STATE_FILE).read_bytes() == before
    for a, b in zip(kept, trained_state(trainer).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    fresh = Trainer(dataclasses.replace(config, output=config.output + "2"))
    with torch.no_grad():
        fresh.model.conv_last.bias.fill_(math.inf)
    with pytest.raises(FloatingPointError, match="loss is inf at step 0; no checkpoint was written yet"):
        fresh.train_step()


def test_gradients_that_are_not_finite_stop_before_the_weights_are_lost(config: TrainConfig) -> None:
    trainer = Trainer(config)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.model.conv_last.bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(FloatingPointError, match=r"the norm of the gradients is (inf|nan) at step 0"):
        trainer.train_step()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_parts_of_a_step_add_up_to_it(config: TrainConfig, tmp_path: Path) -> None:
    whole = Trainer(dataclasses.replace(config, batch_size=6))
    parts = Trainer(dataclasses.replace(config, batch_size=6, accumulation=3, output=str(tmp_path / "parts")))
    for _ in range(4):
        expected, found = whole.train_step(), parts.train_step()
        assert found[:3] == pytest.approx(expected[:3], rel=1e-4)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_are_scaled_down_to_the_norm(config: TrainConfig, tmp_path: Path) -> None:
    plain = Trainer(config)
    free = plain.train_step()
    limit = free.gradient_norm / 3
    trainer = Trainer(dataclasses.replace(config, gradient_clip=limit, output=str(tmp_path / "clipped")))
    assert trainer.train_step() == pytest.approx(free, rel=1e-6, abs=1)
    for a, b in zip(plain.model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad / 3, rtol=1e-4, atol=1e-8)
    assert torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters()]).item() == pytest.approx(limit)


def test_bfloat16_trains_and_resumes_exactly(config: TrainConfig, tmp_path: Path) -> None:
    half = dataclasses.replace(config, precision="bfloat16")
    exact, straight = Trainer(dataclasses.replace(config, output=str(tmp_path / "exact"))), Trainer(half)
    expected, found = exact.train_step().loss, straight.train_step().loss
    assert found != expected
    assert found == pytest.approx(expected, rel=0.02)
    assert straight.run() == "finished"
    assert {value.dtype for value in trained_state(straight).values()} == {torch.float32}
    halves = dataclasses.replace(half, output=str(tmp_path / "halves"))
    Trainer(dataclasses.replace(halves, iterations=10)).run()
    resumed = Trainer(halves)
    resumed.run()
    found, expected = trained_state(resumed), trained_state(straight)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_tensorboard_gets_the_figures_of_the_log(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = Trainer(dataclasses.replace(config, tensorboard=True, log_interval=4))
    trainer.run()
    found = events.EventAccumulator(str(trainer.folder / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (trainer.folder / "log.jsonl").read_text().splitlines()]
    assert [event.step for event in found.Scalars("loss")] == [4, 8, 10, 12, 16, 20]
    assert [event.value for event in found.Scalars("loss")] == pytest.approx([line["loss"] for line in lines])
    assert [event.step for event in found.Scalars("validation_psnr")] == [10, 20]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"tensorboard: the package is missing; install 'masked-swin\[tensorboard\]'"):
        Trainer(dataclasses.replace(config, tensorboard=True))


def test_samples_of_validation_are_written(config: TrainConfig) -> None:
    trainer = Trainer(dataclasses.replace(config, samples=1, iterations=2, validation_interval=1))
    trainer.run()
    assert sorted(path.name for path in (trainer.folder / "samples").iterdir()) == ["0000001_0.png", "0000002_0.png"]
    with PIL.Image.open(trainer.folder / "samples" / "0000002_0.png") as image:
        assert image.size == (3 * 16, 16)
        clean = np.asarray(image)[:, 32:]
    assert np.array_equal(clean, trainer.validation.clean[0])


def test_the_terminal_shows_what_matters(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(config)
    trainer.run()
    shown = capsys.readouterr().err
    assert trainer.best is not None
    assert re.search(
        rf"step 20: loss 0\.\d+, validation PSNR \d+\.\d\d dB, best {trainer.best['psnr']:.2f} dB at", shown
    )
    assert re.search(r"loss=0\.\d+, PSNR=\d+\.\d+, validation=\d+\.\d+, patches/s=\d+\.\d, loading=\d+%\]", shown)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_finish_the_step_and_save(
    config: TrainConfig, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)
    train_step = Trainer.train_step

    def interrupted(self: Trainer) -> StepResult:
        if self.step == 6:
            signal.raise_signal(number)
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert Trainer(config).run() == ("interrupted" if number == signal.SIGINT else "terminated")
    assert signal.getsignal(number) == before
    assert Trainer(config).step == 7


def test_a_second_ctrl_c_says_what_is_kept(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_step = Trainer.train_step

    def interrupted(self: Trainer) -> StepResult:
        if self.step == 6:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Trainer(config).run()
    assert re.search(r"not saved: step 6; step 5 is kept in .*latest\.pt", capsys.readouterr().err)


def test_time_limit_saves(config: TrainConfig) -> None:
    trainer = Trainer(config)
    assert trainer.run(time_limit=0.0) == "out of time"
    assert Trainer(config).step == trainer.step == 0


def test_another_run_in_the_folder_is_refused(config: TrainConfig) -> None:
    Trainer(dataclasses.replace(config, iterations=1)).run()
    other = dataclasses.replace(config, sigma=25.0, network=dataclasses.replace(NETWORK, attention_mask=0.5))
    with pytest.raises(ValueError, match=r"other values of: network\.attention_mask, sigma; choose another output"):
        Trainer(other)
    with pytest.raises(ValueError, match="resume is false"):
        Trainer(dataclasses.replace(config, resume=False))
    PIL.Image.new("RGB", (20, 20)).save(Path(config.data[0]) / "c.png")
    with pytest.raises(ValueError, match="other values of: training images"):
        Trainer(config)


def test_initial_weights(config: TrainConfig, tmp_path: Path) -> None:
    twin = MaskedSwinIR(dataclasses.replace(NETWORK, input_mask=None, attention_mask=None))
    public = {"params": {f"module.{name}": value for name, value in public_state(twin).items()}}
    torch.save(public, tmp_path / "twin.pth")  # as the public code saves a network inside DataParallel
    trainer = Trainer(dataclasses.replace(config, initial_weights=str(tmp_path / "twin.pth")))
    assert trainer.model.config == NETWORK
    assert trainer.model.training
    for a, b in zip(trainer.model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    wider = dataclasses.replace(config, network=dataclasses.replace(NETWORK, embed_dim=16), output=str(tmp_path / "b"))
    with pytest.raises(ValueError, match=r"twin\.pth"):
        Trainer(dataclasses.replace(wider, initial_weights=str(tmp_path / "twin.pth")))


def test_the_best_validation_is_remembered(config: TrainConfig) -> None:
    trainer = Trainer(dataclasses.replace(config, iterations=10))
    trainer.run()
    assert trainer.best is not None
    assert trainer.best["step"] == 10
    trainer.best["psnr"] = 99.0  # beyond reach
    trainer.train_step()
    trainer.save()
    best = (trainer.folder / "best.pth").read_bytes()
    resumed = Trainer(config)
    resumed.run()
    assert resumed.best == {"step": 10, "psnr": 99.0, "noise": "training"}
    assert (trainer.folder / "best.pth").read_bytes() == best


def test_changed_fields_ignores_what_leaves_the_weights_alone(config: TrainConfig) -> None:
    plain = config.as_dict()
    moved = dataclasses.replace(config, output="elsewhere", data=["moved"], iterations=99, threads=3).as_dict()
    assert changed_fields(plain, moved) == []
    cosine = dataclasses.replace(config, schedule="cosine")
    longer = dataclasses.replace(cosine, iterations=99).as_dict()
    assert changed_fields(cosine.as_dict(), longer) == ["iterations"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"ema_decay": 1.0}, "ema_decay: expected 0 <= decay < 1"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"threads": 0}, "threads"),
        ({"gradient_clip": 0.0}, "gradient_clip: expected a positive norm or null, got 0.0"),
        ({"accumulation": 0}, "accumulation: expected at least 1"),
        ({"memory": -1.0}, "memory: expected at least 0"),
        ({"milestones": (5, 3)}, "milestones: expected increasing"),
    ],
)
def test_values_outside_their_range_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**change)  # type: ignore[arg-type]


def test_unusable_data_and_device_are_named(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match="smaller than 64 x 64"):
        Trainer(dataclasses.replace(config, patch_size=64))
    with pytest.raises(ValueError, match="device 'tpu'"):
        Trainer(dataclasses.replace(config, device="tpu"))
    two = dataclasses.replace(NETWORK, in_channels=2, image_mean=(0.0, 0.0))
    with pytest.raises(ValueError, match=r"network\.in_channels: expected 1 \(grey\) or 3 \(RGB\), got 2"):
        Trainer(dataclasses.replace(config, network=two))


def test_a_grey_network_trains_on_the_luma_and_denoises_grey_images(config: TrainConfig, tmp_path: Path) -> None:
    grey = dataclasses.replace(NETWORK, in_channels=1, image_mean=(0.0,))
    trainer = Trainer(dataclasses.replace(config, network=grey, iterations=2, samples=1))
    colour = np.asarray(PIL.Image.open(Path(config.data[0]) / "a.png")).astype(float)
    expected = np.round(colour @ [0.299, 0.587, 0.114])
    assert np.array_equal(trainer.training_images.images[0][..., 0], expected)
    assert trainer.run() == "finished"
    PIL.Image.fromarray(expected.astype(np.uint8)).save(tmp_path / "grey.png")
    arguments = ["--output", str(tmp_path / "results"), "--model", config.output]
    assert main(["denoise", str(tmp_path / "grey.png"), *arguments]) == 0
    with PIL.Image.open(tmp_path / "results" / "grey.png") as image:
        assert image.mode == "L"
    assert main(["denoise", str(Path(config.data[0]) / "a.png"), *arguments]) == 1
    for protocol in ("default", "public"):
        scored = ["evaluate", str(tmp_path / "grey.png"), "--noise", "gaussian:1", "--model", config.output]
        assert main([*scored, "--protocol", protocol]) == 0


@pytest.mark.parametrize("output", ["", "images/a.png", "/proc/nowhere"])
def test_an_output_that_cannot_be_written_is_refused_before_training(config, tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="output"):
        Trainer(dataclasses.replace(config, output=output))


def test_fewer_iterations_than_were_trained_are_refused(config):
    Trainer(dataclasses.replace(config, iterations=4, milestones=())).run()
    with pytest.raises(ValueError, match="already at step 4, beyond iterations 3"):
        Trainer(dataclasses.replace(config, iterations=3, milestones=()))
