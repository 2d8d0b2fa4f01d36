"""`masked-swin export`: a network as an ONNX file, checked against PyTorch in onnxruntime before it gets its name."""

import contextlib
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from masked_swin import MaskedSwinIR, MaskKey
from masked_swin.storage import atomic_write
from masked_swin.train.parser import Parser, UsageError
from masked_swin.train.weights import load_weights

TOLERANCE = 1e-4  # of values in [0, 1]; float32 rounding leaves 1e-6
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


class Unmasked(nn.Module):
    """The network with its attention unmasked: image -> denoised."""

    def __init__(self, model: MaskedSwinIR) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.model(image, attention_mask=False)
        return out


class Masked(nn.Module):
    """The network with the attention masks of a key: image, seed, draw, sample -> denoised."""

    def __init__(self, model: MaskedSwinIR) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, seed: Tensor, draw: Tensor, sample: Tensor) -> Tensor:
        out: Tensor = self.model(image, key=MaskKey(seed, draw, sample))
        return out


def run(arguments: Sequence[str]) -> int:
    """Run `export`; exit code 1 where the file would not compute what the network does."""
    parser = Parser("export", "Write a network as an ONNX file, after a check against PyTorch in onnxruntime.")
    parser.add_argument("output", type=Path, help="the file to write, MODEL.onnx")
    parser.add_argument(
        "--model", type=str, required=True, help="checkpoint, .pth or .safetensors, or the folder of a training run"
    )
    parser.add_argument(
        "--size", type=str, default=None, help="HxW: a graph for this size only; without it for any size"
    )
    parser.add_argument(
        "--attention_mask",
        choices=("off", "random"),
        default="off",
        help="random: masks as in training, of a key that becomes the inputs seed, draw and sample (default: off)",
    )
    options = parser.parse(arguments)
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise ValueError(f"export needs the packages {', '.join(missing)}; install 'masked-swin[onnx]'")
    size = None if options.size is None else _size(options.size)
    model = load_weights(options.model)
    if not isinstance(model, MaskedSwinIR):
        raise ValueError(f"{options.model}: a network of another system; export writes masked_swinir and swinir only")
    error = export(model, options.output, size, masked=options.attention_mask == "random")
    print(f"{options.output}: written; differs from PyTorch by {error:.0e} at most")
    return 0


def export(model: MaskedSwinIR, path: Path, size: tuple[int, int] | None = None, *, masked: bool = False) -> float:
    """Write the network, for images (1, C, H, W) in [0, 1], as ONNX; return the largest difference from PyTorch.

    Args:
        model: the network, on the CPU in float32.
        path: the file to write, whole or not at all.
        size: (H, W) of the images, or None for any.
        masked: mask the attention. The graph then has the inputs image, seed, draw and sample (int64, as of MaskKey).

    Raises:
        ValueError: if the suffix is not .onnx, if a masked network has no attention mask, or if the result differs.
    """
    if path.suffix != ".onnx":
        raise ValueError(f"{path}: the name of an exported network must end in .onnx")
    if masked and model.config.attention_mask is None:
        raise ValueError("this network has no attention mask; leave out --attention-mask random")
    window = model.config.window_size
    height, width = size or (3 * window + 2, 2 * window + 3)  # to be padded, and not square
    wrapped = (Masked(model) if masked else Unmasked(model)).eval()
    inputs = _inputs(model, height, width, masked)
    names = ["image", "seed", "draw", "sample"][: len(inputs)]
    dynamic = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    shapes = None if size else {"image": dynamic} | dict.fromkeys(names[1:])
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "model.onnx")
        with _quietly():
            torch.onnx.export(
                *(wrapped, inputs, written),
                dynamo=True,
                input_names=names,
                output_names=["denoised"],
                dynamic_shapes=shapes,
                external_data=False,
                verbose=False,
            )
        others = (
            [(height, width)] if size else [(height, width), (4 * window, 3 * window), (window + 1, 5 * window - 1)]
        )
        error = max(_difference(wrapped, _inputs(model, *other, masked), names, written) for other in others)
        if not error < TOLERANCE:
            raise ValueError(f"{path}: the exported network differs from PyTorch by {error:.1e}; nothing was written")
        with atomic_write(path) as file:
            file.write(written.read_bytes())
    return error


def _inputs(model: MaskedSwinIR, height: int, width: int, masked: bool) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, model.config.in_channels, height, width, generator=generator)
    return (image, *MaskKey.make(7, 3, 1)) if masked else (image,)


def _difference(wrapped: nn.Module, inputs: tuple[Tensor, ...], names: list[str], path: Path) -> float:
    """The largest difference between onnxruntime and PyTorch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    with torch.no_grad():
        return float((torch.from_numpy(found) - wrapped(*inputs)).abs().max())


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise UsageError(f"size: expected HxW, as 256x384, got {text!r}")
    return int(match[1]), int(match[2])


@contextlib.contextmanager
def _quietly():  # type: ignore[no-untyped-def]
    """The exporter reports its steps, and packages that it does without."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
