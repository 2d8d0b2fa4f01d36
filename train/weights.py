"""The network that `--model` names: a checkpoint file, or the folder of a training run.

"module:Class@" before that names a class of one's own, whose weights the file holds.
"""

import hashlib
import re
from pathlib import Path

from masked_swin import PRESETS
from masked_swin.denoiser import Denoiser
from masked_swin.train.run_folder import BEST_FILE, WEIGHTS_FILE
from masked_swin.train.systems import load_network

RUN_WEIGHTS = (BEST_FILE, WEIGHTS_FILE)  # in the folder of a run, the best first


def weights_path(name: str) -> Path:
    """Return the checkpoint file that `name` means: the file itself, or the weights in the folder of a training run.

    Raises:
        ValueError: a preset (it has no weights), a folder without weights, or no such file.
    """
    path = Path(_parted(name)[1])
    if path.is_dir():
        found = next((path / file for file in RUN_WEIGHTS if (path / file).is_file()), None)
        if found is None:
            others = sorted(file.name for file in path.iterdir() if file.suffix in (".pth", ".pt", ".safetensors"))
            hint = f"it holds {', '.join(others)}: give one of them" if others else "give a .pth or .safetensors file"
            raise ValueError(
                f"model {name!r}: the folder holds no {' or '.join(RUN_WEIGHTS)} of a finished run; {hint}"
            )
        return found
    if not path.is_file():
        if name in PRESETS:
            raise ValueError(
                f"model {name!r} is a preset, an architecture without weights; expected a checkpoint (.pth or "
                f".safetensors), such as weights.pth of a `masked-swin train --preset {name}` run"
            )
        raise ValueError(f"model {name!r}: no such checkpoint file")
    return path


def load_weights(name: str) -> Denoiser:
    """Load the network of a checkpoint, or of a run's folder, ready to denoise; of any system.

    Raises:
        ValueError: see `weights_path`; or not a checkpoint of a network for grey or RGB images.
    """
    model = load_network(weights_path(name), own=_parted(name)[0])
    if model.config.in_channels not in (1, 3):
        channels = model.config.in_channels
        raise ValueError(f"model {name!r}: expected a network of 1 channel (grey) or 3 (RGB), got {channels}")
    return model


def fingerprint(model: Denoiser) -> str:
    """Return the SHA-256 of configuration and weights; unlike a file's name it tells whether they are the same."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _parted(name: str) -> tuple[str | None, str]:
    """Return the class that a name begins with, if any, and the rest: the path."""
    match = re.fullmatch(r"([\w.]+:\w+)@(.+)", name)
    return (match[1], match[2]) if match else (None, name)
