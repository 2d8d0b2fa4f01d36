"""Images as data: files read and written, sets of decoded images, conversions, synthetic noises."""

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
from masked_swin.train.data.image_set import BUILTIN_HELD_OUT, BUILTIN_TRAIN, ImageSet, builtin_images, load_images
from masked_swin.train.data.images import image_paths, is_image_name, read_image, write_image, write_side_by_side

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
