"""Watching a long solve: what it reports, and what stops it early."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jvp_ops._checks import finite_number, positive_int
from jvp_ops.errors import InputError


@dataclass(frozen=True)
class SolveStatus:
    """What a solve knows of itself; handed to ``callback=`` after each check of the Ritz values.

    Attributes
    ----------
    products : int
        Directions multiplied by the solver so far.
    converged, k : int
        How many of the eigenpairs asked for have converged.
    values : ndarray
        The current Ritz values of the solved operator, best first (of H for I − αH).
    residuals : ndarray of float64
        Theirs, relative to the norm.
    seconds : float
        Wall-clock time so far, with that before a resumed checkpoint.
    phase : str
        ``solving``, ``verifying`` (a fresh random block looks for what was missed) or ``float64``.
    """

    products: int
    converged: int
    k: int
    values: NDArray[Any]
    residuals: NDArray[np.float64]
    seconds: float
    phase: str


class Monitor:
    """Counts a solver's products and decides whether it may go on.

    Parameters
    ----------
    max_products, max_seconds
        Budgets; None is none.
    callback : callable, optional
        Called with a `SolveStatus`; returning what counts as true stops the solve.
    bar : tqdm
        The progress bar.
    """

    def __init__(
        self,
        *,
        max_products: int | None,
        max_seconds: float | None,
        callback: Callable[[SolveStatus], object] | None,
        bar: Any,
    ) -> None:
        if callback is not None and not callable(callback):
            raise InputError(f"callback must be a function of a SolveStatus, not {callback!r}")
        self.max_products = None if max_products is None else positive_int(max_products, "max_products")
        self.max_seconds = None if max_seconds is None else finite_number(max_seconds, "max_seconds", least=0)
        self.callback, self.bar = callback, bar
        self.products = 0
        self.earlier = 0.0  # seconds before a resumed checkpoint
        self.began = time.perf_counter()
        self.cancelled = False

    @property
    def seconds(self) -> float:
        """Wall-clock time so far."""
        return self.earlier + time.perf_counter() - self.began

    def count(self, products: int) -> None:
        """Count products."""
        self.products += products
        self.bar.update(products)

    def obstacle(self, products: int) -> str | None:
        """Name what forbids so many products more, if anything does."""
        if self.cancelled:
            return "cancelled"
        if self.max_products is not None and self.products + products > self.max_products:
            return "max_products"
        if self.max_seconds is not None and time.perf_counter() - self.began >= self.max_seconds:
            return "max_seconds"
        return None

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let Ctrl-C stop the solve after the block it is at, with what was found; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def stop(number: int, frame: Any) -> None:
            self.cancelled = True
            signal.signal(signal.SIGINT, before)

        try:
            signal.signal(signal.SIGINT, stop)
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def report(self, status: SolveStatus) -> None:
        """Show and hand on a status."""
        self.bar.set_postfix_str(f"{status.converged} of {status.k} converged, {status.phase}")
        if self.callback is not None and self.callback(status):
            self.cancelled = True
