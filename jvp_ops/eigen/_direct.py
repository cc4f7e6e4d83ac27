"""LAPACK and ARPACK behind `eigenpairs`: what they find, as an orthonormal basis like that of an iteration."""

import numpy as np
import torch
from torch import Tensor

from jvp_ops._memory import free_bytes, require
from jvp_ops._sitting import Stop
from jvp_ops.eigen._arpack import arpack, basis_size
from jvp_ops.eigen._iterate import Found
from jvp_ops.eigen._iteration import Progress
from jvp_ops.eigen._monitor import Monitor
from jvp_ops.eigen._request import Request
from jvp_ops.eigen._rounding import Rounding, check_scale, probe_symmetry
from jvp_ops.eigen._target import Target
from jvp_ops.errors import ConvergenceError, InputError
from jvp_ops.krylov import left_basis, orthonormal, ritz, schur
from jvp_ops.operators import TensorOperator


def by_lapack(rounding: Rounding, request: Request, target: Target, monitor: Monitor) -> Found:
    """Solve the dense matrix in float64: no eigenvalue of it is missed, and its norm is that of all of it."""
    operator: TensorOperator = rounding.exact or rounding.operator
    n = operator.shape[0]
    what, remedy = f"all eigenvectors of order {n}", "use method='lanczos' or 'krylov-schur' with a smaller k"
    require((6 if operator.symmetric else 12) * n * n * 8, free_bytes(operator.device), what, remedy)
    matrix = operator.dense().double().cpu().numpy()
    p = request.k
    if operator.symmetric:
        whole = ritz(matrix, target.ranking, True, n)
        norm = float(np.abs(whole.values).max())
    else:
        whole = schur(matrix, target.ranking, p)
        norm = float(torch.linalg.matrix_norm(torch.from_numpy(matrix), 2))
        p += whole.splits_pair(p)
    monitor.sitting.check()
    check_scale(norm)
    leading = np.abs(whole.values).argmax() if operator.symmetric else 0
    basis, x = (torch.from_numpy(np.ascontiguousarray(whole.Q[:, chosen])) for chosen in (slice(p), [leading]))
    level = rounding.at(operator, x.to(operator.device), norm)
    probe_symmetry(operator, norm, level, np.random.default_rng(0))
    left = None
    if request.condition:
        left = torch.from_numpy(left_basis(whole, p)).to(operator.device)
    progress = Progress(norm=norm, level=level)
    return Found(basis.to(operator.device), Stop.CONVERGED, progress, request.tol, left=left)


def by_arpack(
    rounding: Rounding, request: Request, target: Target, rng: np.random.Generator, monitor: Monitor
) -> Found:
    """Ask scipy's eigsh or eigs, one vector at a time."""
    operator, k = rounding.operator, request.k
    n = operator.shape[0]
    if target.which == "LM" and len(target.solved_ends()) == 2 and 2 * k > n:
        raise InputError(
            f"k={k} of order {n}: ARPACK is asked for k at each end of H, and the two would overlap; use method='dense'"
        )
    asked = min(k + 1, n - 1) if target.which == "BE" and k % 2 else k  # the odd one is of the mapped end
    least = basis_size(n, asked) + 1
    if monitor.max_products is not None and monitor.max_products < least:
        raise InputError(
            f"max_products={monitor.max_products} is too few: ARPACK's first pass alone takes {least}; "
            "method='auto' needs less"
        )
    measured = rounding.measured(rng)
    check_scale(measured.norm)
    start = rng.standard_normal(n)
    reach = max(request.tol, 2 * measured.level)

    def counted() -> None:
        monitor.count(1)
        monitor.sitting.check()  # ARPACK has nothing to give back yet

    found = [
        arpack(
            operator,
            k=asked,
            which=end,
            tol=reach,
            norm=measured.norm,
            start=start,
            max_products=monitor.max_products,
            rng=rng,
            on_product=counted,
        )
        for end in target.solved_ends()
    ]
    vectors = np.concatenate([part.vectors for part in found], axis=1)
    if vectors.shape[1] == 0:
        raise ConvergenceError(
            f"none of {k} eigenpairs ({target.which}) converged to a residual of {reach:.1e} relative to the norm "
            f"within max_products={monitor.max_products}: raise max_products or tol"
        )
    values = np.concatenate([part.values for part in found])
    chosen = target.best(values, k)
    budget = Stop.RESTARTS if monitor.max_products is None else Stop.MAX_PRODUCTS
    stopped = Stop.CONVERGED if all(part.complete for part in found) else budget
    basis = _real_basis(torch.from_numpy(np.ascontiguousarray(vectors[:, chosen])), values[chosen], rng)
    level = Progress(norm=measured.norm, level=measured.level)
    return Found(basis.to(operator.device), stopped, level, reach)


def _real_basis(X: Tensor, values: "np.ndarray[tuple[int], np.dtype[np.generic]]", rng: np.random.Generator) -> Tensor:
    """Orthonormalize eigenvectors; of a conjugate pair, the real and the imaginary part of the first."""
    if X.is_complex():
        upper = torch.from_numpy(np.flatnonzero(values.imag > 0))
        real = torch.from_numpy(np.flatnonzero(values.imag == 0))
        X = torch.cat([X[:, upper].real, X[:, upper].imag, X[:, real].real], dim=1)
    return orthonormal(X.double(), X.shape[1], against=(), rng=rng)
