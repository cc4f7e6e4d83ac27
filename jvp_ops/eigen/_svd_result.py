"""What `svd` returns."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._result import Result
from jvp_ops.parameters import Parameters

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class SingularTriplets(Result):
    """Some singular values of an operator A with both vectors, best first by `which`, and what is known of them.

    Attributes
    ----------
    values : ndarray of float64, shape (found,)
        σ, computed in float64 from products that were made after the solve.
    left, right : Tensor, shape (rows, found) and (columns, found)
        Unit vectors u and v, A v = σ u and Aᵀ u = σ v, on the operator's device and in its dtype.
    residuals : ndarray of float64, shape (found,)
        max(‖Av − σu‖, ‖Aᵀu − σv‖), recomputed after the solve, before vectors are rounded to the operator's dtype.
    bounds : ndarray of float64, shape (found,)
        value ± bound are intervals that hold all at once: each group of them that overlap holds as many singular
        values, with multiplicity, as values. Residuals and the measured rounding of products; never a square root of
        an eigenvalue's.
    converged : ndarray of bool, shape (found,)
        Residual plus rounding is at most `tol` times ‖A‖.
    which, k, tol, method : str, int, float, str
        What was asked for, and the method that served.
    rounding : float
        The measured rounding level of a product, relative to ‖A‖.
    norm : float
        ‖A‖₂ from below.
    products, float64_products : int
        Directions multiplied in all, by A or by Aᵀ, in the operator's dtype and by its counterpart in float64.
    seconds : float
        Wall-clock time.
    stopped : Stop
        As in `Eigenpairs`.
    complete : bool
        Whether it is proved that the j-th best singular value lies in the j-th interval: by LAPACK on the matrix.
    row_parameters, column_parameters : Parameters
        What the entries of left and right vectors stand for.
    notes : tuple of str
        What a reader should know.
    provenance : dict
        The operator's identity, for the fingerprint.
    """

    figures = (
        *("values", "residuals", "bounds", "converged", "which", "k", "tol", "method", "rounding", "norm"),
        *("products", "float64_products", "complete"),
    )

    values: Floats
    left: Tensor
    right: Tensor
    residuals: Floats
    bounds: Floats
    converged: NDArray[np.bool_]
    which: str
    k: int
    tol: float
    method: str
    rounding: float
    norm: float
    products: int
    float64_products: int
    complete: bool
    row_parameters: Parameters
    column_parameters: Parameters

    def __len__(self) -> int:
        return len(self.values)

    @property
    def intervals(self) -> Floats:
        """The intervals value ± bound, cut at 0, shape (found, 2)."""
        return np.stack([np.maximum(self.values - self.bounds, 0), self.values + self.bounds], axis=1)

    def header(self) -> list[str]:
        """Name the columns of `rows`."""
        return ["singular value", "residual", "bound", "converged"]

    def rows(self) -> list[list[str]]:
        """Write each triplet as text, under `header`."""
        listed = zip(self.values, self.residuals, self.bounds, self.converged, strict=True)
        return [[f"{s:.10g}", f"{r:.1e}", f"{b:.1e}", "yes" if done else "no"] for s, r, b, done in listed]

    def summary(self) -> str:
        """Say in one line what was found, at what cost and how exactly."""
        wide = f" and {self.float64_products} in float64" if self.float64_products else ""
        proved = "none missed (proved)" if self.complete else "intervals hold; that none was missed is not proved"
        return (
            f"{len(self)} of {self.k} singular triplets ({self.which}), {self.method}, {self.products} products{wide} "
            f"in {self.seconds:.2f} s; tol {self.tol:.1e} and rounding {self.rounding:.1e} relative to "
            f"‖A‖ ≥ {self.norm:.6g}; {proved}"
        )

    def plot(self, ax: Any = None) -> Any:
        """Draw the values with their bounds, by rank; return the matplotlib axes.

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        """
        from jvp_ops.plots import plot_values  # matplotlib only when something is drawn

        ax = plot_values(self.values, self.bounds, ax=ax)
        ax.set_ylabel("singular value")
        return ax
