"""The folder of a run: its lock, and the checkpoints from which a stopped run goes on."""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import weakref
from pathlib import Path
from typing import Any

from masked_swin.denoiser import Denoiser
from masked_swin.storage import atomic_write, load_torch, remove_temporaries, save_torch
from masked_swin.train.systems import save_network

STATE_FILE, PREVIOUS_FILE = "latest.pt", "previous.pt"
WEIGHTS_FILE, BEST_FILE = "weights.pth", "best.pth"
CONFIG_FILE, LOCK_FILE = "config.yaml", "run.lock"

# Version of the state's dictionary that Trainer makes; a change of its content or meaning raises it.
STATE_FORMAT = 2


class RunFolder:
    """The folder `path` of one run. Several processes may read it; the one that holds the lock writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unlock: weakref.finalize[[int], RunFolder] | None = None
        self._latest_is_good = False

    def lock(self) -> None:
        """Make the folder and keep other runs out until `release` or the end of this process, even by kill -9.

        Raises:
            ValueError: another run holds it (the message names that run), or it cannot be written.
        """
        if self._unlock is not None:
            return
        if self.path == Path():
            raise ValueError("output is empty; name the folder of this run, as runs/first")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ValueError(f"output {self.path}: not a folder that can be written ({error.strerror})") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip()
            os.close(descriptor)
            raise ValueError(
                f"output {self.path}: in use by {holder or 'another run'}; "
                "stop that run, or choose another output folder"
            ) from None
        self._unlock = weakref.finalize(self, os.close, descriptor)
        remove_temporaries(self.path)
        started = datetime.datetime.now().isoformat(" ", "seconds")
        os.ftruncate(descriptor, 0)
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its holder's name
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, started {started}\n".encode())

    def release(self) -> None:
        """Unlock the folder for other runs."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None

    def load(self) -> tuple[dict[str, Any], str] | None:
        """Return the newest training state that is whole, and a line for the user; None if there is no run.

        Raises:
            ValueError: no state can be read, or the newest is of another version or program.
        """
        failures = []
        for path in (self.path / STATE_FILE, self.path / PREVIOUS_FILE):
            if not path.exists():
                continue
            try:
                state = load_torch(path)
            except (ValueError, OSError) as error:
                failures.append(str(error))
                continue
            _check_format(path, state)
            self._latest_is_good = path.name == STATE_FILE
            return state, "; ".join([*failures, f"resuming {path} at step {state['step']}"])
        if failures:
            raise ValueError("; ".join(failures) + "; move these files away to start anew")
        return None

    def save(self, state: dict[str, Any], average: Denoiser) -> None:
        """Write the exported weights and the state, each atomically; the latest state becomes the previous one.

        Raises:
            OSError: that failed; the earlier states are left as they were.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path / CONFIG_FILE) as file:
            file.write(_as_yaml(state["config"]).encode())
        save_network(average, self.path / WEIGHTS_FILE)
        latest = self.path / STATE_FILE
        save_torch({"format": STATE_FORMAT} | state, latest, before_replacing=self._keep_latest)
        self._latest_is_good = True

    def forget(self) -> None:
        """Remove the states, so that the next run in this folder starts anew."""
        for name in (STATE_FILE, PREVIOUS_FILE):
            (self.path / name).unlink(missing_ok=True)

    def save_best(self, average: Denoiser) -> None:
        save_network(average, self.path / BEST_FILE)

    def _keep_latest(self) -> None:
        """Make the latest state the previous one; at every moment there is one."""
        latest, previous, link = self.path / STATE_FILE, self.path / PREVIOUS_FILE, self.path / ".previous.tmp"
        if not self._latest_is_good or not latest.exists():
            return  # a damaged state must not replace a good one
        try:
            link.unlink(missing_ok=True)
            os.link(latest, link)
            os.replace(link, previous)
        except OSError:  # a file system without hard links
            os.replace(latest, previous)
        finally:
            with contextlib.suppress(OSError):
                link.unlink(missing_ok=True)


def _as_yaml(config: dict[str, Any]) -> str:
    try:
        import yaml
    except ModuleNotFoundError:  # the extra "train" is not installed; JSON is YAML, too
        return json.dumps(config, indent=1) + "\n"
    return str(yaml.safe_dump(config, sort_keys=False))


def _check_format(path: Path, state: object) -> None:
    found = state.get("format") if isinstance(state, dict) else None
    if not isinstance(found, int):
        raise ValueError(f"{path}: not a training state of masked_swin; move it away to start anew")
    if found > STATE_FORMAT:
        raise ValueError(
            f"{path}: written by a newer masked_swin (format {found}, this one reads {STATE_FORMAT}); "
            "upgrade masked_swin"
        )
    if found < STATE_FORMAT:
        raise ValueError(
            f"{path}: written by an older masked_swin (format {found}, this one reads {STATE_FORMAT}), whose steps "
            "this one does not repeat exactly; train on from its weights, in another output folder: "
            f"--initial_weights {path.parent / WEIGHTS_FILE}"
        )
