"""Smoke test of an installed wheel, run outside the checkout: operator, gradients, torch.compile, network.

    python smoke.py FOLDER

The package must come from below FOLDER.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

import masked_swin
from masked_swin import PRESETS, MaskedSwinIR, MaskKey, denoise
from masked_swin.kernels import CPU_LIBRARY, VisibleTokens, Windows, relative_position_bias, window_attention

HEADS, HEAD_DIM, BATCH = 3, 10, 2
SCALE = 0.4  # not head_dim ** -0.5: a backward that forgets it would show
WINDOWS = Windows(16, 24, (4, 8), (2, 4))

package = Path(masked_swin.__file__).resolve()
assert package.is_relative_to(Path(sys.argv[1]).resolve()), f"{package} is not the package under test"
assert CPU_LIBRARY.loaded, CPU_LIBRARY.why_not

torch.manual_seed(0)
keep = torch.rand(BATCH, WINDOWS.tokens) < 0.3
visible = VisibleTokens.from_keep(keep, WINDOWS)
rows = len(visible.token_index)
q, k, v = torch.randn(3, rows, HEADS, HEAD_DIM).unbind()
masked = torch.randn(3, HEADS, HEAD_DIM)
height, width = WINDOWS.window
bias = torch.randn((2 * height - 1) * (2 * width - 1), HEADS)
cotangent = torch.randn(BATCH * WINDOWS.count, WINDOWS.size, HEADS, HEAD_DIM)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, masked: Tensor, backend: str) -> Tensor:
    dense_bias = relative_position_bias(bias, WINDOWS.window)
    shared = (masked[0], masked[1], masked[2])
    return window_attention(q, k, v, dense_bias, scale=SCALE, visible=visible, shared_qkv=shared, backend=backend)


def with_gradients(function, backend: str, dtype: torch.dtype) -> list[Tensor]:
    inputs = [t.to(dtype).requires_grad_() for t in (q, k, v, bias, masked)]
    out = function(*inputs, backend)
    return [out.detach(), *torch.autograd.grad((out * cotangent.to(dtype)).sum(), inputs)]


def largest_error(ours: list[Tensor], expected: list[Tensor]) -> float:
    return max((((a - b).norm() / b.norm()).item()) for a, b in zip(ours, expected, strict=True))


reference = with_gradients(attention, "reference", torch.float64)
native = with_gradients(attention, "cpu", torch.float32)
error = largest_error(native, reference)
assert error < 1e-5, f"operator or gradient off by {error:.1e}"

compiled = with_gradients(torch.compile(attention, fullgraph=True), "cpu", torch.float32)
compiled_error = largest_error(compiled, native)
assert compiled_error < 1e-6, f"compiled operator or gradient off by {compiled_error:.1e}"

image = torch.rand(1, 3, 24, 40)
networks = {backend: MaskedSwinIR(PRESETS["tiny"], backend=backend) for backend in ("cpu", "reference")}
networks["reference"].load_state_dict(networks["cpu"].state_dict())
outputs = [network.eval()(image, key=MaskKey.make(seed=1, samples=1)).detach() for network in networks.values()]
network_error = largest_error(outputs[:1], outputs[1:])
assert network_error < 1e-5, f"network off by {network_error:.1e}"
assert denoise(networks["cpu"], image).shape == image.shape

print(
    f"torch {torch.__version__}, kernels {CPU_LIBRARY.instruction_set}: operator and 5 gradients within {error:.0e} of "
    f"the float64 reference, compiled (fullgraph) within {compiled_error:.0e} of eager, network within "
    f"{network_error:.0e}"
)
