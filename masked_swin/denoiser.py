"""What `denoise` needs of a network: the base class of MaskedSwinIR and of other networks."""

from dataclasses import dataclass

from torch import Tensor, nn

from masked_swin.config import ModelConfig
from masked_swin.masking import MaskKey


@dataclass(frozen=True)
class DenoiserConfig:
    """What `denoise` and its tiles know of a network that is no MaskedSwinIR.

    Attributes:
        name: of the network, with all that determines its architecture.
        in_channels: channels of the image, in and out.
        window_size: tiles start at multiples of it, and their sides are multiples of it.
        bytes_per_pixel: memory of a pass without gradients, per pixel of the tile.
        largest_tile: the largest side of a tile that is chosen for the free memory.
        overlap: pixels that two tiles share, if the user does not say.
    """

    name: str
    in_channels: int
    window_size: int
    bytes_per_pixel: int
    largest_tile: int
    overlap: int
    attention_mask: None = None


class Denoiser(nn.Module):
    """A network (B, C, H, W) -> (B, C, H, W) of any size, with values in [0, 1].

    `key` names the random numbers of a pass, `noise_sigma` is noise that the network adds in training. Networks without
    attention masks ignore `attention_mask` and `origin`. `MaskedSwinIR.forward` has all arguments in full.
    """

    config: ModelConfig | DenoiserConfig

    def forward(
        self,
        x: Tensor,
        *,
        key: MaskKey | None = None,
        noise_sigma: float = 0.0,
        attention_mask: bool = True,
        origin: tuple[int, int] | None = None,
    ) -> Tensor:
        raise NotImplementedError
