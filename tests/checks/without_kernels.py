"""Where the C++ kernels cannot run: the package imports, doctor says why, the reference computes.

    python without_kernels.py FOLDER REASON

The package must come from below FOLDER, and doctor must give REASON for the backend `cpu`.
"""

import re
import sys
from pathlib import Path

import pytest
import torch

import masked_swin
from masked_swin.kernels import CPU_LIBRARY, window_attention
from masked_swin.train.commands.doctor import report

folder, reason = sys.argv[1:]
package = Path(masked_swin.__file__).resolve()
assert package.is_relative_to(Path(folder).resolve()), f"{package} is not the package under test"
assert not CPU_LIBRARY.loaded

text = report()
print(text)
line = next(line for line in text.splitlines() if line.split()[:2] == ["window_attention", "cpu"])
assert "cannot run" in line, line
assert reason in line, f"doctor says {line!r}, expected {reason!r}"

q, k, v = torch.randn(3, 2, 4, 1, 8).unbind()
bias = torch.zeros(1, 4, 4)
expected = torch.einsum("wqhd,wkhd->whqk", q, k).softmax(-1) @ v.transpose(1, 2)
for backend in (None, "reference"):
    out = window_attention(q, k, v, bias, scale=1.0, backend=backend)
    torch.testing.assert_close(out, expected.transpose(1, 2))
with pytest.raises(ValueError, match=re.escape(reason)):
    window_attention(q, k, v, bias, scale=1.0, backend="cpu")
