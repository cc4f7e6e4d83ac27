"""Sums over chunks of samples: a fixed number of shares, added in one order, in as many threads as torch may use.

Many small kernels over one chunk each, one chunk a thread, waste less on fork and join than one chunk after
another over all threads. Which chunks make a share, and in which order the shares are added, depends on nothing but
their number, so that a sum has the same bits on any number of threads and beside whatever else the process does.
"""

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Condition
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
SHARES = 8  # of a sum on the CPU: at most as many threads work on it, each with a tensor like the sum


def share_count(device: torch.device) -> int:
    """Count the shares of a long sum: on a GPU one kernel after another is as good."""
    return SHARES if device.type == "cpu" else 1


def worker_count(device: torch.device) -> int:
    """Count the threads that work on a sum, each of which holds a tensor like it."""
    return min(torch.get_num_threads(), share_count(device)) if _torch_library() is not None else 1


def accumulate(add: Callable[[Item, Tensor], None], items: Sequence[Item], total: Tensor) -> Tensor:
    """Call ``add(item, total)`` for each item, where `add` adds the item's share to the tensor it is given.

    Returns the sum on top of what `total` held. `add` runs without gradient mode, in several threads: it must be code
    of our own, since a user's may change what threads share.
    """
    with torch.inference_mode(False), torch.no_grad():
        total = total.clone() if total.is_inference() else total
        count = min(share_count(total.device), len(items))
        if count > 1:
            _Shares(add, [items[number::count] for number in range(count)], total).add_up()
        else:
            for item in items:
                add(item, total)
        return total


class _Shares:
    """Shares of a sum that threads take in turn, and add to it in their order."""

    def __init__(self, add: Callable[[Item, Tensor], None], shares: Sequence[Sequence[Item]], total: Tensor) -> None:
        self._add, self._shares, self._total = add, shares, total
        self._taken = self._added = 0
        self._turn = Condition()

    def add_up(self) -> None:
        workers = min(worker_count(self._total.device), len(self._shares))
        in_threads([self._work] * workers)

    def _work(self) -> None:
        part: Tensor | None = None
        while (number := self._next()) < len(self._shares):
            try:
                if number > 0:
                    part = torch.zeros_like(self._total) if part is None else part.zero_()
                for item in self._shares[number]:
                    self._add(item, self._total if part is None else part)  # the first share, to the sum itself
                self._add_in_turn(number, part)
            except BaseException:
                with self._turn:
                    self._taken = self._added = len(self._shares)  # nobody waits for what does not come
                    self._turn.notify_all()
                raise

    def _add_in_turn(self, number: int, part: Tensor | None) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._added >= number)
            if self._added == number:
                if part is not None:
                    self._total += part
                self._added += 1
                self._turn.notify_all()

    def _next(self) -> int:
        with self._turn:
            self._taken += 1
            return self._taken - 1


def in_threads(jobs: Sequence[Callable[[], None]]) -> None:
    """Run each job in a thread of its own, without gradient mode, on one of torch's threads."""

    def run(job: Callable[[], None]) -> None:
        with torch.no_grad():
            job()

    if len(jobs) == 1:
        return run(jobs[0])
    # threads of their own, ended each time: idle ones that outlive the sum were measured to slow torch's own down
    with ThreadPoolExecutor(len(jobs), "jvp_ops", _limit_this_thread) as pool:
        running = [pool.submit(run, job) for job in jobs]
    for future in running:
        future.result()
    return None


def each_in_threads(work: Callable[[int], None], count: int, device: torch.device) -> None:
    """Call ``work(number)`` for each number below `count`, a thread taking every so many-th."""
    workers = min(worker_count(device), count)

    def some(first: int) -> None:
        for number in range(first, count, workers):
            work(number)

    in_threads([lambda first=first: some(first) for first in range(workers)])  # type: ignore[misc]


def _limit_this_thread() -> None:
    """Let the calling thread use one of torch's threads: torch.set_num_threads is also the setting of all to come."""
    torch.get_num_threads()  # torch sets each new thread up when it first asks
    library = _torch_library()
    assert library is not None
    library.omp_set_num_threads(1)
    if hasattr(library, "MKL_Set_Num_Threads_Local"):
        library.MKL_Set_Num_Threads_Local(1)


@cache
def _torch_library() -> ctypes.CDLL | None:
    """Find torch's own library where it runs on OpenMP; None where a thread cannot be limited."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        with suppress(OSError):
            library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
            if hasattr(library, "omp_set_num_threads"):
                return library
    return None
