"""The systems that the trainer knows: networks for denoising, by name, and classes of one's own as "module:Class".

The two Swin systems take the `network` fields of the configuration. The others take `options`: the fields of their
options class. To add a system, add a file with its network and options, and a line in SYSTEMS.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from masked_swin import MaskedSwinIR, ModelConfig, load_checkpoint, load_model
from masked_swin.denoiser import Denoiser
from masked_swin.train.systems.dncnn import DnCNN, DnCNNOptions
from masked_swin.train.systems.network import (
    Shape,
    SystemNetwork,
    load_weights_into,
    read_system_file,
    save_network,
)
from masked_swin.train.systems.restormer import Restormer, RestormerOptions
from masked_swin.train.systems.ridnet import RIDNet, RIDNetOptions
from masked_swin.train.systems.rnan import RNAN, RNANOptions

__all__ = [
    "DEFAULT_SYSTEM",
    "SWIN_SYSTEMS",
    "SYSTEMS",
    "Shape",
    "System",
    "SystemNetwork",
    "image_channels",
    "load_network",
    "make_network",
    "network_of_run",
    "resolve_options",
    "save_network",
]

DEFAULT_SYSTEM = "masked_swinir"
# Both are a MaskedSwinIR; "swinir" has both masks off.
SWIN_SYSTEMS = (DEFAULT_SYSTEM, "swinir")


@dataclass(frozen=True)
class System:
    """A network by name: its class, the class of its options, and what its images need.

    The defaults of the options are the published size; `tiny` are those of a size for two processor cores.
    """

    options: Callable[..., Any]
    network: Callable[[Any], nn.Module]
    tiny: Mapping[str, Any]
    shape: Shape = field(default_factory=Shape)


# The memory of a pass was measured at the published sizes on images of 96 to 384 pixels a side, and rounded up. RNAN's
# non-local layers take the square of a tile's pixels as time; it was published for patches of 48.
SYSTEMS = {
    "dncnn": System(DnCNNOptions, DnCNN, {"features": 32, "depth": 7}, Shape(bytes_per_pixel=1_500)),
    "ridnet": System(RIDNetOptions, RIDNet, {"features": 24, "modules": 2}, Shape(bytes_per_pixel=2_400)),
    "rnan": System(
        RNANOptions,
        RNAN,
        {"features": 16, "blocks": 3},
        Shape(multiple=2, bytes_per_pixel=9_000, largest_tile=96, overlap=32),
    ),
    "restormer": System(
        RestormerOptions,
        Restormer,
        {"features": 16, "blocks": (1, 1, 1, 1), "heads": (1, 1, 2, 4), "refinement": 1},
        Shape(multiple=8, bytes_per_pixel=12_000),
    ),
}


def resolve_options(system: str, preset: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a system: those of the preset, "published" or "tiny", replaced by `options`.

    The options of a class of one's own are returned as they are; it has no presets.

    Raises:
        ValueError: unknown system, preset or option, or a value that the system cannot take.
    """
    if ":" in system:
        return dict(options)
    if system not in SYSTEMS:
        systems = ", ".join([*SWIN_SYSTEMS, *SYSTEMS])
        raise ValueError(f"system {system!r}: expected one of {systems}, or a class of your own as module:Class")
    if preset not in ("published", "tiny"):
        raise ValueError(f"preset {preset!r}: system {system} has published and tiny; set its options for other sizes")
    known = dataclasses.fields(SYSTEMS[system].options)  # type: ignore[arg-type]  # a dataclass
    names = [option.name for option in known]
    for name in options:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(names)}"
            raise ValueError(f"options: unknown option {name!r} of system {system}; {remedy}")
    chosen = {**(SYSTEMS[system].tiny if preset == "tiny" else {}), **options}
    for option in known:
        _check(option.name, chosen.get(option.name, option.default), option.default)
    try:
        return {name: _plain(value) for name, value in vars(SYSTEMS[system].options(**chosen)).items()}
    except ValueError as error:
        raise ValueError(f"options: {error}") from None


def image_channels(options: Mapping[str, Any]) -> int:
    """Return the channels of the images that a network of these options takes: `channels`, `in_channels`, or 3."""
    return int(options.get("channels", options.get("in_channels", 3)))


def make_network(system: str, options: Mapping[str, Any]) -> SystemNetwork:
    """Make the network of a system other than the Swin ones, with random weights; `options` are resolved ones.

    Raises:
        ValueError: a class that cannot be imported, or that does not take the options.
    """
    options = dict(options)
    if ":" in system:
        network, shape = _own_network(system, options)
    else:
        found = SYSTEMS[system]
        network, shape = found.network(found.options(**options)), found.shape
    return SystemNetwork(network, system, options, image_channels(options), shape)


class RunConfig(Protocol):
    """What `network_of_run` reads of a TrainConfig."""

    system: str
    network: ModelConfig
    options: dict[str, Any]
    backend: str | None
    initial_weights: str | None


def network_of_run(config: RunConfig) -> Denoiser:
    """Make the network that a run trains, with random weights or the `initial_weights`.

    Raises:
        ValueError: see `make_network` and `load_network`; or initial weights of another architecture.
    """
    if config.system in SWIN_SYSTEMS:
        if config.initial_weights is None:
            return MaskedSwinIR(config.network, backend=config.backend)
        return load_checkpoint(config.initial_weights, config=config.network, backend=config.backend)
    model = make_network(config.system, config.options)
    if config.initial_weights is not None:
        path = Path(config.initial_weights)
        if not path.is_file():
            raise ValueError(f"initial_weights {path}: no such file")
        content = read_system_file(path)
        if content is None or content["system"] != config.system:
            found = "another kind of file" if content is None else f"weights of system {content['system']}"
            raise ValueError(f"initial_weights {path}: expected weights of system {config.system}, got {found}")
        load_weights_into(model, content["params"], path)
    return model


def load_network(path: str | Path, own: str | None = None) -> Denoiser:
    """Load a checkpoint of any system, in evaluation mode, on the CPU; of a MaskedSwinIR by `load_model`.

    Nothing in the file is executed. A file of a class of one's own is loaded only if `own` names that class.

    Args:
        path: the file.
        own: "module:Class", or None for the systems of this package.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, another system than `own`, or weights that do not fit.
    """
    path = Path(path)
    content = read_system_file(path) if path.is_file() else None
    system = DEFAULT_SYSTEM if content is None else content["system"]
    if own is not None and system != own:
        raise ValueError(f"{path}: holds weights of system {system}, not of {own}")
    if content is None:
        return load_model(path)
    if own is None and ":" in system:
        raise ValueError(f"{path}: its network is a class of somebody's own; name it: --model {system}@{path}")
    options = resolve_options(system, "published", content["options"])
    model = make_network(system, options)
    load_weights_into(model, content["params"], path)
    return model.eval()


def _own_network(system: str, options: dict[str, Any]) -> tuple[nn.Module, Shape]:
    module, _, name = system.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        where = "its folder belongs into PYTHONPATH" if error.name == module else "install it"
        raise ValueError(f"system {system}: no module {error.name}; {where}") from error
    except AttributeError as error:
        raise ValueError(f"system {system}: module {module} has no {name}") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)) or issubclass(found, MaskedSwinIR):
        raise ValueError(f"system {system}: expected a class of torch.nn.Module, got {found!r}")
    try:
        network = found(**options)
    except TypeError as error:
        raise ValueError(f"system {system}: the class does not take options {options} ({error})") from error
    return network, Shape(multiple=getattr(found, "multiple", 1))


def _check(name: str, value: object, default: object) -> None:
    """Check the value of an option by the type of its default."""
    if isinstance(default, tuple):
        right = isinstance(value, (list, tuple)) and all(isinstance(one, int) and one >= 1 for one in value)
        expected = "a list of whole numbers, at least 1"
    elif isinstance(default, int):
        right = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        expected = "a whole number, at least 1"
    else:
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        expected = "a number above 0"
    if not right:
        raise ValueError(f"options.{name}: expected {expected}, got {value!r}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
