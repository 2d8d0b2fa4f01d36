"""Faults that tests inflict for real, as root and as anybody else, and commands in processes that suffer them."""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from masked_swin.train import __main__ as entry
from masked_swin.train.config import TrainConfig
from masked_swin.train.loop import Trainer


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: a write fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def start_training(config: TrainConfig, kill_at: tuple[str, int] | None = None) -> BaseProcess:
    """Train in another process, which `kill_at` ("step" or the name of a function of os, call) kills with SIGKILL."""
    return _started(_train, config, kill_at)


def start_command(
    arguments: Sequence[str],
    folder: Path,
    *,
    fault: Callable[[], object] | None = None,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Run `masked-swin` in another process, as from a shell; what it prints goes to `folder`/stdout and stderr.

    `fault` is called first; it must be a function of a module.
    """
    folder.mkdir(exist_ok=True)
    return _started(_command, list(arguments), folder, fault, dict(environment or {}))


def limit_file_size() -> None:
    """No file of this process grows beyond 20,000 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def die_before_a_file_gets_its_name() -> None:
    os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]


def die_after_a_file_gets_its_name() -> None:
    replace = os.replace

    def killed(*names: Any) -> None:
        replace(*names)
        os.kill(os.getpid(), signal.SIGKILL)

    os.replace = killed  # type: ignore[assignment]


def _started(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")  # torch is imported once
    context.set_forkserver_preload([Trainer.__module__, "masked_swin.train.commands.denoise"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def _command(
    arguments: list[str], folder: Path, fault: Callable[[], object] | None, environment: dict[str, str]
) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    if fault is not None:
        fault()
    sys.argv = ["masked-swin", *arguments]
    sys.exit(entry.main())


def _train(config: TrainConfig, kill_at: tuple[str, int] | None) -> None:
    torch.set_num_threads(1)
    if kill_at is not None:
        name, call = kill_at
        owner: Any = Trainer if name == "step" else os
        attribute = "train_step" if name == "step" else name
        function, calls = getattr(owner, attribute), iter(range(call))

        def killed(*args: Any, **options: Any) -> Any:
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        setattr(owner, attribute, killed)
    Trainer(config).run()
