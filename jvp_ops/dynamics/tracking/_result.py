"""What `track_eigenpairs` returns."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._result import Result
from jvp_ops.parameters import Parameters

Floats = NDArray[np.float64]
SHOWN = 24  # rows of a table; a longer one is thinned out
CLOSE, NEVER = 0.1, 0.35  # of the threshold: the median of what has settled, and its farthest


@dataclass(frozen=True, eq=False, repr=False)
class Tracking(Result):
    """One end of the Hessian's spectrum along training, measured every so many steps.

    Row i of each array is of the state before step number ``at[i]``.

    Attributes
    ----------
    at : ndarray of int64, shape (rows,)
        Numbers of the steps.
    values : ndarray of float64, shape (rows, k)
        Eigenvalues, best first, of the Hessian or of what `operator` names.
    bounds : ndarray of float64, shape (rows, k)
        As `Eigenpairs.bounds`.
    converged : ndarray of bool, shape (rows, k)
    thresholds : ndarray of float64, shape (rows,)
        The map's ``threshold`` at that step; infinite where the learning rate is 0.
    losses, gradient_norms : ndarray of float64, shape (rows,)
        L and ‖∇L‖, of all samples.
    gradient_overlap : ndarray of float64, shape (rows,)
        ‖Xᵀg‖ / ‖g‖: how much of the gradient lies in the eigenspace. Of the preconditioned Hessian, g is P^½ ∇L.
    continuity : ndarray of float64, shape (rows,)
        The mean squared cosine of the principal angles between this eigenspace and the one before: ‖X'ᵀX‖²/k, 1
        where they agree; NaN in the first row.
    products : ndarray of int64, shape (rows,)
        Directions multiplied for each row, those that measure rounding and certify included.
    verified : ndarray of bool, shape (rows,)
        Whether fresh random directions were looked at, which can find what a warm start has lost.
    vectors : Tensor, shape (n, k)
        Of the last row.
    state : Tensor
        After `steps` steps, from where one can go on.
    which : str
    operator : str
        ``hessian`` or ``preconditioned hessian``.
    steps, asked, first : int
        Steps taken, and asked for; the number of the first.
    stopped : Stop
        As of `LyapunovSpectrum`.
    complete : bool
    seconds : float
    parameters : Parameters
        What the entries of the vectors stand for.
    notes : tuple of str
    provenance : dict
    """

    figures = (
        *("at", "values", "bounds", "converged", "thresholds", "losses", "gradient_norms", "gradient_overlap"),
        *("continuity", "products", "verified", "which", "operator", "steps", "asked", "first", "complete", "settled"),
    )

    at: NDArray[np.int64]
    values: Floats
    bounds: Floats
    converged: NDArray[np.bool_]
    thresholds: Floats
    losses: Floats
    gradient_norms: Floats
    gradient_overlap: Floats
    continuity: Floats
    products: NDArray[np.int64]
    verified: NDArray[np.bool_]
    vectors: Tensor
    state: Tensor
    which: str
    operator: str
    steps: int
    asked: int
    first: int
    complete: bool
    parameters: Parameters

    def __len__(self) -> int:
        return len(self.at)

    @property
    def sharpness(self) -> Floats:
        """The largest of the tracked eigenvalues in each row, shape (rows,); with `which` SA it is not H's."""
        return np.asarray(self.values.max(axis=1))

    @property
    def ratio(self) -> Floats:
        """The sharpness over the threshold, shape (rows,): above 1 the step is unstable."""
        return np.asarray(self.sharpness / self.thresholds)

    @property
    def settled(self) -> bool:
        """Whether the last third of the rows stays at the threshold: at the edge of stability.

        The median of `ratio` is within 10 % of 1, and no row is farther off than 35 %; of fewer than 3 rows, False.
        """
        tail = self.ratio[-max(3, len(self) // 3) :]
        if self.which == "SA" or len(tail) < 3:
            return False
        return bool(abs(np.median(tail) - 1) <= CLOSE and np.abs(tail - 1).max() <= NEVER)

    def stability(self) -> str:
        """Say in one sentence where the sharpness is, by its threshold."""
        if self.which == "SA":
            return "the lowest eigenvalues were tracked: of the sharpness nothing is known"
        name = "sharpness" if self.operator == "hessian" else "preconditioned sharpness"
        if not np.isfinite(self.thresholds[-1]):
            return f"{name} {self.sharpness[-1]:.6g}; the step has no threshold at learning rate 0"
        last = f"{name} {self.sharpness[-1]:.6g}, {_short(self.ratio[-1])} of the threshold {self.thresholds[-1]:.6g}"
        above = np.flatnonzero(self.ratio >= 1)
        first = f", first reached by step {self.at[above[0]]}" if len(above) else ""
        tail = self.ratio[-max(3, len(self) // 3) :]
        if self.settled:
            return f"{last}{first}: settled at the edge of stability ({_spread(tail)})"
        if len(above):
            return f"{last}{first}: not settled at it ({_spread(tail)})"
        return f"{last}, which it has not reached: the steps were stable"

    def header(self) -> list[str]:
        """Name the columns of `rows`."""
        names = ["largest", "lowest"] if self._both_ends else [f"h{i + 1}" for i in range(self.values.shape[1])][:3]
        return ["step", "loss", *names, "± bound", "/ threshold", "‖Xᵀg‖/‖g‖", "continuity", "products"]

    def rows(self) -> list[list[str]]:
        """Write the rows as text, under `header`: at most 24 of them, evenly spread, with the last."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(SHOWN, len(self))).round().astype(int))
        return [
            [
                str(self.at[i]),
                f"{self.losses[i]:.5g}",
                *(f"{value:.6g}" for value in self._shown(i)),
                f"{self.bounds[i].max():.1e}",
                _short(self.ratio[i]),
                f"{self.gradient_overlap[i]:.3f}",
                "-" if np.isnan(self.continuity[i]) else f"{self.continuity[i]:.4f}",
                str(self.products[i]),
            ]
            for i in chosen
        ]

    @property
    def _both_ends(self) -> bool:
        return self.which in ("BE", "LM")

    def _shown(self, i: int) -> Floats:
        row = self.values[i]
        return np.array([row.max(), row.min()]) if self._both_ends else row[:3]

    def summary(self) -> str:
        """Say in one line what was tracked and at what cost."""
        return (
            f"{self.values.shape[1]} eigenvalues ({self.which}) of the {self.operator} at {len(self)} of the states "
            f"before steps {self.first} to {self.first + self.steps}, {int(self.products.sum())} products in "
            f"{self.seconds:.2f} s; {self.stability()}"
        )

    def record(self) -> dict[str, Any]:
        """Give all but the vectors and the state as a JSON-able dict."""
        return {**super().record(), "stability": self.stability()}

    def plot(self, axes: Any = None) -> Any:
        """Draw the eigenvalues with the threshold above the loss; return the pair of matplotlib axes.

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        """
        from jvp_ops.plots import plot_tracking  # matplotlib only when something is drawn

        name = r"eigenvalues of $H$" if self.operator == "hessian" else r"eigenvalues of $P^{1/2}HP^{1/2}$"
        lowest = self.which == "SA"  # the threshold is not about these
        values = self.values if lowest else -np.sort(-self.values, axis=1)
        thresholds = np.full(len(self), np.inf) if lowest else self.thresholds
        leading = "lowest" if lowest else "largest"
        return plot_tracking(self.at, values, thresholds, self.losses, leading=leading, label=name, axes=axes)


def _short(ratio: float) -> str:
    return f"{ratio:.3f}" if abs(ratio) < 1e4 else f"{ratio:.3g}"


def _spread(ratio: Floats) -> str:
    rows = "the only row" if len(ratio) == 1 else f"the last {len(ratio)} rows"
    return f"{rows}: median {_short(float(np.median(ratio)))}, {_short(ratio.min())} to {_short(ratio.max())}"
