"""What `covariant_vectors` returns."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._result import Result
from jvp_ops.parameters import Parameters

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class CovariantVectors(Result):
    """Covariant Lyapunov vectors along a window of an orbit: unit vectors that the Jacobians carry into each other.

    Attributes
    ----------
    at : ndarray of int64, shape (m,)
        The steps of the orbit at whose states the vectors are given.
    vectors : Tensor, shape (m, n, k)
        Vector j at state θ_{at[i]} is ``vectors[i, :, j]``: unit, not orthogonal, its sign free; in the map's dtype.
    growth : ndarray of float64, shape (window, k)
        ln ‖Df v‖ / ‖v‖ in each step of the window, natural logarithms per step.
    values : ndarray of float64, shape (k,)
        The means of `growth`: Lyapunov exponents.
    errors : ndarray of float64, shape (k,)
        Their standard errors by batch means.
    angles : ndarray of float64, shape (m, k, k)
        Angles between the lines of each pair of vectors, 0 to π/2; near 0 there is a tangency.
    uncertainty : ndarray of float64, shape (k,)
        Angle at the end of the window between the vectors of two random backward starts: what the backward
        transient has left over. It says nothing of the forward transient.
    start, stop : int
        The window: steps `start` to `stop` − 1 of the orbit.
    first : int
        The number of the orbit's first step.
    products : int
        Directions multiplied by a step's Jacobian.
    seconds : float
    stopped : Stop
        ``finished``: there is no part of these to give.
    parameters : Parameters
    notes : tuple of str
    provenance : dict
    """

    figures = ("values", "errors", "least_angles", "uncertainty", "start", "stop", "first", "products")

    at: NDArray[np.int64]
    vectors: Tensor
    growth: Floats
    values: Floats
    errors: Floats
    angles: Floats
    uncertainty: Floats
    start: int
    stop: int
    first: int
    products: int
    parameters: Parameters

    def __len__(self) -> int:
        return len(self.values)

    @property
    def least_angles(self) -> Floats:
        """The least angle of each vector to another one, over all states given; π/2 for a single vector."""
        k = len(self)
        apart = self.angles + np.eye(k) * np.pi / 2
        least: Floats = np.minimum(apart.min(axis=(0, 2)), np.pi / 2)
        return least

    def tensors(self, i: int, j: int) -> dict[str, Tensor]:
        """Take vector j at state ``at[i]`` apart into the parameters' shapes, by name."""
        return self.parameters.unflatten(self.vectors[i, :, j])

    def header(self) -> list[str]:
        """Name the columns of `rows`."""
        return ["exponent per step", "standard error", "least angle", "uncertainty"]

    def rows(self) -> list[list[str]]:
        """Write each vector's figures as text, under `header`; angles in radians."""
        figures = zip(self.values, self.errors, self.least_angles, self.uncertainty, strict=True)
        return [[f"{v: .8g}", f"{error:.1e}", f"{angle:.3g}", f"{u:.1e}"] for v, error, angle, u in figures]

    def summary(self) -> str:
        """Say in one line what was found and at what cost."""
        return (
            f"{len(self)} covariant vectors at {len(self.at)} states before steps {self.first + self.at[0]} to "
            f"{self.first + self.at[-1]}, "
            f"{self.products} products in {self.seconds:.2f} s"
        )

    def plot(self, ax: Any = None) -> Any:
        """Draw the growth of each vector in each step of the window; return the matplotlib axes."""
        from jvp_ops.plots import plot_local_growth  # matplotlib only when something is drawn

        return plot_local_growth(self.first + np.arange(self.start, self.stop), self.growth, ax=ax)
