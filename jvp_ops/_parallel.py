"""Sums over chunks of samples, in as many threads as torch may use on the CPU.

Many small kernels over one chunk each, one chunk a thread, waste less on fork and join than one chunk after
another over all threads. Each thread adds up a fixed share in a fixed order, so the sum is the same each time.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
MOST_WORKERS = 8


def worker_count(device: torch.device) -> int:
    """Count the chunks that are worked on at a time: bounded, since each worker holds a sum of its own."""
    return min(torch.get_num_threads(), MOST_WORKERS) if device.type == "cpu" else 1


def accumulate(add: Callable[[Item, Tensor], None], items: Sequence[Item], total: Tensor) -> Tensor:
    """Call ``add(item, total)`` for each item, where `add` adds the item's share to the tensor it is given.

    Returns the sum on top of what `total` held. `add` runs without gradient mode, in several threads.
    """
    with torch.inference_mode(False):
        total = total.clone() if total.is_inference() else total
        return _accumulate(add, items, total)


def _accumulate(add: Callable[[Item, Tensor], None], items: Sequence[Item], total: Tensor) -> Tensor:
    def add_all(share: Sequence[Item], part: Tensor) -> Tensor:
        with torch.no_grad():
            for item in share:
                add(item, part)
        return part

    workers = min(worker_count(total.device), len(items))
    if workers <= 1:
        return add_all(items, total)
    threads = torch.get_num_threads()
    parts = [total] + [torch.zeros_like(total) for _ in range(workers - 1)]
    # threads of their own, ended each time: idle ones that outlive the sum were measured to slow torch's own down
    try:
        with ThreadPoolExecutor(workers, "jvp_ops", lambda: torch.set_num_threads(threads // workers)) as pool:
            running = [pool.submit(add_all, items[worker::workers], part) for worker, part in enumerate(parts)]
    finally:
        torch.set_num_threads(threads)  # the workers' own setting is also the default of threads to come
    total = running[0].result()
    for future in running[1:]:
        total += future.result()
    return total
