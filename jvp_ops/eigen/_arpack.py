"""ARPACK through scipy: one of the solvers behind `eigenpairs`."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigs, eigsh

from jvp_ops.errors import ConvergenceError
from jvp_ops.operators import TensorOperator


@dataclass(frozen=True)
class Approximation:
    """What a solver found: values (k,), vectors (n, k) as columns, and whether it found all it was asked for."""

    values: NDArray[Any]
    vectors: NDArray[Any]
    complete: bool


def arpack(
    operator: TensorOperator,
    *,
    k: int,
    which: str,
    tol: float,
    norm: float,
    start: NDArray[np.float64],
    max_products: int | None,
    rng: np.random.Generator,
    on_product: Callable[[], object],
) -> Approximation:
    """Find k eigenpairs to a residual of about tol·norm.

    The basis is in float64 whatever the operator computes in. ARPACK measures its tolerance against |λ|, which
    would ask for more than the products' rounding allows where λ is small: a shift by 2·norm, which changes no
    Krylov space, makes it one absolute tolerance. ``LM`` needs no shift, and would be changed by one.
    """
    n = operator.shape[0]
    shift = 2 * norm if operator.symmetric and which != "LM" else 0.0
    if norm == 0:
        shift = 1.0  # ARPACK breaks down on the zero operator, not on the identity

    def multiply(x: NDArray[np.float64]) -> NDArray[np.float64]:
        on_product()
        x = np.ascontiguousarray(x.reshape(-1))
        tensor = torch.from_numpy(x.astype(operator.dtype)).to(operator.device)
        product: NDArray[np.float64] = operator.apply(tensor).cpu().numpy().astype(np.float64)
        return product + shift * x if shift else product

    shifted = LinearOperator((n, n), matvec=multiply, dtype=np.float64)
    if not operator.symmetric:
        k = min(k + 1, n - 2)  # the k-th may be half of a conjugate pair
    ncv = basis_size(n, k)
    restarts = None if max_products is None else max(1, (max_products - ncv) // max(ncv - k, 1))
    solver = eigsh if operator.symmetric else eigs
    options: dict[str, Any] = {"which": which, "tol": tol / 3 if shift else tol, "v0": start}
    options |= {"ncv": ncv, "maxiter": restarts}
    if "rng" in inspect.signature(solver).parameters:
        options["rng"] = rng  # for its restarts in invariant subspaces
    complete = True
    try:
        values, vectors = solver(shifted, k, **options)
    except ArpackNoConvergence as partial:
        values, vectors, complete = partial.eigenvalues, partial.eigenvectors, False
    except ArpackError as error:
        raise ConvergenceError(f"ARPACK gave up ({error}): try another k, tol or rng, or method='dense'") from None
    if np.iscomplexobj(values):
        values, vectors = _with_partners(values, vectors)
    return Approximation(values - shift, vectors, complete)


def basis_size(n: int, k: int) -> int:
    """Say how many Krylov vectors ARPACK holds."""
    return min(n, max(2 * k + 10, 24))


def _with_partners(values: NDArray[Any], vectors: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Make every complex value stand beside its conjugate, which a real operator has too and ARPACK's cut may take."""
    small = 1e-12 * np.abs(values).max(initial=0.0)
    columns: list[tuple[Any, NDArray[Any]]] = []
    upper = [i for i, z in enumerate(values) if z.imag > small]
    lower = [i for i, z in enumerate(values) if z.imag < -small]
    alone = [i for i in lower if not any(abs(values[i].conj() - values[j]) <= 1e3 * small for j in upper)]
    for z, x in [(values[i], vectors[:, i]) for i in upper] + [(values[i].conj(), vectors[:, i].conj()) for i in alone]:
        columns += [(z, x), (z.conj(), x.conj())]
    columns += [(values[i].real + 0j, vectors[:, i]) for i, z in enumerate(values) if abs(z.imag) <= small]
    stacked = np.stack([x for _, x in columns], axis=1) if columns else vectors
    return np.array([z for z, _ in columns]), stacked
