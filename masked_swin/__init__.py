"""Masked image training for denoising: the network, its masks, its checkpoints, and denoising."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masked_swin.checkpoint import load_checkpoint, load_model, save_checkpoint
    from masked_swin.config import PRESETS, ModelConfig
    from masked_swin.inference import denoise
    from masked_swin.masking import MaskKey
    from masked_swin.model import MaskedSwinIR

    __version__: str

__all__ = [
    "PRESETS",
    "MaskKey",
    "MaskedSwinIR",
    "ModelConfig",
    "denoise",
    "load_checkpoint",
    "load_model",
    "save_checkpoint",
]

_HOME = {
    "PRESETS": "config",
    "MaskKey": "masking",
    "MaskedSwinIR": "model",
    "ModelConfig": "config",
    "denoise": "inference",
    "load_checkpoint": "checkpoint",
    "load_model": "checkpoint",
    "save_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use. PyTorch takes seconds, and the command line must answer Ctrl-C before."""
    if name == "__version__":
        value: Any = _version()
    elif name == "kernels":
        return import_module("masked_swin.kernels")
    elif name in _HOME:
        value = getattr(import_module(f"masked_swin.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__", "kernels"]


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("masked-swin")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "0.0.0"
