"""`eigenpairs`: what is asked for, and the route to it: by way of H where that is known, or by the operator itself."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from jvp_ops._random import Rng
from jvp_ops._sitting import Sitting
from jvp_ops.eigen._monitor import SolveStatus
from jvp_ops.eigen._outcome import mapped
from jvp_ops.eigen._phase_space import phase_space_pairs
from jvp_ops.eigen._request import BLOCK, Request
from jvp_ops.eigen._result import Eigenpairs
from jvp_ops.eigen._solve import sitting_of, solve
from jvp_ops.eigen._target import Target
from jvp_ops.errors import ConvergenceError
from jvp_ops.operators import TensorOperator, as_operator


def eigenpairs(
    operator: TensorOperator | LinearOperator | Any,
    k: int = 6,
    which: str = "LM",
    *,
    symmetric: bool | None = None,
    method: str = "auto",
    tol: float | None = None,
    float64: bool = True,
    verify: bool | None = None,
    prove_complete: bool = False,
    condition: bool = False,
    block: int | None = None,
    start: "Tensor | Eigenpairs | None" = None,
    deflate: "Tensor | Eigenpairs | None" = None,
    basis_dtype: torch.dtype | str | None = None,
    max_memory: int | str | None = None,
    max_products: int | None = None,
    max_seconds: float | None = None,
    rng: Rng = 0,
    progress: bool = False,
    callback: Callable[[SolveStatus], object] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> Eigenpairs:
    r"""Find some eigenpairs of an operator, and certify each with the operator itself.

    .. math::  A x = λ x, \qquad |λ_{\text{true}} - λ| \le \text{bound} \quad (A = A^T).

    Parameters
    ----------
    operator : TensorOperator, scipy LinearOperator, sparse matrix or array, or Tensor
        Square. Its `symmetric` chooses the solver. Where it is the Jacobian shift·I + scale·H, H is solved for and
        mapped; so it is by ``auto`` for the Jacobian of `HeavyBall` and `Nesterov`, two eigenvalues over each of H.
    k : int
        How many, below n; with ``method="dense"`` at most n. Of a non-symmetric operator one more comes where the
        cut would split a conjugate pair.
    which : str
        Symmetric: ``LA`` (largest), ``SA`` (smallest), ``LM`` (largest magnitude), ``BE`` (half from each end).
        Non-symmetric: ``LM``, ``LR``, ``SR`` (largest, smallest real part), ``LI`` (largest imaginary part).
    symmetric : bool, optional
        Of an operator that is not of this package: whether it equals its transpose; see `as_operator`. It is checked.
    method : str
        ``lanczos`` (thick-restart block Lanczos; symmetric), ``krylov-schur`` (block Krylov–Schur in real
        arithmetic; non-symmetric), ``dense`` (LAPACK on the dense matrix in float64), ``scipy`` (ARPACK), or
        ``auto``: ``dense`` for n ≤ 256 or 4k ≥ n unless an option that only an iteration has is given, else the
        iteration.
    tol : float, optional
        Residual relative to ‖A‖ to reach; by default 1e-5 in float32 and 1e-10 in float64. A float32 iteration goes
        on in float64 where its own rounding is larger, or stops there and says so.
    float64 : bool
        Certify a float32 operator's pairs by the same operator in float64, where there is one and it fits: a
        Rayleigh–Ritz pass of k products. Without it, bounds are no better than float32's rounding.
    verify : bool, optional
        Before stopping, look for what was missed from fresh random directions, until they find nothing; on by
        default. It is no proof.
    prove_complete : bool
        Assemble the dense matrix in float64 and count eigenvalues by inertia: `complete` is then a proof, and bounds
        are sharpened by the gaps it certifies. Symmetric operators; n²·8 bytes, n³/3 operations a count.
    condition : bool
        Of a non-symmetric operator: find left eigenvectors too (as many products again), for condition numbers,
        first-order bounds, and clusters near defective points.
    block : int, optional
        Vectors multiplied at once; by default 8, or fewer where memory is short.
    start : Tensor, shape (n,) or (n, m), or Eigenpairs, optional
        Approximate eigenvectors to begin with, any number of them.
    deflate : Tensor, shape (n, m), or Eigenpairs, optional
        Known eigenvectors to leave out, such as `TwoLayerLoss.null_space`; sparse ones must be orthonormal.
    basis_dtype : torch.dtype or str, optional
        Of the basis; by default float64, or the operator's where that does not fit.
    max_memory : int or str, optional
        Bytes that the basis may take, such as ``"2GiB"``; by default half of what is free.
    max_products, max_seconds : optional
        Budgets of the iteration. When one runs out, the best pairs so far are certified and returned.
    rng : int or numpy Generator
        Draws start vectors; the same seed gives the same result bit for bit on one device.
    progress : bool
        Show products and converged pairs on standard error.
    callback : callable, optional
        ``callback(status)`` with a `SolveStatus` at each look at the Ritz values; returning True stops the solve, as
        Ctrl-C does, and the best pairs so far are returned.
    checkpoint : str or Path, optional
        A file for the state of the iteration, written every half minute and at the end.
    resume : bool
        Go on from `checkpoint` where it is there; on one device the result is bit for bit the uninterrupted one.

    Returns
    -------
    Eigenpairs
        Values with intervals, vectors, residuals, what is proved, products used, why it stopped.

    Raises
    ------
    InputError
        A rectangular operator; k or which out of range; options that do not go together; an operator that is
        declared symmetric and is not.
    NonFiniteError
        A product gave NaN or Inf; the message numbers it, and what was found before is in the error's ``partial``.
    DataError
        The checkpoint is damaged, or of another operator or request.
    MemoryBudgetError
        Not even the smallest basis fits.
    ConvergenceError
        The solve was stopped before its first product; with ``method="scipy"``, nothing converged.

    Notes
    -----
    Symmetric intervals hold all at once: as many eigenvalues, with multiplicity, as values in each group of intervals
    that overlap. That an eigenvalue is in its interval is certain up to the measured rounding of products; that no
    better one was missed is certain only where `complete` is true.

    In float32 the operator in float64 is what the bounds are of. Where there is none, the rounding of products is
    estimated, that of what is computed once at θ is not seen, and a note says so.

    References
    ----------
    K. Wu and H. Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM Journal on Matrix
    Analysis 22 (2000). G. W. Stewart, "A Krylov–Schur algorithm for large eigenproblems", ibid. 23 (2001).
    B. N. Parlett, "The Symmetric Eigenvalue Problem" (1998), chapter 11.

    Examples
    --------
    >>> import torch, jvp_ops as jo
    >>> ramp = torch.arange(1.0, 501.0, dtype=torch.float64)
    >>> loss = jo.FunctionLoss(lambda x: (ramp * x**2).sum() / 2, size=500, dtype="float64")
    >>> pairs = jo.eigenpairs(loss.hessian(loss.initial()), k=3, which="LA")
    >>> pairs.values.round(8).tolist(), bool(pairs.converged.all()), pairs.complete
    ([500.0, 499.0, 498.0], True, False)
    """
    request = Request(
        k,
        which,
        method=method,
        tol=tol,
        float64=float64,
        verify=verify,
        prove_complete=prove_complete,
        condition=condition,
        block=block,
        start=start,
        deflate=deflate,
        basis_dtype=basis_dtype,
        max_memory=max_memory,
        max_products=max_products,
        max_seconds=max_seconds,
        rng=rng,
        progress=progress,
        callback=callback,
        checkpoint=checkpoint,
        resume=resume,
    )
    A = as_operator(operator, symmetric=symmetric)
    checked = request.checked(A)
    with sitting_of(request, f"eigenpairs {which}") as sitting:
        return _routed(A, request, checked, sitting)


def _routed(operator: TensorOperator, asked: Request, request: Request, sitting: Sitting) -> Eigenpairs:
    """Go by way of H where the operator's spectrum follows from it, else solve the operator itself."""
    inside: tuple[str, ...] = ()
    spent = 0
    if operator.phase_space is not None and asked.method == "auto" and asked.deflate is None and not asked.checkpoint:
        base = operator.phase_space.base
        before = base.products
        pairs = phase_space_pairs(operator, request, sitting, iterate=bool(set(asked.iterative()) - {"start"}))
        if pairs is not None:
            return pairs
        where, spent = "what is asked for lies inside of H's spectrum, not at its ends", base.products - before
        inside = (f"{where}: Df itself was solved",)
        if request.max_products is not None:
            left = request.max_products - spent
            request = replace(request, max_products=left)
            if left < (request.block or BLOCK):
                raise ConvergenceError(
                    f"{where}, and {spent} products of H left none for Df itself: raise max_products"
                )
    if operator.affine is not None:
        shift, scale, base = operator.affine.shift, operator.affine.scale, operator.affine.base
        pairs = mapped(solve(base, request, Target(request.which, shift, scale), sitting), shift, scale)
    else:
        pairs = solve(operator, request, Target(request.which), sitting)
    return replace(
        pairs,
        notes=(*pairs.notes, *inside),
        provenance=operator.identity(),
        products=pairs.products + spent,
    )
