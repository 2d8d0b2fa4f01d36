"""The configuration of a network, its presets, and the translation of the public code's options."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from masked_swin.kernels import percent_range

Ratio = float | tuple[float, float]


@dataclass(frozen=True)
class ModelConfig:
    """The hyper-parameters of a `MaskedSwinIR`; the defaults are the published network (824,118 parameters).

    Attributes:
        in_channels: channels of the image, in and out.
        embed_dim: channels of the features.
        depths: Swin layers of each group; every second layer shifts its windows by half a window.
        num_heads: attention heads of each group; they divide `embed_dim`.
        window_size: side of the square windows.
        mlp_ratio: hidden channels of the MLP over `embed_dim`.
        resi_connection: convolutions that end each group: "1conv" or "3conv".
        conv_first_kernel: 1 is the masked network, without global residuals; 3 is SwinIR, with two of them.
        image_range: factor between the image in [0, 1] and the network's input.
        image_mean: subtracted from the input and added to the output, one value a channel.
        drop_path_rate: stochastic depth of the last layer (training), growing linearly from 0 at the first.
        input_mask: ratio of masked pixels, in training only. A range (low, high) is drawn from per image. None is off.
        input_mask_value: the value of masked pixels, in all channels.
        attention_mask: ratio of masked tokens, in training and in use. A range (low, high) is drawn from per layer.
            None is off.
        attention_mask_mode: "zero" (published: a masked token becomes 0 before the qkv product), "token" (it becomes a
            learned vector) or "drop" (it is not a key).
        attention_mask_per_head: an independent mask and ratio for every head (`mask_is_diff` of the public code).
        attention_mask_exact: mask the same number of tokens in every window instead of each token independently.

    Ratios lie in [0, 1] and are whole percents. Lists become tuples.

    Raises:
        ValueError: the values do not describe a network.
    """

    in_channels: int = 3
    embed_dim: int = 60
    depths: tuple[int, ...] = (6, 6, 6, 6)
    num_heads: tuple[int, ...] = (6, 6, 6, 6)
    window_size: int = 8
    mlp_ratio: float = 2.0
    resi_connection: Literal["1conv", "3conv"] = "3conv"
    conv_first_kernel: Literal[1, 3] = 1
    image_range: float = 1.0
    image_mean: tuple[float, ...] = (0.4488, 0.4371, 0.4040)
    drop_path_rate: float = 0.1
    input_mask: Ratio | None = (0.80, 0.90)
    input_mask_value: float = -0.1
    attention_mask: Ratio | None = 0.75
    attention_mask_mode: Literal["zero", "token", "drop"] = "zero"
    attention_mask_per_head: bool = False
    attention_mask_exact: bool = False

    def __post_init__(self) -> None:
        for name in ("depths", "num_heads", "image_mean", "input_mask", "attention_mask"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("in_channels", "embed_dim", "window_size"):
            _check_count(name, getattr(self, name))
        for name in ("depths", "num_heads"):
            if not isinstance(getattr(self, name), tuple) or not getattr(self, name):
                raise ValueError(
                    f"{name} must list one number per group, got {getattr(self, name)!r}; write (6, 6, 6, 6)"
                )
            for value in getattr(self, name):
                _check_count(f"each of {name}", value)
        if len(self.depths) != len(self.num_heads):
            raise ValueError(
                f"depths {self.depths} and num_heads {self.num_heads} must have the same length: one number per group"
            )
        for heads in self.num_heads:
            if self.embed_dim % heads:
                raise ValueError(f"num_heads must divide embed_dim {self.embed_dim}, got {heads}; change one of them")
        if not _is_number(self.mlp_ratio) or self.mlp_ratio <= 0 or self.mlp_dim < 1:
            raise ValueError(f"mlp_ratio must be positive, at least 1 / embed_dim, got {self.mlp_ratio!r}")
        _check_choice("resi_connection", self.resi_connection, ("1conv", "3conv"))
        if self.resi_connection == "3conv" and self.embed_dim < 4:
            raise ValueError(f"resi_connection '3conv' needs embed_dim >= 4, got {self.embed_dim}; use '1conv'")
        _check_choice("conv_first_kernel", self.conv_first_kernel, (1, 3))
        if not _is_number(self.image_range) or self.image_range <= 0:
            raise ValueError(f"image_range must be positive, usually 1.0 or 255.0, got {self.image_range!r}")
        if not isinstance(self.image_mean, tuple) or not all(map(_is_number, self.image_mean)):
            raise ValueError(f"image_mean must list one number per channel, got {self.image_mean!r}")
        if len(self.image_mean) != self.in_channels:
            raise ValueError(
                f"image_mean needs one value per channel: in_channels is {self.in_channels}, got {self.image_mean}; "
                f"use {(0.0,) * self.in_channels} for none"
            )
        if not _is_number(self.drop_path_rate) or not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be at least 0 and below 1, got {self.drop_path_rate!r}")
        if not _is_number(self.input_mask_value):
            raise ValueError(f"input_mask_value must be a finite number, got {self.input_mask_value!r}")
        for name in ("input_mask", "attention_mask"):
            ratio = getattr(self, name)
            if ratio is not None:
                if not all(map(_is_number, ratio if isinstance(ratio, tuple) else (ratio,))):
                    raise ValueError(f"{name} must be a number, a pair (low, high) or None, got {ratio!r}")
                percent_range(ratio, name)
        _check_choice("attention_mask_mode", self.attention_mask_mode, ("zero", "token", "drop"))
        if self.attention_mask_mode == "drop" and self.attention_mask_per_head:
            raise ValueError(
                "attention_mask_mode 'drop' has no per-head masks (attention_mask_per_head); use 'zero' or 'token'"
            )

    @property
    def mlp_dim(self) -> int:
        """Hidden channels of the MLP: `mlp_ratio * embed_dim`, rounded down as in SwinIR."""
        return math.floor(self.embed_dim * self.mlp_ratio + 1e-9)  # 1e-9: the ratio hidden / dim gives hidden again

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold: tuples become lists."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> "ModelConfig":
        """Make a configuration from the result of `to_dict`; missing fields take their defaults.

        Raises:
            ValueError: a field is unknown, or its value is wrong.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                remedy = f"did you mean {close[0]!r}?" if close else f"known ones are {', '.join(known)}"
                raise ValueError(f"unknown model option {name!r}; {remedy}")
        return cls(**options)


# Options of the public code with one supported value, which every published configuration has.
_PUBLIC_FIXED: dict[str, tuple[object, ...]] = {
    "net_type": ("swinir",),
    "upscale": (1,),
    "upsampler": (None, ""),
    "talking_heads": (False,),
    "head_scale": (False,),
    "on_attn": (False,),
    "attn_fn": ("softmax", "stable_softmax"),
    "type": ("stand", None),
}


def config_from_public_options(options: Mapping[str, Any]) -> ModelConfig:
    """Translate the options of the public MaskedDenoising code: the whole JSON object, or its "netG" part.

    The input mask is in "datasets" / "train"; without that part it is off.

    Raises:
        ValueError: an option is missing or not supported: talking heads, head scale, attention on attention, entmax15,
            type 'sum', super-resolution.
    """
    net: Mapping[str, Any] = options.get("netG", options)
    data: Mapping[str, Any] = options.get("datasets", {}).get("train", {})
    for name, supported in _PUBLIC_FIXED.items():
        if name in net and net[name] not in supported:
            raise ValueError(
                f"public option {name}={net[name]!r} is not supported, only {supported[0]!r}, as in every published "
                "configuration; run such a network with the public code"
            )
    try:
        return ModelConfig(
            in_channels=net["in_chans"],
            embed_dim=net["embed_dim"],
            depths=tuple(net["depths"]),
            num_heads=tuple(net["num_heads"]),
            window_size=net["window_size"],
            mlp_ratio=net["mlp_ratio"],
            resi_connection=net["resi_connection"],
            image_range=net["img_range"],
            image_mean=default_image_mean(net["in_chans"]),
            input_mask=(data["mask1"] / 100, data["mask2"] / 100) if data.get("if_mask") else None,
            attention_mask=(net["mask_ratio1"] / 100, net["mask_ratio2"] / 100) if net["use_mask"] else None,
            attention_mask_per_head=net["mask_is_diff"],
        )
    except KeyError as error:
        raise ValueError(f"public option {error} is missing; pass the whole options or their 'netG' part") from error


def default_image_mean(in_channels: int) -> tuple[float, ...]:
    """Return SwinIR's mean: that of DIV2K for three channels, else 0."""
    return ModelConfig.image_mean if in_channels == 3 else (0.0,) * in_channels


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


class _Presets(dict[str, ModelConfig]):
    def __missing__(self, name: object) -> ModelConfig:
        raise KeyError(f"no preset {name!r}; there are {', '.join(map(repr, self))}")


PRESETS: dict[str, ModelConfig] = _Presets(
    {
        "published": ModelConfig(),
        # The paper's baseline: the same network, never masked.
        "swinir": ModelConfig(input_mask=None, attention_mask=None),
        "small": ModelConfig(depths=(4, 4), num_heads=(6, 6)),
        "tiny": ModelConfig(embed_dim=30, depths=(2, 2), num_heads=(3, 3)),
    }
)
