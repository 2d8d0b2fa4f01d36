"""Images on their way through `denoise`: decoded ahead of the network, written after it, each in a thread."""

import errno
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from masked_swin.train.data import DecodedImage, read_image, write_image
from masked_swin.train.journal import Journal

IN_FLIGHT = 2  # images decoded ahead of the network, and images being written after it
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Job(NamedTuple):
    """One image to denoise."""

    source: Path
    target: Path


@dataclass
class Outcome:
    """The files after a run.

    `written`: results of this run; `done`: results of an interrupted run; `skipped`: files that are no images;
    `notes`: changes on the way; `failures`: with their reasons; `not_tried`: number of files left on a full disk.
    """

    written: list[Path] = field(default_factory=list)
    done: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    not_tried: int = 0


def decoded_ahead(jobs: Sequence[Job]) -> Generator[tuple[Job, Future[DecodedImage]], None, None]:
    """Yield each job with its future image, while the next IN_FLIGHT images are being decoded."""
    ahead: deque[tuple[Job, Future[DecodedImage]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
        try:
            for job in jobs:
                ahead.append((job, pool.submit(read_image, job.source, as_stored=True)))
                if len(ahead) > IN_FLIGHT:
                    yield ahead.popleft()
            while ahead:
                yield ahead.popleft()
        finally:
            pool.shutdown(cancel_futures=True)


class Writer:
    """Encodes and writes results in a thread, at most IN_FLIGHT at a time; a context, whose end waits for all."""

    def __init__(self, journal: Journal, outcome: Outcome) -> None:
        self.disk_full = False
        self._journal = journal
        self._outcome = outcome
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._pending: deque[tuple[Job, DecodedImage, Future[None]]] = deque()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._wait(0)
        self._pool.shutdown()

    def submit(self, job: Job, pixels: np.ndarray, image: DecodedImage) -> None:
        """Write `pixels` with the format and metadata of `image`, soon."""
        self._pending.append((job, image, self._pool.submit(write_image, job.target, pixels, image)))
        self._wait(IN_FLIGHT)

    def note_full_disk(self, error: Exception) -> None:
        """Set `disk_full` if that is the error."""
        self.disk_full |= isinstance(error, OSError) and error.errno in _DISK_FULL

    def _wait(self, allowed: int) -> None:
        """Wait until at most `allowed` are pending; record those that are finished."""
        while len(self._pending) > allowed or (self._pending and self._pending[0][2].done()):
            job, image, writing = self._pending.popleft()
            try:
                writing.result()
                self._journal.done(*job)
            except Exception as error:  # writers raise almost anything about metadata: struct.error, KeyError...
                self.note_full_disk(error)
                self._outcome.failures.append(named(job.source, error))
                continue
            self._outcome.notes += image.notes
            if image.format == "GIF":
                self._outcome.notes.append(f"{job.target}: GIF keeps at most 256 colours")
            self._outcome.written.append(job.target)


def named(path: Path, error: Exception) -> str:
    """Return the text of an error, with the file's name if it lacks it."""
    text = str(error)
    return text if str(path) in text else f"{path}: {text}"
