"""Window attention over visible tokens: the public names, and the backends that compute them."""

from . import composed, cpu, reference, triton
from .backends import backend_report, collect
from .convolution import convolution
from .cpu.library import CPU_LIBRARY
from .geometry import Windows, relative_position_bias, relative_position_index, shift_mask
from .noise import Noise, gaussian_noise
from .pixel_embedding import Embedding, EmbeddingWeights, pixel_embedding
from .swin_block import SwinBlockWeights, swin_block
from .token_mask import Ratio, percent_range, random_words, ratio_tensor, sample_uniform, token_mask
from .visible import VisibleTokens
from .window_attention import window_attention

for _backend in (cpu, triton, composed, reference):  # fastest first
    collect(_backend.BACKENDS)

__all__ = [
    "CPU_LIBRARY",
    "Embedding",
    "EmbeddingWeights",
    "Noise",
    "Ratio",
    "SwinBlockWeights",
    "VisibleTokens",
    "Windows",
    "backend_report",
    "convolution",
    "gaussian_noise",
    "percent_range",
    "pixel_embedding",
    "random_words",
    "ratio_tensor",
    "relative_position_bias",
    "relative_position_index",
    "sample_uniform",
    "shift_mask",
    "swin_block",
    "token_mask",
    "window_attention",
]
