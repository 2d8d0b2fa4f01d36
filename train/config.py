"""Typed training configuration: a YAML file, every field also a flag, unknown keys refused."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jsonargparse import Namespace

from masked_swin import PRESETS, ModelConfig
from masked_swin.train.parser import Parser, UsageError

DEFAULT_PRESET = "published"

# Fields that may change when a run goes on: none changes the sequence of weights, except by the rounding of other
# threads, devices and backends.
RESUMABLE_CHANGES = frozenset(
    {
        "output",
        "data",  # the run knows the checksum of the images
        "iterations",
        "validation_data",
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

    Args:
        output: folder of the run: training state, exported weights, log and configuration.
        preset: name of the network that the `network` fields start from: published, swinir, small or tiny.
        network: fields of the network that differ from the preset.
        initial_weights: checkpoint to start from (fine-tuning); its architecture must be the configured one.
        data: folders or files of training images; none: the images shipped inside scikit-image.
        validation_data: folders or files of validation images; none: the built-in held-out images with built-in data,
            else no validation.
        validation_size: validation images are cropped to at most this size around the centre.
        patch_size: side of the training patches in pixels.
        batch_size: patches per step, over all processes and parts.
        accumulation: parts of a step, computed one after the other where memory is short.
        precision: "bfloat16" computes in bfloat16 where torch's autocast does; weights and moments stay float32.
        gradient_clip: largest norm of the gradients, which are scaled down to it; none: no limit.
        iterations: number of steps.
        learning_rate: rate of Adam at the start.
        warmup: steps over which the rate rises linearly from zero.
        schedule: "milestones" halves the rate at each milestone, "cosine" lowers it to zero at the last step.
        milestones: steps at which the rate is halved.
        ema_decay: decay of the exponential moving average of the weights; the average is exported.
        sigma: Gaussian noise of the training patches in 8-bit units.
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
    preset: str = DEFAULT_PRESET
    network: ModelConfig = field(default_factory=lambda: PRESETS[DEFAULT_PRESET])
    initial_weights: str | None = None
    data: list[str] | str = field(default_factory=list)
    validation_data: list[str] | str = field(default_factory=list)
    validation_size: int = 256
    patch_size: int = 64
    batch_size: int = 64
    accumulation: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_clip: float | None = None
    iterations: int = 500_000
    learning_rate: float = 1e-4
    warmup: int = 0
    schedule: Literal["milestones", "cosine"] = "milestones"
    milestones: tuple[int, ...] = (150_000, 200_000, 300_000, 350_000, 400_000)
    ema_decay: float = 0.999
    sigma: float = 15.0
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
        for name in ("data", "validation_data"):  # a single path needs no list
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

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as lists, numbers and strings, fit for YAML and for a `weights_only` checkpoint."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}


def changed_fields(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name the fields, such as "network.depths", whose change would make it another run."""
    changes = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += [f"{name}.{key}" for key in changed_fields(old, new)]
        elif old != new and not _may_change(name, before, after):
            changes.append(name)
    return changes


def _may_change(name: str, before: dict[str, Any], after: dict[str, Any]) -> bool:
    if name == "iterations" and "cosine" in (before.get("schedule"), after.get("schedule")):
        return False
    # The preset only fills in `network`, and the initial weights only matter at step 0.
    return name in RESUMABLE_CHANGES or name in ("preset", "initial_weights")


def train_parser(preset: str = DEFAULT_PRESET) -> Parser:
    """Return the parser of `train`: `--config FILE` and a flag for each field; `network` starts from `preset`.

    Raises:
        ValueError: unknown preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: expected one of {', '.join(PRESETS)}")
    summary = (TrainConfig.__doc__ or "").split("\n")[0]
    parser = Parser("train", summary, usage="masked-swin train [options]")
    parser.add_argument("--config", action="config", help="YAML file of any of the fields below; later flags win.")
    parser.add_class_arguments(TrainConfig)
    parser.set_defaults({f"network.{name}": value for name, value in dataclasses.asdict(PRESETS[preset]).items()})
    return parser


def parse_config(arguments: Sequence[str]) -> TrainConfig:
    """Parse the arguments of `train`.

    Raises:
        UsageError: an unknown argument or key, or a value of another type.
        ValueError: a value outside its range.
    """
    # The preset, from a flag or a file, sets the defaults of the network: it must be known before they are.
    quiet = [argument for argument in arguments if not argument.startswith("--print_config")]
    before = train_parser().parse(quiet)
    if not isinstance(before.network, Namespace):
        raise UsageError(f"network: expected fields, such as `embed_dim: 60`, got {before.network}")
    parser = train_parser(before.preset)
    fields = parser.instantiate(parser.parse(arguments)).as_dict()
    fields.pop("config")
    return TrainConfig(**fields)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
