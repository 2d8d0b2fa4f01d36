"""Tile sides and warps of the Triton kernels: by rule, or from a table of what suits a device and a shape better.

The package's table is `tuned.json`, beside this file. Entries of the user's own, `user_table()`, go before it. A table
is {architecture: {key: {"tiles": {...}, "by": how it was found}}}, as `python -m masked_swin.kernels.triton.autotune`
writes it.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

Tiles = dict[str, int]
Table = dict[str, dict[str, dict[str, Any]]]

PACKAGE_TABLE = Path(__file__).parent / "tuned.json"


def tuned(kernel: Any, rule: Tiles, *, most: Tiles | None = None, **shape: Any) -> Tiles:
    """What `kernel` is launched with for this shape on this device: the table's entry, or else `rule`.

    Args:
        kernel: a Triton kernel.
        rule: constants that may be tuned, among them `num_warps`; the kernel must be right with any halves or doubles.
        most: the largest that it is right with, where that is not so.
        shape: what the best choice depends on, as dtype and head_dim.
    """
    most = most or {}
    if _search is None:
        entry = _entries(architecture()).get(_key(kernel, shape), {"tiles": rule})
        tiles = entry["tiles"]
    else:
        key = _key(kernel, shape)
        _search.rules.setdefault(key, (rule, most))
        _search.latest[kernel_name(kernel)] = key
        tiles = _search.tried.get(key, rule)
    fits = tiles.keys() == rule.keys() and all(tiles[name] <= limit for name, limit in most.items())
    return tiles if fits else rule  # an entry for an older kernel may not


def kernel_name(kernel: Any) -> str:
    return kernel.fn.__name__


def _key(kernel: Any, shape: dict[str, Any]) -> str:
    values = (f"{name}={str(value).removeprefix('torch.')}" for name, value in shape.items())
    return " ".join([kernel_name(kernel), *values])


@cache
def architecture() -> str | None:
    """Of the current device, as "sm_80" or "gfx942"; None without one."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties()
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def user_table() -> Path:
    """$MASKED_SWIN_TUNED, or `masked_swin/tuned.json` in the user's cache folder."""
    if chosen := os.environ.get("MASKED_SWIN_TUNED"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "masked_swin" / "tuned.json"


def read_table(path: Path) -> Table:
    """The table in a file; an empty one if there is no file. Raises ValueError if the file holds something else."""
    try:
        table = json.loads(path.read_text())
        for entries in table.values():
            for entry in entries.values():
                if not all(isinstance(value, int) and value > 0 for value in entry["tiles"].values()):
                    raise ValueError("a tile that is no positive number")
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no table of tuned kernels ({error}); delete it, or run the autotuner") from None
    return table


def write_table(path: Path, architecture: str, entries: dict[str, dict[str, Any]]) -> None:
    """Add entries to a table, or replace them, in one step: a reader sees the old file or the new one."""
    table = read_table(path)
    table[architecture] = {**table.get(architecture, {}), **entries}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
        json.dump(table, file, indent=1, sort_keys=True)
        file.write("\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
    _entries.cache_clear()


@cache
def _entries(architecture: str | None) -> dict[str, dict[str, Any]]:
    if architecture is None:
        return {}
    package, own = read_table(PACKAGE_TABLE), read_table(user_table())
    return {**package.get(architecture, {}), **own.get(architecture, {})}


class Search(NamedTuple):
    """What a search tries, and what is asked for meanwhile.

    Attributes:
        tried: tiles by key; other keys get their rule.
        rules: rule and `most` of each key.
        latest: the key that was last asked for, by the name of its kernel: that of the next launch.
    """

    tried: dict[str, Tiles]
    rules: dict[str, tuple[Tiles, Tiles]]
    latest: dict[str, str]


_search: Search | None = None


@contextmanager
def trying(tiles: dict[str, Tiles]) -> Iterator[Search]:
    """Within, kernels get these tiles; tables are not read."""
    global _search
    _search = Search(tiles, {}, {})
    try:
        yield _search
    finally:
        _search = None


def launched_key(kernel: Any) -> str | None:
    """Within `trying`: the key of the launch of a kernel that is about to be made; None if it has no tuned tiles."""
    return None if _search is None else _search.latest.get(kernel_name(kernel))
