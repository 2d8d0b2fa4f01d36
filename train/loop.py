"""The trainer: L1, Adam, an average of the weights, checkpoints that a resumed run continues bit for bit.

Nothing random is stored. Patches, noise, masks and drop path of a step are functions of (seed, step), so the step, the
weights, their average and the optimizer's moments are the whole state.
"""

import copy
import json
import math
import signal
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import yaml
from torch.nn import functional as F
from tqdm import tqdm

from masked_swin import MaskedSwinIR, MaskKey, denoise, load_checkpoint, save_checkpoint
from masked_swin.storage import atomic_write
from masked_swin.train import data
from masked_swin.train.config import TrainConfig, changed_fields
from masked_swin.train.degradations import gaussian
from masked_swin.train.metrics import psnr

STATE_FILE, WEIGHTS_FILE, CONFIG_FILE, LOG_FILE = "latest.pt", "weights.pth", "config.yaml", "log.jsonl"
STATE_FORMAT = 1

Ending = Literal["finished", "interrupted", "out of time"]


class StepResult(NamedTuple):
    loss: float
    psnr: float  # of the training batch against its clean patches, dB


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of `step` (0 is the first)."""
    rate = config.learning_rate * min(1.0, (step + 1) / (config.warmup + 1))
    if config.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * step / config.iterations))
    return rate * 0.5 ** sum(step >= milestone for milestone in config.milestones)


class Trainer:
    """One training run in `config.output`.

    `step` counts finished steps, `model` is what is trained, `average` what is validated and exported, `messages` holds
    what the user should be told of the data and of resuming.

    Raises:
        ValueError: unusable data or initial weights, or an output folder that holds another run.
    """

    def __init__(self, config: TrainConfig) -> None:
        if config.network.in_channels != 3:
            raise ValueError(
                f"network.in_channels: images are read as RGB, expected 3, got {config.network.in_channels}"
            )
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config = config
        self.folder = Path(config.output)
        self.step = 0
        self.saved_step: int | None = None
        self.messages: list[str] = []
        self.device = _device(config.device)

        training, validation = self._load_data()
        self.fingerprint = _fingerprint(training.images)
        self.sampler = data.PatchSampler(
            training.images,
            patch_size=config.patch_size,
            batch_size=config.batch_size,
            sigma=config.sigma,
            seed=config.seed,
        )
        self.validation = [data.centre_crop(image, config.validation_size) for image in validation.images]

        torch.manual_seed(config.seed)
        if config.initial_weights is None:
            self.model = MaskedSwinIR(config.network, backend=config.backend)
        else:
            self.model = load_checkpoint(config.initial_weights, config=config.network, backend=config.backend)
        self.model.to(self.device).train()
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate, fused=True)
        self._parameters = [parameter.data for parameter in self.model.parameters()]
        self._averages = [parameter.data for parameter in self.average.parameters()]
        self._check_folder()
        if (self.folder / STATE_FILE).exists():
            self._resume()

    def train_step(self) -> StepResult:
        """One step; leaves weights, average and optimizer untouched where the loss is not finite.

        Raises:
            FloatingPointError: NaN or infinite loss, naming the step and the checkpoint that is kept.
        """
        step, config = self.step, self.config
        batch = self.sampler.batch(step)
        clean, noisy = batch.clean.to(self.device), batch.noisy.to(self.device)
        key = MaskKey.make(config.seed, draw=step, samples=batch.sample.to(self.device), device=self.device)
        drop_path_seed = data.generator(config.seed, step, data.DROP_PATH_STREAM).integers(2**63)
        torch.manual_seed(int(drop_path_seed))

        output = self.model(noisy, key=key)
        loss = F.l1_loss(output, clean)
        loss_value = loss.item()
        if not math.isfinite(loss_value):
            kept = "no checkpoint was written yet"
            if self.saved_step is not None:
                kept = f"step {self.saved_step} is kept in {self.folder / STATE_FILE}"
            raise FloatingPointError(f"the loss is {loss_value} at step {step}; {kept}; try a lower learning_rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        self.optimizer.step()
        torch._foreach_lerp_(self._averages, self._parameters, 1 - config.ema_decay)
        self.step += 1
        error = F.mse_loss(output.detach().clamp(0, 1), clean).item()
        return StepResult(loss_value, -10 * math.log10(max(error, 1e-10)))

    def run(self, *, time_limit: float | None = None, description: str = "train") -> Ending:
        """Train to `config.iterations`, saving as configured and at the end; says how it ended.

        SIGINT or SIGTERM interrupt it (a second one ends at once), and so does `time_limit` in seconds.
        """
        config = self.config
        deadline = math.inf if time_limit is None else time.monotonic() + time_limit
        bar = tqdm(total=config.iterations, initial=self.step, unit="step", desc=description, dynamic_ncols=True)
        with bar, stop_requests() as interrupted:
            while self.step < config.iterations:
                if interrupted() or time.monotonic() >= deadline:
                    break
                result = self.train_step()
                last = self.step == config.iterations
                postfix = {"loss": f"{result.loss:.4f}", "PSNR": f"{result.psnr:.2f}"}
                if rate := bar.format_dict["rate"]:
                    postfix["patches/s"] = f"{rate * config.batch_size:.1f}"
                bar.set_postfix(postfix, refresh=False)
                bar.update()
                if self.step % config.validation_interval == 0 or last:
                    self._log(result)
                if self.step % config.checkpoint_interval == 0 and not last:
                    self.save()
            self.save()
            if self.step == config.iterations:
                return "finished"
            return "interrupted" if interrupted() else "out of time"

    def validate(self) -> float | None:
        """Mean PSNR in dB of the average weights on the validation images, training noise; None without images."""
        scores = []
        for index, image in enumerate(self.validation):
            clean = image.astype(np.float32) / 255
            noisy = gaussian(clean, self.config.sigma, data.generator(self.config.seed, index, data.VALIDATION_STREAM))
            restored = denoise(self.average, data.to_tensor(noisy).to(self.device), average=1, seed=self.config.seed)
            scores.append(psnr(data.to_array(restored), clean))
        return sum(scores) / len(scores) if scores else None

    def save(self) -> None:
        """Write the exported weights, then the training state, each atomically."""
        if self.saved_step == self.step:
            return
        config = self.config.as_dict()
        state = {
            "format": STATE_FORMAT,
            "step": self.step,
            "config": config,
            "data": self.fingerprint,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / CONFIG_FILE) as file:
            file.write(yaml.safe_dump(config, sort_keys=False).encode())
        save_checkpoint(self.average, self.folder / WEIGHTS_FILE)
        with atomic_write(self.folder / STATE_FILE) as file:
            torch.save(state, file)
        self.saved_step = self.step

    def _check_folder(self) -> None:
        """Raise ValueError now, not at the first checkpoint, if nothing can be written to the output folder."""
        if not self.config.output:
            raise ValueError("output is empty; name the folder of this run, as runs/first")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise ValueError(f"output {self.folder}: not a folder that can be written ({error.strerror})") from error

    def _resume(self) -> None:
        path = self.folder / STATE_FILE
        if not self.config.resume:
            raise ValueError(
                f"{path} holds a run and resume is false; choose another output folder or remove that file"
            )
        state = _load_state(path)
        changes = changed_fields(state["config"], self.config.as_dict())
        if state["data"] != self.fingerprint:
            changes.append("training images")
        if changes:
            raise ValueError(
                f"{path} belongs to a run with other values of: {', '.join(changes)}; "
                f"choose another output folder, or restore those values ({self.folder / CONFIG_FILE})"
            )
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = self.saved_step = state["step"]
        if self.step > self.config.iterations:
            beyond = f"beyond iterations {self.config.iterations}; raise iterations"
            raise ValueError(f"{path} is already at step {self.step}, {beyond}")
        self.messages.append(f"resuming {path} at step {self.step}")

    def _load_data(self) -> tuple[data.ImageSet, data.ImageSet]:
        config = self.config
        if config.data:
            training = data.load_images(config.data, min_size=config.patch_size)
        else:
            training = data.builtin_images(data.BUILTIN_TRAIN)
        if config.validation_data:
            validation = data.load_images(config.validation_data, min_size=16)
        else:
            validation = data.builtin_images(() if config.data else data.BUILTIN_HELD_OUT)
        for images in (training, validation):
            self.messages += images.notes + [f"skipped {reason}" for reason in images.skipped]
        return training, validation

    def _log(self, result: StepResult) -> None:
        line = {
            "step": self.step,
            "learning_rate": learning_rate(self.config, self.step - 1),
            "loss": result.loss,
            "psnr": result.psnr,
            "validation_psnr": self.validate(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOG_FILE, "a") as file:
            file.write(json.dumps(line) + "\n")


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM arrived; the step under way is finished first.

    The first signal restores the former handlers, so that a second one acts at once. Outside the main thread signals
    keep their handlers.
    """
    requested = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    former = {number: signal.getsignal(number) for number in signals}

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def request(number: int, frame: object) -> None:
        requested.set()
        restore()

    for number in signals:
        signal.signal(number, request)
    try:
        yield requested.is_set
    finally:
        restore()


def _load_state(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn or foreign file raises almost anything inside torch.load
        raise ValueError(f"{path}: not a readable training state ({error}); move it away to start anew") from error
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise ValueError(f"{path}: not a training state of format {STATE_FORMAT}; move it away to start anew")
    return state


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        raise ValueError(f"device {name!r}: not available here ({error})") from None
    return device


def _fingerprint(images: Sequence[np.ndarray]) -> str:
    """Checksum of the decoded training images, wherever they lie."""
    checksum = 0
    for image in images:
        checksum = zlib.crc32(repr(image.shape).encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(image).data, checksum)
    return f"{len(images)} images, crc32 {checksum:08x}"
