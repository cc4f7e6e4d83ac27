"""What `finite_time_exponents` returns."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._result import Result
from jvp_ops.parameters import Parameters

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class FiniteTimeExponents(Result):
    """The k largest finite-time exponents of a window of T steps: ln σᵢ(P) / T of the product P of its Jacobians.

    Attributes
    ----------
    values : ndarray of float64, shape (k,)
        ln σᵢ / T, natural logarithms per step, falling; −inf for σᵢ = 0.
    log_singular_values : ndarray of float64, shape (k,)
        ln σᵢ, which stays finite where σᵢ would overflow.
    right : Tensor, shape (n, k)
        Right singular vectors: the unit directions at the start of the window that grow by σᵢ.
    left : Tensor, shape (n, k)
        Left singular vectors: what they have become at its end, P vᵢ = σᵢ uᵢ.
    residuals : ndarray of float64, shape (k,)
        ‖Pᵀuᵢ − σᵢvᵢ‖ / σᵢ of the transposed product, computed by itself, but for rounding along stronger vectors;
        P vᵢ = σᵢ uᵢ holds by construction.
    bounds : ndarray of float64, shape (k,)
        −ln(1 − residual) / 2T, and −ln(1 − 10 δ) / T: how far an exponent can be from that of the product. With a gap
        between exponents the first is far too much: the error is of the order of the residual squared. δ is by how much
        σ moves when each product is made eight times as inexact as it is, in one more sweep, or by how much P and Pᵀ
        disagree. It is large where directions grow and shrink again inside of the window; from 0.1 on nothing is
        known, and the bound is infinite.
    converged : ndarray of bool, shape (k,)
        Residual and δ are at most `tol`.
    start, stop : int
        The window: steps start to stop − 1 of the orbit.
    first : int
        The number of the orbit's first step.
    tol : float
    iterations : int
        Pairs of a forward and a backward sweep.
    products : int
        Directions multiplied by a step's Jacobian or its transpose.
    seconds : float
    stopped : Stop
        ``converged``, ``rounding`` (the residuals no longer fall), ``max_iterations``, ``max_seconds``, ``cancelled``
        or ``interrupted``.
    parameters : Parameters
        What the entries of the vectors stand for.
    notes : tuple of str
    provenance : dict
    """

    figures = (
        *("values", "log_singular_values", "residuals", "bounds", "converged"),
        *("start", "stop", "tol", "iterations", "products"),
    )

    values: Floats
    log_singular_values: Floats
    right: Tensor
    left: Tensor
    residuals: Floats
    bounds: Floats
    converged: NDArray[np.bool_]
    start: int
    stop: int
    first: int
    tol: float
    iterations: int
    products: int
    parameters: Parameters

    def __len__(self) -> int:
        return len(self.values)

    def tensors(self, i: int) -> dict[str, Tensor]:
        """Take right vector i apart into the parameters' shapes, by name."""
        return self.parameters.unflatten(self.right[:, i])

    def header(self) -> list[str]:
        """Name the columns of `rows`."""
        return ["exponent per step", "ln σ", "residual", "bound", "converged"]

    def rows(self) -> list[list[str]]:
        """Write each exponent as text, under `header`."""
        return [
            [
                f"{self.values[i]: .10g}",
                f"{self.log_singular_values[i]: .8g}",
                f"{self.residuals[i]:.1e}",
                f"{self.bounds[i]:.1e}",
                "yes" if self.converged[i] else "no",
            ]
            for i in range(len(self))
        ]

    def summary(self) -> str:
        """Say in one line what was found and at what cost."""
        return (
            f"{len(self)} finite-time exponents over steps {self.first + self.start} to "
            f"{self.first + self.stop - 1}, {self.iterations} iterations, "
            f"{self.products} products in {self.seconds:.2f} s, tol {self.tol:.1e}"
        )

    def plot(self, ax: Any = None) -> Any:
        """Draw the exponents by rank with their bounds; return the matplotlib axes."""
        from jvp_ops.plots import plot_values  # matplotlib only when something is drawn

        finite = np.isfinite(self.values)
        ax = plot_values(self.values[finite], self.bounds[finite], ax=ax)
        ax.set_ylabel("finite-time exponent per step")
        return ax
