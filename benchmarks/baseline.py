"""The baseline of the benchmarks: the public-style network that the tests use as their witness."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from public_network import PublicBlock, PublicNetwork, windowed_keep
from test_swin_block import block_weights

__all__ = ["PublicBlock", "PublicNetwork", "block_weights", "windowed_keep"]
