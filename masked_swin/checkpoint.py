"""Checkpoints that this package and the public SwinIR / MaskedDenoising code both read."""

import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from masked_swin.config import PRESETS, ModelConfig, default_image_mean
from masked_swin.kernels import Windows, relative_position_index, shift_mask
from masked_swin.layers import SwinLayer
from masked_swin.model import MaskedSwinIR
from masked_swin.storage import atomic_write, load_torch, save_torch, unreadable

State = Mapping[str, Tensor]

# Increases when the files change so that older versions of this package would misread them.
CHECKPOINT_VERSION = 1

# Names of the state dict in files of other tools. Averaged weights come first: the first name that a file has wins.
_WRAPPERS = (
    *("params_ema", "params-ema", "ema"),
    *("params", "state_dict", "model_state_dict", "model", "net", "generator"),
)
# Prefixes of parameter names, from modules that contain the network.
_PREFIXES = ("module.", "_orig_mod.", "netG.", "model.", "net.", "generator.")

_REMEDY = "copy it again, or save only the state dict with the code that made it"
_BUFFER = re.compile(r"\.(relative_position_index|attn_mask)$")
_BLOCK = re.compile(r"^layers\.(\d+)\.residual_group\.blocks\.(\d+)\.")

# Patterns of keys that only unsupported networks have, and what they mean.
_UNSUPPORTED = (
    (r"^(upsample|conv_before_upsample|conv_up\d|conv_hr)\.", "it enlarges images; only upscale 1 is supported"),
    (r"talking_heads", "it uses talking heads"),
    (r"head_scale_params$", "it uses head scale"),
    (r"\.attn\.proj\.0\.weight$", "it uses attention on attention (on_attn)"),
    (r"^absolute_pos_embed$", "it uses absolute position embedding (ape)"),
    (r"\.conv\.10\.weight$", "its resi_connection is '6conv'; only '1conv' and '3conv' are supported"),
)


def load_model(name_or_path: str | Path) -> MaskedSwinIR:
    """Make the network of a preset, with random weights, or load that of a checkpoint file.

    Raises:
        FileNotFoundError: the name is neither.
        ValueError: as `load_checkpoint`.
    """
    if str(name_or_path) in PRESETS:
        return MaskedSwinIR(PRESETS[str(name_or_path)])
    if not Path(name_or_path).exists():
        raise FileNotFoundError(
            f"{name_or_path}: neither a checkpoint file nor a preset; presets are {', '.join(map(repr, PRESETS))}"
        )
    return load_checkpoint(name_or_path)


def load_checkpoint(path: str | Path, *, config: ModelConfig | None = None, backend: str | None = None) -> MaskedSwinIR:
    """Load a network, in evaluation mode, float32, on the CPU.

    Reads `.safetensors` and `torch.save` files of this package, of the public code and of other training tools. Nothing
    in the file is executed. Checksums are verified; `.safetensors` files of others have none.

    - The state dict may be bare, or under a name such as "params_ema", "params", "state_dict", "model" or "ema".
      Where a file holds several, averaged weights win.
    - Prefixes of DataParallel ("module."), torch.compile ("_orig_mod.") and other wrappers are removed.
    - Weights of another dtype become float32.

    Args:
        path: the file.
        config: the network. None takes the configuration in the file or, without one, `infer_config` of the weights.
        backend: as of `MaskedSwinIR`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is corrupt, written by a newer version, or holds another architecture.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    if not path.is_file() or path.stat().st_size == 0:
        found = "a folder" if path.is_dir() else "an empty file" if path.is_file() else "no regular file"
        raise ValueError(f"{path}: {found}, expected a checkpoint (.pth or .safetensors)")
    state, saved = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    try:
        if config is None:
            config = infer_config(state) if saved is None else ModelConfig.from_dict(saved)
        model = MaskedSwinIR(config, backend=backend)
        load_public_state(model, state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return model.eval()


def save_checkpoint(model: MaskedSwinIR, path: str | Path) -> None:
    """Write a checkpoint, all of it or nothing.

    `.pth` and `.pt` files have the public layout: "params" with SwinIR's buffers, and "config" beside them.
    `.safetensors` files hold the parameters, and the configuration as JSON metadata.

    Raises:
        ValueError: another suffix.
        OSError: the file cannot be written; a file that was there is unchanged.
    """
    if not isinstance(model, MaskedSwinIR):
        raise ValueError(f"model must be a MaskedSwinIR, got {type(model).__name__}: save_checkpoint(model, path)")
    path = Path(path)
    if path.suffix in (".pth", ".pt"):
        content = {"params": public_state(model), "config": model.config.to_dict(), "version": CHECKPOINT_VERSION}
        save_torch(content, path)
    elif path.suffix == ".safetensors":
        from safetensors.torch import save

        state, config = public_state(model, buffers=False), json.dumps(model.config.to_dict())
        metadata = {"format": "pt", "config": config, "version": str(CHECKPOINT_VERSION)}
        data = save(state, metadata | {"crc32": _checksum(state, config)})
        with atomic_write(path) as file:
            file.write(data)
    else:
        raise ValueError(f"{path}: the name of a checkpoint must end in .pth, .pt or .safetensors, not {path.suffix!r}")


def public_state(model: MaskedSwinIR, *, buffers: bool = True) -> dict[str, Tensor]:
    """Return the weights under SwinIR's names, contiguous, on the CPU.

    A network with per-head masks has its qkv split into qkv1, qkv2, ..., as in the public code.

    Args:
        model: the network.
        buffers: add SwinIR's buffers, so that the public code loads the state strictly. They are those of img_size 64,
            rounded up to whole windows, at least two.
    """
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        value = value.cpu().contiguous()
        stem, dot, parameter = name.rpartition(".qkv.")
        if dot and model.config.attention_mask_per_head:
            heads = model.config.num_heads[int(name.split(".")[1])]
            # (3, heads, head_dim) rows: head h owns [:, h].
            for head, part in enumerate(value.unflatten(0, (3, heads, -1)).unbind(1), start=1):
                state[f"{stem}.qkv{head}.{parameter}"] = part.flatten(0, 1).contiguous()
        else:
            state[name] = value
    if buffers:
        side = model.config.window_size
        image = side * max(2, math.ceil(64 / side))
        for name, layer in model.named_modules():
            if isinstance(layer, SwinLayer):
                state[f"{name}.attn.relative_position_index"] = relative_position_index((side, side))
                if layer.shift:
                    windows = Windows(image, image, (side, side), (layer.shift, layer.shift))
                    state[f"{name}.attn_mask"] = shift_mask(windows)
    return state


def load_public_state(model: MaskedSwinIR, state: State) -> None:
    """Load weights with SwinIR's names, strictly. SwinIR's buffers are ignored.

    Raises:
        ValueError: a weight is missing, unknown or of another shape; the model is unchanged then.
    """
    state = {name: value for name, value in state.items() if not _BUFFER.search(name)}
    if model.config.attention_mask_per_head:
        state = _join_heads(state)
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in state]
    for name, value in state.items():
        if name not in expected:
            problems.append(f"{name} is unknown")
        elif value.shape != expected[name].shape:
            problems.append(f"{name} is {tuple(value.shape)} instead of {tuple(expected[name].shape)}")
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(
            f"the weights do not fit the configuration: {'; '.join(problems[:4])}{more}; "
            "give the configuration that they were trained with"
        )
    model.load_state_dict(state)


def infer_config(state: State) -> ModelConfig:
    """Find the hyper-parameters of a network from the shapes of its weights.

    Hyper-parameters that no shape shows take the published defaults: image_range, drop_path_rate and the mask ratios.
    Both masks are off where conv_first is 3x3, which means SwinIR.

    Raises:
        ValueError: another architecture.
    """
    for pattern, reason in _UNSUPPORTED:
        key = next((name for name in state if re.search(pattern, name)), None)
        if key is not None:
            raise ValueError(f"unsupported network: {reason} (key {key!r}); run it with the code it comes from")
    depths: dict[int, int] = {}
    for name in state:
        if match := _BLOCK.match(name):
            group, block = int(match[1]), int(match[2])
            depths[group] = max(depths.get(group, 0), block + 1)
    first, table = "layers.0.residual_group.blocks.0.", "attn.relative_position_bias_table"
    try:
        embed_dim, in_channels, kernel = state["conv_first.weight"].shape[:3]
        table_rows = state[first + table].shape[0]
        hidden = state[first + "mlp.fc1.weight"].shape[0]
        proj_inputs = state[first + "attn.proj.weight"].shape[1]
        heads = [state[f"layers.{group}.residual_group.blocks.0.{table}"].shape[1] for group in range(len(depths))]
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"not the weights of a SwinIR-type network: key {error} is missing or has another shape; "
            f"found {len(state)} keys: {', '.join(map(repr, list(state)[:3]))}, ..."
        ) from error
    if proj_inputs != embed_dim:
        raise ValueError("unsupported network: it uses type 'sum'; run it with the code it comes from")
    config = ModelConfig(
        in_channels=in_channels,
        embed_dim=embed_dim,
        depths=tuple(depths.get(group, 0) for group in range(len(depths))),
        num_heads=tuple(heads),
        window_size=(math.isqrt(table_rows) + 1) // 2,
        mlp_ratio=hidden / embed_dim,
        resi_connection="1conv" if "layers.0.conv.weight" in state else "3conv",
        conv_first_kernel=kernel,  # type: ignore[arg-type]  # checked there
        image_mean=default_image_mean(in_channels),
        attention_mask_mode="token" if first + "attn.mask_token" in state else "zero",
        attention_mask_per_head=first + "attn.qkv1.weight" in state,
    )
    return config if kernel == 1 else replace(config, input_mask=None, attention_mask=None)


def _join_heads(state: State) -> dict[str, Tensor]:
    """Join attn.qkv1, attn.qkv2, ... with (3, head_dim) rows each to attn.qkv with (3, heads, head_dim) rows."""
    joined = dict(state)
    for name in state:
        stem, dot, parameter = name.rpartition(".attn.qkv1.")
        if dot:
            names = [name]
            while (following := f"{stem}.attn.qkv{len(names) + 1}.{parameter}") in state:
                names.append(following)
            parts = [joined.pop(part) for part in names]
            if len({part.shape for part in parts}) == 1 and len(parts[0]) % 3 == 0:
                heads = torch.stack([part.reshape(3, -1, *part.shape[1:]) for part in parts], dim=1)
                joined[f"{stem}.attn.qkv.{parameter}"] = heads.flatten(0, 2)
    return joined


def _read_torch(path: Path) -> tuple[State, Mapping[str, Any] | None]:
    try:
        content = load_torch(path)
    except ValueError as error:
        raise ValueError(f"{error}; {_REMEDY}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a state dict; save model.state_dict()")
    _check_version(path, content.get("version"))
    if "average" in content and "optimizer" in content:
        raise ValueError(f"{path}: the state of a training run, not weights; use weights.pth or best.pth beside it")
    nested = (content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping))
    state = next(nested, content)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{path}: expected a state dict, bare or under {', '.join(map(repr, _WRAPPERS))}; found "
            f"{', '.join(map(repr, list(content)[:5])) or 'nothing'}"
        )
    saved = content.get("config")
    return _without_prefixes(state), saved if isinstance(saved, Mapping) else None


def _read_safetensors(path: Path) -> tuple[State, Mapping[str, Any] | None]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if metadata.get("crc32") not in (None, _checksum(state, metadata.get("config", ""))):
            raise ValueError("wrong checksum")
        version, config = (json.loads(metadata.get(name, "null")) for name in ("version", "config"))
    except Exception as error:
        raise ValueError(f"{unreadable(path, error)}; {_REMEDY}") from error
    _check_version(path, version)
    return _without_prefixes(state), config


def _without_prefixes(state: State) -> State:
    """Remove the prefixes that all names have, in any order: "module.", "_orig_mod.", ..."""
    state = {name: value for name, value in state.items() if name != "n_averaged"}  # of torch's AveragedModel
    while state:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _check_version(path: Path, version: object) -> None:
    """Refuse files of newer versions. Public checkpoints have no version, or one of another type."""
    if isinstance(version, int) and version > CHECKPOINT_VERSION:
        raise ValueError(
            f"{path}: written by a newer masked_swin (checkpoint version {version}, this one reads up to "
            f"{CHECKPOINT_VERSION}); upgrade masked_swin"
        )


def _checksum(state: State, config: str) -> str:
    """Return the CRC-32 of the configuration and all tensors, sorted by name: safetensors has no checksum."""
    checksum = zlib.crc32(config.encode())
    for name in sorted(state):
        checksum = zlib.crc32(state[name].contiguous().flatten().view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"
