"""What `eigenpairs` returns."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops.parameters import Parameters
from jvp_ops.store import save_run


@dataclass(frozen=True, eq=False, repr=False)
class Eigenpairs:
    """Some eigenpairs of an operator A, best first by `which`, with what is known of their error.

    Attributes
    ----------
    values : ndarray of float64 or complex128, shape (found,)
        Rayleigh quotients x*Ax / x*x of the vectors, computed in float64 from the operator's products.
    vectors : Tensor, shape (n, found)
        Unit vectors, on the operator's device and in its dtype (complex for a non-symmetric operator).
    residuals : ndarray of float64, shape (found,)
        ‖Ax − λx‖ / ‖x‖, recomputed after the solve with the operator's own products.
    bounds : ndarray of float64, shape (found,)
        Symmetric A: an eigenvalue of A lies within this distance of each value: the residual plus the measured
        rounding of its product. Non-symmetric A: NaN, since a residual alone bounds no eigenvalue of a
        non-normal matrix; the residuals are backward errors.
    converged : ndarray of bool, shape (found,)
        Residual plus rounding is at most `tol` times ‖A‖. Never claimed of a `tol` that rounding hides.
    which, k, tol : str, int, float
        What was asked for.
    rounding : float
        The measured rounding level of a product, relative to ‖A‖.
    norm : float
        ‖A‖₂ from below; of H where A = shift·I + scale·H, and `tol` and `rounding` are then relative to ‖H‖.
    products : int
        Directions multiplied in all: by the solver, to measure rounding, and to check.
    seconds : float
        Wall-clock time.
    complete : bool
        Whether the solver found all that was asked for within its budget. It is no proof that none was missed:
        single-vector methods can miss members of a cluster.
    hessian_values, hessian_bounds : ndarray or None
        For A = shift·I + scale·H: the eigenvalues h of H that the values were mapped from, and their bounds.
    notes : tuple of str
        What a reader should know: a tolerance under the rounding level, a budget that ran out.
    parameters : Parameters
        What the entries of the vectors stand for.
    provenance : dict
        The operator's identity, for the fingerprint.
    """

    values: NDArray[Any]
    vectors: Tensor
    parameters: Parameters
    residuals: NDArray[np.float64]
    bounds: NDArray[np.float64]
    converged: NDArray[np.bool_]
    which: str
    k: int
    tol: float
    rounding: float
    norm: float
    products: int
    seconds: float
    complete: bool
    hessian_values: NDArray[np.float64] | None = None
    hessian_bounds: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

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
        cost = f"{self.products} products in {self.seconds:.2f} s"
        name = "A" if self.hessian_values is None else "H"
        size = f"relative to ‖{name}‖ ≥ {self.norm:.6g}"
        return f"{found}, {cost}, tol {self.tol:.1e} and rounding {self.rounding:.1e} {size}"

    def __repr__(self) -> str:
        cells = [self.header(), *self.rows()]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([self.summary(), *lines, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        def line(cells: list[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line(row, "td") for row in self.rows())
        notes = "".join(f"<p>{note}</p>" for note in self.notes)
        return f"<p>{self.summary()}</p><table>{line(self.header(), 'th')}{body}</table>{notes}"

    def record(self) -> dict[str, Any]:
        """Give all but the vectors as a JSON-able dict; complex values as [real, imaginary]."""
        plain: dict[str, Any] = {
            name: getattr(self, name) for name in ("which", "k", "tol", "rounding", "norm", "products", "seconds")
        }
        values = self.values
        plain["values"] = [[z.real, z.imag] for z in values] if np.iscomplexobj(values) else values.tolist()
        for name in ("residuals", "bounds", "converged", "hessian_values", "hessian_bounds"):
            array = getattr(self, name)
            plain[name] = None if array is None else [None if x != x else x for x in array.tolist()]
        return {**plain, "complete": self.complete, "notes": list(self.notes)}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give all arrays, vectors included, as numpy."""
        found = {"values": self.values, "vectors": self.vectors.cpu().numpy(), "residuals": self.residuals}
        found |= {"bounds": self.bounds, "converged": self.converged}
        if self.hessian_values is not None and self.hessian_bounds is not None:
            found |= {"hessian_values": self.hessian_values, "hessian_bounds": self.hessian_bounds}
        return found

    def save(self, folder: str | Path) -> Path:
        """Write ``run.json`` (figures, fingerprint, versions) and ``arrays.npz`` into a new folder.

        Raises
        ------
        InputError
            The folder exists and is not empty, or cannot be written.
        """
        return save_run(folder, record=self.record(), arrays=self.arrays(), identity=self.provenance)

    def plot(self, ax: Any = None) -> Any:
        """Draw the values with their bounds, by rank; return the matplotlib axes.

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        """
        from jvp_ops.plots import plot_values  # matplotlib only when something is drawn

        return plot_values(self.values, self.bounds, ax=ax)
