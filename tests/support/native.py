"""The mark of tests that need the C++ library."""

import pytest

from masked_swin.kernels import CPU_LIBRARY

needs_native = pytest.mark.skipif(not CPU_LIBRARY.loaded, reason=f"no native library: {CPU_LIBRARY.why_not}")
