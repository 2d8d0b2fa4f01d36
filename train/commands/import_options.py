"""`masked-swin import-options`: translate an option file of the public training code to one for `train --config`."""

import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from masked_swin import PRESETS
from masked_swin.config import config_from_public_options
from masked_swin.train.config import TrainConfig
from masked_swin.train.parser import Parser

# Public key: field of TrainConfig. The network is translated by `config_from_public_options`.
_FIELDS = {
    "path.pretrained_netG": "initial_weights",
    "datasets.train.dataroot_H": "data",
    "datasets.train.H_size": "patch_size",
    "datasets.train.dataloader_batch_size": "batch_size",
    "datasets.train.noise_level": "sigma",
    "datasets.test.dataroot_H": "validation_data",
    "train.manual_seed": "seed",
    "train.E_decay": "ema_decay",
    "train.G_optimizer_lr": "learning_rate",
    "train.G_optimizer_clipgrad": "gradient_clip",
    "train.G_scheduler_milestones": "milestones",
    "train.checkpoint_test": "validation_interval",
    "train.checkpoint_save": "checkpoint_interval",
    "train.checkpoint_print": "log_interval",
}
# The values that this trainer supports.
_FIXED: dict[str, tuple[object, ...]] = {
    "model": ("plain",),
    "scale": (1,),
    "datasets.train.dataroot_L": (None, ""),
    "datasets.train.dataset_type": ("masked_denoising",),
    "train.G_lossfn_type": ("l1",),
    "train.G_lossfn_weight": (1, None),
    "train.G_optimizer_type": ("adam",),
    "train.G_optimizer_wd": (0, None),
    "train.G_scheduler_type": ("MultiStepLR",),
    "train.G_scheduler_gamma": (0.5,),
    "train.G_regularizer_orthstep": (None, 0),
    "train.G_regularizer_clipstep": (None, 0),
}
# These keys do not change what is computed, or another key says the same.
_WITHOUT_EFFECT = re.compile(
    r"task|gpu_ids|dist|n_channels|path\.(root|pretrained_netE)|datasets\.(train|test)\.name"
    r"|datasets\.train\.(lq_patchsize|dataloader_shuffle|dataloader_num_workers|if_mask|mask1|mask2)"
    r"|datasets\.test\.(dataset_type|dataroot_L)|train\.(G_optimizer_reuse|[GE]_param_strict|save_image)"
)
_NETWORK = re.compile(
    r"netG\.(net_type|upscale|in_chans|img_size|window_size|img_range|depths|embed_dim|num_heads|mlp_ratio|upsampler"
    r"|resi_connection|init_type|talking_heads|attn_fn|head_scale|on_attn|use_mask|mask_ratio[12]|mask_is_diff|type)"
)


def run(arguments: Sequence[str]) -> int:
    """Write or print the translated configuration; return the exit code."""
    parser = Parser(
        "import-options", "Translate an option file of the public training code to one for `train --config`."
    )
    parser.add_argument("options", type=Path, help="JSON file, // comments allowed")
    parser.add_argument("--output", type=Path | None, default=None, help="YAML file to write; none: print it")
    options = parser.parse(arguments)
    text, notes = import_options(options.options)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if options.output is None:
        print(text, end="")
        return 0
    with open(options.output, "x") as file:
        file.write(text)
    print(f"masked-swin train --config {options.output}")
    return 0


class ImportedOptions(NamedTuple):
    """A configuration as YAML, and notes for the user."""

    text: str
    notes: list[str]


def import_options(path: Path) -> ImportedOptions:
    """Translate the option file `path`. Unknown keys are left out and named in the notes.

    Raises:
        ValueError: not an option file, or a value that this trainer does not support.
        OSError: it cannot be read.
    """
    options = _read(path)
    fields: dict[str, Any] = {"output": f"runs/{options.get('task') or path.stem}", "schedule": "milestones"}
    unknown = []
    try:
        for key, value in _flat(options):
            if key in _FIXED and value not in _FIXED[key]:
                raise ValueError(f"option {key} is {value!r}, only {_FIXED[key][0]!r} is supported")
            if key in _FIELDS:
                if value is not None:
                    fields[_FIELDS[key]] = value
            elif key not in _FIXED and not _WITHOUT_EFFECT.fullmatch(key) and not _NETWORK.fullmatch(key):
                unknown.append(key)
        fields["network"] = config_from_public_options(options)
        TrainConfig(**fields)  # raises for values out of range
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    published = PRESETS["published"].to_dict()
    network = {name: value for name, value in fields["network"].to_dict().items() if value != published[name]}
    plain = {"preset": "published"} | fields | {"network": network}
    notes = [f"{path}: unknown option {key}, left out" for key in unknown]
    if "iterations" not in fields:
        default = next(field.default for field in dataclasses.fields(TrainConfig) if field.name == "iterations")
        notes.append(f"the public code trains without end; iterations is {default} unless you set it")
    if "validation_data" in fields:
        notes.append("validation adds the noise of training to the clean test images; the noisy ones are not read")
    return ImportedOptions(yaml.safe_dump(plain, sort_keys=False, default_flow_style=None), notes)


def _read(path: Path) -> Mapping[str, Any]:
    text = path.read_text(errors="replace")
    without_comments = re.sub(r'("(?:\\.|[^"\\])*")|//[^\n]*', r"\1", text)
    try:
        options = json.loads(without_comments)
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON option file ({error})") from error
    if not isinstance(options, dict) or not isinstance(options.get("netG"), dict):
        raise ValueError(f"{path}: expected an option file of the public code, an object with the key 'netG'")
    return options


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
