"""Find out how much memory is free."""

from pathlib import Path

import torch


def available_memory(device: torch.device | None = None) -> int:
    """Return the free bytes of a CUDA device, or of the machine within the limit of its control group (containers)."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    amounts = [line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemAvailable:")]
    free = int(amounts[0]) * 1024 if amounts else 2 * 2**30  # not Linux: a low guess
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].isdigit():
        free = min(free, max(0, int(limit[0]) - int(used[0])))
    return free


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
