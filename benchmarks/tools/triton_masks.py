"""The tables of masks, visible tokens and the embedding of pixels in docs/triton-tables.md."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.tools.triton_resources import Compiled, Counted
from masked_swin.kernels import EmbeddingWeights, Noise, VisibleTokens, Windows, pixel_embedding, token_mask
from tests.support.triton_on_ptxsim import Emulator, in_place_of_launch

TITLE = "Masks, visible tokens and embedding"
BATCH, WINDOWS = 64, Windows(64, 64, (8, 8), (4, 4))
EVERY = 16  # ptxsim runs one program of so many of the embedding, and all of the others
ACTIVATIONS = {
    "words": {"words_ptr"},
    "mask": {"mask_ptr"},
    "normal": {"out_ptr"},
    "exact_mask": {"mask_ptr"},
    "count": {"keep_ptr"},
    "list": {"keep_ptr", "token_index_ptr", "position_ptr", "offsets_ptr", "window_keep_ptr", "regions_ptr"},
    "embedding": {"image_ptr", "input_mask_ptr", "out_ptr"},
    "embedding_backward": {"image_ptr", "input_mask_ptr", "grad_ptr"},
}


def draw(batch: int, windows: Windows) -> None:
    """Start the kernels that draw: masks of 75 %, exact and not, words, and normal numbers for RGB images."""
    operators = torch.ops.masked_swin
    key, percent = (torch.tensor(1), torch.tensor(0), torch.arange(batch)), torch.full((1, 1), 75)
    operators.token_mask_triton(*key, percent, *windows.sizes, 1, True)
    mask: Tensor = operators.token_mask_triton(*key, percent, *windows.sizes, 1, False)
    operators.visible_tokens_triton(~mask, *windows.sizes)
    operators.normal_triton(*key, 3, windows.tokens)
    operators.random_words_triton(*key, 0, windows.tokens, 0, 1)


def embed(batch: int, windows: Windows, channels: int) -> None:
    size = windows.height, windows.width
    weights = [torch.rand(shape).requires_grad_() for shape in ((channels, 3, 1, 1), *[(channels,)] * 3)]
    out = pixel_embedding(
        torch.rand(batch, 3, *size),
        size,
        noise=Noise(15 / 255, torch.tensor(1), torch.tensor(0), torch.arange(batch)),
        input_mask=torch.rand(batch, *size) < 0.85,
        mean=torch.rand(3),
        image_range=1.0,
        mask_value=-0.1,
        weights=EmbeddingWeights(*weights),
        backend="triton",
    ).features
    torch.autograd.grad(out, weights, torch.rand(out.shape))


def compiled() -> list[Compiled]:
    small = Windows(16, 16, (8, 8), (4, 4))
    found = [Compiled("8x8 windows", lambda: draw(2, small))]
    return found + [Compiled(f"float32, C = {c}", lambda *, c=c: embed(2, small, c)) for c in (60, 180, 240)]


def counted() -> list[Counted]:
    windows = BATCH * WINDOWS.count
    cases: list[tuple[Callable[[], object], int]] = [
        (lambda: draw(BATCH, WINDOWS), 1),
        (lambda: embed(BATCH, WINDOWS, 60), EVERY),
    ]
    found = []
    for start, every in cases:
        with in_place_of_launch(Emulator(checks=False, every=every)) as emulator:
            start()
        for launch in emulator.launches:
            kernel = launch.kernel.removesuffix("_kernel")
            found.append(Counted(kernel, launch, windows, ACTIVATIONS[kernel]))
    return found


class _Launches(TorchDispatchMode):
    """Counts eager operators, a kernel each at least, and the bytes that they read and write; views are free."""

    launches = 0
    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.launches += 1
            self.total += sum(t.numel() * t.element_size() for t in tree_leaves((args, out)) if isinstance(t, Tensor))
        return out


def notes() -> list[str]:
    with _Launches() as eager, torch.device("meta"):
        seed, draw_number = torch.empty(2, dtype=torch.int64).unbind()
        sample = torch.empty(BATCH, dtype=torch.int64)
        eager.launches = eager.total = 0
        mask = token_mask(seed, draw_number, sample, WINDOWS.tokens, 0.75, backend="reference")
        _ = VisibleTokens.from_keep(~mask, WINDOWS, backend="reference").token_index
    mib, per_window = eager.total / 2**20, eager.total / 1024 / (BATCH * WINDOWS.count)
    return [
        f"PyTorch's operators start {eager.launches} kernels for the mask and the compact list of one layer. They move "
        f"{mib:.0f} MiB ({per_window:.0f} KiB a window). This backend starts four: mask, inversion, count and list."
    ]
