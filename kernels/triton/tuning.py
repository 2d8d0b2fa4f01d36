"""Tile sides and warps of the Triton kernels: by rule, or from a table that is faster on a device for a shape.

The package's table is `tuned.json`, beside this file. The user's table, `user_table()`, takes precedence. A table is
{architecture: {key: {"tiles": {...}, "by": how it was found}}}; `python -m masked_swin.kernels.triton.autotune` writes
it.
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


def tuned(
    kernel: Any, rule: Tiles, *, max_tiles: Tiles | None = None, with_same_tiles: tuple[Any, ...] = (), **shape: Any
) -> Tiles:
    """Return the tiles of `kernel` for this shape on this device: the table's entry, or else `rule`.

    Args:
        kernel: a Triton kernel.
        rule: constants that may be tuned, among them `num_warps`. The kernel must be right with any halves or doubles.
        max_tiles: the largest constants that it is right with, where there is such a limit.
        with_same_tiles: other kernels that are launched with the same tiles; a search times them, too.
        shape: the sizes and dtypes that the best choice depends on.
    """
    max_tiles = max_tiles or {}
    if _search is None:
        entry = _entries(architecture()).get(_key(kernel, shape), {"tiles": rule})
        tiles = entry["tiles"]
    else:
        key = _key(kernel, shape)
        _search.rules.setdefault(key, Rule(rule, max_tiles))
        for one in (kernel, *with_same_tiles):
            _search.latest[kernel_name(one)] = key
        tiles = _search.tried.get(key, rule)
    fits = tiles.keys() == rule.keys() and all(tiles[name] <= limit for name, limit in max_tiles.items())
    return tiles if fits else rule  # an entry for an older kernel may not fit


def kernel_name(kernel: Any) -> str:
    return kernel.fn.__name__


def _key(kernel: Any, shape: dict[str, Any]) -> str:
    values = (f"{name}={str(value).removeprefix('torch.')}" for name, value in shape.items())
    return " ".join([kernel_name(kernel), *values])


@cache
def architecture() -> str | None:
    """The architecture of the current device, as "sm_80" or "gfx942"; None without one."""
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
    """The table in a file, or an empty one if there is no file. Raises ValueError if the file holds something else."""
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
    """Add entries to a table, or replace them. Another process reads the old file or the new one, never a part."""
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
    package, user = read_table(PACKAGE_TABLE), read_table(user_table())
    return {**package.get(architecture, {}), **user.get(architecture, {})}


class Rule(NamedTuple):
    tiles: Tiles
    max_tiles: Tiles


class Search(NamedTuple):
    """The tiles that a search tries, and the calls of `tuned` meanwhile.

    Attributes:
        tried: tiles by key; other keys get their rule.
        rules: the rule of each key.
        latest: the latest key of each kernel, by its name: that of its next launch.
    """

    tried: dict[str, Tiles]
    rules: dict[str, Rule]
    latest: dict[str, str]


_search: Search | None = None


@contextmanager
def trying(tiles: dict[str, Tiles]) -> Iterator[Search]:
    """In this context, kernels get these tiles, and tables are not read."""
    global _search
    _search = Search(tiles, {}, {})
    try:
        yield _search
    finally:
        _search = None


def launched_key(kernel: Any) -> str | None:
    """In `trying`, the key of a kernel's next launch; None if it has no tuned tiles."""
    return None if _search is None else _search.latest.get(kernel_name(kernel))
