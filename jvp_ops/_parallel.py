"""Sums over chunks of samples, in as many threads as torch may use on the CPU.

Many small kernels over one chunk each, one chunk a thread, waste less on fork and join than one chunk after
another over all threads. Each thread adds up a fixed share in a fixed order, so the sum is the same each time.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
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

    `total` must come in as zeros; it goes out as the sum. `add` runs without gradient mode, in several threads.
    """

    def add_all(share: Sequence[Item], part: Tensor) -> Tensor:
        with torch.no_grad():
            for item in share:
                add(item, part)
        return part

    workers = min(worker_count(total.device), len(items))
    if workers <= 1:
        return add_all(items, total)
    pool = _pool(workers, max(1, torch.get_num_threads() // workers))
    parts = [total] + [torch.zeros_like(total) for _ in range(workers - 1)]
    running = [pool.submit(add_all, items[worker::workers], part) for worker, part in enumerate(parts)]
    for future in running[1:]:
        future.exception()  # all threads are done with their graphs before the first error is raised
    running[0].result()
    for future in running[1:]:
        total += future.result()
    return total


@lru_cache(maxsize=4)
def _pool(workers: int, threads_each: int) -> ThreadPoolExecutor:
    """Start a pool whose threads each run torch on `threads_each` threads, leaving the caller's number alone."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "jvp_ops", initializer=lambda: torch.set_num_threads(threads_each))
    list(pool.map(lambda _: time.sleep(0.01), range(workers)))  # every thread starts now, then the number is restored
    torch.set_num_threads(before)
    return pool


if hasattr(os, "register_at_fork"):  # a forked child has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
