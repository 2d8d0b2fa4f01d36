"""Networks of other systems in the clothes of MaskedSwinIR, and their checkpoints."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from masked_swin import MaskedSwinIR, MaskKey, save_checkpoint
from masked_swin.denoiser import Denoiser, DenoiserConfig
from masked_swin.kernels import gaussian_noise
from masked_swin.storage import load_torch, save_torch

# Increases when the files change so that older versions of this package would misread them.
CHECKPOINT_VERSION = 1


@dataclass(frozen=True)
class Shape:
    """What a system's network needs of its images, and takes of the memory.

    Attributes:
        multiple: sides of images are padded to multiples of it.
        bytes_per_pixel: memory of a pass without gradients.
        largest_tile: the largest side of a tile that is chosen for the free memory.
        overlap: pixels that two tiles share.
    """

    multiple: int = 1
    bytes_per_pixel: int = 8_000
    largest_tile: int = 1024
    overlap: int = 64


class SystemNetwork(Denoiser):
    """A network of another system, for the trainer and `denoise`.

    In training it adds the same noise to an image as MaskedSwinIR does, by the same key. Images are padded at the right
    and bottom to the multiple of `shape`, by reflection where they are large enough, else with their edge.
    """

    config: DenoiserConfig

    def __init__(self, network: nn.Module, system: str, options: dict[str, Any], channels: int, shape: Shape) -> None:
        super().__init__()
        self.network, self.system, self.options = network, system, options
        name = f"{system} {sorted(options.items())}"
        sizes = (shape.multiple, shape.bytes_per_pixel, shape.largest_tile, shape.overlap)
        self.config = DenoiserConfig(name, channels, *sizes)

    def forward(
        self,
        x: Tensor,
        *,
        key: MaskKey | None = None,
        noise_sigma: float = 0.0,
        attention_mask: bool = True,
        origin: tuple[int, int] | None = None,
    ) -> Tensor:
        """Denoise (B, C, H, W). `noise_sigma` needs a key; `attention_mask` and `origin` change nothing."""
        if x.dim() != 4 or x.shape[1] != self.config.in_channels:
            raise ValueError(f"images must be (B, {self.config.in_channels}, H, W), got {tuple(x.shape)}")
        if noise_sigma:
            if key is None:
                raise ValueError("noise_sigma needs key=, which names the random numbers")
            x = gaussian_noise(x, noise_sigma, *key)
        height, width = x.shape[-2:]
        bottom, right = (-side % self.config.window_size for side in (height, width))
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="reflect" if bottom < height and right < width else "replicate")
        out: Tensor = self.network(x)
        if out.shape != x.shape:
            raise ValueError(
                f"system {self.system}: expected the shape of its input, {tuple(x.shape)}, got {tuple(out.shape)}"
            )
        return out[..., :height, :width]


def save_network(model: Denoiser, path: Path) -> None:
    """Write the weights of any system, all of them or nothing; those of a MaskedSwinIR by `save_checkpoint`.

    Raises:
        OSError: the file cannot be written; a file that was there is unchanged.
    """
    if isinstance(model, MaskedSwinIR):
        save_checkpoint(model, path)
        return
    assert isinstance(model, SystemNetwork)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.network.state_dict().items()}
    content = {"system": model.system, "options": model.options, "version": CHECKPOINT_VERSION, "params": weights}
    save_torch(content, path)


def read_system_file(path: Path) -> dict[str, Any] | None:
    """Return the content of a file that `save_network` wrote for another system; None for other files.

    Raises:
        ValueError: a newer version wrote it, or it is damaged.
    """
    if path.suffix == ".safetensors":
        return None
    try:
        content = load_torch(path)
    except ValueError:
        return None  # `load_checkpoint` says why
    kinds = {"system": str, "options": dict, "params": dict}
    if not isinstance(content, dict) or not all(isinstance(content.get(name), kind) for name, kind in kinds.items()):
        return None
    if content.get("version") != CHECKPOINT_VERSION:
        raise ValueError(
            f"{path}: written by a newer masked_swin (version {content.get('version')}, this one reads "
            f"{CHECKPOINT_VERSION}); upgrade masked_swin"
        )
    return content


def load_weights_into(model: SystemNetwork, weights: dict[str, Tensor], path: Path) -> None:
    """Load the weights of `read_system_file`, strictly.

    Raises:
        ValueError: they are those of another architecture.
    """
    try:
        model.network.load_state_dict(weights)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise ValueError(f"{path}: the weights do not fit system {model.system} {model.options}: {reason}") from error
