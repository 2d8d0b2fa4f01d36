"""The journal of a folder of results: which are whole and how they were made, so that an interrupted run goes on."""

import contextlib
import json
from pathlib import Path
from typing import Any

FILE = ".masked-swin.jsonl"


class Journal:
    """Lines of JSON in `folder`, one appended when a result is begun and one when it is done; torn lines are ignored.

    `settings` determine the results: an entry of other settings does not count. Without a folder nothing is noted.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.settings = settings
        self._last: dict[str, dict[str, Any]] = {}
        if folder is None:
            return
        with contextlib.suppress(OSError), open(folder / FILE, encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    entry = json.loads(line)
                    self._last[entry["file"]] = entry

    def open(self) -> None:
        """Make the folder and the file, ready for entries.

        Raises:
            OSError: the folder cannot be written.
        """
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / FILE, "a", encoding="utf-8") as file:
            file.write("\n")  # ends a torn line

    def is_done(self, source: Path, target: Path) -> bool:
        """Tell whether `target` is there, whole, and made from this source with these settings."""
        entry = self._last.get(self._name(target))
        return (
            entry is not None and target.is_file() and entry == self._entry(source, target, bytes=target.stat().st_size)
        )

    def is_begun(self, source: Path, target: Path) -> bool:
        """Tell whether a run with these settings was stopped while it made `target`."""
        return self._last.get(self._name(target)) == self._entry(source, target, bytes=None)

    def begin(self, source: Path, target: Path) -> None:
        """Note that `target` is being made."""
        self._append(self._entry(source, target, bytes=None))

    def done(self, source: Path, target: Path) -> None:
        """Note that `target` is whole."""
        self._append(self._entry(source, target, bytes=target.stat().st_size))

    def _name(self, target: Path) -> str:
        return target.name if self.folder is None else target.relative_to(self.folder).as_posix()

    def _entry(self, source: Path, target: Path, *, bytes: int | None) -> dict[str, Any]:
        status = source.stat()
        return {
            "file": self._name(target),
            "bytes": bytes,  # None: begun
            "source": [str(source.resolve()), status.st_size, status.st_mtime_ns],
            "settings": self.settings,
        }

    def _append(self, entry: dict[str, Any]) -> None:
        if self.folder is None:
            return
        with open(self.folder / FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self._last[entry["file"]] = entry
