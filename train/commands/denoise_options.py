"""The options of a network that denoises, shared by `denoise` and `evaluate`."""

from dataclasses import dataclass
from typing import Literal

import torch
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from masked_swin.inference import AttentionMask
from masked_swin.train.parser import Parser

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class DenoiseOptions:
    """How images are denoised, see `masked_swin.denoise`.

    `tile` None chooses one for the free memory; `precision` "bfloat16" is that of torch's autocast.
    """

    attention_mask: AttentionMask = "average"
    average: int = 4
    seed: int = 0
    tile: int | None = None
    overlap: int | None = None
    precision: Precision = "float32"

    @classmethod
    def of(cls, parsed: Namespace, attention_mask: AttentionMask, device: torch.device) -> "DenoiseOptions":
        """Take the options out of parsed arguments; "auto" precision is bfloat16 on a GPU, else float32."""
        tile, overlap = (None if number is None else int(number) for number in (parsed.tile, parsed.overlap))
        precision: Precision = "bfloat16" if device.type == "cuda" else "float32"
        if parsed.precision != "auto":
            precision = parsed.precision
        return cls(attention_mask, int(parsed.average), int(parsed.seed), tile, overlap, precision)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context in which the network computes."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16")


def add_denoise_options(parser: Parser, attention_mask: AttentionMask | None) -> None:
    """Add the arguments of DenoiseOptions, --device and --threads."""
    parser.add_argument(
        "--attention_mask",
        type=AttentionMask if attention_mask else AttentionMask | None,
        default=attention_mask,
        help='"average" of several masks, one "random" mask as published, or "off"',
    )
    parser.add_argument("--average", type=PositiveInt, default=4, help="number of masks to average over")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="seed of the masks")
    parser.add_argument(
        "--tile",
        type=PositiveInt | None,
        default=None,
        help="side of the tiles in pixels, a multiple of the window; none: the largest up to 1024 that fits into half "
        "of the free memory",
    )
    parser.add_argument("--overlap", type=NonNegativeInt | None, default=None, help="pixels two tiles share; none: 64")
    parser.add_argument(
        "--device", type=str, default="auto", help='"cpu", "cuda", "cuda:1"...; "auto" takes CUDA if there is one'
    )
    parser.add_argument(
        "--precision",
        type=Literal["auto", "float32", "bfloat16"],
        default="auto",
        help='of the network; "auto" is bfloat16 on a GPU, else float32',
    )
    parser.add_argument(
        "--threads", type=PositiveInt | None, default=None, help="torch's threads; none: its own choice"
    )
