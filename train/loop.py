"""The trainer: a system, a loss, averaged weights, and checkpoints from which a run goes on bit for bit.

Patches, noise, masks and drop path of a step are functions of (seed, step), so no random state is stored. The state is
the step, the weights and buffers, their average, the optimizer's moments and the best validation.
"""

import contextlib
import copy
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional as F
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from masked_swin import MaskKey
from masked_swin.train import distributed
from masked_swin.train.averaging import Averages
from masked_swin.train.config import TrainConfig, changed_fields
from masked_swin.train.curves import CURVES_FILE, read_curves, write_curves
from masked_swin.train.objective import LOSSES, make_optimizer
from masked_swin.train.progress import StepResult, TrainProgress
from masked_swin.train.run_data import load_data
from masked_swin.train.run_folder import CONFIG_FILE, STATE_FILE, RunFolder
from masked_swin.train.run_log import LOG_FILE, RunLog
from masked_swin.train.sampler import Batch, Loader, PatchSampler
from masked_swin.train.signals import stop_requests
from masked_swin.train.systems import SWIN_SYSTEMS, network_of_run
from masked_swin.train.validation import TRAINING, Validation

Ending = Literal["finished", "out of time", "interrupted", "terminated"]
# In rising order: where the processes of a run end for different reasons, the highest one counts for all.
_REASONS: tuple[Ending, ...] = ("finished", "out of time", "interrupted", "terminated")
_REASON_OF_SIGNAL = {0: 0, signal.SIGINT: 2, signal.SIGTERM: 3}


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of `step`; the first step is 0."""
    rate = config.learning_rate * min(1.0, (step + 1) / (config.warmup + 1))
    if config.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * step / config.iterations))
    return rate * 0.5 ** sum(step >= milestone for milestone in config.milestones)


class Trainer:
    """One training run in `config.output`, in this process or in all processes that torchrun started.

    `step` counts finished steps. `model` is trained; `average`, the moving average of its weights, is validated and
    exported. `messages` tells the user about the data and about resuming. The folder is locked from the construction to
    the end of `run`, or of the object.

    Raises:
        ValueError: unusable data or initial weights, or an output folder that holds another run or is in use.
        OSError: the decoded images do not fit on the disk.
    """

    def __init__(self, config: TrainConfig) -> None:
        if config.channels not in (1, 3):
            field = "network.in_channels" if config.system in SWIN_SYSTEMS else "options.channels"
            raise ValueError(f"{field}: expected 1 (grey) or 3 (RGB), got {config.channels}")
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config = config
        self.step = 0
        self.saved_step: int | None = None
        self.best: dict[str, Any] | None = None  # step, PSNR and noise of the best validation
        self.messages: list[str] = []
        self.device = distributed.device(config.device)
        self.writes = distributed.rank() == 0
        self.folder = Path(config.output)
        self.files = RunFolder(self.folder)
        self.log = RunLog(self.folder, tensorboard=config.tensorboard and self.writes)

        for source in (*config.data, *config.noisy, *config.validation_data, *config.validation_noisy):
            if not Path(source).exists():
                raise ValueError(f"{source}: no such file or folder")
        if self.writes:
            self.files.lock()
        try:
            self._prepare()
        except BaseException:  # the exception would keep this object alive, and the lock with it
            self.files.release()
            raise

    def _prepare(self) -> None:
        config = self.config
        images = load_data(config, self.folder)
        self.training_images, self.data_checksum = images.training, images.checksum
        self.messages += images.messages
        noisy, pairs = (None if one is None else one.images for one in (images.noisy, images.validation_noisy))
        sampler = PatchSampler(
            images.training.images,
            patch_size=config.patch_size,
            seed=config.seed,
            noise=config.training_noise(),
            noisy=noisy,
        )
        share, shares = distributed.rank(), distributed.world_size()
        self.loader = Loader(sampler, config.batch_size, parts=config.accumulation, share=share, shares=shares)
        self.validation = Validation(config, images.validation.images, pairs)
        if self.validation.clean and not self.validation.noises:
            self.messages.append("no validation: with pairs it needs validation_noisy, validation_noise, or both")

        torch.manual_seed(config.seed)
        self.model = network_of_run(config).to(self.device).train()
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = make_optimizer(
            *(config.optimizer, self.model.parameters()),
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self._parameters: list[torch.Tensor] = list(self.model.parameters())
        self._averages = Averages(self.model, self.average)
        self._resume()
        # The network adds Gaussian noise itself: the masked SwinIR does it with the embedding of its pixels.
        self._noise_sigma = config.sigma / 255 if config.noise is None and not config.noisy else 0.0
        self._replicas = distributed.Replicas(self.model, overlap=config.system not in SWIN_SYSTEMS)

    def train_step(self) -> StepResult:
        """Train one step.

        Raises:
            FloatingPointError: loss or gradients are not finite; weights, average and optimizer are left as they were.
                The message names the step, the images and the checkpoint that is kept.
        """
        step, config = self.step, self.config
        started = time.perf_counter()
        batches = self.loader.batches(step)
        loading = time.perf_counter() - started
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum, error_sum = 0.0, 0.0
        for part, batch in enumerate(batches, start=1):
            with self._replicas.part(last=part == len(batches)):
                output, clean = self._denoised(batch)
                loss = LOSSES[config.loss](output.float(), clean)
                (loss / len(batches)).backward()
            loss_sum += loss.item()
            error_sum += F.mse_loss(output.detach().float().clamp(0, 1), clean).item()
        loss_value, error = (value / len(batches) for value in distributed.mean([loss_sum, error_sum], self.device))
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        self._replicas.average_gradients(gradients)
        norm = get_total_norm(gradients)
        self._check_finite(loss_value, norm.item())
        if config.gradient_clip is not None:
            clip_grads_with_norm_(self._parameters, config.gradient_clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        self.optimizer.step()
        self._replicas.average_buffers()
        self._averages.update(1 - config.ema_decay)
        self.step += 1
        return StepResult(loss_value, -10 * math.log10(max(error, 1e-10)), norm.item(), loading)

    def _denoised(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the network makes of a batch, and the clean patches."""
        config, sigma = self.config, self._noise_sigma
        clean, sample = (part.to(self.device, non_blocking=True) for part in (batch.clean, batch.sample))
        seen = clean if batch.noisy is batch.clean else batch.noisy.to(self.device, non_blocking=True)
        key = MaskKey.make(config.seed, draw=self.step, samples=sample, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            output: torch.Tensor = self._replicas.network(seen, key=key, noise_sigma=sigma)
        return output, clean

    def run(self, *, time_limit: float | None = None, description: str = "train") -> Ending:
        """Train to `config.iterations`, save as configured and at the end, and return how the run ended.

        SIGINT ("interrupted"), SIGTERM ("terminated") and `time_limit` in seconds ("out of time") end the run after the
        current step. A second signal ends it at once.
        """
        config = self.config
        deadline = math.inf if time_limit is None else time.monotonic() + time_limit
        progress = TrainProgress(self.step, config.iterations, config.batch_size, description, shown=self.writes)
        if self.writes:
            self.files.lock()
            self.log.continue_after(self.step)
        try:
            with progress, stop_requests() as signal_number:
                while self.step < config.iterations:
                    reason = _REASON_OF_SIGNAL[signal_number()] or int(time.monotonic() >= deadline)
                    reason = distributed.largest(reason, self.device)
                    if reason:
                        break
                    result = self.train_step()
                    progress.step(result)
                    last = self.step == config.iterations
                    validates = self.step % config.validation_interval == 0 or last
                    if self.writes and (validates or self.step % config.log_interval == 0):
                        self._report(result, progress, validates)
                    if self.step % config.checkpoint_interval == 0 and not last:
                        self.save()
                self.save()
        except KeyboardInterrupt:  # the second one
            progress.say(f"not saved: step {self.step}; {self._kept()}")
            raise
        finally:
            self.log.close()
            self.files.release()
        return "finished" if self.step == config.iterations else _REASONS[reason]

    def validate(self) -> dict[str, float]:
        """Return the mean PSNR in dB of `average` on the validation images by noise; none without images.

        The noise that chooses the best weights comes first. The first `config.samples` images are written.
        """
        return self.validation.scores(self.average, self.folder / "samples" if self.writes else None, self.step)

    def save(self) -> None:
        """Write the exported weights, then the training state, each atomically, in process 0 only.

        Raises:
            OSError: they cannot be written; the message names the checkpoint that is kept.
        """
        if self.saved_step == self.step or not self.writes:
            return
        state = {
            "step": self.step,
            "config": self.config.as_dict(),
            "data": self.data_checksum,
            "best": self.best,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with self._naming_what_is_kept():
            self.files.save(state, self.average)
        self.saved_step = self.step

    def _resume(self) -> None:
        loaded = self.files.load()
        if loaded is None:
            return
        state, message = loaded
        if not self.config.resume:
            raise ValueError(
                f"output {self.folder} holds a run and resume is false; choose another output folder or remove it"
            )
        changes = changed_fields(state["config"], self.config.as_dict())
        if state["data"] != self.data_checksum:
            changes.append("training images")
        if changes:
            raise ValueError(
                f"output {self.folder} belongs to a run with other values of: {', '.join(changes)}; "
                f"choose another output folder, or restore those values ({self.folder / CONFIG_FILE})"
            )
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._resume_best(state["best"])
        self.step = self.saved_step = state["step"]
        if self.step > self.config.iterations:
            beyond = f"beyond iterations {self.config.iterations}; raise iterations"
            raise ValueError(f"output {self.folder} is already at step {self.step}, {beyond}")
        self.messages.append(message)

    def _resume_best(self, best: dict[str, Any] | None) -> None:
        """Keep the best validation, unless another noise chooses it now."""
        if best is None or not self.validation.noises or best.get("noise", TRAINING) == self.validation.noises[0]:
            self.best = best
        else:
            was = best.get("noise", TRAINING)
            self.messages.append(f"best.pth was chosen by noise {was}, from now on by {self.validation.noises[0]}")

    def _report(self, result: StepResult, progress: TrainProgress, validates: bool) -> None:
        scores = self.validate() if validates else {}
        score = next(iter(scores.values()), None)
        figures: dict[str, float | None] = {
            "learning_rate": learning_rate(self.config, self.step - 1),
            "loss": result.loss,
            "psnr": result.psnr,
            "validation_psnr": score,
            "gradient_norm": result.gradient_norm,
            "patches_per_second": progress.patches_per_second,
            "loading_share": progress.loading_share,
        }
        if len(scores) > 1:
            figures |= {f"validation_psnr/{name}": value for name, value in scores.items()}
        if score is not None:
            progress.validation = score
            if self.best is None or score > self.best["psnr"]:
                self.best = {"step": self.step, "psnr": score, "noise": self.validation.noises[0]}
                with self._naming_what_is_kept():
                    self.files.save_best(self.average)
            best = f"best {self.best['psnr']:.2f} dB at step {self.best['step']}"
            more = f"; {', '.join(f'{name} {value:.2f}' for name, value in scores.items())}" if len(scores) > 1 else ""
            progress.say(f"step {self.step}: loss {result.loss:.4f}, validation PSNR {score:.2f} dB, {best}{more}")
        with self._naming_what_is_kept():
            self.log.write(self.step, figures)
            if len(scores) > 1:
                write_curves(read_curves(self.folder / LOG_FILE), self.folder / CURVES_FILE)

    def _check_finite(self, loss: float, gradient_norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradients is {gradient_norm}"
        names = [self.training_images.names[index] for index in self.loader.images_of(self.step)]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise FloatingPointError(
            f"{what} at step {self.step}; {self._kept()}; its patches are of {', '.join(names[:8])}{more}; "
            "try a lower learning_rate, or gradient_clip"
        )

    @contextlib.contextmanager
    def _naming_what_is_kept(self) -> Iterator[None]:
        """Add the checkpoint that is kept to the message of an OSError in the block."""
        try:
            yield
        except OSError as error:
            what = f"{error.strerror}: step {self.step} is not saved, {self._kept()}"
            raise OSError(error.errno, what, error.filename) from error

    def _kept(self) -> str:
        if self.saved_step is None:
            return "no checkpoint was written yet"
        return f"step {self.saved_step} is kept in {self.folder / STATE_FILE}"
