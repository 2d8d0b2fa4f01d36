"""Pixels of many images: in memory, or in a file that later runs map."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from masked_swin.storage import atomic_write

GIB = 2**30
_MAP, _INDEX = "images.map", "images.json"


class PixelStore:
    """Holds arrays in memory; once they take more than `limit` bytes, writes all, one after another, to a file.

    The file is in `folder`; None keeps everything in memory. A context: an exception in the block removes the file, and
    an OSError of writing names it.
    """

    def __init__(self, folder: Path | None, limit: float) -> None:
        self.folder, self.limit = folder, limit
        self.size = 0  # bytes
        self._held: list[np.ndarray] = []
        self._mapped: list[dict[str, Any]] = []  # offset, shape, dtype of the arrays in the file
        self._file: IO[bytes] | None = None

    def add(self, array: np.ndarray) -> None:
        self._held.append(array)
        self.size += array.nbytes
        if self.folder is not None and self.size > self.limit:
            if self._file is None:
                (self.folder / _INDEX).unlink(missing_ok=True)  # it describes the file that is overwritten now
                self._file = open(self.folder / _MAP, "wb")  # noqa: SIM115 (closed by __exit__)
            for held in self._held:
                self._mapped.append({"offset": self._file.tell(), "shape": held.shape, "dtype": held.dtype.str})
                self._file.write(np.ascontiguousarray(held).data)
            self._held.clear()

    def finish(self, key: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[list[np.ndarray], str]:
        """Return the arrays (read-only if mapped), and in words where they are kept.

        `open_map` with the same `key` finds the arrays of a file again, and `about`. Both must be JSON.
        """
        if self._file is None or self.folder is None:
            return self._held, f"{_words(self.size)} of pixels in memory"
        self._file.flush()
        os.fsync(self._file.fileno())
        with atomic_write(self.folder / _INDEX) as file:
            file.write(json.dumps({"key": key, "arrays": self._mapped, "about": about}).encode())
        return _map(self.folder, self._mapped)

    def __enter__(self) -> "PixelStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._file is None or self.folder is None:
            return
        try:
            self._file.close()  # writes the rest, which fails again on a full disk
        except OSError as closing:
            error = error or closing
        if error is not None:
            (self.folder / _MAP).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            what = f"{error.strerror}, {_words(self.size)} of pixels written; memory sets how much is kept in memory"
            raise OSError(error.errno, what, str(self.folder / _MAP)) from error


def open_map(folder: Path, key: Mapping[str, Any]) -> tuple[list[np.ndarray], str, dict[str, Any]] | None:
    """Map the file that a `PixelStore` of this folder and key left; return arrays, storage in words, and `about`.

    None if there is no such file.
    """
    try:
        index = json.loads((folder / _INDEX).read_text())
        if index["key"] == key:
            return *_map(folder, index["arrays"]), index["about"]
    except (OSError, ValueError, KeyError, TypeError):  # no file, a torn one, or another program's
        return None
    return None


def _map(folder: Path, arrays: list[dict[str, Any]]) -> tuple[list[np.ndarray], str]:
    mapped = np.asarray(np.memmap(folder / _MAP, dtype=np.uint8, mode="r"))
    views = []
    for entry in arrays:
        dtype, shape, first = np.dtype(entry["dtype"]), tuple(entry["shape"]), entry["offset"]
        views.append(mapped[first : first + dtype.itemsize * int(np.prod(shape))].view(dtype).reshape(shape))
    return views, f"{_words(mapped.nbytes)} of pixels mapped from {folder / _MAP}"


def _words(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"
