"""Finds tile sides and warps of the Triton kernels for a shape, by timing them on this machine's device.

    python -m masked_swin.kernels.triton.autotune                # the published network; into the user's table
    python -m masked_swin.kernels.triton.autotune --channels 180 --heads 6 --dtype float16 --output table.json

Kernels use the table from their next start on.
"""

import argparse
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..geometry import Windows
from ..pixel_embedding import EmbeddingWeights, pixel_embedding
from ..swin_block import SwinBlockWeights, swin_block
from ..visible import VisibleTokens
from . import MAX_CHANNELS, launch, tuning
from .tuning import Tiles

Run = Callable[[], list[Tensor]]
# Cost of one kernel, in milliseconds, in a run with some tiles; infinite if they cannot be compiled or are wrong.
Measure = Callable[[Run, str, dict[str, Tiles]], float]

MAX_SIDE, MAX_WARPS = 256, 8
ROUNDS = 4
WRONG = 0.02  # a relative difference that no other order of sums explains, also in bfloat16


class Found(NamedTuple):
    tiles: Tiles
    milliseconds: float
    by_rule: float  # milliseconds


def search(run: Run, measure: Measure, known: Container[str] = (), min_gain: float = 0.02) -> dict[str, Found]:
    """The best tiles of every kernel that `run` starts: from the rule on, one side or the warps halved or doubled.

    Args:
        known: keys to leave out.
        min_gain: share of the cost; a smaller gain is not taken.
    """
    with tuning.trying({}) as requested:
        run()
    found = {}
    for key, rule in requested.rules.items():
        if key in known:
            continue
        by_rule = lowest = measure(run, key, {key: rule.tiles})
        best, seen = rule.tiles, [rule.tiles]
        for _ in range(ROUNDS):
            candidates = [tiles for tiles in _neighbours(best, rule.max_tiles) if tiles not in seen]
            seen += candidates
            costs = [measure(run, key, {key: tiles}) for tiles in candidates]
            if not min(costs, default=lowest) < lowest * (1 - min_gain):
                break
            lowest = min(costs)
            best = candidates[costs.index(lowest)]
        found[key] = Found(best, lowest, by_rule)
    return found


def _neighbours(tiles: Tiles, max_tiles: Tiles) -> Iterator[Tiles]:
    for name, value in tiles.items():
        limit = max_tiles.get(name, MAX_WARPS if name == "num_warps" else MAX_SIDE)
        yield from ({**tiles, name: other} for other in (value // 2, value * 2) if 1 <= other <= limit)


def time_on_device(run: Run, key: str, tiles: dict[str, Tiles]) -> float:
    """Median milliseconds of the key's launches in a run, caches flushed between them."""
    from triton.testing import do_bench

    start, total = launch.launch, 0.0

    def timed(kernel: Any, *arguments: Any, **constants: Any) -> None:
        nonlocal total
        if tuning.launched_key(kernel) == key:
            # Some kernels add to their arguments: every start but the last is undone.
            tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
            memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}.values()
            before = [storage.clone() for storage in memory]
            total += do_bench(lambda: start(kernel, *arguments, **constants), return_mode="median")
            for storage, content in zip(memory, before, strict=True):
                storage.copy_(content)
        start(kernel, *arguments, **constants)

    with tuning.trying({}):
        wanted = run()
    launch.launch = timed
    try:
        with tuning.trying(tiles):
            results = run()
    except Exception:  # Triton's own: no such tile, or it does not fit
        return float("inf")
    finally:
        launch.launch = start
    return total if close(results, wanted) else float("inf")


def close(results: list[Tensor], wanted: list[Tensor]) -> bool:
    """Whether another order of sums explains how results differ."""
    pairs = zip(results, wanted, strict=True)
    return all((ours - theirs).double().norm() <= WRONG * theirs.double().norm() for ours, theirs in pairs)


def workloads(
    channels: int, heads: int, window: int, dtype: torch.dtype, batch: int, size: int, device: str
) -> Iterator[tuple[str, Run]]:
    """Passes, forward and backward, that start every kernel: blocks masked and dense, and the embedding of pixels."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int, scale: float = 0.1) -> Tensor:
        return scale * torch.randn(shape, generator=generator, device=device)

    hidden = 2 * channels
    matrices = {
        "qkv_weight": (3 * channels, channels),
        "qkv_bias": (3 * channels,),
        "position_bias_table": ((2 * window - 1) ** 2, heads),
        "proj_weight": (channels, channels),
        "fc1_weight": (hidden, channels),
        "fc1_bias": (hidden,),
        "fc2_weight": (channels, hidden),
    }
    names = [name for name in SwinBlockWeights._fields if name != "mask_token"]
    weights = SwinBlockWeights(*(random(*matrices.get(name, (channels,))).requires_grad_() for name in names))
    x = random(batch, size, size, channels, scale=1.0).requires_grad_()
    grad = random(*x.shape, scale=1.0)
    windows = Windows(size, size, (window, window), (window // 2, window // 2))
    keep = torch.rand(batch, windows.tokens, generator=generator, device=device) < 0.25

    def block(mode: str, visible: VisibleTokens | None) -> Run:
        def run() -> list[Tensor]:
            with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
                out = swin_block(
                    x,
                    weights,
                    window=windows.window,
                    shift=windows.shift,
                    visible=visible,
                    mode=mode,
                    backend="triton",
                )
            leaves = [x, *(weight for weight in weights if weight is not None)]
            return [out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))]

        return run

    yield "block, 75 % masked", block("zero", VisibleTokens.from_keep(keep, windows))
    yield "block, dense", block("zero", None)

    if channels > MAX_CHANNELS:
        return
    image = torch.rand(batch, 3, size, size, generator=generator, device=device)
    embedding = [random(*shape).requires_grad_() for shape in ((channels, 3, 1, 1), *[(channels,)] * 3)]

    def embed() -> list[Tensor]:
        out = pixel_embedding(
            image,
            (size, size),
            input_mask=~keep.view(batch, size, size),
            mean=torch.zeros(3, device=device),
            image_range=1.0,
            mask_value=-0.1,
            weights=EmbeddingWeights(*embedding),
            backend="triton",
        ).features
        return [out, *torch.autograd.grad(out, embedding, grad)]

    yield "embedding of pixels", embed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m masked_swin.kernels.triton.autotune", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--channels", type=int, default=60)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--window", type=int, default=8, help="side")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of products")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=64, help="side of the images")
    parser.add_argument("--output", type=Path, default=None, help=f"table to write; default {tuning.user_table()}")
    parser.add_argument("--write", action="store_true", help="write the package's own table")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("autotune: PyTorch sees no NVIDIA or AMD device here, and nothing else can be timed.", file=sys.stderr)
        return 1
    try:
        _tune(options, tuning.PACKAGE_TABLE if options.write else options.output or tuning.user_table())
    except (ValueError, OSError) as error:
        print(f"autotune: {error}", file=sys.stderr)
        return 1
    return 0


def _tune(options: argparse.Namespace, path: Path) -> None:
    """Search all workloads; each adds its entries to the table in `path`."""
    architecture = tuning.architecture()
    assert architecture is not None
    tuning.write_table(path, architecture, {})  # a file that cannot be written is better known before the search
    by = f"timed on {torch.cuda.get_device_name()}, Triton {version('triton')}"
    shape = (options.channels, options.heads, options.window, getattr(torch, options.dtype))
    known: set[str] = set()
    for name, run in workloads(*shape, options.batch, options.size, "cuda"):
        found = search(run, time_on_device, known)
        known |= found.keys()
        for key, (tiles, milliseconds, by_rule) in found.items():
            print(f"{name}: {key}: {_shown(tiles)}: {milliseconds:.3f} ms, by rule {by_rule:.3f} ms")
        tuning.write_table(path, architecture, {k: {"tiles": f.tiles, "by": by} for k, f in found.items()})
    print(f"written to {path}")


def _shown(tiles: Tiles) -> str:
    return ", ".join(f"{name} {value}" for name, value in tiles.items())


if __name__ == "__main__":
    sys.exit(main())
