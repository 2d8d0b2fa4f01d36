"""Files that are either whole or absent: written under another name first, and verified when read."""

import contextlib
import errno
import os
import pickle
import re
import secrets
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

_TEMPORARY = ".tmp"


@contextlib.contextmanager
def atomic_write(path: Path, *, before_replacing: Callable[[], None] | None = None) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends, and is removed if the block raises.

    The file is on the disk, not only in a cache, when the block has ended.

    Args:
        path: the file to replace or create.
        before_replacing: called when all of the file is on the disk, still under another name.

    Raises:
        OSError: the file cannot be written, or its folder is missing; names it.
    """
    folder = path.parent
    if not folder.is_dir():
        reason = (errno.ENOTDIR, "not a folder") if folder.exists() else (errno.ENOENT, "no such folder")
        raise OSError(*reason, str(folder))
    temporary = path.with_name(f".{path.name[:32]}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if before_replacing is not None:
                before_replacing()
            os.replace(temporary, path)
            sync_folder(folder)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.filename not in (None, str(temporary)):
            raise  # the block failed on another file
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync_folder(folder: Path) -> None:
    """Put the names in `folder` on the disk. Without it, a power cut may undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files of writers that were killed. Nobody may be writing to the folder."""
    for path in folder.glob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def save_torch(content: Any, path: Path, *, before_replacing: Callable[[], None] | None = None) -> None:
    """Call `torch.save` inside `atomic_write`; raise OSError if it fails."""
    with atomic_write(path, before_replacing=before_replacing) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # after a failed write, torch reports only that it cannot close its archive
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_torch(path: Path) -> Any:
    """Load a `torch.save` file to the CPU. All checksums are verified, and no code in the file is run.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is truncated, corrupt, or holds more than tensors.
    """
    with open(path, "rb") as file:
        try:
            if zipfile.is_zipfile(file):
                damaged = zipfile.ZipFile(file).testzip()  # torch.load does not verify the checksums
                if damaged is not None:
                    raise ValueError(f"wrong checksum of {damaged}")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle can raise anything
            raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> ValueError:
    """Make the error for a file that another library could not read."""
    if isinstance(error, pickle.UnpicklingError):  # torch's text then suggests to execute the file
        found = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error))
        reason = f"a {found[1]} is inside, which would have to be executed" if found else "not only tensors inside"
        return ValueError(f"{path}: truncated, corrupt, or holding more than tensors ({reason})")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(f"{path}: truncated, corrupt, or holding more than tensors ({reason})")
