"""What `eigenpairs` returns."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._result import Result, plain
from jvp_ops.eigen._certify import Cluster
from jvp_ops.parameters import Parameters


@dataclass(frozen=True, eq=False, repr=False)
class Eigenpairs(Result):
    """Some eigenpairs of an operator A, best first by `which`, with what is known of their error.

    Attributes
    ----------
    values : ndarray of float64 or complex128, shape (found,)
        Ritz values of the vectors' span, computed in float64 from products that were made after the solve: of the
        operator in float64 where there is one.
    vectors : Tensor, shape (n, found)
        Unit vectors, on the operator's device and in its dtype (complex for a non-symmetric operator).
    residuals : ndarray of float64, shape (found,)
        ‖Ax − λx‖, recomputed after the solve, before vectors are rounded to the operator's dtype.
    bounds : ndarray of float64, shape (found,)
        Symmetric A: value ± bound are intervals that hold all at once: each group of them that overlap holds as many
        eigenvalues, with multiplicity, as values. They are residuals and the measured rounding of products, or
        sharper by a gap where `complete`. Non-symmetric A: κ‖r‖ to first order where condition numbers were asked
        for, NaN for members of `clusters` and where they were not: a residual alone bounds no eigenvalue of a
        non-normal matrix. The residuals are backward errors.
    converged : ndarray of bool, shape (found,)
        Residual plus rounding is at most `tol` times ‖A‖. Never claimed of a `tol` that rounding hides.
    which, k, tol, method : str, int, float, str
        What was asked for, and the method that served.
    rounding : float
        The measured rounding level of a product, relative to ‖A‖.
    norm : float
        ‖A‖₂ from below; of H where A = shift·I + scale·H, and `tol` and `rounding` are then relative to ‖H‖.
    products, float64_products : int
        Directions multiplied in all, in the operator's dtype and by its counterpart in float64: by the solver, to
        measure rounding, and to certify.
    seconds : float
        Wall-clock time.
    stopped : Stop
        ``converged``; ``rounding`` (no further in this dtype); ``stagnation`` (residuals that
        wander without shrinking, as of very ill-conditioned eigenvalues); or what ran out: ``max_products``,
        ``max_seconds``, ``restarts`` (ARPACK's); ``cancelled`` (the callback), ``interrupted`` (Ctrl-C), of the proof
        or the left eigenvectors too where they were asked for. ``failed`` of the partial result of an error.
    complete : bool
        Whether it is proved, by inertia or by LAPACK on the whole matrix, that the j-th best eigenvalue lies in the
        j-th interval for every j. False says that it is not proved, not that one was missed.
    gap : float or None
        Symmetric A, after `verify`: but for a chance of 1e-6 over the random vector that was looked from, nothing was
        missed that is better than the worst value listed by more than `gap` times the width of the spectrum. None where
        it was not looked for.
    condition : ndarray or None
        Non-symmetric A: condition numbers 1 / |yᴴx| of the values, where they were asked for.
    clusters : tuple of Cluster
        Non-symmetric A: values that are determined only together.
    history : ndarray, shape (checks, 3)
        Products, converged pairs and the largest residual relative to ‖A‖, at each look at the Ritz values.
    hessian_values, hessian_bounds : ndarray or None
        For A = shift·I + scale·H: the eigenvalues h of H that the values were mapped from, and their bounds. For
        `HeavyBall` and `Nesterov`: the h that each of the values stands over; `bounds` are then mapped from them, so
        that they hold at once where no two intervals of H overlap, and are NaN for members of `clusters`.
    notes : tuple of str
        What a reader should know: a tolerance under the rounding level, a budget that ran out.
    parameters : Parameters
        What the entries of the vectors stand for.
    provenance : dict
        The operator's identity, for the fingerprint.
    """

    inner: ClassVar[tuple[type, ...]] = (Cluster,)

    figures = (
        *("values", "residuals", "bounds", "converged", "hessian_values", "hessian_bounds", "condition", "history"),
        *("which", "k", "tol", "method", "rounding", "norm", "products", "float64_products", "complete", "gap"),
    )

    values: NDArray[Any]
    vectors: Tensor
    parameters: Parameters
    residuals: NDArray[np.float64]
    bounds: NDArray[np.float64]
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
    gap: float | None = None
    condition: NDArray[np.float64] | None = None
    clusters: tuple[Cluster, ...] = ()
    history: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 3)))
    hessian_values: NDArray[np.float64] | None = None
    hessian_bounds: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def intervals(self) -> NDArray[np.float64]:
        """The intervals value ± bound of a symmetric operator's eigenvalues, shape (found, 2); else of real parts."""
        return np.stack([self.values.real - self.bounds, self.values.real + self.bounds], axis=1)

    def tensors(self, i: int) -> dict[str, Tensor]:
        """Take vector i apart into the parameters' shapes, by name: ``pairs.tensors(0)["W1"]``."""
        return self.parameters.unflatten(self.vectors[:, i])

    def header(self) -> list[str]:
        """Name the columns of `rows`."""
        hessian = [] if self.hessian_values is None else ["hessian eigenvalue"]
        return ["eigenvalue", *hessian, "residual", "bound", "converged"]

    def rows(self) -> list[list[str]]:
        """Write each pair as text, under `header`."""
        table = []
        for i in range(len(self)):
            hessian = [] if self.hessian_values is None else [f"{self.hessian_values[i]: .8g}"]
            errors = [f"{self.residuals[i]:.1e}", f"{self.bounds[i]:.1e}"]
            table.append([f"{self.values[i]: .10g}", *hessian, *errors, "yes" if self.converged[i] else "no"])
        return table

    def summary(self) -> str:
        """Say in one line what was found, at what cost and how exactly."""
        found = f"{len(self)} of {self.k} eigenpairs ({self.which})"
        wide = f" and {self.float64_products} in float64" if self.float64_products else ""
        cost = f"{self.method}, {self.products} products{wide} in {self.seconds:.2f} s"
        name = "A" if self.hessian_values is None else "H"
        size = f"relative to ‖{name}‖ ≥ {self.norm:.6g}"
        return f"{found}, {cost}; tol {self.tol:.1e} and rounding {self.rounding:.1e} {size}; {self.certificate()}"

    def certificate(self) -> str:
        """Say in a few words what is proved."""
        if np.iscomplexobj(self.values) and self.hessian_values is not None:
            return "none missed (proved)" if self.complete else "bounds are mapped from H's intervals"
        if np.iscomplexobj(self.values):
            return "residuals are backward errors" if self.condition is None else "bounds are of first order"
        return "none missed (proved)" if self.complete else "intervals hold; that none was missed is not proved"

    def record(self) -> dict[str, Any]:
        """Give all but the vectors as a JSON-able dict; complex values as [real, imaginary]."""
        clusters = [{"members": list(c.members), "mean": plain(c.mean), "bound": c.bound} for c in self.clusters]
        return {**super().record(), "clusters": clusters}

    def plot(self, ax: Any = None) -> Any:
        """Draw the values with their bounds, by rank; return the matplotlib axes.

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        """
        from jvp_ops.plots import plot_values  # matplotlib only when something is drawn

        return plot_values(self.values, self.bounds, ax=ax)
