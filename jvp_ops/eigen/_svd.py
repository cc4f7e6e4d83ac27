"""`svd`: singular values and both vectors, certified by the products of A and of its transpose."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jvp_ops._memory import free_bytes, require
from jvp_ops._random import Rng, generator
from jvp_ops._sitting import BY_HAND, Sitting, Stop, as_certified
from jvp_ops.eigen._certify import grouped_bounds, product_errors
from jvp_ops.eigen._monitor import Monitor, SolveStatus
from jvp_ops.eigen._request import Request
from jvp_ops.eigen._rounding import Rounding
from jvp_ops.eigen._solve import iterated, sitting_of
from jvp_ops.eigen._svd_result import SingularTriplets
from jvp_ops.eigen._target import Target
from jvp_ops.errors import InputError
from jvp_ops.krylov import defect, inner, small
from jvp_ops.operators import TensorOperator, as_operator

ENDS = {"LM": "LA", "SM": "SA"}
METHODS = ("auto", "dense", "lanczos")


def svd(
    operator: Any,
    k: int = 6,
    which: str = "LM",
    *,
    method: str = "auto",
    tol: float | None = None,
    float64: bool = True,
    verify: bool | None = None,
    block: int | None = None,
    max_memory: int | str | None = None,
    max_products: int | None = None,
    max_seconds: float | None = None,
    rng: Rng = 0,
    progress: bool = False,
    callback: Callable[[SolveStatus], object] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> SingularTriplets:
    r"""Find some singular values of an operator with both vectors, and certify each with the operator itself.

    .. math::  A v = σ u, \quad A^T u = σ v, \qquad
               |σ_{\text{true}} - σ| \le \max(‖A V - U Σ‖, ‖A^T U - V Σ‖) + \text{rounding}.

    Parameters
    ----------
    operator : TensorOperator, scipy LinearOperator, sparse matrix or array, or Tensor, shape (m, n)
        Of any shape, symmetric or not, with its adjoint; see `as_operator`.
    k : int
        How many, below min(m, n); with ``method="dense"`` at most min(m, n).
    which : str
        ``LM`` (largest) or ``SM`` (smallest).
    method : str
        ``dense`` (LAPACK on the dense matrix in float64), ``lanczos`` (thick-restart block Golub–Kahan–Lanczos, with
        bases of both sides), or ``auto``: ``dense`` for min(m, n) ≤ 256 or 4k ≥ min(m, n) unless an option that only
        an iteration has is given.
    tol : float, optional
        Residual relative to ‖A‖ to reach; by default 1e-5 in float32 and 1e-10 in float64.
    float64, verify, block, max_memory, rng, progress, callback, checkpoint, resume
        As in `eigenpairs`.
    max_products, max_seconds : optional
        Budgets of the iteration; one with A and one with Aᵀ are two. When one runs out, the best so far are certified.

    Returns
    -------
    SingularTriplets

    Raises
    ------
    InputError
        k or which out of range; options that do not go together; an operator without an adjoint.
    NonFiniteError
        A product gave NaN or Inf.
    MemoryBudgetError
        The dense matrix, or the smallest basis, does not fit.

    Notes
    -----
    The intervals are of A itself: with U, V orthonormal, A differs from a matrix that has just these triplets by an
    E of norm max(‖AV − UΣ‖, ‖AᵀU − VΣ‖), and no singular value moves by more than ‖E‖ (Weyl). Nowhere is AᵀA formed,
    or a condition number squared: small values keep their digits, down to the rounding of products, about 1e-15 ‖A‖.
    How fast an iteration finds the smallest is ruled by the gaps of their squares, so that values far below ‖A‖ and
    close together take many products; ``method="dense"`` has them at once. Budgets are of the iteration:
    certification takes 2k products more. An adjoint that is not the transpose is noticed, and refused.

    References
    ----------
    G. H. Golub and C. F. Van Loan, "Matrix Computations" (2013), section 8.6; J. Baglama and L. Reichel, "Augmented
    implicitly restarted Lanczos bidiagonalization methods", SIAM Journal on Scientific Computing 27 (2005).

    Examples
    --------
    >>> import jvp_ops as jo, numpy as np
    >>> found = jo.svd(np.diag([3.0, 1.0, 2.0])[:, :2], 1)
    >>> found.values.tolist(), found.left[:, 0].abs().tolist(), found.complete
    ([3.0], [1.0, 0.0, 0.0], True)
    """
    A = as_operator(operator)
    request = Request(
        k,
        "LA",
        method=method,
        tol=tol,
        float64=float64,
        verify=verify,
        block=block,
        max_memory=max_memory,
        max_products=max_products,
        max_seconds=max_seconds,
        rng=rng,
        progress=progress,
        callback=callback,
        checkpoint=checkpoint,
        resume=resume,
    )
    before, unit = A.products, _unit(A)
    scaled: Any = A if unit == 1 else A * unit  # by a power of two, which changes no digit
    tall = scaled if A.shape[0] >= A.shape[1] else scaled.T
    request = _checked(request, tall, which)
    rounding = Rounding.unmeasured(tall, float64=float64)
    with sitting_of(request, f"svd {which}") as sitting:
        basis = (
            _by_lapack(rounding, request) if request.method == "dense" else _by_iteration(rounding, request, sitting)
        )
        found = _certified(rounding.with_norm(basis.norm), basis.right, basis.left, request)
    exact = rounding.exact
    left, right = (found.left, found.right) if tall is scaled else (found.right, found.left)
    converged = found.residuals + found.errors <= request.tol * found.norm
    stopped = as_certified(basis.stopped, converged)
    return SingularTriplets(
        values=found.values / unit,
        left=left.to(A.torch_dtype),
        right=right.to(A.torch_dtype),
        residuals=found.residuals / unit,
        bounds=found.bounds / unit,
        converged=converged,
        which=which,
        k=request.k,
        tol=request.tol,
        method=request.method,
        rounding=found.level,
        norm=found.norm / unit,
        products=A.products - before + (0 if unit == 1 else scaled.products),
        float64_products=0 if exact is None else exact.products,
        seconds=sitting.seconds,
        stopped=stopped,
        complete=request.method == "dense",
        row_parameters=A.rows,
        column_parameters=A.columns,
        notes=(*A.linear.notes, *_notes(stopped, converged, request.tol, rounding), *sitting.notes),
        provenance=A.identity(),
    )


@dataclass(frozen=True)
class _Basis:
    """Orthonormal bases of what was found, in float64, on the side of A's columns and of its rows."""

    right: Tensor
    left: Tensor
    stopped: Stop
    norm: float


@dataclass(frozen=True)
class _Certified:
    values: "np.ndarray[Any, np.dtype[np.float64]]"
    left: Tensor
    right: Tensor
    residuals: "np.ndarray[Any, np.dtype[np.float64]]"
    errors: "np.ndarray[Any, np.dtype[np.float64]]"
    bounds: "np.ndarray[Any, np.dtype[np.float64]]"
    norm: float
    level: float


def _checked(request: Request, tall: TensorOperator, which: str) -> Request:
    """Check what is asked, in terms of the Gram matrix."""
    if which not in ENDS:
        raise InputError(f"which must be one of {', '.join(ENDS)}, not {which!r}")
    if request.method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, not {request.method!r}")
    return replace(request, which=ENDS[which]).checked(tall.T @ tall)


def _by_lapack(rounding: Rounding, request: Request) -> _Basis:
    """Decompose the dense matrix in float64: no singular value of it is missed."""
    A: TensorOperator = rounding.exact or rounding.operator
    m, n = A.shape
    require(6 * m * n * 8, free_bytes(A.device), f"all singular vectors of a {m} × {n} matrix", "use method='lanczos'")
    U, sigma, Vh = torch.linalg.svd(A.dense().double().cpu(), full_matrices=False)
    chosen = slice(0, request.k) if request.which == "LA" else slice(n - request.k, n)
    right, left = Vh.mT[:, chosen].contiguous().to(A.device), U[:, chosen].contiguous().to(A.device)
    return _Basis(right, left, Stop.CONVERGED, float(sigma[0]))


def _by_iteration(rounding: Rounding, request: Request, sitting: Sitting) -> _Basis:
    """Iterate on both sides, in products with A and with its transpose."""
    monitor, target = Monitor(sitting, request.max_products), Target(request.which)
    found = iterated(rounding, request, target, generator(request.rng), monitor, two_sided=True)
    assert found.left is not None  # of an iteration on two sides, always
    return _Basis(found.basis, found.left, found.stopped, found.progress.norm)


def _unit(A: TensorOperator) -> float:
    """Find a power of two that brings A to where its squares neither over- nor underflow."""
    ones = torch.ones(A.shape[1], dtype=A.torch_dtype, device=A.device)
    size = float(A.apply(ones).abs().max())
    return float(2.0 ** -np.round(np.log2(size))) if size > 0 and not 1e-9 < size < 1e9 else 1.0


def _certified(rounding: Rounding, V: Tensor, U: Tensor, request: Request) -> _Certified:
    """Do a Rayleigh–Ritz pass with A and Aᵀ over both bases, and bound what it finds by both residuals."""
    A: TensorOperator = rounding.exact or rounding.operator
    around = replace(rounding, operator=rounding.operator.T, exact=None if rounding.exact is None else A.T)
    V, U = V.to(A.torch_dtype), U.to(A.torch_dtype)
    AV, AtU = A.apply(V.contiguous()).double(), A.apply_adjoint(U.contiguous()).double()
    forward, (level, norm) = product_errors(rounding, A, V, AV)
    backward, (other, norm) = product_errors(replace(around, norm=norm), A.T, U, AtU)
    P, sigma, Zh = torch.linalg.svd(inner(U.double(), AV).cpu())
    P, Z = P.to(A.device), Zh.mT.contiguous().to(A.device)
    order = torch.arange(len(sigma)) if request.which == "LA" else torch.arange(len(sigma)).flip(0)
    order = order[: request.k]
    P, Z, sigma = P[:, order.to(A.device)], Z[:, order.to(A.device)], sigma[order].to(A.device)
    u, v = U.double() @ P, V.double() @ Z
    R1, R2 = AV @ Z - u * sigma, AtU @ P - v * sigma
    errors = np.maximum(np.abs(Z.cpu().numpy()).T @ forward, np.abs(P.cpu().numpy()).T @ backward)
    errors = errors + 2 * max(defect(U), defect(V)) * float(sigma.max())
    residuals = torch.maximum(R1.norm(dim=0), R2.norm(dim=0)).cpu().numpy()
    values = sigma.cpu().numpy()
    ascending = np.argsort(values, kind="stable")
    grams = [small(inner(R, R))[np.ix_(ascending, ascending)] for R in (R1, R2)]
    bounds = np.empty(len(values))
    bounds[ascending] = grouped_bounds(
        values[ascending],
        residuals[ascending],
        errors[ascending],
        *(lambda group, gram=gram: gram[np.ix_(group, group)] for gram in grams),
    )
    norm = max(norm, float(values.max(initial=0.0)))
    return _Certified(values, u, v, residuals, errors, bounds, norm, max(level, other))


def _notes(stopped: Stop, converged: Any, tol: float, rounding: Rounding) -> list[str]:
    notes = []
    by = "Ctrl-C" if stopped == Stop.INTERRUPTED else stopped
    if stopped in (Stop.MAX_PRODUCTS, Stop.MAX_SECONDS, *BY_HAND):
        notes.append(
            f"stopped by {by}: {int(converged.sum())} of {len(converged)} triplets converged; the intervals hold "
            "for all that are listed, but they need not be the outermost"
        )
    elif stopped == Stop.STAGNATION:
        notes.append(
            f"the residuals no longer shrink: {int(converged.sum())} of {len(converged)} triplets converged; the "
            "values lie too close together, by their squares, for an iteration: method='dense' tells them apart"
        )
    elif not converged.all():
        notes.append(
            f"{int((~converged).sum())} of {len(converged)} triplets are not known to tol={tol:.1e}, which is under "
            "the rounding of products"
        )
    if rounding.exact is None and rounding.operator.torch_dtype == torch.float32:
        notes.append("not certified in float64: the rounding of products is estimated")
    return notes
