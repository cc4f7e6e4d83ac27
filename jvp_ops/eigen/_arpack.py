"""ARPACK through scipy: one of the solvers behind `eigenpairs`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs, eigsh

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
    ncv = min(n, max(2 * k + 10, 24))
    restarts = None if max_products is None else max(1, (max_products - ncv) // max(ncv - k, 1))
    options: dict[str, Any] = {"which": which, "tol": tol / 3 if shift else tol, "v0": start}
    options |= {"ncv": ncv, "maxiter": restarts}
    complete = True
    try:
        values, vectors = (eigsh if operator.symmetric else eigs)(shifted, k, **options)
    except ArpackNoConvergence as partial:
        values, vectors, complete = partial.eigenvalues, partial.eigenvectors, False
    complete = complete and len(values) >= k
    if np.iscomplexobj(values):
        values, vectors = _with_partners(values, vectors)
    return Approximation(values - shift, vectors, complete)


def _with_partners(values: NDArray[Any], vectors: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give back to each complex value the conjugate that ARPACK's cut at k took: a real operator has both."""
    alone = [i for i, z in enumerate(values) if z.imag != 0 and not np.isclose(values, z.conj(), rtol=1e-9).any()]
    return np.r_[values, values[alone].conj()], np.c_[vectors, vectors[:, alone].conj()]
