"""`eigenpairs`: choose what to solve, solve it, and certify what came out with the operator itself."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from jvp_ops._memory import free_bytes, require
from jvp_ops._progress import progress_bar
from jvp_ops._random import Rng, generator
from jvp_ops.eigen._certify import Certified, certify, certify_images
from jvp_ops.eigen._choose import BLOCK, Request, check_request, plan_of, size_of
from jvp_ops.eigen._direct import by_arpack, by_lapack
from jvp_ops.eigen._iterate import (
    Found,
    check_deflated,
    checkpoint_at,
    columns_of,
    deflated_basis,
    iterate,
    request_identity,
    start_block,
)
from jvp_ops.eigen._krylov import Krylov
from jvp_ops.eigen._monitor import Monitor, SolveStatus
from jvp_ops.eigen._outcome import are_converged, mapped, notes_on, outcome
from jvp_ops.eigen._phase_space import phase_space_pairs
from jvp_ops.eigen._proof import Proof, memory_for_proof, prove
from jvp_ops.eigen._result import Eigenpairs
from jvp_ops.eigen._rounding import Rounding
from jvp_ops.eigen._subspace import Subspace
from jvp_ops.eigen._target import Target
from jvp_ops.errors import ConvergenceError, InputError, JvpOpsError, NonFiniteError
from jvp_ops.operators import TensorOperator


def eigenpairs(
    operator: TensorOperator,
    k: int = 6,
    which: str = "LM",
    *,
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
    operator : JacobianOperator, HessianOperator or GaussNewtonOperator
        Square. `symmetric` chooses the solver. Where it is shift·I + scale·H, H is solved for and mapped; so it is
        by ``auto`` for the Jacobian of `HeavyBall` and `Nesterov`, two eigenvalues over each of H.
    k : int
        How many, below n; with ``method="dense"`` at most n. Of a non-symmetric operator one more comes where the
        cut would split a conjugate pair.
    which : str
        Symmetric: ``LA`` (largest), ``SA`` (smallest), ``LM`` (largest magnitude), ``BE`` (half from each end).
        Non-symmetric: ``LM``, ``LR``, ``SR`` (largest, smallest real part), ``LI`` (largest imaginary part).
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
        Before stopping, look for missed members of clusters from a fresh random block, until it finds none; on by
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
    began = time.perf_counter()
    iterative: dict[str, Any] = {"verify": verify, "block": block, "start": start, "deflate": deflate}
    iterative |= {"basis_dtype": basis_dtype, "max_products": max_products, "max_seconds": max_seconds}
    iterative |= {"callback": callback, "checkpoint": checkpoint, "resume": resume, "max_memory": max_memory}
    request = check_request(operator, k, which, method, tol, iterative)
    if condition and operator.symmetric:
        raise InputError("condition=True is of a non-symmetric operator: a symmetric one's condition numbers are all 1")
    if prove_complete and not operator.symmetric:
        raise InputError("prove_complete=True counts by inertia, which a non-symmetric operator does not have")
    if condition and request.method == "scipy":
        raise InputError("condition=True needs left eigenvectors, which method='scipy' does not find: use 'auto'")
    if prove_complete:
        n = operator.shape[0]
        what, remedy = f"a proof by the dense matrix of order {n}", "leave prove_complete out, or take a block"
        require(memory_for_proof(n), free_bytes(torch.device("cpu")), what, remedy)
    inside, spent = None, 0
    if operator.phase_space is not None and method == "auto" and deflate is None and checkpoint is None:

        def solve(H: TensorOperator, k: int, which: str, *, method: str = "auto", **given: Any) -> Eigenpairs:
            own: dict[str, Any] = {"tol": tol, "float64": float64, "rng": rng, "progress": progress, "method": method}
            if method == "auto":
                own |= {"verify": verify, "block": block, "basis_dtype": basis_dtype, "callback": callback}
                own |= {"method": "lanczos", "max_memory": max_memory, **given}
            return eigenpairs(H, k, which, **own)

        base, before = operator.phase_space.base, operator.phase_space.base.products
        iterate = any(value is not None for name, value in iterative.items() if name not in ("resume", "start"))
        pairs = phase_space_pairs(
            operator,
            request,
            solve,
            start=start,
            float64=float64,
            iterate=iterate,
            block=block,
            max_products=max_products,
            max_seconds=max_seconds,
        )
        if pairs is not None:
            return pairs
        where = "what is asked for lies inside of H's spectrum, not at its ends"
        inside = f"{where}: Df itself was solved"
        spent = base.products - before
        max_products = None if max_products is None else max_products - spent
        max_seconds = None if max_seconds is None else max(0.0, max_seconds - (time.perf_counter() - began))
        if max_products is not None and max_products < (block or BLOCK):
            raise ConvergenceError(f"{where}, and {spent} products of H left none for Df itself: raise max_products")
    affine, random = operator.affine, generator(rng)
    solved = affine.base if affine is not None else operator
    target = Target(which) if affine is None else Target(which, affine.shift, affine.scale)
    before = solved.products
    rounding = Rounding.unmeasured(solved, float64=float64)
    with progress_bar(None, show=progress, description=f"eigenpairs {which}", unit="product") as bar:
        monitor = Monitor(max_products=max_products, max_seconds=max_seconds, callback=callback, bar=bar)
        options = Options(verify is not False, block, start, deflate, basis_dtype, max_memory, checkpoint, resume)
        found = _find(rounding, request, target, options, random, monitor)
        left = _left_basis(rounding, request, target, options, random, monitor, found) if condition else None
    certified = certify(rounding.with_norm(found.progress.norm), found.basis, target, request.k, left=left)
    proof = _proof(certified, request, rounding, target, progress) if prove_complete else Proof()
    result = outcome(certified, request, found, rounding, proof)
    notes = notes_on(result, found, rounding, proof if prove_complete else None, monitor)
    if condition and left is None:
        notes += (
            "no condition numbers: the left eigenvectors were not found, or are of other eigenvalues (a tie at the "
            "cut): raise the budget, or ask for another k",
        )
    notes += () if inside is None else (inside,)
    if affine is not None:
        result = mapped(result, affine.shift, affine.scale)
    return replace(
        result,
        notes=(*operator.linearization.notes, *notes),
        provenance=operator.identity(),
        products=solved.products - before + spent,
        float64_products=0 if rounding.exact is None else rounding.exact.products,
        seconds=time.perf_counter() - began,
    )


def _proof(certified: Certified, request: Request, rounding: Rounding, target: Target, progress: bool) -> Proof:
    """Prove that none was missed; whatever keeps that from ending, the pairs stand."""
    converged = int(are_converged(certified, request).sum())
    if converged < request.k:
        return Proof(reason=f"only {converged} of {request.k} eigenpairs converged")
    try:
        operator = rounding.exact or rounding.operator
        return prove(operator, target, certified.values, certified.bounds, progress=progress)
    except KeyboardInterrupt:
        return Proof(reason="the proof was interrupted")
    except JvpOpsError as error:
        return Proof(reason=str(error))


@dataclass(frozen=True)
class Options:
    """The options of an iteration, as they were given."""

    verify: bool
    block: int | None
    start: Any
    deflate: Any
    basis_dtype: torch.dtype | str | None
    max_memory: int | str | None
    checkpoint: str | Path | None
    resume: bool


def _find(
    rounding: Rounding,
    request: Request,
    target: Target,
    options: Options,
    rng: np.random.Generator,
    monitor: Monitor,
) -> Found:
    """Run the solver that was chosen."""
    if request.method == "dense":
        return by_lapack(rounding, request, target)
    if request.method == "scipy":
        return by_arpack(rounding, request, target, rng, monitor)
    operator = rounding.operator
    given = [None if x is None else columns_of(operator, x, "start") for x in (options.start,)]
    given.append(None if options.deflate is None else columns_of(operator, options.deflate, "deflate"))
    size = size_of(
        operator,
        request.k,
        block=options.block,
        start=0 if given[0] is None else given[0].shape[1],
        deflated=0 if given[1] is None else given[1].shape[1],
        basis_dtype=options.basis_dtype,
        max_memory=options.max_memory,
    )
    plan = plan_of(request, target, size, verify=options.verify, refine=rounding.exact is not None)
    deflated = deflated_basis(given[1], size.dtype)
    if deflated is not None:
        check_deflated(operator, deflated, rng)
    seed = rng.bit_generator.state

    def identity() -> dict[str, Any]:
        return request_identity(operator, plan, size.dtype, given[0], deflated, seed)

    checkpoint = checkpoint_at(options.checkpoint, resume=options.resume, identity=identity)
    first = start_block(operator, given[0], size.block, rng)
    least = max(size.block, first.shape[1])
    if monitor.max_products is not None and monitor.max_products < least:
        raise InputError(f"max_products={monitor.max_products} is too few: the first block alone takes {least}")
    subspace = Subspace(
        operator.shape[0], size.capacity, dtype=size.dtype, device=operator.device, rng=rng, deflated=deflated
    )
    try:
        found = iterate(Krylov(operator, rounding, plan, subspace, first, monitor), checkpoint)
    except NonFiniteError as error:
        error.partial = _partial(error, rounding, request, target)
        raise
    if found.basis.shape[1] == 0:
        raise ConvergenceError(f"the solve was stopped ({found.stopped}) before its first product")
    return found


def _left_basis(
    rounding: Rounding,
    request: Request,
    target: Target,
    options: Options,
    rng: np.random.Generator,
    monitor: Monitor,
    right: Found,
) -> Tensor | None:
    """Find the left invariant subspace of the eigenvalues found, that of the transpose; None if it fails."""
    if request.method == "dense":
        return by_lapack(rounding, request, target, transposed=True).basis
    transposed = replace(
        rounding, operator=rounding.operator.T, exact=None if rounding.exact is None else rounding.exact.T
    )
    try:
        left = _find(
            transposed, request, target, replace(options, start=None, checkpoint=None, resume=False), rng, monitor
        )
    except ConvergenceError:
        return None
    known = [torch.linalg.eigvals((part.basis.mT @ _image(part)).double()).cpu().numpy() for part in (right, left)]
    if left.stopped not in ("converged", "rounding") or len(known[0]) != len(known[1]):
        return None
    distances = np.abs(known[0][:, None] - known[1])
    apart = float(distances[linear_sum_assignment(distances)].max())
    allowed = max(float(np.sqrt(max(right.reach, left.reach))), 1e-3) * right.progress.norm
    return left.basis if apart <= allowed else None


def _image(found: Found) -> Tensor:
    assert found.image is not None  # of an iteration, always
    return found.image


def _partial(error: NonFiniteError, rounding: Rounding, request: Request, target: Target) -> Eigenpairs | None:
    """Make a result of what was found before a product failed, without any further product."""
    found: Found | None = getattr(error, "found", None)
    if found is None or found.image is None or found.basis.shape[1] == 0:
        return None
    certified = certify_images(found.basis, found.image, rounding.operator, target, request.k)
    result = outcome(certified, request, found, rounding, Proof())
    return replace(result, converged=np.zeros(len(result), dtype=bool), notes=(str(error),))
