"""Masked image training for denoising: the network, its masks, its checkpoints, and denoising."""

from importlib import metadata

from masked_swin.checkpoint import load_checkpoint, load_model, save_checkpoint
from masked_swin.config import PRESETS, ModelConfig
from masked_swin.inference import denoise
from masked_swin.masking import MaskKey
from masked_swin.model import MaskedSwinIR

try:
    __version__ = metadata.version("masked-swin")
except metadata.PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.0.0"

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
