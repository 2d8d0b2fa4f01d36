"""The self-test of `doctor`: each backend against the float64 reference, and its time. Needs no extra packages."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from masked_swin.kernels import (
    EmbeddingWeights,
    SwinBlockWeights,
    VisibleTokens,
    Windows,
    backend_report,
    convolution,
    gaussian_noise,
    pixel_embedding,
    random_words,
    relative_position_bias,
    swin_block,
    token_mask,
    window_attention,
)

# Error of float32 against float64, relative to the norm: rounding leaves at most 1e-6, a wrong kernel far more.
TOLERANCE = 1e-5

# One 64 x 64 image, as wide as the published network, 75 % masked, shifted windows.
WINDOWS = Windows(64, 64, (8, 8), (4, 4))
CHANNELS, HEADS, HIDDEN = 60, 6, 120


class Trial(NamedTuple):
    """One backend on its device: the largest error of output and gradients against the float64 reference.

    `why_not` is the reason why it was not tested.
    """

    operation: str
    backend: str
    device: str
    error: float
    why_not: str | None = None
    milliseconds: float | None = None  # forward and backward

    @property
    def right(self) -> bool:
        return self.why_not is not None or self.error < TOLERANCE  # a NaN is not


def self_test(seconds: float) -> list[Trial]:
    """Compare each backend that can run with the float64 reference, and time it if it is right.

    Both run forward and backward with gradients of all inputs. The backends take turns for about `seconds`; times are
    medians.
    """
    started = time.monotonic()
    operations = {
        "window_attention": _attention(),
        "swin_block": _block(),
        "pixel_embedding": _embedding(),
        "convolution": _convolution(),
        "random_words": _random_words(),
        "token_mask": _token_mask(),
        "normal": _normal(),
        "visible_tokens": _visible_tokens(),
    }
    trials: list[Trial] = []
    runs: dict[int, Callable[[], object]] = {}
    for operation, name, why_not in backend_report():
        if why_not is None:
            trial, run = _trial(operation, name, operations[operation])
            if run is not None and trial.right:
                runs[len(trials)] = run
            trials.append(trial)
    times: dict[int, list[float]] = {index: [] for index in runs}
    while runs and (time.monotonic() - started < seconds or not min(map(len, times.values()))):
        for index, run in runs.items():
            before = time.perf_counter()
            run()
            times[index].append(time.perf_counter() - before)
    for index, values in times.items():
        trials[index] = trials[index]._replace(milliseconds=1e3 * statistics.median(values))
    return trials


Case = tuple[Callable[..., Tensor], list[Tensor]]  # function of the inputs and a backend, inputs in float64


def _attention() -> Case:
    generator = torch.Generator().manual_seed(0)
    visible = _visible(generator)
    shape = (len(visible.token_index), HEADS, CHANNELS // HEADS)
    sizes = [shape, shape, shape, (15 * 15, HEADS), (3, *shape[1:])]
    inputs = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]

    def run(q: Tensor, k: Tensor, v: Tensor, table: Tensor, shared: Tensor, backend: str) -> Tensor:
        bias = relative_position_bias(table, WINDOWS.window)
        shared_qkv = (shared[0], shared[1], shared[2])
        here = _on(visible, q.device)
        unused = len(here.token_index) - len(q)  # on a GPU the list has room for every token
        q, k, v = (torch.nn.functional.pad(rows, (0, 0, 0, 0, 0, unused)) for rows in (q, k, v))
        return window_attention(q, k, v, bias, scale=0.3, visible=here, shared_qkv=shared_qkv, backend=backend)

    return run, inputs


def _block() -> Case:
    generator = torch.Generator().manual_seed(0)
    visible = _visible(generator)
    c, m = CHANNELS, HIDDEN
    sizes = [(c,), (c,), (3 * c, c), (3 * c,), (15 * 15, HEADS), (c, c), (c,), (c,), (c,), (m, c), (m,), (c, m), (c,)]
    inputs = [torch.randn(1, WINDOWS.height, WINDOWS.width, c, generator=generator, dtype=torch.float64)]
    inputs += [torch.randn(size, generator=generator, dtype=torch.float64) * size[-1] ** -0.5 for size in sizes]

    def run(x: Tensor, *weights: Tensor, backend: str) -> Tensor:
        here = _on(visible, x.device)
        parameters = SwinBlockWeights(*weights)
        return swin_block(x, parameters, window=WINDOWS.window, shift=WINDOWS.shift, visible=here, backend=backend)

    return run, inputs


def _embedding() -> Case:
    generator = torch.Generator().manual_seed(0)
    # 10 %: in float32 even PyTorch's sums lose digits where thousands of pixels are equal.
    input_mask = torch.rand(1, WINDOWS.height, WINDOWS.width, generator=generator) < 0.1
    image = torch.rand(1, 3, WINDOWS.height, WINDOWS.width, generator=generator, dtype=torch.float64)
    sizes = [(CHANNELS, 3, 1, 1), *[(CHANNELS,)] * 3]
    inputs = [image, *(torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)]

    def run(image: Tensor, *weights: Tensor, backend: str) -> Tensor:
        return pixel_embedding(
            image,
            (WINDOWS.height, WINDOWS.width),
            input_mask=input_mask.to(image.device),
            mean=image.new_full((3,), 0.5),
            image_range=1.0,
            mask_value=-0.1,
            weights=EmbeddingWeights(*weights),
            backend=backend,
        ).features

    return run, inputs


def _convolution() -> Case:
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, WINDOWS.height, WINDOWS.width, CHANNELS), (CHANNELS // 4, CHANNELS, 3, 3), (CHANNELS // 4,)]
    inputs = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    return convolution, inputs


def _random_words() -> Case:
    def run(x: Tensor, backend: str) -> Tensor:
        return random_words(*_key(x), WINDOWS.tokens, backend=backend)

    return run, [torch.zeros(1)]


def _token_mask() -> Case:
    def run(x: Tensor, backend: str) -> Tensor:
        return token_mask(*_key(x), WINDOWS.tokens, 0.75, backend=backend)

    return run, [torch.zeros(1)]


def _normal() -> Case:
    image = torch.full((2, 3, WINDOWS.height, WINDOWS.width), 0.5)

    def run(image: Tensor, backend: str) -> Tensor:
        return gaussian_noise(image, 0.1, *_key(image), backend=backend)

    return run, [image.double()]


def _visible_tokens() -> Case:
    keep = torch.rand(2, WINDOWS.tokens, generator=torch.Generator().manual_seed(0)) >= 0.75

    def run(x: Tensor, backend: str) -> Tensor:
        found = VisibleTokens.from_keep(keep.to(x.device), WINDOWS, backend=backend).token_index
        return found[: keep.sum()]  # on a GPU the list has room for every token

    return run, [torch.zeros(1)]


def _key(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return seed, draw and ids of two images on the device of `x`."""
    seed, draw, sample = torch.tensor(7), torch.tensor(3), torch.tensor([1, 2])
    return seed.to(x.device), draw.to(x.device), sample.to(x.device)


def _trial(operation: str, backend: str, case: Case) -> tuple[Trial, Callable[[], object] | None]:
    run, inputs = case
    expected = _with_gradients(run, inputs, "reference")
    reason = "no device"
    for device in ("cpu", *(("cuda",) if torch.cuda.is_available() else ())):
        placed = [value.to(device, torch.float32) for value in inputs]
        try:
            found = _with_gradients(run, placed, backend)
        except ValueError as refused:
            reason = str(refused)
            continue
        error = max(_relative_error(a, b) for a, b in zip(found, expected, strict=True))

        def timed(placed: list[Tensor] = placed, device: str = device) -> None:
            _with_gradients(run, placed, backend)
            if device == "cuda":
                torch.cuda.synchronize()

        return Trial(operation, backend, device, error), timed
    return Trial(operation, backend, "none", float("nan"), reason), None


def _with_gradients(run: Callable[..., Tensor], inputs: list[Tensor], backend: str) -> list[Tensor]:
    inputs = [value.detach().requires_grad_() for value in inputs]
    out = run(*inputs, backend=backend)
    if not out.requires_grad:  # masks and lists
        return [out]
    return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double().cpu() - expected.double()).norm() / expected.double().norm())


def _visible(generator: torch.Generator) -> VisibleTokens:
    return VisibleTokens.from_keep(torch.rand(1, WINDOWS.tokens, generator=generator) >= 0.75, WINDOWS)


def _on(visible: VisibleTokens, device: torch.device) -> VisibleTokens:
    return visible if device.type == "cpu" else VisibleTokens.from_keep(visible.image_keep.to(device), WINDOWS)
