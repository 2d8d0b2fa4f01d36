"""Faults that tests inflict for real, as root and as anybody else."""

import multiprocessing
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import torch

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
    context = multiprocessing.get_context("forkserver")  # torch is imported once
    context.set_forkserver_preload([Trainer.__module__])
    process = context.Process(target=_train, args=(config, kill_at))
    process.start()
    return process


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
