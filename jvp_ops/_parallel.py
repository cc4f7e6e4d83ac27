"""Sums over chunks of samples, in as many threads as torch may use on the CPU.

Many small kernels over one chunk each, one chunk a thread, waste less on fork and join than one chunk after
another over all threads. Each thread adds up a fixed share in a fixed order, so the sum is the same each time.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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

    Returns the sum on top of what `total` held. `add` runs without gradient mode, in several threads: it must be code
    of our own, since a user's may change what threads share.
    """

    def add_all(share: Sequence[Item], part: Tensor) -> None:
        for item in share:
            add(item, part)

    with torch.inference_mode(False):
        total = total.clone() if total.is_inference() else total
        workers = max(1, min(worker_count(total.device), len(items)))
        parts = [total] + [torch.zeros_like(total) for _ in range(workers - 1)]
        in_threads([partial(add_all, items[worker::workers], part) for worker, part in enumerate(parts)])
        for part in parts[1:]:
            total += part
        return total


def in_threads(jobs: Sequence[Callable[[], None]]) -> None:
    """Run each job in a thread of its own, without gradient mode, torch's threads shared out among them."""

    def run(job: Callable[[], None]) -> None:
        with torch.no_grad():
            job()

    if len(jobs) == 1:
        return run(jobs[0])
    threads = torch.get_num_threads()
    # threads of their own, ended each time: idle ones that outlive the sum were measured to slow torch's own down
    try:
        with ThreadPoolExecutor(len(jobs), "jvp_ops", lambda: torch.set_num_threads(threads // len(jobs))) as pool:
            running = [pool.submit(run, job) for job in jobs]
    finally:
        torch.set_num_threads(threads)  # the workers' own setting is also the default of threads to come
    for future in running:
        future.result()
    return None
