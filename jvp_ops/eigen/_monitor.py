"""Watching a solve: what it reports, and its budget of products."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jvp_ops._checks import positive_int
from jvp_ops._sitting import Sitting, Stop


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
        ``solving``, ``verifying`` (what was missed is looked for from fresh random directions) or ``float64``.
    """

    products: int
    converged: int
    k: int
    values: NDArray[Any]
    residuals: NDArray[np.float64]
    seconds: float
    phase: str


class Monitor:
    """Counts a solver's products in its sitting, and decides whether it may go on.

    Parameters
    ----------
    sitting : Sitting
        The clock, the bar, the callback and Ctrl-C.
    max_products : int, optional
        Budget; None is none.
    """

    def __init__(self, sitting: Sitting, max_products: int | None) -> None:
        self.sitting = sitting
        self.max_products = None if max_products is None else positive_int(max_products, "max_products")
        self.products = 0

    def count(self, products: int) -> None:
        """Count products."""
        self.products += products
        self.sitting.advance(products)

    def obstacle(self, products: int) -> Stop | None:
        """Name what forbids so many products more, if anything does."""
        if stop := self.sitting.obstacle():
            return stop
        if self.max_products is not None and self.products + products > self.max_products:
            return Stop.MAX_PRODUCTS
        return None

    def report(self, status: SolveStatus) -> None:
        """Show and hand on a status."""
        self.sitting.bar.set_postfix_str(f"{status.converged} of {status.k} converged, {status.phase}")
        self.sitting.tell(status)
