"""The processes of one run: all that torchrun started, or this one alone."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from masked_swin.train.averaging import saved_buffers

OVERLAP_PARAMETERS = 5_000_000  # 20 MB of gradients; below that one reduction is enough


def rank() -> int:
    """Return the number of this process; only process 0 writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def device(name: str) -> torch.device:
    """Return the device of this process: "auto" is CUDA if there is one, "cuda" the GPU with this process's local rank.

    Raises:
        ValueError: the device is not available here.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if name == "auto":
        return torch.device("cpu")
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        raise ValueError(f"device {name!r}: not available here ({error})") from None
    return found


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the other processes of `torchrun`, if it started this one. `device` is the configured one."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield
    except RuntimeError as error:
        if re.search(r"connection (closed|reset)|broken pipe", str(error), re.IGNORECASE):
            raise ValueError(f"process {rank()}: another process has ended, whose message says why") from error
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def first_process_first() -> Iterator[None]:
    """Run the block in process 0 first, so that the others find its files; if it raises there, no other runs it."""
    if world_size() > 1 and rank() > 0:
        dist.barrier()
    yield
    if world_size() > 1 and rank() == 0:
        dist.barrier()


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the processes.

    Called once a step for all gradients: for networks of some million weights one flat reduction is enough.
    """
    if world_size() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def mean(values: Sequence[float], device: torch.device) -> list[float]:
    """Return the mean over the processes of each number."""
    if world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return [value / world_size() for value in total.tolist()]


def largest(value: int, device: torch.device) -> int:
    """Return the largest value over the processes."""
    if world_size() == 1:
        return value
    found = torch.tensor(value, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


class Replicas:
    """A network that all processes train, each on its share of a batch.

    With `overlap`, the gradients of a network of OVERLAP_PARAMETERS or more are averaged while the backward pass of the
    step's last part runs (PyTorch's DistributedDataParallel). Other networks average them once, after it.

    Raises:
        ValueError: a network without parameters.
    """

    def __init__(self, model: nn.Module, *, overlap: bool) -> None:
        count = sum(parameter.numel() for parameter in model.parameters())
        if not count:
            raise ValueError("the network has no parameters to train")
        self.network: nn.Module = model
        self._parallel: DistributedDataParallel | None = None
        if overlap and world_size() > 1 and count >= OVERLAP_PARAMETERS:
            # Buffers are averaged once a step, see `average_buffers`.
            self.network = self._parallel = DistributedDataParallel(
                model, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self._buffers = [buffer for buffer in saved_buffers(model) if buffer.is_floating_point()]

    @contextmanager
    def part(self, *, last: bool) -> Iterator[None]:
        """Compute one part of a step, forward and backward, in the block."""
        with nullcontext() if last or self._parallel is None else self._parallel.no_sync():
            yield

    def average_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Average the gradients of a step after its last part, unless that is done."""
        if self._parallel is None:
            average(gradients)

    def average_buffers(self) -> None:
        """Average what batch norms have measured: each process saw its own share of the batch."""
        if self._buffers:
            average(self._buffers)
