"""The baseline of the benchmarks: the public-style network that the tests use as their witness."""

from tests.kernels.test_swin_block import block_weights
from tests.support.public_network import PublicBlock, PublicNetwork, windowed_keep

__all__ = ["PublicBlock", "PublicNetwork", "block_weights", "windowed_keep"]
