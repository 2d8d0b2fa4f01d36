"""What of masks, plans and the embedding of pixels is in the tables of kernels/TRITON.md."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.tools.triton_resources import Compiled, Counted
from masked_swin.kernels import EmbeddingWeights, Noise, VisibleTokens, Windows, pixel_embedding, token_mask
from tests.support.triton_on_ptxsim import Emulator, in_place_of_launch

TITLE = "Masks, plan and embedding"
BATCH, WINDOWS = 64, Windows(64, 64, (8, 8), (4, 4))
EVERY = 16  # programs of the embedding; those of masks and plans are all run
ACTIVATIONS = {
    "mask": {"mask_ptr"},
    "normal": {"out_ptr"},
    "exact_mask": {"mask_ptr"},
    "count": {"keep_ptr"},
    "list": {"keep_ptr", "index_ptr", "position_ptr", "offsets_ptr", "window_keep_ptr", "regions_ptr"},
    "embedding": {"image_ptr", "masked_ptr", "out_ptr"},
    "embedding_backward": {"image_ptr", "masked_ptr", "grad_ptr"},
}


def draw(batch: int, windows: Windows) -> Tensor:
    """A mask of 75 % by both kernels, the first's; and normal numbers for RGB images."""
    operators, sizes = torch.ops.masked_swin, (windows.height, windows.width, *windows.window, *windows.shift)
    key = torch.tensor(1), torch.tensor(0), torch.arange(batch)
    operators.exact_token_mask_triton(*key, *sizes, 1, 75, 75, False)
    mask: Tensor = operators.token_mask_triton(*key, windows.tokens, 1, 75, 75, False)
    operators.visible_tokens_triton(~mask, *sizes)
    operators.normal_triton(*key, 3, windows.tokens)
    return mask


def embed(batch: int, windows: Windows, channels: int) -> None:
    size = windows.height, windows.width
    weights = [torch.rand(shape).requires_grad_() for shape in ((channels, 3, 1, 1), *[(channels,)] * 3)]
    out = pixel_embedding(
        torch.rand(batch, 3, *size),
        size,
        noise=Noise(15 / 255, torch.tensor(1), torch.tensor(0), torch.arange(batch)),
        masked=torch.rand(batch, *size) < 0.85,
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
        plan = VisibleTokens.from_keep(~token_mask(seed, draw_number, sample, WINDOWS.tokens, 0.75), WINDOWS)
        _ = plan.token_index
    mib, per_window = eager.total / 2**20, eager.total / 1024 / (BATCH * WINDOWS.count)
    return [
        f"For the mask and the plan of one layer PyTorch's operators start {eager.launches} kernels, which move "
        f"{mib:.0f} MiB ({per_window:.0f} KiB a window); here it is mask, inversion, count and list."
    ]
