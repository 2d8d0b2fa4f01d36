"""The arguments of `train`: a YAML file, every field of TrainConfig also a flag, unknown keys refused."""

import dataclasses
from collections.abc import Sequence

from jsonargparse import Namespace

from masked_swin import PRESETS
from masked_swin.train.config import DEFAULT_PRESET, TrainConfig
from masked_swin.train.parser import Parser, UsageError
from masked_swin.train.systems import SWIN_SYSTEMS


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
    parser = train_parser(before.preset if before.system in SWIN_SYSTEMS else DEFAULT_PRESET)
    fields = parser.instantiate(parser.parse(arguments)).as_dict()
    fields.pop("config")
    return TrainConfig(**fields)
