"""The network that `--model` names: a checkpoint file, or the folder of a training run."""

import hashlib
from pathlib import Path

from masked_swin import PRESETS, MaskedSwinIR, load_model
from masked_swin.train.run_folder import BEST_FILE, WEIGHTS_FILE

RUN_WEIGHTS = (BEST_FILE, WEIGHTS_FILE)  # in the folder of a run, the best first


def weights_path(name: str) -> Path:
    """Return the checkpoint file that `name` means: the file itself, or the weights in the folder of a training run.

    Raises:
        ValueError: a preset (it has no weights), a folder without weights, or no such file.
    """
    path = Path(name)
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


def load_weights(name: str) -> MaskedSwinIR:
    """Load the network of a checkpoint, or of a run's folder, ready to denoise.

    Raises:
        ValueError: see `weights_path`; or not a checkpoint of a network for grey or RGB images.
    """
    model = load_model(weights_path(name))
    if model.config.in_channels not in (1, 3):
        channels = model.config.in_channels
        raise ValueError(f"model {name!r}: expected a network of 1 channel (grey) or 3 (RGB), got {channels}")
    return model


def fingerprint(model: MaskedSwinIR) -> str:
    """Return the SHA-256 of configuration and weights; unlike a file's name it tells whether they are the same."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
