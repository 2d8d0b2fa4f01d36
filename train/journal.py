"""Which results of a folder are whole and how they were made, so that an interrupted run goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

FILE = ".masked-swin.jsonl"


class Journal:
    """Lines of JSON in the folder of the results, appended as files are begun and done; a torn line is ignored.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.settings = settings
        self._last: dict[str, dict[str, Any]] = {}
        path = folder / FILE
        with open(path, "a+", encoding="utf-8", errors="replace") as file:
            file.seek(0)
            for line in file:
                try:
                    entry = json.loads(line)
                    self._last[entry["file"]] = entry
                except (ValueError, TypeError, KeyError):
                    continue
            file.write("\n")  # ends a torn line, and shows that the folder can be written

    def is_done(self, source: Path, target: Path) -> bool:
        """Whether `target` is there, whole, and made of this source with these settings."""
        entry = self._last.get(self._name(target))
        return (
            entry is not None and target.is_file() and entry == self._entry(source, target, bytes=target.stat().st_size)
        )

    def is_begun(self, source: Path, target: Path) -> bool:
        """Whether a run with these settings was stopped while it made `target`."""
        return self._last.get(self._name(target)) == self._entry(source, target, bytes=None)

    def begin(self, source: Path, target: Path) -> None:
        self._append(self._entry(source, target, bytes=None))

    def done(self, source: Path, target: Path) -> None:
        self._append(self._entry(source, target, bytes=target.stat().st_size))

    def _name(self, target: Path) -> str:
        return target.relative_to(self.folder).as_posix()

    def _entry(self, source: Path, target: Path, *, bytes: int | None) -> dict[str, Any]:
        status = source.stat()
        return {
            "file": self._name(target),
            "bytes": bytes,  # None: begun
            "source": [str(source.resolve()), status.st_size, status.st_mtime_ns],
            "settings": self.settings,
        }

    def _append(self, entry: dict[str, Any]) -> None:
        with open(self.folder / FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self._last[entry["file"]] = entry
