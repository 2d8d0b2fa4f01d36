"""Window attention over visible tokens: the public names."""

from .backends import backend_report
from .geometry import Windows, relative_position_bias, relative_position_index, shift_mask
from .native import cpu_library
from .swin_block import SwinBlockWeights, swin_block
from .token_mask import percent_range, token_mask
from .visible import VisibleTokens
from .window_attention import window_attention

__all__ = [
    "SwinBlockWeights",
    "VisibleTokens",
    "Windows",
    "backend_report",
    "cpu_library",
    "percent_range",
    "relative_position_bias",
    "relative_position_index",
    "shift_mask",
    "swin_block",
    "token_mask",
    "window_attention",
]
