"""LPIPS (arXiv 1801.03924), if the package `lpips` and its backbone's weights are on this machine."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

WEIGHTS = "alexnet-owt-7be5be79.pth"  # torchvision's AlexNet; the package has the layers on top of it

Distance = Callable[[np.ndarray, np.ndarray], float]


class Lpips(NamedTuple):
    """A function for the distance of two uint8 images (H, W, 3), or the reason why there is none."""

    distance: Distance | None
    why_not: str | None = None


def load_lpips() -> Lpips:
    """Load LPIPS 0.1 with AlexNet, as the public test code uses it; download nothing."""
    try:
        import lpips
    except ModuleNotFoundError as error:
        return Lpips(None, f"the package {error.name} is missing; install 'masked-swin[lpips]'")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not (folder / WEIGHTS).is_file():
        return Lpips(None, f"no {WEIGHTS} in {folder}; put torchvision's AlexNet weights there")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package gives torchvision deprecated arguments
        network = lpips.LPIPS(net="alex", verbose=False).eval()

    @torch.no_grad()
    def distance(image: np.ndarray, target: np.ndarray) -> float:
        pair = (torch.from_numpy(np.array(array, dtype=np.float32) / 127.5 - 1) for array in (image, target))
        return float(network(*(array.permute(2, 0, 1)[None] for array in pair)))

    return Lpips(distance)
