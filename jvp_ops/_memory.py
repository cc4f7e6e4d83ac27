"""Memory budgets: sizes as people write them, what is free, and the refusal that states both."""

import os
import re
from pathlib import Path

import torch

from jvp_ops.errors import InputError, MemoryBudgetError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_bytes(size: int | str) -> int:
    """Read a size in bytes from an int or from text such as ``"2GiB"``.

    >>> parse_bytes("1.5 MiB"), parse_bytes(1000)
    (1572864, 1000)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-zA-Z]*)\s*", str(size))
    if match is None or match[2].lower() not in _UNITS or isinstance(size, bool):
        raise InputError(f"{size!r} is not a memory size: write bytes as an int, or text such as '512MiB' or '2GiB'")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def format_bytes(size: float) -> str:
    """Write a size with a binary unit.

    >>> format_bytes(39760 * 39760 * 4), format_bytes(700)
    ('5.89 GiB', '700 B')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1024
    return f"{size:.3g} TiB"


def free_bytes(device: torch.device) -> int:
    """Ask how much memory is free on a device."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's to give out again
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    try:
        with open("/proc/meminfo") as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        known = hasattr(os, "sysconf")
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if known else 2**32
    return min(free, _container_bytes())


def _container_bytes() -> int:
    """Ask what a container's limit (cgroup v2) leaves; far more than there is, where there is none."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return max(int(limit) - used, 0)
    except (OSError, ValueError):
        return 2**63


def resolve_budget(max_memory: int | str | None, device: torch.device) -> int:
    """Turn a ``max_memory`` option into bytes; None is half of what is free on the device now."""
    return free_bytes(device) // 2 if max_memory is None else parse_bytes(max_memory)


def require(needed: int, budget: int, what: str, remedy: str) -> None:
    """Refuse work that needs more than the budget, before any of it is taken."""
    if needed > budget:
        raise MemoryBudgetError(
            f"{what} needs {format_bytes(needed)}, more than the {format_bytes(budget)} it may use: {remedy}"
        )
