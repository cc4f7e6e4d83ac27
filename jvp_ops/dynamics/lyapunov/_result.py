"""What `lyapunov_spectrum` returns."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from jvp_ops._result import Result
from jvp_ops.parameters import Parameters

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class LyapunovSpectrum(Result):
    """The k leading Lyapunov exponents along an orbit, with their history and standard errors.

    Exponents are natural logarithms per step, in the order of the QR decomposition, which is falling in the limit
    of many steps; before that, neighbours can stand in either order.

    Attributes
    ----------
    values : ndarray of float64, shape (k,)
        The mean growth per step; −inf where the Jacobian lost rank exactly.
    errors : ndarray of float64, shape (k,)
        Standard errors by the method of batch means; NaN from fewer than 8 stretches. They tell statistical
        scatter, not how far a transient reaches.
    growth : ndarray of float64, shape (stretches, k)
        Log growth in each stretch between two orthonormalizations.
    intervals : ndarray of int64, shape (stretches,)
        Steps in each stretch.
    steps, asked, transient, first : int
        Steps measured, and asked for; those before them that were discarded; the number of the first.
    state : Tensor, shape (n,)
        θ at the end, from where one can go on.
    vectors : Tensor, shape (n, k)
        The orthonormal tangent vectors at the end: the Gram–Schmidt vectors, whose leading spans are those of the
        fastest growth in the past.
    parameters : Parameters
        What the entries of state and vectors stand for.
    products : int
        Directions multiplied in all.
    seconds : float
        Wall-clock time, of all sittings.
    stopped : Stop
        ``finished``, ``max_seconds``, ``cancelled``, ``interrupted``, or ``failed`` of the partial result of a run that
        diverges.
    complete : bool
        Whether all steps that were asked for were taken.
    notes : tuple of str
        What a reader should know: an interval too long, a run that was stopped.
    provenance : dict
        Map, start and request, for the fingerprint.
    """

    figures = (
        *("values", "errors", "steps", "asked", "transient", "first", "products", "complete"),
        *("positive_count", "positive_sum", "kaplan_yorke"),
    )

    values: Floats
    errors: Floats
    growth: Floats
    intervals: NDArray[np.int64]
    steps: int
    asked: int
    transient: int
    first: int
    state: Tensor
    vectors: Tensor
    parameters: Parameters
    products: int
    complete: bool

    def __len__(self) -> int:
        return len(self.values)

    @property
    def history_steps(self) -> NDArray[np.int64]:
        """The steps measured at each row of `history`, shape (stretches,)."""
        return np.cumsum(self.intervals)

    @property
    def history(self) -> Floats:
        """The running exponents, shape (stretches, k); the last row is `values`."""
        running: Floats = np.cumsum(self.growth, axis=0) / self.history_steps[:, None]
        return running

    @property
    def positive_count(self) -> int:
        """How many values are above 0; compare with `errors` those close to it."""
        return int((self.values > 0).sum())

    @property
    def positive_sum(self) -> float:
        """The sum of the positive exponents: a bound of the entropy rate, and equal to it by Pesin's formula."""
        return float(self.values[self.values > 0].sum())

    @property
    def kaplan_yorke(self) -> float:
        """The Kaplan–Yorke dimension; NaN where k exponents are too few to settle it (see `kaplan_yorke`)."""
        return kaplan_yorke(self.values, self.parameters.size)

    def tensors(self, i: int) -> dict[str, Tensor]:
        """Take vector i apart into the parameters' shapes, by name."""
        return self.parameters.unflatten(self.vectors[:, i])

    def header(self) -> list[str]:
        """Name the columns of `rows`."""
        return ["exponent per step", "standard error", "factor per step"]

    def rows(self) -> list[list[str]]:
        """Write each exponent as text, under `header`."""
        pairs = zip(self.values, self.errors, strict=True)
        return [[f"{value: .8g}", f"{error:.1e}", f"{np.exp(value):.8g}"] for value, error in pairs]

    def summary(self) -> str:
        """Say in one line what was found and at what cost."""
        dimension = self.kaplan_yorke
        known = f"Kaplan–Yorke dimension {dimension:.5g}, " if np.isfinite(dimension) else ""
        return (
            f"{len(self)} Lyapunov exponents over {self.steps} steps after {self.transient}, {known}"
            f"{self.positive_count} positive of sum {self.positive_sum:.6g}, "
            f"{self.products} products in {self.seconds:.2f} s"
        )

    def plot(self, ax: Any = None) -> Any:
        """Draw the running exponents with the final ones and their errors; return the matplotlib axes.

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        """
        from jvp_ops.plots import plot_running  # matplotlib only when something is drawn

        return plot_running(self.history_steps, self.history, self.errors, ax=ax)


def kaplan_yorke(values: ArrayLike, size: int) -> float:
    r"""Compute the Kaplan–Yorke dimension from the leading exponents of a system of `size` numbers.

    .. math::  D = j + \frac{λ_1 + … + λ_j}{|λ_{j+1}|}, \qquad j \text{ the largest with } λ_1 + … + λ_j \ge 0.

    0 where all growth decays, `size` where even the sum of all does not; NaN where fewer than all are given and
    their sum is still not negative.

    References
    ----------
    J. L. Kaplan, J. A. Yorke, "Chaotic behavior of multidimensional difference equations", Lecture Notes in
    Mathematics 730 (1979).
    """
    falling = np.sort(np.asarray(values, dtype=np.float64))[::-1]
    sums = np.cumsum(falling)
    below = np.flatnonzero(~(sums >= 0))
    if np.isnan(falling).any() or (len(below) == 0 and len(falling) < size):
        return float("nan")
    if len(below) == 0:
        return float(size)
    j = int(below[0])
    return j + (float(sums[j - 1] / -falling[j]) if j > 0 else 0.0)
