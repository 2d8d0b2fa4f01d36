"""Typed training configuration, and what of it may change when a run goes on. `arguments.py` reads it."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from masked_swin import PRESETS, ModelConfig
from masked_swin.train.noise_mix import NoiseMix, parse_noises
from masked_swin.train.objective import Loss, OptimizerName
from masked_swin.train.systems import DEFAULT_SYSTEM, SWIN_SYSTEMS, image_channels, resolve_options

DEFAULT_PRESET = "published"
DEFAULT_SIGMA = 15.0

# Fields that may change when a run goes on: none changes the sequence of weights, except by the rounding of other
# threads, devices and backends.
RESUMABLE_CHANGES = frozenset(
    {
        "output",
        "data",  # the run knows the checksum of the images
        "noisy",
        "iterations",
        "validation_data",
        "validation_noisy",
        "validation_noise",
        "best_noise",
        "validation_size",
        "checkpoint_interval",
        "validation_interval",
        "threads",
        "device",
        "backend",
        "resume",
        "memory",
        "samples",
        "log_interval",
        "tensorboard",
    }
)


@dataclass
class TrainConfig:
    """Train a network; the defaults are those of the published masked network.

    `docs/training.md` says more about systems, noises and pairs.

    Args:
        output: folder of the run: training state, exported weights, log and configuration.
        system: what is trained: masked_swinir, swinir (with both masks off), dncnn, ridnet, rnan, restormer, or a class
            of your own as module:Class.
        preset: name of the network that the `network` fields start from: published, swinir, small or tiny. Of other
            systems the size: published or tiny.
        network: fields of the masked SwinIR that differ from the preset.
        options: options of another system that differ from its preset, as {depth: 9}.
        initial_weights: checkpoint to start from (fine-tuning); its architecture must be the configured one.
        data: folders or files of training images; none: the images shipped inside scikit-image.
        noisy: folders of noisy images with the names of those of `data`, for training on pairs.
        noise: noises of the training patches, as gaussian:sigma=5-50 or gaussian:1,speckle:2, of which each patch gets
            one; none: Gaussian noise of `sigma`.
        sigma: Gaussian noise of the training patches in 8-bit units.
        validation_data: folders or files of validation images; none: the built-in held-out images with built-in data,
            else no validation.
        validation_noisy: folders of noisy images with the names of those of `validation_data`.
        validation_noise: noises of the validation images, each with a figure of its own; none: those of training.
        best_noise: the validation noise that chooses `best.pth`; none: the first, which is "pairs" where there are.
        validation_size: validation images are cropped to at most this size around the centre.
        patch_size: side of the training patches in pixels.
        batch_size: patches per step, over all processes and parts.
        accumulation: parts of a step, computed one after the other where memory is short.
        precision: "bfloat16" computes in bfloat16 where torch's autocast does; weights and moments stay float32.
        gradient_clip: largest norm of the gradients, which are scaled down to it; none: no limit.
        iterations: number of steps.
        loss: l1, l2 (the mean square) or charbonnier, a smooth l1.
        optimizer: adam or adamw.
        weight_decay: that of AdamW.
        learning_rate: rate of the optimizer at the start.
        warmup: steps over which the rate rises linearly from zero.
        schedule: "milestones" halves the rate at each milestone, "cosine" lowers it to zero at the last step.
        milestones: steps at which the rate is halved.
        ema_decay: decay of the exponential moving average of the weights; the average is exported.
        seed: seed of weights, patches, noise, masks and drop path.
        checkpoint_interval: steps between two checkpoints.
        validation_interval: steps between two validations.
        threads: torch's threads on the CPU; none: its own choice.
        device: "cpu", "cuda", "cuda:1"...; "auto" takes CUDA if there is one.
        backend: kernel backend by name; none: the first that can run.
        memory: GiB of decoded images in memory; more go to a file in `output`; none: half of the free memory.
        samples: number of validation images written to `samples` at each validation: noisy, denoised, clean.
        log_interval: steps between two lines of log.jsonl; each validation writes one as well.
        tensorboard: write the figures of log.jsonl for TensorBoard as well; the extra "tensorboard" installs it.
        resume: continue a run found in the output folder; false refuses a folder that holds one.
    """

    output: str = "runs/masked_swin"
    system: str = DEFAULT_SYSTEM
    preset: str = DEFAULT_PRESET
    network: ModelConfig = field(default_factory=lambda: PRESETS[DEFAULT_PRESET])
    options: dict[str, Any] = field(default_factory=dict)
    initial_weights: str | None = None
    data: list[str] | str = field(default_factory=list)
    noisy: list[str] | str = field(default_factory=list)
    noise: str | None = None
    sigma: float = DEFAULT_SIGMA
    validation_data: list[str] | str = field(default_factory=list)
    validation_noisy: list[str] | str = field(default_factory=list)
    validation_noise: str | None = None
    best_noise: str | None = None
    validation_size: int = 256
    patch_size: int = 64
    batch_size: int = 64
    accumulation: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_clip: float | None = None
    iterations: int = 500_000
    loss: Loss = "l1"
    optimizer: OptimizerName = "adam"
    weight_decay: float = 0.0
    learning_rate: float = 1e-4
    warmup: int = 0
    schedule: Literal["milestones", "cosine"] = "milestones"
    milestones: tuple[int, ...] = (150_000, 200_000, 300_000, 350_000, 400_000)
    ema_decay: float = 0.999
    seed: int = 0
    checkpoint_interval: int = 5_000
    validation_interval: int = 5_000
    threads: int | None = None
    device: str = "auto"
    backend: str | None = None
    memory: float | None = None
    samples: int = 0
    log_interval: int = 100
    tensorboard: bool = False
    resume: bool = True

    def __post_init__(self) -> None:
        for name in ("data", "noisy", "validation_data", "validation_noisy"):  # a single path needs no list
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        lowest = {
            "validation_size": 16,
            "patch_size": 1,
            "batch_size": 1,
            "accumulation": 1,
            "log_interval": 1,
            "iterations": 1,
            "checkpoint_interval": 1,
            "validation_interval": 1,
            "samples": 0,
            "warmup": 0,
            "seed": 0,
            "sigma": 0,
            "learning_rate": 0,
            "weight_decay": 0,
        }
        for name, bound in lowest.items():
            value = getattr(self, name)
            if not value >= bound:
                raise ValueError(f"{name}: expected at least {bound}, got {value}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected 0 <= decay < 1, got {self.ema_decay}")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip: expected a positive norm or null, got {self.gradient_clip}")
        if self.memory is not None and not self.memory >= 0:
            raise ValueError(f"memory: expected at least 0 or null, got {self.memory}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads: expected at least 1 or null, got {self.threads}")
        if list(self.milestones) != sorted(set(self.milestones)) or any(step < 1 for step in self.milestones):
            raise ValueError(f"milestones: expected increasing positive steps, got {self.milestones}")
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(f"weight_decay: that of adamw; expected 0 with {self.optimizer}, got {self.weight_decay}")
        self._check_system()
        self._check_noise()

    def _check_system(self) -> None:
        if self.system in SWIN_SYSTEMS:
            if self.options:
                raise ValueError(f"options: those of other systems; the fields of system {self.system} are `network`")
            if self.system == "swinir":
                self.network = dataclasses.replace(self.network, input_mask=None, attention_mask=None)
            return
        if self.network != ModelConfig():
            raise ValueError(f"network: the fields of masked_swinir and swinir; those of {self.system} are `options`")
        if self.backend is not None:
            raise ValueError(f"backend: one of the masked SwinIR's kernels; system {self.system} uses none of them")
        self.options = resolve_options(self.system, self.preset, self.options)

    def _check_noise(self) -> None:
        if self.noise is not None:
            if self.sigma != DEFAULT_SIGMA:
                raise ValueError(f"sigma: the noise without `noise`; write noise gaussian:sigma={self.sigma:g}")
            if self.noisy:
                raise ValueError("noise: pairs have their own noise; give `noise` or `noisy`, not both")
            self.training_noise()
        for noisy, clean in (("noisy", "data"), ("validation_noisy", "validation_data")):
            count, expected = len(getattr(self, noisy)), len(getattr(self, clean))
            if count and count != expected:
                raise ValueError(f"{noisy}: expected a folder for each of `{clean}`, {expected}, got {count}")
        if self.validation_noise is not None:
            parse_noises(self.validation_noise)

    def training_noise(self) -> NoiseMix | None:
        """Return the noises that are added to patches; None for pairs, and where the network adds its noise itself."""
        return None if self.noise is None else parse_noises(self.noise)

    @property
    def channels(self) -> int:
        """The channels of the images."""
        return self.network.in_channels if self.system in SWIN_SYSTEMS else image_channels(self.options)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as lists, numbers and strings, fit for YAML and for a `weights_only` checkpoint."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}


def changed_fields(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name the fields, such as "network.depths", whose change would make it another run.

    A field that the run before did not have yet counts as its default.
    """
    return _changes(TrainConfig().as_dict() | before, after)


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    changes = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += [f"{name}.{key}" for key in _changes(old, new)]
        elif old != new and not _may_change(name, before, after):
            changes.append(name)
    return changes


def _may_change(name: str, before: dict[str, Any], after: dict[str, Any]) -> bool:
    if name == "iterations" and "cosine" in (before.get("schedule"), after.get("schedule")):
        return False
    # The preset only fills in `network`, and the initial weights only matter at step 0.
    return name in RESUMABLE_CHANGES or name in ("preset", "initial_weights")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
