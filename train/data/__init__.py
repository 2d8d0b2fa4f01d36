"""Images as data: files read and written, sets of decoded images, conversions, synthetic noises."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masked_swin.train.data.arrays import LUMA, centre_crop, to_array, to_float, to_grey, to_tensor, to_uint8
    from masked_swin.train.data.decoded_image import DecodedImage, NotAnImageError
    from masked_swin.train.data.degradations import (
        NOISES,
        STRENGTHS,
        Level,
        Spec,
        add_noise,
        gaussian,
        label,
        noisy_copy,
        strength,
    )
    from masked_swin.train.data.image_set import (
        BUILTIN_HELD_OUT,
        BUILTIN_TRAIN,
        ImageSet,
        builtin_images,
        load_images,
    )
    from masked_swin.train.data.images import image_paths, is_image_name, read_image, write_image, write_side_by_side
    from masked_swin.train.data.pairs import load_pairs

# The names of each file. A file is imported at the first use of one: some need packages that the trainer does not.
_FILES = {
    "arrays": ("LUMA", "centre_crop", "to_array", "to_float", "to_grey", "to_tensor", "to_uint8"),
    "decoded_image": ("DecodedImage", "NotAnImageError"),
    "degradations": (
        "NOISES",
        "STRENGTHS",
        "Level",
        "Spec",
        "add_noise",
        "gaussian",
        "label",
        "noisy_copy",
        "strength",
    ),
    "image_set": ("BUILTIN_HELD_OUT", "BUILTIN_TRAIN", "ImageSet", "builtin_images", "load_images"),
    "images": ("image_paths", "is_image_name", "read_image", "write_image", "write_side_by_side"),
    "pairs": ("load_pairs",),
}
_HOME = {name: file for file, names in _FILES.items() for name in names}

__all__ = [
    "BUILTIN_HELD_OUT",
    "BUILTIN_TRAIN",
    "LUMA",
    "NOISES",
    "STRENGTHS",
    "DecodedImage",
    "ImageSet",
    "Level",
    "NotAnImageError",
    "Spec",
    "add_noise",
    "builtin_images",
    "centre_crop",
    "gaussian",
    "image_paths",
    "is_image_name",
    "label",
    "load_images",
    "load_pairs",
    "noisy_copy",
    "read_image",
    "strength",
    "to_array",
    "to_float",
    "to_grey",
    "to_tensor",
    "to_uint8",
    "write_image",
    "write_side_by_side",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value
